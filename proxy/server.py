"""The server half: aiohttp's, with its edges taken over.

aiohttp parses requests and keeps connections; replies are written as bytes of ours, so
nothing is added to them. Its own error page and log line for a malformed request repeat
what the caller sent, an `Authorization` line included, so both are replaced.
"""

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion10
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from proxy.body import Bodies, Body
from proxy.core.exchange import Emit, Event, Exchange, Observe
from proxy.core.ids import new_request_id
from proxy.core.refusal import local_reply, refusal_parts
from proxy.errors import (
    BodyTimeout,
    HeadInvalid,
    HeadTooLarge,
    Internal,
    ProxyError,
)
from proxy.sending import unsent

# aiohttp's own loggers write tracebacks that contain what the caller sent.
_SILENT = logging.getLogger("proxy.silent")
_SILENT.disabled = True
_MAX_LINE = 16 * 1024
_MAX_FIELDS = 128
_STALL = 60.0


class CallerLeft(Exception):
    """The caller closed its connection before it had been answered."""


class RawReply(web.StreamResponse):
    """A reply of ready bytes; an empty one stands for a reply written already.

    Args:
        data: the complete reply.
        keep_alive: whether the connection stays open.
        stall: seconds in which a caller that is behind has to read something.
    """

    def __init__(self, data: bytes = b"", *, keep_alive: bool, stall: float = _STALL) -> None:
        super().__init__()
        self.data = data
        self._keep_alive = keep_alive
        self._stall = stall

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write the reply; aiohttp calls this once the handler has returned."""
        if not request.content.is_eof():  # aiohttp reads on for a while, whoever has left
            cast("QuietProtocol", request.protocol).on_leaving(request.content.feed_eof)
        if self.data:
            try:
                await write(request, self.data, stall=self._stall)
            except TimeoutError:  # it asks and asks, and reads nothing
                cut(request, reset=True)
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


def refuse(
    error: ProxyError,
    *,
    request_id: str,
    keep_alive: bool,
    http10: bool,
    head_only: bool,
    stall: float = _STALL,
) -> RawReply:
    """The reply for an error of ours."""
    body, extra = refusal_parts(error, request_id=request_id)
    keep_alive = keep_alive and not error.close
    data = local_reply(
        error.status,
        body=body,
        request_id=request_id,
        outcome=error.outcome,
        date=formatdate(usegmt=True),
        keep_alive=keep_alive,
        http10=http10,
        head_only=head_only,
        extra=extra,
    )
    return RawReply(data, keep_alive=keep_alive, stall=stall)


class Departure:
    """Ends the work for a caller that has gone, as long as that loses nothing.

    Args:
        request: whose caller is watched; the task that makes this one does the work.

    Attributes:
        left: whether the task has been cancelled for it.
    """

    def __init__(self, request: web.BaseRequest) -> None:
        self._protocol = cast("QuietProtocol", request.protocol)
        self._task = asyncio.current_task()
        self.left = False
        self._protocol.on_leaving(self._leave)

    def ignore(self) -> None:
        """From now on the work goes on whoever leaves."""
        self._protocol.on_leaving(None)

    def heed(self) -> None:
        """The opposite, once more.

        Raises:
            CallerLeft: the caller has gone meanwhile.
        """
        if self._protocol.transport is None:
            raise CallerLeft
        self._protocol.on_leaving(self._leave)

    def _leave(self) -> None:
        self.ignore()
        if self._task is not None and not self._task.done():
            self.left = True
            self._task.cancel()


async def read_body(
    request: web.BaseRequest, *, length: int, bodies: Bodies, most: int | None = None
) -> Body:
    """The whole body. Whoever gets it closes it.

    Args:
        request: whose body is read.
        length: declared length, or `CHUNKED`.
        bodies: makes it, and refuses what is too much.
        most: bytes it may have, if that is less than everybody's limit.

    Raises:
        BodyTooLarge, BodyTimeout, HeadInvalid: the body did not arrive whole.
        Overloaded: there is no room for it.
        CallerLeft: it will never be whole.
    """
    limits = bodies.limits
    body = bodies.begin(length, most=most)
    if length == 0:
        return body
    content = request.content
    try:
        if not content.is_eof():
            await _continue(request)
        async with asyncio.timeout(limits.total):
            while not content.at_eof():
                async with asyncio.timeout(limits.stall):
                    data = await content.readany()
                body.add(data)
    except BaseException as error:
        body.close()
        if isinstance(error, TimeoutError):
            raise BodyTimeout(
                "The body did not arrive in time; nothing was sent to the upstream.",
                hint="Send the whole body that Content-Length or chunked framing announces.",
                close=True,
            ) from None
        if isinstance(error, OSError | HttpProcessingError | RequestPayloadError):
            if request.transport is None or request.transport.is_closing():
                raise CallerLeft from None
            raise HeadInvalid("The body is framed wrongly.", close=True) from None
        raise
    return body


async def _continue(request: web.BaseRequest) -> None:
    """Answer `Expect: 100-continue` (RFC 9110 section 10.1.1) once we want the body."""
    expected = ",".join(request.headers.getall("Expect", ())).lower().split(",")
    waits = "100-continue" in (one.strip() for one in expected)
    if waits and request.version > HttpVersion10:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def write(request: web.BaseRequest, data: bytes, *, stall: float) -> None:
    """Write some of a reply, no faster than the caller reads it.

    Args:
        request: whose caller gets it.
        data: goes out as it is.
        stall: seconds in which a caller that is behind has to read something.

    Raises:
        ConnectionError: the caller has gone.
        TimeoutError: it reads nothing.
    """
    transport, writer = request.transport, request.writer
    if transport is None or transport.is_closing():
        raise ConnectionResetError
    writer.output_size += len(data)
    transport.write(data)
    if transport.get_write_buffer_size() <= transport.get_write_buffer_limits()[1]:
        return
    left = unsent(transport)
    draining = asyncio.ensure_future(writer.drain())  # whose waiting must not be interrupted
    try:
        while not (await asyncio.wait((draining,), timeout=stall))[0]:
            before, left = left, unsent(transport)
            if left >= before:
                raise TimeoutError
        draining.result()
    finally:
        draining.cancel()


def stays_open(request: web.BaseRequest) -> bool:
    """Whether another request may follow on the caller's connection.

    Not behind one that offers an upgrade: aiohttp's parser takes the bytes after its head
    for the other protocol, and what came in the same segment is lost. And not while the
    proxy is draining, unless that other request is here already.
    """
    if not request.keep_alive or "Upgrade" in request.headers:
        return False
    return not cast("QuietProtocol", request.protocol).ending


def cut(request: web.BaseRequest, *, reset: bool) -> None:
    """End a reply that cannot be completed so that the caller sees it was cut.

    A plain close inside a length or a chunk is visible; where only the close ends the
    body (HTTP/1.0), nothing but a reset is.
    """
    transport = request.transport
    if transport is None:
        return
    if reset:
        _reset(transport)
    else:
        transport.close()


def _reset(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class QuietProtocol(RequestHandler):
    """One caller's connection; what it sends wrong is answered without repeating it.

    Attributes:
        work: answers its requests, if need be to the end after the caller has gone.
    """

    __slots__ = ("_emit", "_is_draining", "_leaving", "_observe", "_partial", "work")

    def __init__(self, manager: "QuietServer", **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._observe = manager.observe
        self._emit = manager.emit
        self._is_draining = manager.is_draining
        self._leaving: Callable[[], None] | None = None
        self._partial = False
        self.work: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is under way: no request, and no part of a head."""
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._partial

    @property
    def ending(self) -> bool:
        """Whether the request that is answered now is the connection's last."""
        return self._is_draining() and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a caller has come."""
        super().connection_made(transport)
        self.work = self._task_handler  # aiohttp forgets it when the caller goes

    def data_received(self, data: bytes) -> None:
        """asyncio: something has come."""
        super().data_received(data)
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._partial = False
        elif data.strip(b"\r\n"):  # empty lines may stand before a head (RFC 9112 section 2.2)
            self._partial = True

    def connection_lost(self, exc: BaseException | None) -> None:
        """asyncio: the caller has gone."""
        super().connection_lost(exc)
        if self._leaving is not None:
            self._leaving()

    def on_leaving(self, told: Callable[[], None] | None) -> None:
        """Tell somebody when the caller goes; None for nobody any more."""
        self._leaving = told

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature
    ) -> web.StreamResponse:
        """Answer a head that aiohttp could not parse."""
        error: ProxyError
        if request.writer.output_size > 0:
            raise ConnectionError("the reply was under way")
        if status != 400:
            self._emit(Event("server_fault", "error", fields={"type": type(exc).__name__}))
            error = Internal("The proxy failed.", close=True)
        elif isinstance(exc, LineTooLong) or (exc is not None and "Too many headers" in str(exc)):
            error = HeadTooLarge(
                f"A header is larger than {_MAX_LINE} bytes, or there are more than {_MAX_FIELDS}.",
                hint="Send fewer or shorter headers (cookies are the usual reason).",
                close=True,
            )
        else:
            error = HeadInvalid(
                "The request is not valid HTTP/1.1, or its method is unknown.",
                hint="Check the request line (ASCII only), header syntax, Host and duplicates.",
                close=True,
            )
        exchange = Exchange(new_request_id(), started=time.monotonic())
        exchange.status, exchange.error = error.status, error.code
        exchange.detail = error.description
        self._observe(exchange)
        return refuse(
            error, request_id=exchange.request_id, keep_alive=False, http10=False, head_only=False
        )

    def log_exception(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the same
        """Report a fault without the data that caused it."""
        exc = kwargs.get("exc_info")
        self._emit(Event("server_fault", "error", fields={"type": type(exc).__name__}))


class QuietServer(web.Server):
    """aiohttp's low-level server with the connections above.

    Args:
        handler: answers a request.
        observe: takes the record of a malformed request.
        emit: takes events.
        keepalive: seconds an idle connection is kept.
        is_draining: whether connections are to end.
    """

    def __init__(
        self,
        handler: Any,
        *,
        observe: Observe,
        emit: Emit,
        keepalive: float,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(handler)
        self.observe = observe
        self.emit = emit
        self.is_draining = is_draining
        self._options = {
            "keepalive_timeout": keepalive,
            "access_log": None,
            "logger": _SILENT,
            "auto_decompress": False,
            "max_line_size": _MAX_LINE,
            "max_field_size": _MAX_LINE,
            "max_headers": _MAX_FIELDS,
        }

    def __call__(self) -> QuietProtocol:
        """A protocol for a new connection."""
        return QuietProtocol(self, loop=asyncio.get_running_loop(), **self._options)

    @property
    def unfinished(self) -> list[QuietProtocol]:
        """The connections, those included whose caller has gone before its request was over."""
        return cast("list[QuietProtocol]", self.connections)

    def abort(self) -> None:
        """Cut all connections, visibly where a reply has not been written to its end."""
        for transport in list(self._connections.values()):
            if transport.get_write_buffer_size():
                _reset(transport)
            else:
                transport.abort()
