"""Measure the forwarding path: CPU per request, as a ratio to a peer in the same run.

    make bench                       # a minute
    make bench ARGS="--rounds 9 --requests 4000"

The peers are the obvious aiohttp + ClientSession proxy (bench/baseline.py), with a pool and
with a fresh connection per request, and this proxy itself with the inspector on. Rounds are
interleaved; CPU (user + system) is read from the proxy process's own accounting, so neither
the origin nor the load counts. Only ratios mean anything: machines differ and are shared.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
GET = b"GET /v1/accounts/balance HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
POST = b"POST /v1/transfers/bank/lookup HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1024\r\n\r\n"
WORK = {"GET, 1 KiB reply": GET, "POST 1 KiB, 1 KiB reply": POST + b"x" * 1024}
TICK = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"nothing listens on {port}")


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


async def load(port: int, request: bytes, *, requests: int, callers: int) -> None:
    async def caller(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            lower = head.lower()
            if b"content-length: " in lower:
                length = int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
            else:
                await reader.readuntil(b"0\r\n\r\n")
        writer.close()

    await asyncio.gather(*(caller(requests // callers) for _ in range(callers)))


def spawn(*command: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="per round, work and peer")
    parser.add_argument("--callers", type=int, default=16, help="connections at a time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    origin_port, ports = free_port(), [free_port() for _ in range(4)]
    admins = [free_port(), free_port()]
    origin = f"http://127.0.0.1:{origin_port}"
    processes = {"origin": spawn(str(HERE / "origin.py"), str(origin_port))}
    wait_for(origin_port)
    names = ["nomba-proxy", "the same, inspector on"]
    names += ["ClientSession, no pool", "ClientSession, pooled"]
    for at, name in enumerate(names[:2]):
        processes[name] = spawn(
            "-m",
            "proxy",
            "serve",
            f"--listen=127.0.0.1:{ports[at]}",
            f"--admin-listen=127.0.0.1:{admins[at]}",
            NOMBA_CLIENT_ID="bench",
            NOMBA_CLIENT_SECRET="bench",
            NOMBA_ACCOUNT_ID="bench",
            NOMBA_BASE_URL=origin,
            NOMBA_PROXY_INSPECT="true" if at else "false",
            NOMBA_PROXY_INSPECT_LISTEN="127.0.0.1:0",
        )
    baseline = str(HERE / "baseline.py")
    processes[names[2]] = spawn(baseline, origin, str(ports[2]), "--no-pool")
    processes[names[3]] = spawn(baseline, origin, str(ports[3]))
    results: dict[str, dict[str, list[float]]] = {
        work: {name: [] for name in names} for work in WORK
    }
    try:
        for port in ports:
            wait_for(port)
            asyncio.run(load(port, GET, requests=200, callers=4))
        for _ in range(options.rounds):
            for work, request in WORK.items():
                for name, port in zip(names, ports, strict=False):
                    before = cpu(processes[name].pid)
                    counts = {"requests": options.requests, "callers": options.callers}
                    asyncio.run(load(port, request, **counts))
                    spent = cpu(processes[name].pid) - before
                    results[work][name].append(spent / options.requests * 1e6)
    finally:
        for process in processes.values():
            process.terminate()
            process.wait(10)
    report(results, names, as_json=options.json)


def report(results: dict, names: list[str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(results, indent=2))
        return
    for work, rounds in results.items():
        print(f"{work}: CPU per request, median of rounds (least to most)")
        ours = statistics.median(rounds[names[0]])
        for name in names:
            values = rounds[name]
            middle = statistics.median(values)
            spread = f"{min(values):.0f} to {max(values):.0f}"
            print(f"  {name:<24} {middle:6.0f} us  ({spread})  x {middle / ours:.2f}")


if __name__ == "__main__":
    main()
