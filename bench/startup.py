"""Measure how long starting takes, and what a process holds while it waits.

    make bench-startup                       # a minute
    make bench-startup ARGS="--rounds 20 --json"

Time is from exec to the end of a command, or to the line that says where `serve` listens: by the
clock, and of processors (user + system, of all processes started). The yardstick is an
interpreter that does nothing but `import aiohttp`, in the same rounds: machines differ and are
shared. Memory is of each process once it has its token, and after requests: RSS counts pages that
processes share in each of them, PSS divides these up, USS leaves them out.
"""

import argparse
import asyncio
import contextlib
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
GET = b"GET /v1/accounts/balance HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
SETTLED = 1.0  # seconds after which a proxy that has started has its token and is idle
PATIENCE = 30.0  # seconds that a start may take
ENDING = {
    "import aiohttp": ("-c", "import aiohttp"),
    "--version": ("-m", "proxy", "--version"),
    "--help": ("-m", "proxy", "--help"),
    "check": ("-m", "proxy", "check"),
}
SERVING = {
    "serve": (),
    "serve, store in a file": ("--set=store=file:{folder}",),
    "serve --simulate": ("--simulate=true", "--set=simulator.rate_limit=0"),
    "serve --workers 2": ("--workers=2",),
}
UNCOMPILED = "PYTHONDONTWRITEBYTECODE"  # an installed proxy is compiled, so this one has to be
KIB = 1024
Usage = dict[str, list[float]]


def ended(*arguments: str, env: dict[str, str]) -> tuple[float, float]:
    """Seconds from exec to the end of a command: by the clock, and of processors."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], env=env, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}")
    return seconds, used.ru_utime + used.ru_stime


@contextlib.contextmanager
def started(*flags: str, env: dict[str, str]) -> Iterator[tuple[float, int, str]]:
    """A proxy that has said where it listens: after how many seconds, its process, its address."""
    command = [sys.executable, "-m", "proxy", "serve", *flags]
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        address = listening(process)
        yield time.perf_counter() - begun, process.pid, address
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def listening(process: subprocess.Popen) -> str:
    """The address in what a proxy prints at start."""
    text = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while b"  listening  http://" not in text or not text.endswith(b"\n"):
            part = os.read(process.stderr.fileno(), 65536) if selector.select(PATIENCE) else b""
            if not part:
                raise SystemExit(f"it did not start: {text.decode()}")
            text += part
    return text.partition(b"  listening  http://")[2].split()[0].decode()


def family(pid: int) -> list[int]:
    """A process and those it has started."""
    parents = {}
    for one in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if one.name.isdigit():
                parents[int(one.name)] = int(stat(int(one.name))[1])
    return [pid, *sorted(one for one, parent in parents.items() if parent == pid)]


def stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu(pid: int) -> float:
    """Seconds of processors that a process has used; of all its threads, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((one / "schedstat").read_text().split()[0]) for one in threads) / 1e9


def memory(pid: int) -> dict[str, int]:
    """Bytes that a process holds."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    held = {
        name: int(value.split()[0]) * KIB for name, _, value in (x.partition(":") for x in lines)
    }
    own = held["Private_Clean"] + held["Private_Dirty"]
    return {"rss": held["Rss"], "pss": held["Pss"], "uss": own}


async def ask(address: str, *, requests: int, callers: int = 8) -> None:
    """Send requests over a few connections, and read the replies."""
    host, _, port = address.rpartition(":")

    async def caller() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(requests // callers):
            writer.write(GET)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    await asyncio.gather(*(caller() for _ in range(callers)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=1000, help="before memory is read again")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    origin = subprocess.Popen([sys.executable, str(HERE / "played.py"), str(port)])
    try:
        with tempfile.TemporaryDirectory() as folder:
            results = measure(options, origin=f"http://127.0.0.1:{port}", folder=folder)
    finally:
        origin.terminate()
        origin.wait(PATIENCE)
    print(json.dumps(results, indent=2) if options.json else table(results))


def measure(options: argparse.Namespace, *, origin: str, folder: str) -> dict[str, dict]:
    """Every case, in interleaved rounds; memory in a round of its own."""
    env = {name: value for name, value in os.environ.items() if name != UNCOMPILED} | {
        "NOMBA_PROXY_DRAIN_DELAY": "0",
        "NOMBA_CLIENT_ID": "bench",
        "NOMBA_CLIENT_SECRET": "bench",
        "NOMBA_ACCOUNT_ID": "bench",
        "NOMBA_BASE_URL": origin,
        "NOMBA_PROXY_LISTEN": "127.0.0.1:0",
        "NOMBA_PROXY_ADMIN_LISTEN": "127.0.0.1:0",
        "NOMBA_PROXY_INSPECT_LISTEN": "127.0.0.1:0",
        "XDG_STATE_HOME": folder,
    }
    serving = {
        name: tuple(flag.format(folder=folder) for flag in flags) for name, flags in SERVING.items()
    }
    times: dict[str, Usage] = {name: {"wall": [], "cpu": []} for name in (*ENDING, *serving)}
    for count in range(options.rounds + 1):
        for name, arguments in ENDING.items():
            note(times[name], *ended(*arguments, env=env))
        for name, flags in serving.items():
            with started(*flags, env=env) as (seconds, pid, _):
                note(times[name], seconds, sum(cpu(one) for one in family(pid)))
        if not count:  # the first start compiles
            for found in times.values():
                found["wall"].clear()
                found["cpu"].clear()
    held: dict[str, dict[str, list]] = {}
    for name, flags in serving.items():
        with started(*flags, env=env) as (_, pid, address):
            time.sleep(SETTLED)
            found = held[name] = {"idle": [memory(one) for one in family(pid)]}
            asyncio.run(ask(address, requests=options.requests))
            time.sleep(SETTLED)
            found["after"] = [memory(one) for one in family(pid)]
    return {"seconds": times, "bytes": held}


def note(times: Usage, wall: float, used: float) -> None:
    times["wall"].append(wall)
    times["cpu"].append(used)


def table(results: dict[str, dict]) -> str:
    """The medians, for people."""
    middle = {
        name: {kind: statistics.median(values) for kind, values in kinds.items()}
        for name, kinds in results["seconds"].items()
    }
    yardstick = middle["import aiohttp"]["cpu"]
    lines = [f"{'seconds (median)':<26} {'wall':>7} {'CPU':>7}   x import aiohttp"]
    for name, found in middle.items():
        ratio = found["cpu"] / yardstick
        lines.append(f"  {name:<24} {found['wall']:7.3f} {found['cpu']:7.3f}   {ratio:.2f}")
    lines.append(f"\n{'MiB, idle (after requests)':<42} {'RSS':>13} {'PSS':>13} {'USS':>13}")
    for name, found in results["bytes"].items():
        for at, (idle, after) in enumerate(zip(found["idle"], found["after"], strict=True)):
            which = f"{name}, process {at}" if len(found["idle"]) > 1 else name
            cells = " ".join(
                f"{mib(idle[kind])} {'(' + mib(after[kind]) + ')':>7}" for kind in idle
            )
            lines.append(f"  {which:<40} {cells}")
    return "\n".join(lines)


def mib(count: int) -> str:
    return f"{count / KIB / KIB:5.1f}"


if __name__ == "__main__":
    main()
