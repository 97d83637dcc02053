"""Load by wrk, and what it says of it."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab import environment

_SCRIPT = Path(__file__).parent / "load.lua"
_ERRORS = ("connect", "read", "write", "timeout", "status")


class LoadFailed(Exception):
    """Not every request was answered well; the text says what went wrong."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What wrk has done.

    Attributes:
        requests: that were answered.
        seconds: that it took.
        p50, p90, p99, p999: latency, in milliseconds.
    """

    requests: int
    seconds: float
    p50: float
    p90: float
    p99: float
    p999: float


def read(output: str) -> Load:
    """What the script has printed.

    Raises:
        LoadFailed: there were errors, or nothing was answered, or nothing was printed.
    """
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise LoadFailed(f"wrk says: {output.strip()[-300:] or 'nothing'}")
    said = {name: int(value) for name, value in (one.split("=") for one in lines[-1].split()[1:])}
    if wrong := [f"{said[kind]} {kind} errors" for kind in _ERRORS if said[kind]]:
        raise LoadFailed(", ".join(wrong))
    if not said["requests"]:
        raise LoadFailed("no request was answered")
    return Load(
        requests=said["requests"],
        seconds=said["microseconds"] / 1e6,
        p50=said["p50"] / 1e3,
        p90=said["p90"] / 1e3,
        p99=said["p99"] / 1e3,
        p999=said["p99.9"] / 1e3,
    )


def wrk(
    url: str,
    *,
    cores: tuple[int, ...],
    connections: int,
    seconds: int,
    headers: tuple[str, ...] = (),
    method: str = "GET",
    up: int = 0,
    alike: bool = True,
) -> Load:
    """Ask for `url` as fast as it is answered.

    Args:
        url: what.
        cores: where wrk runs, one thread.
        connections: open at a time, each with one request at a time.
        seconds: for how long.
        headers: lines that each request has.
        method: of each request.
        up: bytes of body that each request has.
        alike: whether all are the same; else each has a query and an id of its own.

    Raises:
        LoadFailed: a request was not answered, or not with a success.
    """
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), "wrk", "--threads", "1"]
    command += ["--connections", str(connections), "--duration", f"{seconds}s", "--timeout", "20s"]
    for header in headers:
        command += ["--header", header]
    command += ["--script", str(_SCRIPT), url, "--", method, str(up)]
    command.append("yes" if alike else "no")
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=seconds + 60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LoadFailed("wrk does not end") from None
    return read(done.stdout + done.stderr)
