"""The connections to one origin: how many, who gets one, how long they may idle.

A connection that has been used is lent again only if nothing has come on it since: an
upstream that speaks unasked must not be taken for the answer to the next request. The
most recently used one is lent first, so that the others grow old and are closed.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from proxy.errors import Overloaded
from proxy.upstream.connection import Connection

# Seconds before the end that the upstream announces: it may already be closing then.
_MARGIN = 1.0


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What may be open to one origin.

    Attributes:
        size: connections.
        queue: requests that may wait for one.
        idle: seconds a connection may wait for its next request.
        recent: seconds since its last use within which a connection may carry a request
            that moves money: one that the upstream is about to close would lose it.
    """

    size: int = 256
    queue: int = 10_000
    idle: float = 15.0
    recent: float = 3.0


class Pool:
    """Lends connections to one origin.

    Args:
        dial: opens a connection that tells this pool of its end.
        limits: what may be open.
    """

    def __init__(
        self,
        dial: Callable[[Callable[[Connection], object]], Awaitable[Connection]],
        *,
        limits: PoolLimits,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._dial = dial
        self._limits = limits
        self._idle: dict[Connection, None] = {}  # the longest idle one first
        self._open = 0  # connections, and those that are being opened
        # Who waits gets a connection, or None: the right to open one.
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def change(self, limits: PoolLimits) -> None:
        """Other limits hold; connections beyond them end when they are given back."""
        self._limits = limits
        while self._waiting and self._open < limits.size:
            self._open += 1
            self._vacate()

    def pick(self, *, recent: bool) -> Connection | None:
        """The most recently used idle connection, if it is good for another request.

        Args:
            recent: only if it was used within `PoolLimits.recent`.
        """
        if not self._idle:
            return None
        within = self._limits.recent if recent else self._limits.idle
        now = self._loop.time()
        while self._idle:
            connection, _ = self._idle.popitem()
            age = now - connection.idle_since
            if within <= age < self._limits.idle:
                self._idle[connection] = None  # still good for others; the rest are no younger
                return None
            if age < min(within, connection.idle_limit - _MARGIN) and connection.quiet:
                return connection
            connection.close()
            self._vacate()
        return None

    async def take(self, *, fresh: bool) -> Connection:
        """A connection for one request, to be waited for; give it back with `give`.

        Args:
            fresh: one that has carried nothing yet.

        Raises:
            Overloaded: all are in use, and too many requests wait already.
            UpstreamError: none could be opened; nothing was sent.
        """
        if self._open < self._limits.size:
            self._open += 1
        elif not self._evict():
            handed = await self._wait()
            if handed is not None:
                if not fresh and handed.quiet:
                    return handed
                handed.close()  # its place is ours
        try:
            return await self._dial(self._lost)
        except BaseException:
            self._vacate()
            raise

    def give(self, connection: Connection) -> None:
        """Take a connection back, to be lent again or closed."""
        if not connection.reusable or self._closed:
            connection.close()
            self._vacate()
            return
        if self._open > self._limits.size:
            connection.close()
            self._open -= 1
            return
        connection.rest()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        connection.idle_since = self._loop.time()
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._limits.idle, self._sweep)

    def close(self) -> None:
        """Close what is idle now, and the rest as it comes back."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while self._evict():
            self._open -= 1

    def _evict(self) -> bool:
        """Close the longest idle connection; its place is the taker's."""
        if not self._idle:
            return False
        connection = next(iter(self._idle))
        del self._idle[connection]
        connection.close()
        return True

    async def _wait(self) -> Connection | None:
        if len(self._waiting) >= self._limits.queue:
            raise Overloaded(
                "Too many requests wait for a connection to the upstream; nothing was sent.",
                hint="Send fewer at a time, or raise pool.size.",
                retry_after=1,
            )
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # it came as the caller left
                handed = waiter.result()
                if handed is None:
                    self._vacate()
                else:
                    self.give(handed)
            else:
                with contextlib.suppress(ValueError):  # who had something to give saw it leave
                    self._waiting.remove(waiter)
            raise

    def _vacate(self) -> None:
        """A place is free: for who waits longest, else for the next to come."""
        while self._waiting and self._open <= self._limits.size:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._open -= 1

    def _lost(self, connection: Connection) -> None:
        """A connection is gone; if it was lent, its borrower gives it back."""
        if connection in self._idle:
            del self._idle[connection]
            self._vacate()

    def _sweep(self) -> None:
        self._sweeper = None
        while self._idle:
            oldest = next(iter(self._idle))
            left = oldest.idle_since + self._limits.idle - self._loop.time()
            if left > 0:
                self._sweeper = self._loop.call_later(left, self._sweep)
                return
            del self._idle[oldest]
            oldest.close()
            self._vacate()
