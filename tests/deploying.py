"""What the tests of config/deploy have in common: its files, programs that they need, a played systemd."""

import asyncio
import os
import shutil
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from harness import environ

from proxy.core.caller import Digest

CALLER_KEY = "npk_billing_" + "k" * 40
DEPLOY = Path(__file__).parents[1] / "config/deploy"


def program(name: str, *, package: str = "") -> str:
    """The path of a program; without it the test is skipped, but in CI it fails."""
    beside = Path(sys.executable).parent / name
    found = (
        str(beside)
        if beside.exists()
        else shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    )
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"{name} is not installed: apt-get install {package or name}"
        )
    return found


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """A unit of systemd's: its sections, their names, and every value of each in order."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in (DEPLOY / "systemd" / name).read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


class Notices:
    """The socket of a service manager, and what it is told: a dict of lines a datagram."""

    def __init__(self, address: str) -> None:
        self.told: list[dict[str, str]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.bind(address.replace("@", "\0", 1))

    async def until(self, name: str) -> dict[str, str]:
        """Wait for the next datagram that has a line of this name."""
        loop = asyncio.get_running_loop()
        while True:
            data = await asyncio.wait_for(loop.sock_recv(self._sock, 4096), 30)
            self.told.append(dict(line.split("=", 1) for line in data.decode().split("\n")))
            if name in self.told[-1]:
                return self.told[-1]

    def close(self) -> None:
        self._sock.close()


# systemd duplicates the sockets to 3 and up, says whose they are, and becomes the service. Where the
# kernel can (PR_SET_MDWE), memory is not to be executed once it could be written, as the unit says.
_EXEC = """
import ctypes, fcntl, os, sys
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
high = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 100) for one in sys.argv[1].split(",") if one]
for at, one in enumerate(high, 3):
    os.dup2(one, at, True)
pid = str(os.getpid())
os.environ.update(LISTEN_PID=pid, LISTEN_FDS=str(len(high)), WATCHDOG_PID=pid)
os.execv(sys.executable, [sys.executable, "-m", "proxy", *sys.argv[2:]])
"""


@asynccontextmanager
async def as_a_service(*listening: socket.socket, arguments: tuple[str, ...] = (), **env: str):
    """`nomba-proxy serve`, started as systemd starts a service: given sockets, and only these.

    It has to be told to end by whoever started it; what is left then is killed.
    """
    numbers = [one.fileno() for one in listening]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _EXEC, ",".join(map(str, numbers)), "serve", *arguments),
        env={**environ(), **env},
        pass_fds=numbers,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def given_files(env: dict[str, str], folder: Path, contents: dict[str, str]) -> dict[str, str]:
    """An environment whose files are here: those of secrets, certificates and callers.

    Args:
        env: of a container.
        folder: for them.
        contents: by the name of each file. One that nobody knows is a mistake.
    """
    placed = dict(env)
    for name, value in env.items():
        if name.endswith("_FILE"):
            path = folder / Path(value).name
            path.write_text(contents[path.name])
            path.chmod(0o440)
            placed[name] = str(path)
    return placed


def secrets_of(simulator, authority, *, password: str = "") -> dict[str, str]:
    """What the files of the examples hold: the simulator's client, a caller, a certificate.

    Args:
        simulator: whose client it is.
        authority: a CA of trustme's, which signs the certificate.
        password: of the shared store.
    """
    made = authority.issue_cert("localhost")
    digest = str(Digest.of(CALLER_KEY, salt="0" * 16))
    return {
        "client-id": simulator.switches.client_id,
        "client-secret": simulator.switches.client_secret,
        "account-id": simulator.switches.account_id,
        "admin-token": "admin-" * 8,
        "signing-key": "signing-" * 8,
        "valkey-password": password,
        "callers.toml": f'[[caller]]\nname = "billing"\nsecrets = ["{digest}"]\n',
        "tls.crt": "".join(one.bytes().decode() for one in made.cert_chain_pems),
        "tls.key": made.private_key_pem.bytes().decode(),
    }
