"""The commands that the docs show, one by one, and a shell that runs them as a reader would."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]

# What is not run here, by how a command begins, and why.
NOT_RUN = {
    "chown": "needs root",
    "cp": "puts files into the machine's own folders",
    "docker": "needs an engine; the Dockerfile has tests of its own",
    "envoy": "is not everywhere; the bench and the tests of deployment start it",
    "install": "changes the machine",
    "journalctl": "needs systemd as the first process",
    "kubectl": "needs a cluster",
    "make": "takes minutes or writes into the repository, but for make run",
    "nginx": "is not everywhere; the tests of deployment start it",
    "pip": "asks a registry",
    "promtool": "is not everywhere",
    "python3 -m venv": "asks a registry, with the pip behind it",
    "sysctl": "changes the machine",
    "systemctl": "needs systemd as the first process",
    "systemd-socket-activate": "is not everywhere; tests/flows/test_listeners.py has fd:3",
    "update-ca-certificates": "changes the machine",
    "update-ca-trust": "changes the machine",
    "useradd": "changes the machine",
    "usermod": "changes the machine",
}
# Outside of the test's folder a command may name no file but these.
_MAY_READ = "/etc/ssl/"
_GOES_ON = re.compile(r"^((?:\w+=\S+ )*)(?=nomba-proxy (?:\S+ )*?(?:serve|simulate)\b|make run\b)")
_PORTS = ("127.0.0.1:8080", "127.0.0.1:9091", "127.0.0.1:4040", "127.0.0.1:8090", "127.0.0.1:8091")


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return re.findall(r"(?ms)^```([^\n]*)\n(.*?)^```$", text)


def commands(text: str) -> list[list[str]]:
    """The commands of each `sh` block of a page; one may have several lines."""
    found = []
    for language, block in blocks(text):
        if language != "sh":
            continue
        found.append([])
        whole = ""
        for line in block.splitlines():
            whole += line + "\n"
            if line.strip() and _is_complete(whole):
                found[-1].append(whole.strip())
                whole = ""
        assert not whole.strip(), whole
    return found


def _is_complete(text: str) -> bool:
    if here := re.search(r"<<-?\s*['\"]?(\w+)", text):
        return bool(re.search(rf"(?m)^{here[1]}$", text))
    try:
        shlex.split(text, comments=True)
    except ValueError:  # a quote is open
        return False
    return not bare(text).endswith(("\\", "|", "&&"))


def bare(command: str) -> str:
    """A command without the remark behind it."""
    return re.sub(r"\s+#\s.*$", "", command.strip())


def why_not(command: str) -> str:
    """Why a command is not run here; "" if it is."""
    for simple in re.split(r"&&|;|\|", bare(command)):
        words = " ".join(one for one in simple.split() if "=" not in one)
        for beginning, reason in NOT_RUN.items():
            if f"{words} ".startswith(f"{beginning} ") and words != "make run":
                return reason
    return ""


@dataclass(frozen=True)
class Place:
    """Where a page's commands are run.

    Attributes:
        folder: for everything that they write.
        ports: one for each of the ports that the docs name, one for 443, one to spare.
        replaced: further texts, and what stands for them.
    """

    folder: Path
    ports: list[int]
    replaced: dict[str, str]

    def script(self, page: list[list[str]]) -> str:
        """A script of bash that fails at the first command that does; a block begins at home."""
        asked = f"http://127.0.0.1:{self.ports[0]}/v1/accounts/balance"
        lines = [_PRELUDE.format(folder=self.folder, asked=asked)]
        for block in page:
            lines.append(f'cd "{self.folder}"')
            for command in block:
                if not why_not(command):
                    lines.append(f"{self._run(command)}\nhow_did_it_go $? {shlex.quote(command)}")
        return "\n".join(lines) + "\n"

    def _run(self, command: str) -> str:
        here = _GOES_ON.sub(r"\1going_on ", self._moved(command))
        outside = re.findall(r"(?<![\w.])/(?:etc|home|opt|root|run|srv|usr|var)/\S*", here)
        assert all(one.startswith(_MAY_READ) for one in outside), (
            f"{command}: it names {outside}, which is the machine's; say in NOT_RUN why it is not run"
        )
        if re.match(r"nomba-proxy tail\b", here):
            return f"{bare(here)} --no-follow"
        if re.match(r"KEY=\$\(nomba-proxy caller add\b", here):
            return f"{bare(here)} && taken_over"
        adds = re.match(r"(?:\w+=\S+ )*nomba-proxy caller add\b", here)
        return re.sub(r"(?=nomba-proxy caller add\b)", "adding ", here) if adds else here

    def _moved(self, command: str) -> str:
        for text, other in self.replaced.items():
            command = command.replace(text, other)
        for text, port in zip(_PORTS, self.ports, strict=False):
            command = command.replace(text, f"127.0.0.1:{port}")
        command = command.replace("0.0.0.0:9091", f"127.0.0.1:{self.ports[1]}")
        command = command.replace("127.0.0.1:443", f"127.0.0.1:{self.ports[5]}")
        for text in ("/var/lib/nomba-proxy", "/etc/nomba-proxy", "/run/secrets", "/tmp"):
            if text != "/tmp" or str(self.folder) not in command:
                command = re.sub(rf"(?<![\w.-]){text}\b", f"{self.folder}{text}", command)
        return command


# What goes on until it is told to stop is left running for the commands after it, until the
# next of its kind. `make` finds the environment that this test runs in.
_PRELUDE = """\
set -m   # what goes on is a group of processes
going=
stop() {{
  for _ in $(seq 400); do   # a second signal ends at once
    [ -n "$going" ] && kill -- "-$going" 2>/dev/null || break
    sleep 0.05
  done
  going=
}}
trap stop EXIT
failed="{folder}/failed"   # also what a page's own functions and pipes swallow
curl() {{ command curl --fail-with-body --max-time 20 "$@" || {{ echo "$@" >>"$failed"; false; }}; }}
make() {{ command make --no-print-directory -C "$ROOT" -o "$VENV/.runs" VENV="$VENV" "$@"; }}
going_on() {{
  stop
  : >"{folder}/err"   # what was before it says nothing of it
  "$@" >"{folder}/out" 2>"{folder}/err" </dev/null &
  going=$!
  for _ in $(seq 400); do
    grep -q 'curl -s' "{folder}/err" && return
    kill -0 "$going" 2>/dev/null || break
    sleep 0.05
  done
  cat "{folder}/err"
  return 1
}}
adding() {{
  local KEY
  KEY=$("$@") && taken_over
}}
taken_over() {{   # by a running proxy, within two seconds
  [ -n "$going" ] || return 0
  for _ in $(seq 100); do
    command curl -sf -o /dev/null -H "X-Nomba-Proxy-Key: $KEY" "{asked}" && return
    sleep 0.05
  done
}}
how_did_it_go() {{
  [ "$1" = 0 ] && [ ! -e "$failed" ] && return
  echo "failed with $1: $2"
  [ ! -e "$failed" ] || cat "$failed"
  exit 1
}}
"""
