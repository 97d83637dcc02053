"""A caller's connection, and the requests that come over it one after another.

aiohttp makes a task, a request and a writer for every request, and adds fields to replies.
Here the connection's one task asks the handler for one request after another, and what it
answers is written as it is.
"""

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol, cast

from aiohttp.http import HttpVersion, HttpVersion10
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestPayloadError

from proxy.core.heads import Headers
from proxy.core.peer import NOBODY, Peer
from proxy.errors import HeadInvalid, HeadTimeout, HeadTooLarge, ProxyError
from proxy.quiet import QuietProtocol, QuietServer
from proxy.sending import cut_off, unread, unsent
from proxy.slow import SlowHeads, begun

_STALL = 60.0
_NO_TRAILERS = b"\r\n0\r\n\r\n"  # ends a body in chunks behind which nothing has come
_LINGER = 10.0  # seconds for which the rest of a body is read that nobody wants
_CREDENTIALS = struct.Struct("iII")  # process, user and group of a Unix socket's peer, unix(7)
_LAST_WORD = 1.0  # seconds for which a caller may read the reply that ends its connection
# Bytes beside those of its content that a body in chunks may have: some, and so many for each.
_FRAMING, _FRAMING_EACH = 64 * 1024, 16
_HEAD_ENDS = b"\r\n\r\n"
_LOOK = 0.25  # seconds after which it is looked again how far a caller is


class CallerLeft(Exception):
    """The caller closed its connection before it had been answered."""


class RawReply(NamedTuple):
    """What there is to write when a request has been handled, and what comes after it.

    Attributes:
        data: the complete reply; empty if it is written already.
        keep_alive: whether the connection stays open.
        stall: seconds in which a caller that is behind has to read something.
    """

    data: bytes = b""
    keep_alive: bool = False
    stall: float = _STALL


class _Refused(NamedTuple):
    """Stands in the queue of requests for what is no request."""

    exc: ProxyError


class Call:
    """One request of a caller, its head parsed.

    Attributes:
        connection: where it came from, and where its reply goes.
        method: upper case, of those that the parser knows.
        target: as it stood in the request line.
        version, http10: of HTTP, and whether it is 1.0.
        headers: raw fields.
        fields: the same by name.
        body: what comes behind the head.
        chunked: whether the body comes in chunks.
        persists: whether the caller wants to ask more.
    """

    __slots__ = (
        *("body", "connection", "fields", "headers"),
        *("chunked", "http10", "method", "persists", "target", "version"),
    )

    def __init__(
        self, connection: "CallerConnection", message: RawRequestMessage, body: StreamReader
    ) -> None:
        self.connection = connection
        self.method: str = message.method
        self.target: str = message.path
        self.version: HttpVersion = message.version
        self.http10 = message.version == HttpVersion10
        self.headers: Headers = message.raw_headers
        self.fields: Mapping[str, str] = message.headers
        self.chunked: bool = message.chunked
        self.persists: bool = not (message.should_close or message.upgrade)
        self.body = body

    @property
    def stays_open(self) -> bool:
        """Whether another request may follow on the caller's connection.

        Not behind one that offers an upgrade: aiohttp's parser takes the bytes after its head
        for the other protocol, and what came in the same segment is lost. Not behind trailers,
        of which it takes the last one for a field of the next head: whether there were some is
        known once the body is here, and as long as nothing came after them. Not where a body
        may never come, because nobody asked for it (RFC 9110 section 10.1.1): the next request
        would be taken for it. And not while the proxy is draining, unless that other request is
        here already.
        """
        if not self.body.is_eof() and (self.chunked or "Expect" in self.fields):
            return False
        if self.chunked and (self.connection.last != _NO_TRAILERS or self.connection.followed):
            return False
        return self.persists and not self.connection.ending

    def _cancel(self, error: BaseException) -> None:
        """aiohttp: the caller has gone; nothing more of the body will come."""
        self.body.set_exception(error)


Answer = Callable[[Call], Awaitable[RawReply]]


def _forget_where(fault: BaseException | None) -> None:
    """A fault that is kept would keep what it was raised in, all bytes that had come included."""
    if fault is not None:
        fault.__traceback__ = None


