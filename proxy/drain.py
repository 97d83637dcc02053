"""Stopping a server without losing a request.

aiohttp's own way down stops reading from every connection at once, uploads under way
included, and tells no caller that its connection is about to end. Here callers are told,
and each connection ends by itself.
"""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType

from proxy.server import TrafficServer

_GRACE = 1.0  # seconds for which an idle connection is kept open: a request may be on its way
_LOOK_EVERY = 0.05  # seconds
_LAST_WORDS = 1.0  # seconds in which what is cut has to have said so


class Drain:
    """The end of a server: begin it, then wait for it.

    Args:
        listening: what the server listens with; whoever has come and was not accepted stays
            in its sockets, for others who have them open.
        server: whose connections are waited for. It has to know of `begun`.
        announced: is set when nobody more should come.
        begun: is set when nobody more is accepted.
        delay: seconds between the two.
        limit: seconds after which what is left is cut.
        beginning: whether somebody is accepted of whom the server knows nothing yet.
    """

    def __init__(
        self,
        listening: Sequence[asyncio.Server],
        *,
        server: TrafficServer,
        announced: asyncio.Event,
        begun: asyncio.Event,
        delay: float,
        limit: float,
        beginning: Callable[[], bool] = lambda: False,
    ) -> None:
        self._listening = listening
        self._server = server
        self._announced = announced
        self._begun = begun
        self._delay = delay
        self._limit = limit
        self._beginning_still = beginning
        self._deadline = 0.0
        self._beginning = asyncio.Lock()

    def change(self, *, delay: float, limit: float) -> None:
        """Another time holds for an end that has not begun."""
        self._delay, self._limit = delay, limit

    async def announce(self) -> None:
        """Say that the end is near and go on, until whoever sends callers here has heard it."""
        self._announced.set()
        await asyncio.sleep(self._delay)

    async def begin(self) -> None:
        """Take no connection more; those there are end with their next reply.

        Once it is over, nothing more is accepted; doing it twice is the same as once.
        """
        async with self._beginning:
            if self._begun.is_set():
                return
            self._announced.set()
            self._begun.set()
            loop = asyncio.get_running_loop()
            self._deadline = loop.time() + self._limit
            # asyncio drops a connection that it has accepted and made no transport for when
            # the listener is closed. So first nobody more is accepted.
            for server in self._listening:
                for sock in server.sockets:
                    loop.remove_reader(sock.fileno())
            try:
                await _settled()
            finally:
                for server in self._listening:
                    server.close()
            await _settled()  # uvloop has gone on accepting until now

    async def end(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Wait until no connection is left; cut what is left after the limit.

        Args:
            error: what an `AsyncExitStack` is left with; after a cancellation nothing is
                waited for.
        """
        try:
            await self.begin()
            if not isinstance(error, asyncio.CancelledError):
                await self._wait()
        finally:
            await self._cut()

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        idle_since: dict[object, float] = {}
        # A TLS handshake is idle time too.
        grace = min(loop.time() + _GRACE, self._deadline)
        while (now := loop.time()) < self._deadline:
            left = self._server.unfinished
            if not left and (now >= grace or not self._beginning_still()):
                return
            # A reply that begins now ends its connection, so an idle one was idle all the time.
            idle_since = {one: idle_since.get(one, now) for one in left if one.idle}
            for one in left:
                if now - idle_since.get(one, now) >= _GRACE:
                    one.force_close()
            await asyncio.sleep(min(_LOOK_EVERY, self._deadline - now))

    async def _cut(self) -> None:
        tasks = [one.work for one in self._server.unfinished if one.work is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WORDS)
        self._server.abort()
        await asyncio.sleep(0)  # for the transports to tell


async def _settled() -> None:
    """Let the loop make connections of what it has accepted."""
    for _ in range(3):
        await asyncio.sleep(0)
