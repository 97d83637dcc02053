"""Try the Dockerfile without Docker: its steps in clean Debian roots, then the proxy as it would run.

A small interpreter takes the instructions in order. What it stands on is a root of the Debian release that
the base image is made of, by debootstrap, with Debian's Python where the image has its own. The proxy
runs as the Dockerfile's user, without capabilities, on a read-only root, in name spaces of its own.
Needs root on Linux; `make image-check` runs it.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUITE = "trixie"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
CA = "etc/ssl/certs/ca-certificates.crt"
STATE = "/var/lib/nomba-proxy"

_ASK = (
    "import json, urllib.request as r; "
    "print(json.load(r.urlopen('http://127.0.0.1:8080/v1/accounts/balance', timeout=10))['code'])"
)
_WRITE = (
    "import os, pathlib; "
    "assert os.statvfs('/').f_flag & os.ST_RDONLY; "
    f"[pathlib.Path(one, 'x').touch() for one in ('/tmp', '{STATE}')]"
)


@dataclass
class Stage:
    """One FROM, and what has been said since."""

    root: Path
    env: dict[str, str] = field(
        default_factory=lambda: {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/root",
        }
    )
    folder: str = "/"
    user: str = "0:0"
    said: dict[str, str] = field(default_factory=dict)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), rest.strip()


def make_base(folder: Path) -> Path:
    """A minimal Debian with `python`, as the base image has one; made once."""
    base = folder / f"base-{SUITE}"
    if not (base / "made").exists():
        shutil.rmtree(base, ignore_errors=True)
        listed = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
        mirror = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()[
            :1
        ]
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE]
        subprocess.run([*command, str(base), *mirror], check=True, stdout=subprocess.DEVNULL)
        (base / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        for marker in base.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):  # the image has none
            marker.unlink()
        (base / "made").touch()
    return base


class Build:
    """What a Dockerfile makes, step by step.

    Args:
        folder: for the roots of its stages.
        base: what each of them begins with.
    """

    def __init__(self, folder: Path, *, base: Path) -> None:
        self._folder, self._base = folder, base
        self._arguments: dict[str, str] = {}
        self._stages: dict[str, Stage] = {}
        self.stage: Stage | None = None

    def run(self, text: str) -> Stage:
        """Follow it to its end; what is to be run then."""
        for word, rest in instructions(text):
            begun = time.monotonic()
            getattr(self, f"_{word.lower()}")(self._filled(rest))
            print(f"  {time.monotonic() - begun:5.1f} s  {word} {rest[:90]}", flush=True)
        assert self.stage is not None
        return self.stage

    def _filled(self, text: str) -> str:
        known = {**self._arguments, **(self.stage.env if self.stage else {})}
        return re.sub(r"\$\{(\w+)\}|\$(PATH)\b", lambda found: known[found[1] or found[2]], text)

    def _arg(self, rest: str) -> None:
        name, _, value = rest.partition("=")
        self._arguments[name] = value

    def _from(self, rest: str) -> None:
        image, _, name = rest.partition(" AS ")
        assert image.startswith("python:3."), f"{image} is not what the base stands for"
        root = self._folder / (name or "final")
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", str(self._base), str(root)], check=True)
        self.stage = self._stages[name] = Stage(root)

    def _workdir(self, rest: str) -> None:
        self.stage.folder = rest
        (self.stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _env(self, rest: str) -> None:
        self.stage.env |= dict(one.split("=", 1) for one in shlex.split(rest))

    def _user(self, rest: str) -> None:
        self.stage.user = rest

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        place = self.stage.root / str(Path(self.stage.folder) / target).lstrip("/")
        origin, ignored = ROOT, not_sent()
        if sources[0].startswith("--from="):
            origin, ignored = self._stages[sources.pop(0).removeprefix("--from=")].root, None
        for source in sources:
            found = origin / source.lstrip("/")
            assert ignored is None or source.split("/")[0] in sent(), (
                f".dockerignore keeps {source} away"
            )
            if found.is_dir():
                shutil.copytree(found, place, symlinks=True, ignore=ignored, dirs_exist_ok=True)
            else:
                into = place / found.name if target.endswith("/") else place
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, into)

    def _run(self, rest: str) -> None:
        stage = self.stage
        host = Path("/") / CA
        # Name resolution and certificates are this machine's, for this step only.
        mounts = [
            f"mount --bind {one} {stage.root}{one}"
            for one in (host, "/etc/resolv.conf")
            if Path(one).exists()
        ]
        env = {**stage.env, "PIP_CERT": f"/{CA}", "PIP_ROOT_USER_ACTION": "ignore"}
        if index := pip_index():
            env["PIP_INDEX_URL"] = index
        command = ["chroot", str(stage.root), "/bin/sh", "-c", f"cd {stage.folder} && {rest}"]
        enter(stage.root, mounts, command, env=env, check=True)

    def _healthcheck(self, rest: str) -> None:
        self.stage.said["HEALTHCHECK"] = rest.partition(" CMD ")[2]

    def _entrypoint(self, rest: str) -> None:
        self.stage.said["ENTRYPOINT"] = rest

    def _cmd(self, rest: str) -> None:
        self.stage.said["CMD"] = rest

    def _stopsignal(self, rest: str) -> None:
        assert rest == "SIGTERM"


def sent() -> set[str]:
    """What .dockerignore lets through, which keeps everything else away."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    return {line[1:] for line in lines if line.startswith("!")}


