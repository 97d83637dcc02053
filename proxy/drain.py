"""Stopping a server without losing a request.

aiohttp's own way down stops reading from every connection at once, uploads under way
included, and tells no caller that its connection is about to end. Here callers are told,
and each connection ends by itself.
"""

import asyncio
from types import TracebackType

from aiohttp import web

from proxy.server import QuietServer

_GRACE = 1.0  # seconds for which an idle connection is kept open: a request may be on its way
_LOOK_EVERY = 0.05  # seconds
_LAST_WORDS = 1.0  # seconds in which what is cut has to have said so


class Drain:
    """The end of a server: begin it, then wait for it.

    Args:
        runner: listens for the server; what has come and was not accepted stays in its
            sockets, for whoever else has them open.
        server: whose connections are waited for. It has to know of `begun`.
        begun: is set as soon as this has.
        limit: seconds after which what is left is cut.
    """

    def __init__(
        self,
        runner: web.ServerRunner,
        *,
        server: QuietServer,
        begun: asyncio.Event,
        limit: float,
    ) -> None:
        self._runner = runner
        self._server = server
        self._begun = begun
        self._limit = limit
        self._deadline = 0.0

    async def begin(self) -> None:
        """Take no connection more; those there are end with their next reply.

        Only the first call does something. Once it is over, nothing more is accepted.
        """
        if self._begun.is_set():
            return
        self._begun.set()
        self._deadline = asyncio.get_running_loop().time() + self._limit
        for site in self._runner.sites:
            await site.stop()
        for _ in range(2):  # by then what was accepted last is one of the server's connections
            await asyncio.sleep(0)

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
        while (left := self._server.unfinished) and (now := loop.time()) < self._deadline:
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
