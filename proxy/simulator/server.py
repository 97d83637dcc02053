"""The wire: connections, in-order replies, broken ones. It knows HTTP/1.1 and nothing of Nomba.

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

from proxy.simulator.faults import Delivery, Fault, Then
from proxy.simulator.messages import Headers, Received, Reply, failure, phrase
from proxy.simulator.reader import Reader

_PLAIN = Delivery()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a connection asks of the one it serves.

    Attributes:
        accept: asked when a connection is opened; True resets it.
        head: told of a request once its head is complete; what it gets instead of an
            honest answer, if anything.
        whole: told of the same request once its body is complete.
        answer: does the work; None means no reply, as the fault says.
        stamp: the headers that every reply carries.
        sleep: how to wait, given seconds.
        trouble: told of faults of ours.
    """

    accept: Callable[[], bool]
    head: Callable[[Received], Fault | None]
    whole: Callable[[Received], None]
    answer: Callable[[Received, Fault | None], Awaitable[Reply | None]]
    stamp: Callable[[], Headers]
    sleep: Callable[[float], Awaitable[object]]
    trouble: Callable[[str], object]


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
        self._faults: dict[int, Fault] = {}  # by the identity of the request
        self._unanswered = 0
        self._unreadable = False
        self._dropping = False
        self._continued: Received | None = None
        self._left = asyncio.Event()
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start answering."""
        self._transport = cast("asyncio.Transport", transport)
        self._task = asyncio.get_running_loop().create_task(self._answer_all())
        self._task.add_done_callback(lambda _: self._ended(self))
        if self._site.accept():
            self._reset()

    def data_received(self, data: bytes) -> None:
        """Read on; what follows something malformed is not looked at."""
        if self._dropping:
            self._reset()
        if self._unreadable:
            return
        try:
            for request in self._reader.feed(data):
                if request.whole:
                    self._unanswered += 1
                    self._inbox.put_nowait(request)
                    self._site.whole(request)
                elif not self._begin(request):
                    return
        except httptools.HttpParserError:
            self._unreadable = True
            self._inbox.put_nowait(failure(400, description="Bad Request"))
        self._continue()

    def eof_received(self) -> bool:
        """The sender will say no more; it may still be listening."""
        self._left.set()
        half = self._reader.in_head and not self._unreadable
        self._inbox.put_nowait(failure(400, description="Bad Request") if half else None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The sender has gone."""
        self._left.set()
        self._lost.set()
        self._inbox.put_nowait(None)

    async def end(self) -> None:
        """Close at once and drop what is in work."""
        self._transport.abort()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._lost.wait()

    def _begin(self, request: Received) -> bool:
        """A head is complete; whether to read on."""
        fault = self._site.head(request)
        if fault is None:
            return True
        self._faults[id(request)] = fault
        if fault.drop not in {"before", "during"}:
            return True
        self._unreadable = self._dropping = True
        length = request.header("Content-Length") or "0"
        has_body = request.has("Transfer-Encoding") or length.strip("0")
        if fault.drop == "before" or self._reader.unread or not has_body:
            self._reset()
        else:  # the first bytes of the body are still to come
            self._invite(request)
        return False

    def _continue(self) -> None:
        """Say 100 to a sender that waits for it, once it is its turn."""
        request = self._reader.unfinished
        if request is None or request is self._continued or self._unanswered or self._unreadable:
            return
        self._continued = request
        self._invite(request)

    def _invite(self, request: Received) -> None:
        if (request.header("Expect") or "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _answer_all(self) -> None:
        try:
            while (item := await self._inbox.get()) is not None:
                if isinstance(item, Reply):
                    await self._send(item, to=self._reader.unfinished, close=True)
                    break
                fault = self._faults.pop(id(item), None)
                try:
                    reply = await self._site.answer(item, fault)
                except Exception as error:  # noqa: BLE001 - a fault of ours is an answer too
                    self._site.trouble(f"{item.method} {item.path}: {error!r}")
                    reply = failure(500, description="The simulator failed; see its output")
                self._unanswered -= 1
                if reply is None:
                    await self._break_off("stall" if fault and fault.stall else "reset")
                    break
                delivery = (fault and fault.delivery) or _PLAIN
                whole = await self._send(
                    reply, to=item, close=not item.keep_alive, delivery=delivery
                )
                if not (whole and item.keep_alive):
                    break
                self._continue()
        finally:
            self._transport.close()
        await self._lost.wait()

    async def _send(
        self, reply: Reply, *, to: Received | None, close: bool, delivery: Delivery = _PLAIN
    ) -> bool:
        """Write a reply; whether the connection can go on."""
        if self._transport.is_closing():
            return True  # its sender left, which is no reason to leave its work undone
        head_only = to is not None and to.method == "HEAD"
        data = render(reply, stamp=self._site.stamp(), head_only=head_only, close=close)
        if delivery.raw is not None:
            self._transport.write(delivery.raw)
        else:
            if to is not None:
                to.status = reply.status
            await self._write(data[: delivery.cut] + delivery.behind, pause=delivery.pause)
        if delivery.raw is not None or delivery.cut is not None:
            await self._break_off(delivery.then)
            return False
        if delivery.later is not None:
            await self._site.sleep(delivery.later)
            self._transport.write(data)
        return True

    async def _write(self, data: bytes, *, pause: float) -> None:
        if not pause:
            self._transport.write(data)
            return
        for at in range(len(data)):
            if at:
                await self._site.sleep(pause)
            if self._transport.is_closing():
                return
            self._transport.write(data[at : at + 1])

    async def _break_off(self, how: Then) -> None:
        """End the connection in the middle of things; nothing more is answered on it."""
        self._unreadable = True
        if how == "stall":
            await self._left.wait()
        elif how == "reset":
            self._reset()
        self._transport.close()

    def _reset(self) -> None:
        """Close with a TCP reset instead of a FIN."""
        self._unreadable = True
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

    async def start(self, host: str, *, port: int) -> str:
        """Listen.

        Args:
            host: address to bind.
            port: port to bind, 0 for any free one.

        Returns:
            The origin: `http://host:port`.

        Raises:
            OSError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._connection, host, port)
        bound: int = self._listener.sockets[0].getsockname()[1]
        return f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"

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