def _peer_of(transport: asyncio.BaseTransport) -> Peer:
    secure = transport.get_extra_info("ssl_object")
    if secure is not None:
        return Peer.of_certificate(secure.getpeercert())
    sock = transport.get_extra_info("socket")
    asked = getattr(socket, "SO_PEERCRED", None)  # Linux's
    if sock is not None and asked is not None and sock.family == socket.AF_UNIX:
        told = sock.getsockopt(socket.SOL_SOCKET, asked, _CREDENTIALS.size)
        return Peer.of_uid(_CREDENTIALS.unpack(told)[1])
    return NOBODY


class Host(Protocol):
    """What connections belong to.

    Attributes:
        answer: answers a request.
        is_draining: whether connections are to end.
        slow: waits for heads.
    """

    answer: Answer
    is_draining: Callable[[], bool]
    slow: SlowHeads

    def admit(self, newest: "CallerConnection") -> None:
        """Keep within the limit."""


class CallerConnection(QuietProtocol):
    """One caller's connection.

    Attributes:
        work: answers its requests, if need be to the end after the caller has gone.
        heeds: whether the work ends when the caller goes, which loses nothing.
        left: whether it has ended for that.
        known: what the handler remembers of its last request.
        last: the last bytes that have come, as many as may end a body in chunks.
        peer: who is at its other end, as the connection itself says it.
        high_water: bytes not yet read by the caller from which on it is behind.
    """

    __slots__ = (
        *("_coming", "_deaf", "_framing", "_gone", "_host", "_inside", "_is_draining", "_partial"),
        "_slow",
        *("_since", "_taken", "_unread", "_written"),
        *("heeds", "high_water", "known", "last", "left", "peer", "work"),
    )

    def __init__(self, manager: Host, **kwargs: Any) -> None:
        super().__init__(cast("QuietServer", manager), **kwargs)
        self._host = manager
        self._is_draining = manager.is_draining
        self._slow = manager.slow
        self._coming: StreamReader = EMPTY_PAYLOAD  # the body that the parser is in, or was
        self._inside = False  # whether it is still in there
        self._partial = 0  # bytes of a head that is not complete
        self._framing = 0  # bytes of a body as they came
        self._deaf = False  # whether what comes is thrown away
        self._gone: asyncio.Future[None] | None = None
        self._unread: StreamReader | None = None
        self.heeds = self.left = False
        self.work: asyncio.Task[None] | None = None
        self.high_water = 0
        # How much was written and, of that, taken by the caller's kernel; and when that was so.
        self._written, self._taken, self._since = 0, -1, 0.0
        self.known: Any = None
        self.last = b""
        self.peer = NOBODY

    @property
    def idle(self) -> bool:
        """Whether nothing is under way: no request, no part of a head, and nothing unread.

        What the loop has not taken yet may be a whole payment, which a close would reset.
        """
        waiter, transport = self._waiter, self.transport
        waits = waiter is not None and not waiter.done() and not self._partial
        return waits and transport is not None and not unread(transport)

    @property
    def followed(self) -> bool:
        """Whether the next request is here already."""
        return bool(self._messages)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._current_request is not None

    @property
    def ending(self) -> bool:
        """Whether the request that is answered now is the connection's last."""
        return self._is_draining() and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a caller has come."""
        self.high_water = cast("asyncio.Transport", transport).get_write_buffer_limits()[1]
        self.peer = _peer_of(transport)
        super().connection_made(transport)
        self.work = self._task_handler  # aiohttp forgets it when the caller goes
        self._host.admit(self)

    def data_received(self, data: bytes) -> None:
        """asyncio: something has come."""
        if self._deaf:
            return
        end = len(_NO_TRAILERS)
        self.last = data[-end:] if len(data) >= end else (self.last + data)[-end:]
        messages, coming, inside = self._messages, self._coming, self._inside
        before, content = len(messages), coming.total_bytes if inside else 0
        super().data_received(data)
        if len(messages) > before:
            message, body = messages[-1]
            if isinstance(message, RawRequestMessage):
                self._coming = body
                self._inside = not body.is_eof()
                self._framing = 0
                if self._partial:
                    self._partial = 0
                    self._slow.forget(self)
                # In a full queue it may be whole requests, which aiohttp has not read yet.
                if not (self._inside or self._buffer_paused or data.endswith(_HEAD_ENDS)):
                    content = 0 if message.chunked else body.total_bytes
                    if more := begun(data, content=content):
                        self._part_of_a_head(more)
            else:
                _forget_where(message.exc)
                _forget_where(self._coming.exception())
                self._break_off(HeadInvalid("The body is framed wrongly.", close=True))
        elif inside:
            if not coming.is_eof():
                self._part_of_a_body(len(data))
                return
            self._inside = False
            # Of a chunked one, its framing looks as if it were behind it.
            behind = data[coming.total_bytes - content :].strip(b"\r\n")
            if behind and not data.endswith(_HEAD_ENDS):
                self._part_of_a_head(1)
        # Empty lines may stand before a head (RFC 9112 section 2.2).
        elif self._partial or data.strip(b"\r\n"):
            self._part_of_a_head(len(data))

    def _part_of_a_head(self, size: int) -> None:
        self._partial += size
        limit = self.max_line_size
        if self._partial > limit:
            self.refuse_next(
                HeadTooLarge(
                    f"The request head is larger than {limit} bytes.",
                    hint="Send fewer or shorter headers (cookies are the usual reason).",
                    close=True,
                )
            )
        elif self._waiter is not None and not self._waiter.done():
            self._slow.watch(self)

    def _part_of_a_body(self, size: int) -> None:
        """Refuse a body of which the framing is the greater part; extensions are no content."""
        self._framing += size
        if self._framing > _FRAMING + _FRAMING_EACH * self._coming.total_bytes:
            self._break_off(
                HeadInvalid(
                    "The body's chunks are mostly framing.",
                    hint="Send larger chunks, without extensions.",
                    close=True,
                )
            )

    def _break_off(self, error: ProxyError) -> None:
        """Nothing behind this can be read, what is missing of a body neither."""
        self._deaf = True
        if not self._coming.is_eof():
            self._coming.set_exception(error)

    def refuse_next(self, error: ProxyError) -> None:
        """Answer what was asked, then refuse what comes next, whatever it is."""
        self._deaf = True
        self._slow.forget(self)
        self._messages.append((cast("Any", _Refused(error)), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def late(self) -> None:
        """The time of its head is over (`slow.Slow`)."""
        if self._partial and self._waiter is not None:
            self.refuse_next(
                HeadTimeout(
                    "The request head did not arrive in time; nothing was sent to the upstream.",
                    hint="Send the head at once; callers.head_timeout is its limit.",
                    close=True,
                )
            )

    def _process_keepalive(self) -> None:
        if self._partial:  # it is not idle, and that head has a time of its own
            self._keepalive_handle = None
        elif self._waiter is not None and self.transport is not None and unread(self.transport):
            self._keepalive_handle = self._loop.call_later(_LOOK, self._process_keepalive)
        else:
            super()._process_keepalive()

    def connection_lost(self, exc: BaseException | None) -> None:
        """asyncio: the caller has gone."""
        super().connection_lost(exc)
        self._slow.forget(self)
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if self._unread is not None:
            self._unread.feed_eof()
        if self.heeds and self.work is not None:
            self.heeds, self.left = False, True
            self.work.cancel()

    # -- what the handler does ---------------------------------------------------------

    def heed(self) -> None:
        """From now on the work ends when the caller goes.

        Raises:
            CallerLeft: it has gone already.
        """
        if self.transport is None:
            raise CallerLeft
        self.heeds = True

    def write(self, data: bytes) -> bool:
        """Write some of a reply; whether the caller is behind, so that `caught_up` is due.

        Raises:
            ConnectionError: the caller has gone.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        transport.write(data)
        self._written += len(data)
        return transport.get_write_buffer_size() > self.high_water

    async def caught_up(self, *, stall: float, by: float = math.inf) -> None:
        """Wait until the caller has read enough for more to be written.

        Args:
            stall: seconds in which it has to read something.
            by: loop time until which it may take, however little it reads at a time.

        Raises:
            ConnectionError: the caller has gone.
            TimeoutError: it reads nothing, or too slowly.
        """
        transport = self.transport
        if transport is None:
            raise ConnectionResetError
        clock = self._loop.time
        taken = self._written - unsent(transport)
        if taken != self._taken:  # else it has read nothing since it was waited for last
            self._taken, self._since = taken, clock()
        draining = asyncio.ensure_future(self._drain_helper())  # its waiting goes on meanwhile
        try:
            while not (await asyncio.wait((draining,), timeout=min(stall, _LOOK)))[0]:
                taken, now = self._written - unsent(transport), clock()
                if now >= by:
                    raise TimeoutError
                if taken > self._taken:
                    self._taken, self._since = taken, now
                elif now - self._since >= stall:
                    raise TimeoutError
            draining.result()
        finally:
            draining.cancel()
        if not unsent(transport):
            self._taken = -1

    def cut(self, *, reset: bool) -> None:
        """End a reply that cannot be completed so that the caller sees it was cut.

        A plain close inside a length or a chunk is visible; where only the close ends the
        body (HTTP/1.0), nothing but a reset is.
        """
        transport = self.transport
        if transport is None:
            return
        if reset:
            cut_off(transport)
        else:
            transport.close()

    # -- one request after another -------------------------------------------------------

    async def start(self) -> None:
        """aiohttp: answer one request after another."""
        loop, messages, stall = self._loop, self._messages, _STALL
        transport = self.transport  # a forced close forgets it
        try:
            while not self._force_close:
                if not messages:
                    self._waiter = loop.create_future()
                    if self._partial:  # it began while another request was being answered
                        self._slow.watch(self)
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                message, body = messages.popleft()
                if self._parser is not None:
                    self._parser.message_consumed()
                if self._buffer_paused and len(messages) <= self._msg_queue_resume_size:
                    self._resume_reading_if_drained()
                if isinstance(message, RawRequestMessage):
                    call = Call(self, message, body)
                    self._current_request = call  # type: ignore[assignment] # for its `_cancel`
                    try:
                        reply = await self._host.answer(call)
                    finally:
                        self._current_request = None
                else:
                    self._deaf = True
                    reply = RawReply(self.refuse(message.exc))
                stall = reply.stall
                if reply.data:
                    await self._put(reply)
                if not body.is_eof():
                    await self._read_on(body)
                if not reply.keep_alive or self._close or self._force_close:
                    break
                self._next_keepalive_close_time = loop.time() + self._keepalive_timeout
                if self._keepalive_handle is None:
                    self._keepalive_handle = loop.call_at(
                        self._next_keepalive_close_time, self._process_keepalive
                    )
            if self._deaf and not self._force_close:
                await self._linger()
        except asyncio.CancelledError:
            self.force_close()
            # Of what is only the caller's end no exception stays: it would hold all of this until
            # the collector comes.
            if self.work is None or self.work.cancelling():
                raise
        except ConnectionError:  # it went while it was being answered
            self.force_close()
        except Exception as fault:  # noqa: BLE001 - one connection's fault is not the server's end
            self.report(fault)
            self.force_close()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()
        if transport is not None:
            await self._see_off(transport, stall=stall)

    async def _put(self, reply: RawReply) -> None:
        try:
            if self.write(reply.data):
                await self.caught_up(stall=reply.stall)
        except TimeoutError:  # it asks and asks, and reads nothing
            self.cut(reset=True)

    async def _see_off(self, transport: asyncio.Transport, *, stall: float) -> None:
        """Wait until the rest of what was written is taken: closing alone waits for ever."""
        left, since = -1, 0.0
        while transport.get_write_buffer_size():
            size, now = unsent(transport), self._loop.time()
            if size != left:
                left, since = size, now
            elif now - since >= stall:
                cut_off(transport)
                return
            self._gone = self._loop.create_future()
            await asyncio.wait((self._gone,), timeout=min(stall, _LOOK))

    async def _linger(self) -> None:
        """End our half first: a close with unread bytes is a reset, which can take the reply."""
        transport = self.transport
        if transport is None or not transport.can_write_eof():
            return
        try:
            transport.write_eof()
        except OSError:  # there is nobody to hear it
            return
        self._gone = self._loop.create_future()
        await asyncio.wait((self._gone,), timeout=_LAST_WORD)

    async def _read_on(self, body: StreamReader) -> None:
        """Read what is left of a body, for a while: a close now could take the reply with it."""
        if self.transport is None:  # nothing more will come
            return
        self._unread = body
        with contextlib.suppress(
            TimeoutError, HttpProcessingError, RequestPayloadError, ProxyError
        ):
            async with asyncio.timeout(_LINGER):
                while not body.is_eof():
                    await body.readany()
        self._unread = None
        if not body.is_eof():
            self._close = True
