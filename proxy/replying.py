"""Step 8: what a caller gets, the upstream's reply or one of ours."""

import asyncio
from collections.abc import Callable, Mapping
from email.utils import formatdate

from proxy.calls import RawReply
from proxy.core.exchange import Emit, Event, Exchange
from proxy.core.heads import Headers as RawHeaders
from proxy.core.refusal import local_reply
from proxy.core.reply_heads import ReplyHead
from proxy.core.routes import READ_METHODS
from proxy.course import Course
from proxy.errors import Internal, Outcome, ProxyError
from proxy.gate import Headers
from proxy.quiet import refusal as render_refusal
from proxy.upstream.reply import Reply

_MARKED = 6  # bytes from which on a token is not found in a reply by chance
_UNKNOWN = Outcome.UNKNOWN  # Python 3.11 looks a member up by its name every time


class Replies:
    """Writes replies to callers.

    Args:
        headers: what is done to them.
        stall: seconds in which a caller has to read something of its reply.
        emit: takes events.
        monotonic: seconds, for durations.
    """

    def __init__(
        self,
        *,
        headers: Headers,
        stall: float,
        emit: Emit,
        monotonic: Callable[[], float],
    ) -> None:
        self._headers = headers
        self._stall = stall
        self._stays, self._ends = RawReply(b"", True, stall), RawReply(b"", False, stall)
        self._emit = emit
        self._monotonic = monotonic

    async def deliver(self, course: Course) -> RawReply:
        """Pass the upstream's reply on; from its first byte on an error can only cut it short."""
        call, exchange, reply, capture = course.call, course.exchange, course.reply, course.capture
        connection = call.connection
        keep_alive = call.stays_open
        whole = reply.ready()
        chunked = False
        own = b"X-Request-Id: %b\r\nNomba-Proxy-Outcome: %b\r\nVia: %b\r\n" % (
            exchange.request_id.encode(),
            exchange.outcome.encode(),
            self._headers.via,
        )
        if self._headers.server_timing:
            own += b"Server-Timing: %b\r\n" % self._timing(exchange).encode()
        if course.hint:
            own += b"Nomba-Proxy-Hint: %b\r\n" % course.hint.encode()
        if reply.head.length is None and not reply.bodyless:
            if whole is not None:
                own += b"Content-Length: %d\r\n" % len(whole)
            elif call.http10:
                keep_alive = False
            else:
                chunked = True
                own += b"Transfer-Encoding: chunked\r\n"
        if not keep_alive:
            own += b"Connection: close\r\n"
        elif call.http10:
            own += b"Connection: keep-alive\r\n"
        exchange.status = reply.head.status
        location = course.upstream.locate if self._headers.rewrite_location else None
        head = self._render(course, reply.head, own=own, location=location)
        if capture is not None:
            capture.reply(head)
        try:
            try:
                if whole is None:
                    await self._pass_on(course, head, chunked=chunked)
                else:
                    reply.close()  # nobody else need wait until this caller has read it
                    exchange.reply_bytes = len(whole)
                    if capture is not None:
                        capture.part(whole)
                    if connection.write(head + whole):
                        await connection.caught_up(stall=self._stall)
            except ConnectionError:
                exchange.status = 499
            except TimeoutError:  # it reads next to nothing, and holds a connection to the upstream
                exchange.status, exchange.error = 499, "caller_stalled"
                connection.cut(reset=True)
            else:
                return self._stays if keep_alive else self._ends
            if whole is None:
                await _hear_out(exchange, reply)
        except asyncio.CancelledError:
            exchange.error, exchange.outcome = "cancelled", _UNKNOWN
            connection.cut(reset=call.http10 and reply.head.length is None)
            raise
        except Exception as fault:  # noqa: BLE001 - nothing may end a cut reply cleanly
            error = fault if isinstance(fault, ProxyError) else self.internal(exchange, fault)
            exchange.error, exchange.detail = error.code, error.description
            exchange.outcome = _UNKNOWN
            if capture is not None:
                capture.failed(error.code)
            connection.cut(reset=call.http10 and reply.head.length is None)
        return self._ends

    async def _pass_on(self, course: Course, head: bytes, *, chunked: bool) -> None:
        """Pass a reply on as it comes, no faster than the caller reads it."""
        connection, reply, stall = course.connection, course.reply, self._stall
        data, part = head, reply.at_hand()
        while True:
            if part:
                course.exchange.reply_bytes += len(part)
                if course.capture is not None:
                    course.capture.part(part)
                data += b"%x\r\n%b\r\n" % (len(part), part) if chunked else part
            if connection.write(data):
                await connection.caught_up(stall=stall, by=course.deadline)
            data, part = b"", await reply.part()
            if not part:
                break
        if chunked:
            connection.write(b"0\r\n\r\n")

    def _render(
        self,
        course: Course,
        head: ReplyHead,
        *,
        own: bytes = b"",
        location: Callable[[bytes], bytes] | None = None,
    ) -> bytes:
        """A reply's head for the caller, our token masked should the upstream have put it there.

        It is looked for once, in what is ready to be written.
        """
        upstream, shared = course.upstream, not course.decision.identity.ambient
        data = head.render(own, location=location, shared=shared)
        text = course.token.access.reveal(to=upstream.dialler.origin.text).encode()
        if data.find(text) < 0 or len(text) < _MARKED:
            return data
        told: dict[str, object] = {"request_id": course.exchange.request_id}
        self._emit(Event("token_in_reply", "error", upstream.name, told))
        masked = ReplyHead(
            head.status,
            reason=head.reason.replace(text, b"***"),
            headers=[(n.replace(text, b"x"), v.replace(text, b"***")) for n, v in head.headers],
        )
        return masked.render(own, location=location, shared=shared)

    def refusal(self, course: Course, error: ProxyError) -> RawReply:
        """An error of ours, for the caller."""
        call, exchange = course.call, course.exchange
        exchange.status = error.status
        exchange.outcome = error.outcome
        exchange.error = error.code
        exchange.detail = f"{error.description} {error.logged}".rstrip()
        keep_alive = call.stays_open and not error.close
        data = render_refusal(
            error,
            request_id=exchange.request_id,
            keep_alive=keep_alive,
            http10=call.http10,
            head_only=call.method == "HEAD",
            timing=self._timing(exchange) if self._headers.server_timing else "",
        )
        if course.capture is not None:
            course.capture.reply(data)
        return RawReply(data, keep_alive, self._stall)

    def _timing(self, exchange: Exchange) -> str:
        """Where the time went until now, in milliseconds (W3C Server Timing)."""
        spent = (
            ("total", self._monotonic() - exchange.started),
            ("token", exchange.waited),
            ("upstream", exchange.upstream_seconds),
        )
        return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in spent)

    def local(self, course: Course, body: Mapping[str, object]) -> RawReply:
        """An answer of ours that is no error: to a login, or `OPTIONS *`."""
        call, exchange = course.call, course.exchange
        exchange.status = 200
        keep_alive = call.stays_open
        data = local_reply(
            200,
            body=body,
            request_id=exchange.request_id,
            outcome=exchange.outcome,
            date=formatdate(usegmt=True),
            keep_alive=keep_alive,
            http10=call.http10,
        )
        if course.capture is not None:
            course.capture.reply(data)
        return RawReply(data, keep_alive, self._stall)

    def internal(self, exchange: Exchange, fault: Exception) -> ProxyError:
        """Report a fault of ours; what the caller is told of it."""
        trace = fault.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace else "?"
        # The fault's text may quote what the caller sent, so it is not reported.
        fields: dict[str, object] = {"type": type(fault).__name__, "where": where}
        fields["request_id"] = exchange.request_id
        self._emit(Event("internal_fault", "error", exchange.upstream, fields))
        return Internal(
            "The proxy failed while it handled this request.",
            hint="Search the log for internal_fault and this request id.",
            outcome=exchange.outcome,
            close=True,
        )

    def interim(self, course: Course, status: int, reason: bytes, headers: RawHeaders) -> None:
        """Pass an interim reply on (RFC 9110 section 15.2): a proxy does, but not to HTTP/1.0."""
        transport = course.call.connection.transport
        if transport is None or course.call.http10:
            return
        fields = [one for one in headers if one[0].lower() != b"content-length"]
        transport.write(self._render(course, ReplyHead(status, reason=reason, headers=fields)))


async def _hear_out(exchange: Exchange, reply: Reply) -> None:
    """Find out how a reply ends whose caller has gone.

    Only what a read brings is of no use to anybody; everything else runs to its end.

    Raises:
        UpstreamBroken, UpstreamTimeout: it was cut short.
    """
    if reply.ready() is not None:
        return
    if exchange.method in READ_METHODS:
        exchange.outcome = _UNKNOWN
        return
    async for _ in reply.parts():
        pass
