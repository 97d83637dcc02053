"""The wire: connections, in-order replies, resets. It knows HTTP/1.1 and nothing of Nomba.

A request that arrived whole is worked even if its sender has left, as a real
upstream would; one that did not arrive whole is never worked.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools

from proxy.simulator.messages import Headers, Received, Reply, failure, phrase
from proxy.simulator.reader import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a connection asks of the one it serves.

    Attributes:
        head: told of a request once its head is complete.
        whole: told of the same request once its body is complete.
        answer: does the work; None means reset the connection without a reply.
        stamp: the headers that every reply carries.
    """

    head: Callable[[Received], None]
    whole: Callable[[Received], None]
    answer: Callable[[Received], Awaitable[Reply | None]]
    stamp: Callable[[], Headers]


def render(reply: Reply, *, stamp: Headers, head_only: bool, close: bool) -> bytes:
    """The bytes of a reply.

    Args:
        reply: what to say; its own headers replace the usual ones of the same name.
        stamp: the headers that every reply carries.
        head_only: the request was HEAD: announce the body but leave it out.
        close: announce that the connection ends here.

    Returns:
        Head and body, ready to be written.
    """
    bodiless = reply.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
    usual = [*stamp]
    if not bodiless:
        usual += [("Content-Type", "application/json"), ("Content-Length", str(len(reply.body)))]
    if close:
        usual.append(("Connection", "close"))
    own = {name.lower() for name, _ in reply.headers}
    headers = [*(pair for pair in usual if pair[0].lower() not in own), *reply.headers]
    lines = [f"HTTP/1.1 {reply.status} {phrase(reply.status)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head if head_only or bodiless else head + reply.body


class Connection(asyncio.Protocol):
    """One connection: reads requests as they come, answers them in that order.

    Args:
        site: the one it serves.
        number: the connection's number, counted from 1.
        ended: told when the connection is closed and its work done.
    """

    def __init__(self, site: Site, *, number: int, ended: Callable[["Connection"], object]) -> None:
        self._site = site
        self._ended = ended
        self._reader = Reader(number)
        self._inbox: asyncio.Queue[Received | Reply | None] = asyncio.Queue()
        self._unanswered = 0
        self._unreadable = False
        self._continued: Received | None = None
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start answering."""
        self._transport = cast("asyncio.Transport", transport)
        self._task = asyncio.get_running_loop().create_task(self._answer_all())
        self._task.add_done_callback(lambda _: self._ended(self))

    def data_received(self, data: bytes) -> None:
        """Read on; what follows something malformed is not looked at."""
        if self._unreadable:
            return
        try:
            for request in self._reader.feed(data):
                if request.whole:
                    self._unanswered += 1
                    self._inbox.put_nowait(request)
                    self._site.whole(request)
                else:
                    self._site.head(request)
        except httptools.HttpParserError:
            self._unreadable = True
            self._inbox.put_nowait(failure(400, description="Bad Request"))
        self._continue()

    def eof_received(self) -> bool:
        """The sender will say no more; it may still be listening."""
        self._inbox.put_nowait(None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The sender has gone."""
        self._lost.set()
        self._inbox.put_nowait(None)

    async def end(self) -> None:
        """Close at once and drop what is in work."""
        self._transport.abort()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._lost.wait()

    def _continue(self) -> None:
        """Say 100 to a sender that waits for it, once it is its turn."""
        request = self._reader.unfinished
        if request is None or request is self._continued or self._unanswered or self._unreadable:
            return
        if (request.header("Expect") or "").lower() == "100-continue":
            self._continued = request
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _answer_all(self) -> None:
        try:
            while (item := await self._inbox.get()) is not None:
                if isinstance(item, Reply):
                    self._write(item, to=self._reader.unfinished, close=True)
                    break
                reply = await self._site.answer(item)
                self._unanswered -= 1
                if reply is None:
                    self._reset()
                    break
                self._write(reply, to=item, close=not item.keep_alive)
                if not item.keep_alive:
                    break
                self._continue()
        finally:
            self._transport.close()
        await self._lost.wait()

    def _write(self, reply: Reply, *, to: Received | None, close: bool) -> None:
        if self._transport.is_closing():
            return
        head_only = to is not None and to.method == "HEAD"
        self._transport.write(
            render(reply, stamp=self._site.stamp(), head_only=head_only, close=close)
        )
        if to is not None:
            to.status = reply.status

    def _reset(self) -> None:
        """Close with a TCP reset instead of a FIN."""
        if self._transport.is_closing():
            return
        sock = cast("socket.socket", self._transport.get_extra_info("socket"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


class Server:
    """A listener and its connections."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._listener: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._made = 0

    async def start(self, host: str, *, port: int) -> int:
        """Listen.

        Args:
            host: address to bind.
            port: port to bind, 0 for any free one.

        Returns:
            The port bound.

        Raises:
            OSError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._connection, host, port)
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stop listening and close every connection at once."""
        if self._listener is None:
            return
        self._listener.close()
        for _ in range(2):  # what asyncio has accepted becomes a connection two steps later
            await asyncio.sleep(0)
        await asyncio.gather(*(connection.end() for connection in self._connections))
        await self._listener.wait_closed()
        self._listener = None

    def _connection(self) -> Connection:
        self._made += 1
        connection = Connection(self._site, number=self._made, ended=self._connections.discard)
        self._connections.add(connection)
        return connection
