"""The traffic listener: how many connections there may be, and what ends them.

aiohttp makes a task, a request and a writer for every request, and adds fields to replies.
Here each connection's one task asks the handler for one request after another (`calls.py`), and
what it answers is written as it is.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import cast

from proxy.calls import Answer, CallerConnection
from proxy.core.exchange import Emit, Observe
from proxy.errors import Overloaded
from proxy.quiet import QuietServer
from proxy.sending import cut_off
from proxy.slow import SlowHeads

_OLDEST = 128  # connections among which an idle one is looked for, to make room


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What callers' connections may take.

    Attributes:
        idle: seconds a connection is kept on which nothing happens.
        head_time: seconds from the first byte of a head to its last.
        head_size: bytes of a head.
        head_fields: how many it may have.
        connections: how many there may be.
    """

    idle: float = 75.0
    head_time: float = 15.0
    head_size: int = 64 * 1024
    head_fields: int = 128
    connections: int = 10_000


class TrafficServer(QuietServer):
    """What the traffic listener answers with.

    Args:
        answer: answers a request.
        observe: takes the record of a malformed request.
        emit: takes events.
        limits: of their connections.
        is_draining: whether connections are to end.
        crowded: is told what became of a connection that was one too many (`made_room`: of an idle
            one; `refused` or `reset`: of the newest, or of a TLS handshake).

    Attributes:
        most: connections that there may be.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        observe: Observe,
        emit: Emit,
        limits: CallerLimits | None = None,
        is_draining: Callable[[], bool] = lambda: False,
        crowded: Callable[[str], None] = lambda _: None,
    ) -> None:
        limits = limits or CallerLimits()
        super().__init__(
            answer,
            observe=observe,
            emit=emit,
            keepalive=limits.idle,
            line=limits.head_size,
            fields=limits.head_fields,
        )
        self.answer = answer
        self.is_draining = is_draining
        self.slow = SlowHeads(limits.head_time)
        self.most = limits.connections
        self._crowded = crowded

    def change(self, answer: Answer, *, limits: CallerLimits) -> None:
        """From the next request on, and for new connections, something else holds."""
        self.answer = answer
        self.limit(idle=limits.idle, line=limits.head_size, fields=limits.head_fields)
        self.slow.limit = limits.head_time
        self.most = limits.connections

    def __call__(self) -> CallerConnection:
        """A protocol for a new connection."""
        return CallerConnection(self, loop=asyncio.get_running_loop(), **self.options)

    def admit(self, newest: CallerConnection) -> None:
        """Keep within the limit: an idle connection makes room, else the newest is refused."""
        if len(self._connections) <= self.most:
            return
        for one in cast("Iterable[CallerConnection]", islice(self._connections, _OLDEST)):
            if one.idle and one is not newest:
                one.force_close()
                self._crowded("made_room")
                return
        if len(self._connections) > 2 * self.most:
            newest.cut(reset=True)
            self._crowded("reset")
            return
        self._crowded("refused")
        newest.refuse_next(
            Overloaded(
                "The proxy has as many connections as it takes on; nothing was sent.",
                hint="Keep connections and use them again. The limit is callers.connections.",
                retry_after=1,
                close=True,
            )
        )

    def crowds(self, begun: int) -> bool:
        """Whether one more TLS handshake, beside so many that have begun, is one too many."""
        if begun < self.most:
            return False
        self._crowded("reset")
        return True

    @property
    def unfinished(self) -> list[CallerConnection]:
        """The connections, those included whose caller has gone before its request was over."""
        return cast("list[CallerConnection]", self.connections)

    def abort(self) -> None:
        """Cut all connections, visibly where a reply has not been written to its end."""
        for transport in list(self._connections.values()):
            if transport.get_write_buffer_size():
                cut_off(transport)
            else:
                transport.abort()
