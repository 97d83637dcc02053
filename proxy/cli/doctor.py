"""`nomba-proxy doctor`: says, step by step, why it does not work."""

import argparse
import asyncio
import json
import signal
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from proxy.cli.serve import event_loop
from proxy.core.printable import printable
from proxy.doctor.examine import Examination
from proxy.doctor.step import Step

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class _Signs:
    """How steps are marked."""

    good: str = "✓"
    bad: str = "✗"
    left_out: str = "–"
    next: str = "→"

    @property
    def all(self) -> str:
        """Together, to see whether an output has them."""
        return self.good + self.bad + self.left_out + self.next

    def of(self, step: Step) -> str:
        """The mark of a step."""
        if step.ok is None:
            return self.left_out
        return self.good if step.ok else self.bad


_ASCII = _Signs("+", "x", "-", "->")
_PLAIN = str.maketrans({"…": "...", "“": '"', "”": '"', "–": "-", "’": "'"})


def doctor(
    arguments: argparse.Namespace,
    *,
    environ: Mapping[str, str],
    flags: dict[str, str | list[str]],
) -> int:
    """Examine everything and tell of it; the exit code.

    Args:
        arguments: of the command line.
        environ: the environment.
        flags: dotted keys with their values from the command line.
    """
    done: list[Step] = []
    signs = _Signs() if _can_be_shown(_Signs().all) else _ASCII

    def tell(step: Step) -> None:
        done.append(step)
        if not arguments.json:
            print(_shown(step, signs=signs), flush=True)

    examination = Examination(
        environ=environ,
        config=arguments.config,
        flags=flags,
        tell=tell,
        upstream=arguments.upstream,
        may_issue=not arguments.no_issue,
    )
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        if not runner.run(_unless_interrupted(examination)):
            return 130
    failed = [step.name for step in done if step.ok is False]
    if arguments.json:
        rows = [
            {"step": step.name, "ok": step.ok, "seen": step.seen, "next": step.next}
            for step in done
        ]
        print(printable(json.dumps(rows, indent=2), lines=True))
    elif failed:
        print(f"\n{len(failed)} of {len(done)} steps failed; begin with the first: {failed[0]}")
    else:
        print("\nnothing is wrong, as far as was tried")
    return 1 if failed else 0


async def _unless_interrupted(examination: Examination) -> bool:
    """Whether it came to its end; a signal has it give back what it holds first."""
    loop, main, told = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()

    def interrupt() -> None:
        if main is not None and not told.is_set():
            main.cancel()
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        await examination.run()
    except asyncio.CancelledError:
        if not told.is_set():
            raise
    return not told.is_set()


def _can_be_shown(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _shown(step: Step, *, signs: _Signs) -> str:
    lines = _wrapped(f"{step.seen}", first=f"{signs.of(step)} {step.name:<12} ")
    for one in filter(None, step.next.split("\n")):
        lines += _wrapped(one, first=f"    {signs.next} ")
    text = "\n".join(lines)
    return text if signs is not _ASCII else text.translate(_PLAIN)


def _wrapped(text: str, *, first: str) -> list[str]:
    """Lines that a terminal need not break; what may be copied from them stays whole."""
    # Much of it others wrote: a terminal is not to act on it.
    return textwrap.wrap(
        printable(" ".join(text.split())),
        width=_WIDTH,
        initial_indent=first,
        subsequent_indent=" " * (len(first) if first.startswith(" ") else 4),
        break_long_words=False,
        break_on_hyphens=False,
    )
