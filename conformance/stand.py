"""What a suite runs against: an origin, and the proxy in front of it, each a process."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import Process, environment, free_port

HERE = Path(__file__).parent
ROOT = HERE.parent
PYTHON = ROOT / ".venv-conformance/bin/python"
NODE_MODULES = HERE / "http-cache-tests/node_modules"


@dataclass(frozen=True)
class Verdict:
    """What a suite says of a case.

    Attributes:
        word: `pass`, or how it failed, as the suite tells such apart.
        said: the suite's message, for people.
    """

    word: str
    said: str = ""


class LeftOut(Exception):
    """A suite cannot run here; the text says why, and what to do."""


def program(name: str, package: str) -> str:
    """Where it is.

    Raises:
        LeftOut: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise LeftOut(f"{name} is not installed here (Debian: apt-get install {package})")
    return found


@contextlib.contextmanager
def running(
    command: list[str | Path], *, port: int, folder: Path, env: dict[str, str]
) -> Iterator[str]:
    """A process that listens on `port`; its URL."""
    output = folder / f"{port}.log"
    cores = sorted(os.sched_getaffinity(0))
    process = Process(list(map(str, command)), cores=cores, output=output, env=env)
    try:
        process.listens(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stop()


@contextlib.contextmanager
def origin(kind: str, folder: Path) -> Iterator[str]:
    """An origin of `origins.py`, or `caches`: the server of http-cache-tests.

    Raises:
        LeftOut: it is not installed.
    """
    port = free_port()
    needed = NODE_MODULES if kind == "caches" else PYTHON
    if not needed.exists():
        raise LeftOut(f"{needed.relative_to(ROOT)} is missing: `make conformance` sets it up")
    if kind == "caches":
        command = [program("node", "nodejs"), HERE / "http-cache-tests/server.mjs", str(port)]
    else:
        command = [PYTHON, HERE / "origins.py", kind, str(port), folder]
    with running(command, port=port, folder=folder.parent, env=environment()) as url:
        yield url


@contextlib.contextmanager
def proxy(upstream: str, folder: Path) -> Iterator[str]:
    """`nomba-proxy serve` as it is without any setting but where to; callers are anonymous."""
    port = free_port()
    env = environment(
        NOMBA_CLIENT_ID="conformance",
        NOMBA_CLIENT_SECRET="conformance-secret",
        NOMBA_ACCOUNT_ID="6a3e5ad1-5bd0-4d23-b1a5-7e41d1a2b3c4",
        NOMBA_BASE_URL=upstream,
        NOMBA_PROXY_STATE_DIR=str(folder / "state"),
        NOMBA_PROXY_LISTEN=f"127.0.0.1:{port}",
        NOMBA_PROXY_ADMIN_LISTEN=f"127.0.0.1:{free_port()}",
        PYTHONPATH=str(ROOT),
    )
    command = [sys.executable, "-m", "proxy", "serve"]
    with running(command, port=port, folder=folder, env=env) as url:
        yield url
