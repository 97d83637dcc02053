"""Scripted misbehaviour: what the next requests to a path get instead, and requests held back."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Self

from proxy.simulator.messages import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What one request gets.

    Attributes:
        reply: given instead of the real reply; None keeps the real one.
        drop: reset the connection instead of any reply.
        before: misbehave instead of doing the work; False does the work first.
        delay: seconds to wait; with `before` the work waits too, else only the reply.
    """

    reply: Reply | None
    drop: bool
    before: bool
    delay: float


class Hold:
    """Keeps requests to one path unanswered until released; a context that releases at its end.

    Attributes:
        path: the path held.
        before: hold before the work is done; False holds the finished reply.
        held: how many requests are being held now.
    """

    def __init__(self, path: str, *, before: bool) -> None:
        self.path = path
        self.before = before
        self.held = 0
        self._released = asyncio.Event()
        self._caught = asyncio.Event()

    def release(self) -> None:
        """Let the held requests go on, and hold no more."""
        self._released.set()

    async def caught(self, count: int = 1) -> None:
        """Wait until `count` requests are being held."""
        while self.held < count:
            await self._caught.wait()

    async def wait(self) -> None:
        """Be held: called by the simulator for a request."""
        if self._released.is_set():
            return
        self.held += 1
        self._caught.set()
        self._caught.clear()  # wakes everyone who waits now, and only those
        try:
            await self._released.wait()
        finally:
            self.held -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Script:
    """The failures and holds asked for, by path."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[Failure]] = {}
        self._holds: list[Hold] = []

    def fail(self, path: str, *, failure: Failure, times: int) -> None:
        """Append a failure for the next `times` requests to a path."""
        self._failures.setdefault(path, deque()).extend([failure] * times)

    def take(self, path: str) -> Failure | None:
        """The failure the next request to a path gets, used up by asking."""
        waiting = self._failures.get(path)
        return waiting.popleft() if waiting else None

    def hold(self, path: str, *, before: bool) -> Hold:
        """Hold requests to a path from now on."""
        hold = Hold(path, before=before)
        self._holds.append(hold)
        return hold

    async def pause(self, path: str, *, before: bool) -> None:
        """Wait for every hold on a path that is set at this point."""
        for hold in [h for h in self._holds if h.path == path and h.before == before]:
            await hold.wait()

    def clear(self) -> None:
        """Forget the failures and release the holds."""
        self._failures.clear()
        for hold in self._holds:
            hold.release()
        self._holds.clear()
