"""Count the instructions of a request: a figure that a shared machine hardly changes.

    make bench-instructions                              # a minute
    make bench-instructions ARGS="--runs 3 --loop uvloop --json"
    make bench-instructions ARGS="--work 'GET, key' --profile inclusive"

Only the proxy runs under valgrind's callgrind; caller and upstream are played from here
(`played.py`). Each kind of work is warmed up, then N requests are counted and 2 N: the difference
by N is one request, whatever a batch costs beside. Runs differed by 0.3 % at most, by 0.6 % where
every core was busy: what a change saves has to be more. System calls are not in it: what the kernel
does for a request is in the CPU that `make bench` measures.
"""

import argparse
import asyncio
import json
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from played import (
    PATIENCE,
    WARM_UP,
    WORKS,
    Caller,
    add_caller,
    requests,
    serving,
    settings,
    upstream,
)

TOP = 30  # functions of a profile
# A line of callgrind_annotate: a count, file:function, and maybe the library in brackets.
_LINE = re.compile(r"(?m)^ *([\d,]+) \( *[\d.]+%\)  (\S+):(\S+)(?: \[.*\])?$")


class Missing(Exception):
    """A tool that is needed is not installed."""


def find(tool: str) -> str:
    """The path of a tool of valgrind's.

    Raises:
        Missing: it is not installed.
    """
    path = shutil.which(tool)
    if path is None:
        raise Missing(f"nothing was counted: {tool} is missing (Debian's package valgrind has it)")
    return path


def total(dump: str) -> int:
    """The instructions that a dump of callgrind's counts in all.

    Raises:
        ValueError: it counts something else.
    """
    events, counts = (re.search(rf"(?m)^{name}: (.*)$", dump) for name in ("events", "totals"))
    if events is None or counts is None or events[1].strip() != "Ir":
        raise ValueError("no dump that counts instructions and nothing else")
    return int(counts[1])


@dataclass(frozen=True)
class Count:
    """Instructions of a batch of requests, and of one twice as large."""

    requests: int
    once: int
    twice: int

    @property
    def each(self) -> float:
        """Of one request."""
        return (self.twice - self.once) / self.requests


class Callgrind:
    """What is counted of a proxy."""

    def __init__(self, pid: int, folder: Path) -> None:
        self._vgdb = (find("vgdb"), f"--pid={pid}", f"--vgdb-prefix={folder}/vgdb")
        self._folder = folder

    @staticmethod
    def prefix(folder: Path) -> tuple[str, ...]:
        """What goes before a command so that it can be counted; it is not yet."""
        options = ("--tool=callgrind", "--instr-atstart=no", "--quiet")
        files = (f"--callgrind-out-file={folder}/dump", f"--vgdb-prefix={folder}/vgdb")
        return (find("valgrind"), *options, *files)

    async def tell(self, *words: str) -> None:
        """Have callgrind do something: `instrumentation on`, `zero`, `dump`."""
        process = await asyncio.create_subprocess_exec(
            *(*self._vgdb, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        async with asyncio.timeout(PATIENCE):
            said, _ = await process.communicate()
        if process.returncode:
            raise SystemExit(f"vgdb {' '.join(words)}: {said.decode()}")

    async def dump(self) -> Path:
        """Write down what has been counted since `zero`; the file."""
        await self.tell("dump")
        return max(self._folder.glob("dump.*"), key=lambda one: int(one.suffix[1:]))


@asynccontextmanager
async def counting(loop: str) -> AsyncIterator[tuple[Callgrind, Caller, str]]:
    """A proxy that can be counted, a connection to it, and a key."""
    with tempfile.TemporaryDirectory(prefix="nomba-proxy-bench-") as name:
        prefix = Callgrind.prefix(Path(name))
        async with upstream() as origin:
            with settings(origin) as env:
                key = add_caller(env)
                async with serving(*prefix, env=env, loop=loop) as (process, caller):
                    yield Callgrind(process.pid, Path(name)), caller, key


async def count(
    callgrind: Callgrind, caller: Caller, request: bytes, *, times: int
) -> tuple[Count, Path]:
    """Count a kind of work; the second dump goes with it, for a profile."""
    # Counted too, and thrown away: the first requests after counting has begun cost more.
    for _ in range(WARM_UP):
        await caller.ask(request)
    totals = []
    for batch in (times, 2 * times):
        await callgrind.tell("zero")
        for _ in range(batch):
            await caller.ask(request)
        file = await callgrind.dump()
        totals.append(total(file.read_text()))
    return Count(times, *totals), file


async def run(options: argparse.Namespace) -> dict[str, tuple[Count, str]]:
    """One run of a proxy: counts of each kind of work, and profiles."""
    found = {}
    async with counting(options.loop) as (callgrind, caller, key):
        every = await requests(key, caller)
        await callgrind.tell("instrumentation", "on")
        for work in options.work or WORKS:
            counted, file = await count(callgrind, caller, every[work], times=options.requests)
            shown = profile(file, options.profile, times=2 * options.requests)
            found[work] = counted, shown
    return found


# -- profiles ----------------------------------------------------------------------------


def profile(dump: Path, kind: str | None, *, times: int) -> str:
    """The C functions of a dump that cost most, in instructions of one request.

    Args:
        dump: of callgrind's.
        kind: `self`, or `inclusive` with all that a function calls; None for no profile.
        times: requests that were counted.
    """
    if kind is None:
        return ""
    inclusive = "yes" if kind == "inclusive" else "no"
    command = (find("callgrind_annotate"), f"--inclusive={inclusive}", str(dump))
    said = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    return annotated(said, times=times, most=total(dump.read_text()))


def annotated(said: str, *, times: int, most: int) -> str:
    """The first lines of what callgrind_annotate says, made readable.

    Args:
        said: by callgrind_annotate.
        times: requests that were counted.
        most: instructions that were counted in all.
    """
    lines = []
    for value, file, name in _LINE.findall(said):
        spent = int(value.replace(",", ""))
        if spent <= most:  # more is a function that calls itself, counted again and again
            lines.append(f"{spent / times:12,.0f} {spent / most:7.2%}  {name}  {Path(file).name}")
    return "\n".join(lines[:TOP])


# -- the command -------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200, metavar="N", help="of a batch")
    parser.add_argument("--runs", type=int, default=1, help="each with a proxy of its own")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--work", choices=WORKS, action="append", help="only this (repeatable)")
    parser.add_argument(
        "--profile",
        choices=("self", "inclusive"),
        nargs="?",
        const="inclusive",
        help=f"the {TOP} C functions that cost most, with what they call or by themselves",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        runs = [asyncio.run(run(options)) for _ in range(options.runs)]
    except Missing as missing:
        raise SystemExit(str(missing)) from None
    counts = {work: [one[work][0] for one in runs] for work in runs[0]}
    if options.json:
        works = {
            work: [asdict(one) | {"each": one.each} for one in many]
            for work, many in counts.items()
        }
        about = {"loop": options.loop, "python": platform.python_version(), "works": works}
        print(json.dumps(about, indent=2))
        return
    print(f"instructions a request, {options.loop}, Python {platform.python_version()}:")
    for work, many in counts.items():
        each = [one.each for one in many]
        spread = f"  (runs: {min(each):,.0f} to {max(each):,.0f})" if len(each) > 1 else ""
        print(f"  {work:<20} {statistics.median(each):12,.0f}{spread}")
        if shown := runs[-1][work][1]:
            print(shown)


if __name__ == "__main__":
    main()
