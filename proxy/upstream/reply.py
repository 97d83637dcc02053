"""A reply whose head has arrived: judged, then delivered part by part."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from proxy.errors import Outcome, UpstreamTimeout
from proxy.upstream.connection import Connection


class Reply:
    """What the handler judges and delivers.

    Args:
        connection: the reply's until it is closed.
        release: takes the connection back.
        between: seconds allowed between two parts of the body.
        deadline: loop time at which the whole attempt has to be over.

    Attributes:
        head, bodyless: as the connection has them.
    """

    __slots__ = (
        *("_between", "_closed", "_connection", "_deadline", "_loop", "_peeked", "_release"),
        *("bodyless", "head"),
    )

    def __init__(
        self,
        connection: Connection,
        *,
        release: Callable[[Connection], object],
        between: float,
        deadline: float,
    ) -> None:
        self._connection = connection
        self._release = release
        self._closed = False
        self._between = between
        self._deadline = deadline
        self._loop = connection.loop
        self.head = connection.head
        self.bodyless = connection.bodyless
        self._peeked = b""

    def peeked(self, limit: int) -> tuple[bytes, bool] | None:
        """What `peek` brings, if nothing has to be waited for, as with most replies."""
        if not self._connection.complete:
            return None
        self._peeked += self._connection.take()
        return self._peeked, len(self._peeked) <= limit

    async def peek(self, limit: int, *, patience: float | None = None) -> tuple[bytes, bool]:
        """The first bytes of the body, kept for delivery, and whether they are all of it.

        Waits until `limit` bytes or the end have come; if `patience` is given, not longer than
        so many seconds after the first of them: then what there is has to do.

        Raises:
            UpstreamBroken, UpstreamTimeout: the body was cut short before.
        """
        if (found := self.peeked(limit)) is not None:
            return found
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as wait:
                while len(self._peeked) <= limit and await self._more():
                    self._peeked += self._connection.take()
                    if patience is not None and wait.when() is None:
                        wait.reschedule(self._loop.time() + patience)
        return self._peeked, len(self._peeked) <= limit and self._connection.complete

    def at_hand(self) -> bytes:
        """What of the body is here and has not been taken; the peeked bytes first."""
        peeked, self._peeked = self._peeked, b""
        return peeked + self._connection.take()

    async def part(self) -> bytes:
        """The next part of the body; empty at its end.

        Raises:
            UpstreamBroken, UpstreamTimeout: the body was cut short.
        """
        if self._peeked or await self._more():
            return self.at_hand()
        return b""

    async def parts(self) -> AsyncIterator[bytes]:
        """The body, part by part, as `part` brings it."""
        while part := await self.part():
            yield part

    def ready(self) -> bytes | None:
        """The whole rest of the body if it is here already, else None."""
        if not self._connection.complete:
            return None
        return self._peeked + self._connection.take()

    async def _more(self) -> bool:
        connection, now = self._connection, self._loop.time()
        if now >= self._deadline and not connection.complete:
            raise UpstreamTimeout("The upstream's reply took too long.", outcome=Outcome.UNKNOWN)
        try:
            return await connection.more(by=min(now + self._between, self._deadline))
        except TimeoutError:
            raise UpstreamTimeout(
                "The upstream stopped in the middle of its reply.", outcome=Outcome.UNKNOWN
            ) from None

    def close(self) -> None:
        """Give the connection back; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._release(self._connection)
