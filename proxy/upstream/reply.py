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

    async def parts(self) -> AsyncIterator[bytes]:
        """The body, part by part, peeked bytes first.

        Raises:
            UpstreamBroken, UpstreamTimeout: the body was cut short.
        """
        if self._peeked:
            yield self._peeked
        while await self._more():
            yield self._connection.take()

    def ready(self) -> bytes | None:
        """The whole rest of the body if it is here already, else None."""
        if not self._connection.complete:
            return None
        return self._peeked + self._connection.take()

    async def _more(self) -> bool:
        if self._loop.time() >= self._deadline and not self._connection.complete:
            raise UpstreamTimeout("The upstream's reply took too long.", outcome=Outcome.UNKNOWN)
        if not self._connection.waiting:
            return await self._connection.more()
        by = min(self._loop.time() + self._between, self._deadline)
        try:
            return await self._connection.more(by=by)
        except TimeoutError:
            raise UpstreamTimeout(
                "The upstream stopped in the middle of its reply.", outcome=Outcome.UNKNOWN
            ) from None

    def close(self) -> None:
        """Give the connection back; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._release(self._connection)
