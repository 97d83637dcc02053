"""A connection to the upstream: one request after another, parsed by llhttp (httptools).

A reply is a stream: its head is awaited first, its body then comes part by part with
backpressure. Nothing here retries, follows, decodes or remembers. Every failure says
whether a byte of the request may have reached the upstream.
"""

import asyncio
import math
import re
import select
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import cast

import httptools

from proxy.core.capture import Dialled
from proxy.core.reply_heads import ReplyHead
from proxy.errors import Outcome, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from proxy.sending import unsent

# Parts of a body waiting for a slow caller; beyond it the upstream is told to wait.
_HIGH_WATER = 256 * 1024
# The same for a request body and a slow upstream.
_WRITE_HIGH_WATER = 256 * 1024
_MAX_HEAD = 64 * 1024
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BODYLESS = frozenset({204, 304})
_NO_HEAD = ReplyHead(0, reason=b"", headers=())


# What an interim reply says: status, reason, fields.
Interim = Callable[[int, bytes, list[tuple[bytes, bytes]]], None]


def _tell_nobody(*_: object) -> None:
    pass


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time.

    Args:
        ended: told once when the connection is gone.

    Attributes:
        loop: it runs in.
        used: how many requests have been begun on it.
        dialled: when it came about, until its second request; set by who dialled.
        idle_since: loop time since which it waits for the next; set by its keeper.
        idle_limit: seconds it may wait, by the upstream's word (`Keep-Alive: timeout=`).
        head: the reply's, once `wait_head` has returned.
        bodyless: whether the reply has no body by its nature (HEAD, 204, 304).
    """

    def __init__(self, *, ended: Callable[["Connection"], object] = lambda _: None) -> None:
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._ended = ended
        self._waiter: asyncio.Future[None] | None = None
        # One timer for all that is waited for: most waits end long before it rings.
        self._by = math.inf
        self._alarm: asyncio.TimerHandle | None = None
        self._rings = math.inf
        self._poll: select.poll | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._parsed = True
        self._paused = False
        self._choked = False
        self._asked = False
        self._problem: str | None = None
        self.head = _NO_HEAD
        self.used = 0
        self.dialled: Dialled | None = None
        self.idle_since = 0.0
        self.idle_limit = math.inf
        self._interim: Interim = _tell_nobody
        self._clear(head_only=False)

    def _clear(self, *, head_only: bool) -> None:
        """Nothing of a reply has come yet."""
        if not self._parsed:  # else it is ready for another
            self._parser = httptools.HttpResponseParser(self)
        self._parsed = False
        self._head_only = head_only
        self._until_close = False
        self._parts: deque[bytes] = deque()
        self._buffered = 0
        self._head_done = False
        self._complete = False
        self._persists = False
        self._all_sent = False
        self._received = 0
        self._modern = False
        self._fruitless = 0
        self._reason = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self.bodyless = False

    # -- what its keeper asks ------------------------------------------------------------

    @property
    def reusable(self) -> bool:
        """Whether it can carry another request: all was sent, all came, and nothing more."""
        transport = self._transport
        return (
            self._complete
            and self._persists
            and self._all_sent
            and self._problem is None
            and not self._paused  # what was not read to its end would never be read again
            and transport is not None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )

    @property
    def quiet(self) -> bool:
        """Whether nothing has come since it became idle, neither bytes nor an end.

        Asks the socket itself: what has come in the last moment is not in the loop yet,
        and would be taken for the reply to the next request.
        """
        transport = self._transport
        if transport is None or transport.is_closing() or self._problem is not None:
            return False
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not self._poll.poll(0)

    @property
    def tls(self) -> ssl.SSLObject | None:
        """The TLS side of the connection, if it has one."""
        if self._transport is None:
            return None
        found: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object")
        return found

    @property
    def silent(self) -> bool:
        """Whether not a byte has come since the request was begun."""
        return not self._received

    def rest(self) -> None:
        """No reply is expected until `begin`: what comes now ends the connection."""
        self._asked = False
        self._interim = _tell_nobody  # whose request it was is held no longer

    # -- what the caller does ----------------------------------------------------------

    def begin(self, *, head_only: bool, interim: Interim = _tell_nobody) -> None:
        """Get ready for the next request.

        Args:
            head_only: whether it is a HEAD, whose reply has no body.
            interim: told of replies that come before the final one.
        """
        self._interim = interim
        if self.used:
            self._clear(head_only=head_only)
            self.dialled = None
        self._head_only = head_only
        self._asked = True
        self.used += 1

    def send(
        self,
        head: bytes,
        *,
        body: Iterable[bytes],
        stall: float,
        by: float = math.inf,
        sending: Callable[[Dialled | None], object] = lambda _: None,
    ) -> Awaitable[None] | None:
        """Write the request, no faster than the upstream takes it, until it answers.

        From the first byte on a failure's outcome is `unknown`. A reply that comes before
        all is written ends the writing: it is the answer.

        Args:
            head: complete request head.
            body: the body in parts, each with something in it.
            stall: seconds in which the upstream has to take something.
            by: loop time until which it has to have taken all.
            sending: told right before the first byte is written, with `dialled`.

        Returns:
            What is left to do, or None if all is written.

        Raises:
            UpstreamUnreachable: the connection is gone already; nothing was written.
            UpstreamTimeout: the upstream takes no more.
            TimeoutError: it has not taken all in time.
        """
        if self._transport is None or self._problem is not None:
            raise UpstreamUnreachable("The upstream closed the connection; nothing was sent.")
        sending(self.dialled)
        if not body:
            self._write(head)
            self._all_sent = True
            return None
        parts = iter(body)
        pending = self._fill(head, parts)
        if pending is None:
            return None
        return self._send_on(pending, parts=parts, stall=stall, by=by)

    def _fill(self, pending: bytes, parts: Iterator[bytes]) -> bytes | None:
        """Write as much as the upstream takes at once; what has to wait, or None if nothing has."""
        for part in parts:
            if len(pending) + len(part) <= _MAX_HEAD:
                pending += part
                continue
            self._write(pending)
            pending = part
            if self._choked:
                return pending
            if self._decided:
                return None
        self._write(pending)
        self._all_sent = True
        return None

    async def _send_on(
        self, pending: bytes | None, *, parts: Iterator[bytes], stall: float, by: float
    ) -> None:
        while pending is not None:
            await self._taken(stall, by=by)
            if self._decided:
                return
            pending = self._fill(pending, parts)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:  # once it is lost, `wait_head` says so
            self._transport.write(data)

    async def _taken(self, stall: float, *, by: float) -> None:
        """Wait until the upstream has taken enough, or has answered."""
        left, limit = -1, -math.inf
        while self._choked and not self._decided and self._transport is not None:
            if self.loop.time() >= limit:  # else something else came, as half a head
                size = unsent(self._transport)
                if size == left:
                    raise UpstreamTimeout(
                        f"The upstream took nothing of the request for {stall:g} seconds.",
                        outcome=Outcome.UNKNOWN,
                    )
                left, limit = size, self.loop.time() + stall
            try:
                await self._news(min(by, limit))
            except TimeoutError:
                if by <= limit:
                    raise

    async def wait_head(self, *, by: float = math.inf) -> None:
        """Wait for the reply's final head.

        Args:
            by: loop time until which it has to be here.

        Raises:
            UpstreamBroken: the connection ended first, or what came is no HTTP.
            TimeoutError: it did not come in time.
        """
        while not self._head_done:
            if self._problem is not None:
                self._raise_problem()
            await self._news(by)
        if not (self._complete or self._parts):  # what is known to be broken is not begun
            self._raise_problem()

    @property
    def complete(self) -> bool:
        """Whether the reply has been received to its end."""
        return self._complete

    @property
    def _decided(self) -> bool:
        """Whether a final head has come, or something wrong: what follows means nothing."""
        return self._head_done or self._problem is not None

    @property
    def waiting(self) -> bool:
        """Whether `more` would have to wait."""
        return not (self._parts or self._complete or self._problem)

    def take(self) -> bytes:
        """The body's bytes received so far and not taken yet, without waiting."""
        if not self._parts:
            return b""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def more(self, *, by: float = math.inf) -> bool:
        """Wait until `take` has something; False at the end of the body.

        Args:
            by: loop time until which something has to have come.

        Raises:
            UpstreamBroken: the reply was cut short.
            TimeoutError: nothing came in time.
        """
        while not self._parts:
            if self._complete:
                return False
            self._raise_problem()
            await self._news(by)
        return True

    def close(self) -> None:
        """Give the connection up; safe to call at any time."""
        if self._transport is not None:
            self._transport.abort()

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise UpstreamBroken(
                f"The upstream {self._problem}.",
                hint=(
                    "Nobody knows whether the request was carried out: before repeating it, "
                    "ask for its state by its own reference (merchantTxRef or orderReference)."
                ),
                outcome=Outcome.UNKNOWN,
            )

    def _news(self, by: float) -> asyncio.Future[None]:
        """Is done when something has happened; a `TimeoutError` if nothing has until `by`."""
        self._by = by
        if by < self._rings:
            self._set_alarm(by)
        self._waiter = self.loop.create_future()
        return self._waiter

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._rings = when
        self._alarm = self.loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._alarm, self._rings = None, math.inf
        if self._waiter is None or self._waiter.done():
            return  # who waits next sets it anew
        if self.loop.time() < self._by:
            self._set_alarm(self._by)
        else:
            self._waiter.set_exception(TimeoutError())

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    # -- what the transport says ---------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is up."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER)

    def pause_writing(self) -> None:
        """asyncio: the upstream is slower than the request."""
        self._choked = True

    def resume_writing(self) -> None:
        """asyncio: it has caught up."""
        self._choked = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of the reply came."""
        if self._problem is not None:
            return
        if not self._asked or self._complete:  # to nothing, so nobody must get it
            self._fail("sent something that nobody had asked for")
            return
        if not self._received:
            self._modern = data.startswith(b"HTTP/1.1 ")
        self._received += len(data)
        self._fruitless += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._unparsable()
        if not self._head_done and self._received > _MAX_HEAD:
            self._fail("sent a reply head that is too large")
        elif self._fruitless > _MAX_HEAD and self._head_done and not self._complete:
            self._fail("sent trailers or chunk extensions that are too large")
        self._wake()

    def eof_received(self) -> None:
        """asyncio: the upstream finished sending."""
        self._end(clean=self._transport is not None and _said_goodbye(self._transport))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """asyncio: the connection is gone."""
        self._transport = self._poll = None
        self._interim = _tell_nobody
        self._choked = False
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._rings = None, math.inf
        self._ended(self)
        # What ends a body that only the close delimits is `eof_received`, nothing else.
        self._end(clean=False)

    def _end(self, *, clean: bool) -> None:
        if not self._complete and self._problem is None:
            if clean and self._head_done and self._until_close:
                self._complete = True
            elif self._head_done:
                self._fail("cut its reply short")
            else:
                self._fail("closed the connection without a complete reply")
        self._wake()

    def _unparsable(self) -> None:
        # What comes after a complete reply is the connection's problem, not the reply's;
        # a problem that a callback found says more than the parser does.
        if self._complete:
            self._persists = False
        elif self._problem is None:
            self._fail("sent something that is no valid HTTP reply")

    def _fail(self, problem: str) -> None:
        self._problem = problem
        self.close()

    # -- what the parser says ------------------------------------------------------------

    def on_message_begin(self) -> None:
        """httptools: a head begins, interim or final."""
        if self._complete:
            self._persists = False
        if not self._decided:
            self._reason = b""
            if self._fields:  # of an interim reply
                self._fields = []

    def on_status(self, part: bytes) -> None:
        """httptools: some of the reason phrase."""
        if not self._decided:
            self._reason += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a field of the head, or of the trailers."""
        if not self._head_done:  # trailers of a chunked body are not forwarded
            self._fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """httptools: a head is complete; decide how its body ends."""
        parser, reason, fields = self._parser, self._reason, self._fields
        if self._decided:
            return
        if self._received > _MAX_HEAD and _size(fields) > _MAX_HEAD:
            self._problem = "sent a reply head that is too large"
            return
        status = parser.get_status_code()
        if reason != b"OK" and _CONTROL.search(reason):
            self._problem = "sent a reason phrase with control characters"
            return
        if 100 <= status < 200:
            self._modern = False  # what follows has a version of its own
            if status == 101:
                self._problem = "switched protocols without being asked"
            elif status != 100:  # that one concerns this hop only; nobody asked for it here
                self._interim(status, reason, fields)
            return
        version = "1.1" if self._modern else parser.get_http_version()
        if not 200 <= status < 600 or version not in {"1.1", "1.0"}:
            self._problem = "sent a status or version that HTTP/1.1 does not have"
            return
        head = ReplyHead(status, reason=reason, headers=fields, old=version == "1.0")
        if not head.sound:
            self._problem = "framed its reply in a way the proxy does not pass on"
            return
        self.head = head
        if head.idle_limit != math.inf:
            self.idle_limit = head.idle_limit
        self.bodyless = self._head_only or status in _BODYLESS
        self._until_close = not (self.bodyless or head.chunked or head.length is not None)
        self._persists = head.persists and not self._until_close
        if status == 204 and (head.length or head.chunked):
            self._persists = False  # it may send what it announces, though none may have it
        self._head_done = True
        if self.bodyless:
            self._complete = True

    def on_body(self, part: bytes) -> None:
        """httptools: some of the body."""
        if self._complete:
            self._persists = False  # a body where none may be
            return
        self._fruitless = 0
        self._parts.append(part)
        self._buffered += len(part)
        if self._buffered > _HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """httptools: the reply is complete by its own framing."""
        if self._head_done:
            self._complete = True
            if self._paused and self._transport is not None:
                # What comes while nothing is read, TLS keeps where `quiet` does not see it.
                self._paused = False
                self._transport.resume_reading()
            # It reads nothing more once it takes the connection for ended, by its own rules.
            self._parsed = self._parser.should_keep_alive()


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)


def _said_goodbye(transport: asyncio.Transport) -> bool:
    """Whether the end of input is the peer's word: over TLS a bare FIN is anybody's.

    RFC 9112 section 9.8: an unframed reply is complete only with the close alert.
    """
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if tls is None:
        return True
    try:
        return tls.read(1) == b""
    except ssl.SSLError:
        return False
