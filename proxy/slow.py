"""Heads that have begun to come and are not complete: none may take for ever."""

import asyncio
from typing import Protocol


def begun(data: bytes, *, content: int) -> int:
    """Bytes of a head that begins behind a request.

    Args:
        data: what came, and ended the head of that request and its body too.
        content: bytes of the body that are not framing.
    """
    end = data.rfind(b"\r\n\r\n", 0, max(0, len(data) - content))
    behind = data[end + 4 + content :] if end >= 0 else b""
    # A body in chunks ends in an empty line as well, and its content is in front of that.
    return len(behind.strip(b"\r\n"))


class Slow(Protocol):
    """Whose head is waited for."""

    def late(self) -> None:
        """Its time is over."""


class SlowHeads:
    """Tells whose time is over; one timer for all.

    All have the same time, so they are due in the order in which they began.

    Attributes:
        limit: seconds a head may take from its first byte on.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._due: dict[Slow, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, one: Slow) -> None:
        """A head begins; if it is watched already, nothing changes."""
        if one not in self._due:
            loop = asyncio.get_running_loop()
            self._due[one] = due = loop.time() + self.limit
            if self._timer is None:
                self._timer = loop.call_at(due, self._look)

    def forget(self, one: Slow) -> None:
        """It is complete, or will never be."""
        self._due.pop(one, None)

    def _look(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        now = loop.time()
        for one, due in list(self._due.items()):
            if due > now:
                self._timer = loop.call_at(due, self._look)
                return
            del self._due[one]
            one.late()
