"""git over HTTP: what one side pushes, the other gets, tree for tree."""

import os
import random
import subprocess
from pathlib import Path

from stand import Verdict, program

_BIG = 8 * 1024 * 1024  # bytes that do not compress, so that the push is sent in chunks
_MANY = 400  # branches: to negotiate over them takes a request that git compresses
_WITHIN = 120  # seconds of one command


def git(url: str, folder: Path) -> dict[str, Verdict]:
    """Push, clone and fetch, with protocol 0 and 2.

    A push of more than 1 MiB (`http.postBuffer`) goes in chunks, a longer negotiation in gzip; the
    trace of git's curl has to say that it did.
    """
    program("git", "git")
    found = {}
    for version in ("0", "2"):
        # The origin's folder of repositories is the run's; each run has one of its own in it.
        name = f"{folder.name}-{version}.git"
        steps = _Steps(f"{url}/{name}", folder / version, version=version)
        _git(
            "init",
            "--quiet",
            "--bare",
            "--initial-branch=main",
            folder.parent / "origin" / name,
            at=folder,
        )
        _git(
            *("-C", folder.parent / "origin" / name, "config", "http.receivepack", "true"),
            at=folder,
        )
        for case in (steps.push, steps.clone, steps.push_chunked, steps.fetch_gzip):
            said = ""
            try:
                case()
            except (subprocess.SubprocessError, RuntimeError) as problem:
                said = f"{problem} {getattr(problem, 'stderr', '') or ''}".strip()[-300:]
            label = case.__name__.replace("_", " ")
            found[f"{label}, protocol {version}"] = Verdict("fail" if said else "pass", said)
    return found


class _Steps:
    """One after another on the same two clones, each of which ends with the same tree."""

    def __init__(self, url: str, folder: Path, *, version: str) -> None:
        self._url = url
        self._options = ("-c", f"protocol.version={version}")
        self._mine, self._other = folder / "mine", folder / "other"
        self._mine.mkdir(parents=True)

    def push(self) -> None:
        _git("init", "--quiet", "--initial-branch=main", at=self._mine)
        (self._mine / "a file").write_text("hello\n")
        self._commit()
        self._sent()

    def clone(self) -> None:
        _git(*self._options, "clone", "--quiet", self._url, self._other, at=self._mine)
        self._same()

    def push_chunked(self) -> None:
        (self._mine / "big").write_bytes(random.Random(0).randbytes(_BIG))
        self._commit()
        self._sent(field="Transfer-Encoding: chunked")
        _git(*self._options, "pull", "--quiet", "--ff-only", at=self._other)
        self._same()

    def fetch_gzip(self) -> None:
        for at in range(_MANY):
            _git("commit", "--quiet", "--allow-empty", "--message", f"{at}", at=self._other)
            _git("branch", f"side-{at}", at=self._other)
        (self._mine / "last").write_text("end\n")
        self._commit()
        self._sent()
        fetch = ("fetch", "--quiet", "origin", "main")
        self._traced(*fetch, at=self._other, field="Content-Encoding: gzip")
        _git("reset", "--quiet", "--hard", "FETCH_HEAD", at=self._other)
        self._same()

    def _commit(self) -> None:
        _git("add", "--all", at=self._mine)
        _git("commit", "--quiet", "--message", "more", at=self._mine)

    def _sent(self, *, field: str = "") -> None:
        self._traced("push", "--quiet", self._url, "main", at=self._mine, field=field)

    def _traced(self, *arguments: object, at: Path, field: str) -> None:
        """Run it; `field` has to be among those that it sent."""
        trace = at / ".git/trace"
        trace.unlink(missing_ok=True)
        _git(*self._options, *arguments, at=at, GIT_TRACE_CURL=str(trace))
        if field.lower() not in trace.read_text(errors="replace").lower():
            raise RuntimeError(f"git did not send {field!r}, so this proves nothing")

    def _same(self) -> None:
        _git("fsck", "--strict", at=self._other)
        mine, other = (
            _git("rev-parse", "HEAD^{tree}", at=one) for one in (self._mine, self._other)
        )
        if mine != other:
            raise RuntimeError(f"the trees differ: {mine.strip()} was sent, {other.strip()} came")


def _git(*arguments: object, at: Path, **env: str) -> str:
    """Run it there, with no settings of this machine's."""
    who = {f"GIT_{one}_{what}": "conformance@localhost" for one in ("AUTHOR", "COMMITTER")
           for what in ("NAME", "EMAIL")}  # fmt: skip
    env = {"PATH": os.environ["PATH"], "HOME": str(at), "GIT_CONFIG_NOSYSTEM": "1"} | who | env
    done = subprocess.run(
        ["git", *map(str, arguments)], cwd=at, env=env, timeout=_WITHIN,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout
