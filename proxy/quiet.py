"""aiohttp's server, which repeats nothing of what a caller sent.

Its own error page and log line for a malformed request contain the offending header or chunk,
an `Authorization` line included, so both are replaced.
"""

import asyncio
import logging
import time
from email.utils import formatdate
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from proxy.core.exchange import Emit, Event, Exchange, Observe
from proxy.core.ids import new_request_id
from proxy.core.refusal import local_reply, refusal_parts
from proxy.errors import HeadInvalid, HeadTooLarge, Internal, ProxyError

# aiohttp's own loggers write tracebacks that contain what the caller sent.
_SILENT = logging.getLogger("proxy.silent")
_SILENT.disabled = True
_LINE = 16 * 1024
_FIELDS = 128


def refusal(
    error: ProxyError,
    *,
    request_id: str,
    keep_alive: bool,
    http10: bool,
    head_only: bool,
    timing: str = "",
) -> bytes:
    """The whole reply for an error of ours; `timing` is the value of its `Server-Timing`."""
    body, extra = refusal_parts(error, request_id=request_id)
    if timing:
        extra += (("Server-Timing", timing),)
    return local_reply(
        error.status,
        body=body,
        request_id=request_id,
        outcome=error.outcome,
        date=formatdate(usegmt=True),
        keep_alive=keep_alive and not error.close,
        http10=http10,
        head_only=head_only,
        extra=extra,
    )


class _Written(web.StreamResponse):
    """A reply of ready bytes, after which the connection is closed."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data
        self._keep_alive = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if request.transport is not None:
            request.transport.write(self._data)
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


class _Request(web.BaseRequest):
    """Whoever is answered need not know what we are made of, and in which version."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.popall("Server", None)


class QuietProtocol(RequestHandler):
    """One caller's connection; what it sends wrong is answered without repeating it."""

    __slots__ = ("_emit", "_observe")

    def __init__(self, manager: "QuietServer", **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._observe = manager.observe
        self._emit = manager.emit

    def refuse(self, exc: BaseException | None, *, status: int = 400) -> bytes:
        """Account for what aiohttp could not parse; the whole reply to it.

        Args:
            exc: what was wrong.
            status: 400, or another for a fault of ours.
        """
        error: ProxyError
        if isinstance(exc, ProxyError):
            error = exc
        elif status != 400:
            self.report(exc)
            error = Internal("The proxy failed.", close=True)
        elif isinstance(exc, LineTooLong) or (exc is not None and "Too many headers" in str(exc)):
            error = HeadTooLarge(
                f"A header is larger than {self.max_line_size} bytes, or there are more than "
                f"{self.max_headers}.",
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
        named = exchange.request_id
        return refusal(error, request_id=named, keep_alive=False, http10=False, head_only=False)

    def report(self, fault: BaseException | None) -> None:
        """Report a fault without the data that caused it."""
        self._emit(Event("server_fault", "error", fields={"type": type(fault).__name__}))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature
    ) -> web.StreamResponse:
        """Answer a head that aiohttp could not parse, or for a handler that failed."""
        if request.writer.output_size > 0:
            raise ConnectionError("the reply was under way")
        return _Written(self.refuse(exc, status=status))

    def log_exception(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the same
        """aiohttp: a fault."""
        self.report(kwargs.get("exc_info"))


class QuietServer(web.Server):
    """aiohttp's low-level server with the connections above.

    Args:
        handler: answers a request.
        observe: takes the record of a malformed request.
        emit: takes events.
        keepalive: seconds an idle connection is kept.
        line: bytes of a request line, and of a header.
        fields: how many headers there may be.
        room: how many connections there may be, if there is a limit: the oldest makes room.
    """

    def __init__(
        self,
        handler: Any,
        *,
        observe: Observe,
        emit: Emit,
        keepalive: float,
        line: int = _LINE,
        fields: int = _FIELDS,
        room: int | None = None,
    ) -> None:
        super().__init__(handler, request_factory=self._make)
        self.observe = observe
        self.emit = emit
        self._room = room
        self.options: dict[str, Any] = {
            "access_log": None,
            "logger": _SILENT,
            "auto_decompress": False,
        }
        self.limit(idle=keepalive, line=line, fields=fields)

    def limit(self, *, idle: float, line: int, fields: int) -> None:
        """What new connections may take: see `__init__`."""
        self.options |= {
            "keepalive_timeout": idle,
            "max_line_size": line,
            "max_field_size": line,
            "max_headers": fields,
        }

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """aiohttp: somebody has come."""
        super().connection_made(handler, transport)
        if self._room is not None and len(self._connections) > self._room:
            self._connections.pop(next(iter(self._connections))).abort()

    @staticmethod
    def _make(
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        return _Request(message, payload, protocol, writer, task, asyncio.get_running_loop())

    def __call__(self) -> QuietProtocol:
        """A protocol for a new connection."""
        return QuietProtocol(self, loop=asyncio.get_running_loop(), **self.options)
