"""`nomba-proxy completion`: a script by which a shell completes verbs and flags."""

import argparse
from collections.abc import Iterator

import shtab

_COMPLETED = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}


def completion(parser: argparse.ArgumentParser, shell: str) -> int:
    """Print the script for a shell; the exit code."""
    for action in _actions(parser):
        if action.metavar in _COMPLETED:
            action.complete = _COMPLETED[action.metavar]  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All of a parser's actions, and of those below it."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to them
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in action.choices.values():
                yield from _actions(below)