def not_sent():
    """What it keeps away of that: patterns that begin with `**/`."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    names = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    return lambda _, found: [one for one in found if any(fnmatch(one, name) for name in names)]


def pip_index() -> str:
    """Where this machine's pip looks for packages, if it is told to."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return os.environ.get("PIP_INDEX_URL", told)


def enter(
    root: Path, mounts: list[str], command: list[str], *, env: Mapping[str, str], check: bool
):
    """Run something in mount and process name spaces of its own."""
    proc = f"mount -t proc proc {root}/proc"
    script = " && ".join(["mount --make-rprivate /", proc, *mounts, 'exec "$@"'])
    names = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    return subprocess.run([*names, "sh", "-c", script, "sh", *command], env=dict(env), check=check)


def try_it(stage: Stage, *, log: Path) -> None:
    """Run the proxy as a container would, against the simulator, and ask it."""
    uid, _, gid = stage.user.partition(":")
    assert int(uid) > 0 < int(gid), "it would run as root"
    root = stage.root
    dropped = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"]
    dropped += ["--bounding-set=-all", "--inh-caps=-all", "--"]
    script = [
        "mount --make-rprivate /",
        f"mount --bind {root} {root}",
        f"mount -t proc proc {root}/proc",
        f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp",
        f"mount -t tmpfs -o mode=0700,uid={uid},gid={gid} tmpfs {root}{STATE}",
        f"mount -o remount,bind,ro {root}",
        "ip link set lo up",
        f'exec chroot {root} "$@"',
    ]
    names = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "sh", "-c"]
    command = [*dropped, *json.loads(stage.said["ENTRYPOINT"]), *json.loads(stage.said["CMD"])]
    env = {**stage.env, "HOME": "/", "NOMBA_PROXY_SIMULATE": "true", "NOMBA_PROXY_INSPECT": "false"}
    with log.open("wb") as out:
        outer = subprocess.Popen(
            [*names, " && ".join(script), "sh", *command], env=env, stdout=out, stderr=out
        )
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")

    def process() -> str:
        """The proxy's id, once there is one."""
        while not (found := children.read_text().split()):
            assert outer.poll() is None, log.read_text()
            time.sleep(0.05)
        return found[0]

    def inside(*asked: str) -> subprocess.CompletedProcess:
        pid = process()
        entering = ["nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--root", "--wd"]
        return subprocess.run(
            [*entering, *dropped, *asked], env=env, capture_output=True, check=False
        )

    try:
        begun = time.monotonic()
        health = json.loads(stage.said["HEALTHCHECK"])
        while (last := inside(*health)).returncode and time.monotonic() - begun < 30:
            assert outer.poll() is None, log.read_text()
            time.sleep(0.1)
        assert last.returncode == 0, (last.stderr.decode(), log.read_text())
        print(f"  {time.monotonic() - begun:5.1f} s  until HEALTHCHECK says it lives")
        asked = inside("python", "-c", _ASK)
        assert asked.stdout == b"00\n", (asked.stderr.decode(), log.read_text())
        print("         a request is answered by the simulator")
        pid = process()
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(rf"(?m)^Uid:\s+{uid}\s+{uid}", status), status
        assert re.search(r"(?m)^CapEff:\s+0+$", status), status
        written = inside("python", "-c", _WRITE)
        assert written.returncode == 0, written.stderr.decode()
        print(f"         it runs as {stage.user} without capabilities, on a root that is read-only")
        os.kill(int(pid), 15)
        code = outer.wait(45)
        assert code == 0, (code, log.read_text())
        print("         SIGTERM ends it with exit code 0")
    finally:
        outer.kill()
        outer.wait()


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".image").resolve()
    needed = ("debootstrap", "unshare", "nsenter", "chroot", "setpriv", "ip")
    missing = [one for one in needed if not shutil.which(one)]
    if missing or os.geteuid() != 0:
        print(
            f"image-check: not possible here: {', '.join(missing) or 'it needs root'}",
            file=sys.stderr,
        )
        return 1
    folder.mkdir(exist_ok=True)
    begun = time.monotonic()
    base = make_base(folder)
    print(f"Dockerfile, on Debian {SUITE} (base ready after {time.monotonic() - begun:.0f} s):")
    stage = Build(folder, base=base).run((ROOT / "Dockerfile").read_text())
    try_it(stage, log=folder / "log")
    print("image-check: good")
    return 0


if __name__ == "__main__":
    sys.exit(main())
