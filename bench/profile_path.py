"""Profile the forwarding path: which functions a request spends its CPU time in.

    make bench-profile
    make bench-profile ARGS="--work 'POST 1 KiB, key' --builtins --top 60"

`nomba-proxy serve` runs under cProfile, which makes every call dearer: this says where to look, and
how often a request calls what. Whether a change has helped, `make bench-instructions` and
`make bench` say. Time is the thread's CPU time, so it does not matter who else runs.
"""

import argparse
import asyncio
import pstats
import signal
import tempfile
from pathlib import Path

from played import WARM_UP, WORKS, add_caller, requests, serving, settings, upstream

# Runs in the proxy. What is profiled begins with one signal and ends with another.
PROFILED = """
import cProfile, signal, time
profile = cProfile.Profile(time.thread_time, builtins={builtins})
signal.signal(signal.SIGUSR1, lambda *_: profile.enable())
signal.signal(signal.SIGUSR2, lambda *_: profile.dump_stats({file!r}))
"""
ROOT = f"{Path(__file__).parents[1]}/"


async def measure(options: argparse.Namespace, file: Path) -> None:
    """Profile requests, into a file."""
    before = PROFILED.format(file=str(file), builtins=options.builtins)
    async with upstream() as origin:
        with settings(origin) as env:
            key = add_caller(env)
            async with serving(env=env, loop=options.loop, before=before) as (process, caller):
                request = (await requests(key, caller))[options.work]
                for _ in range(WARM_UP):
                    await caller.ask(request)
                process.send_signal(signal.SIGUSR1)
                for _ in range(options.requests):
                    await caller.ask(request)
                process.send_signal(signal.SIGUSR2)
                await caller.ask(request)  # once it is answered the file is there


def report(file: Path, *, times: int, top: int) -> str:
    """The functions that took longest by themselves, per request."""
    rows = [
        (own * 1e6 / times, whole * 1e6 / times, calls / times, place)
        for place, (_, calls, own, whole, _) in pstats.Stats(str(file)).stats.items()
    ]
    own, calls = sum(row[0] for row in rows), sum(row[2] for row in rows)
    lines = [f"a request under cProfile: {own:.0f} us, {calls:.0f} calls"]
    lines += [f"{'own us':>8} {'with all':>8} {'calls':>7}"]
    for own, whole, calls, (path, line, name) in sorted(rows, reverse=True)[:top]:
        short = path.removeprefix(ROOT).rpartition("site-packages/")[2]
        where = "" if path == "~" else f"  {'/'.join(Path(short).parts[-2:])}:{line}"
        lines.append(f"{own:8.2f} {whole:8.2f} {calls:7.2f}  {name}{where}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--work", choices=WORKS, default=WORKS[0])
    parser.add_argument("--builtins", action="store_true", help="functions of C by themselves too")
    parser.add_argument("--top", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nomba-proxy-bench-") as folder:
        file = Path(folder) / "profile"
        asyncio.run(measure(options, file))
        print(report(file, times=options.requests, top=options.top))


if __name__ == "__main__":
    main()
