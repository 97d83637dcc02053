"""One request, eight steps; the first three are `gate.py`.

1. **parse** the raw target; refuse what can be read two ways
2. **identify** the caller from head and connection, before a body byte is read
3. **authorize**: which upstream, which operation, for which account
4. **read** the body whole, up to a limit; a half-received request is never sent
5. **borrow** the current token
6. **attempt**: build the outgoing head afresh, send once
7. **judge** the reply: deliver; or, once, renew *that* token and go back to 6
8. **deliver**: stream the reply; from the first byte on an error can only cut it short

Steps 1 to 7 either bring a reply to deliver or raise a `ProxyError`, which becomes a
refusal. Whatever happens, the exchange is accounted for exactly once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial

from proxy.body import Bodies, Body
from proxy.callers.login import LoginCall
from proxy.calls import Call, CallerLeft, RawReply
from proxy.core.capture import Capture, Dialled, Guarded, Watch
from proxy.core.exchange import Emit, Event, Exchange, Observe
from proxy.core.heads import CHUNKED, RequestHead
from proxy.core.heads import Headers as RawHeaders
from proxy.core.ids import new_request_id, new_span_id, request_id
from proxy.core.judge import PEEK_LIMIT, Verdict, judge, may_replay, may_resend, needs_body
from proxy.core.limits import Limiter
from proxy.core.reference import LONGEST, find_reference
from proxy.core.refusal import local_reply
from proxy.core.reply_heads import ReplyHead
from proxy.core.routes import READ_METHODS, Kind
from proxy.core.session import Token
from proxy.core.trace import trace_line
from proxy.errors import (
    CallerUnknown,
    Internal,
    MethodNotAllowed,
    Outcome,
    ProxyError,
    RenewalNotAllowed,
    TokenUnavailable,
    UpstreamError,
    UpstreamTimeout,
)
from proxy.gate import Callers, Decision, Gate, Headers, LoginAsked, Upstream
from proxy.intake import read_body
from proxy.quiet import refusal
from proxy.upstream.reply import Reply

_PATIENCE = 1.0  # seconds that the beginning of a stream is held back to be judged
_MARKED = 6  # bytes from which on a token is not found in a reply by chance
_NO_WORD_OF_THE_TOKEN = frozenset({403, 429})  # statuses that come before it is looked at
# Python 3.11 looks a member up by its name every time.
_UNKNOWN, _ANSWERED, _ANSWER = Outcome.UNKNOWN, Outcome.ANSWERED, Verdict.ANSWER
_MONEY = Kind.MONEY
_STAYS, _ENDS = RawReply(keep_alive=True), RawReply()
_LOGIN_LIMIT = 16 * 1024  # bytes of a login's body
_HINT_REQUERY = (
    "the token was refused but the work may have been done: "
    "requery by merchantTxRef or orderReference before repeating"
)


_HINT_REFUSED = (
    "a new token was refused too, so it is not the token: a wrong accountId, sandbox and "
    "production mixed up, or an address that Nomba's IP allowlist lacks?"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller may ask of us.

    Attributes:
        head: bytes of a whole request head.
        write_stall: seconds in which it has to read something of its reply.
    """

    head: int = 64 * 1024
    write_stall: float = 60.0


class _Course:
    """One exchange on its way through the steps.

    Args:
        call: the caller's request.
        exchange: the record of it.
        capture: is told; None if nobody watches.

    Attributes:
        connection: the caller's.
        limiter: has let it in, and is told when it ends.
        decision: how it is forwarded.
        upstream: where to.
        head: to be sent.
        body: in parts; can be gone through more than once; None for none.
        deadline: loop time at which it has to be over, whatever is sent in it.
        resent: whether the one resend over a fresh connection has been had.
        token: the one of the last attempt, which must not come back in its reply.
        reply: to the last attempt; `open` as long as it has to be closed.
        hint: for the caller, if the outcome needs one.
    """

    __slots__ = (
        *("body", "call", "capture", "connection", "deadline", "decision", "exchange"),
        *("head", "hint", "limiter", "open", "reply", "resent", "token", "upstream"),
    )
    decision: Decision
    upstream: Upstream
    head: RequestHead
    deadline: float
    token: Token
    reply: Reply

    def __init__(self, call: Call, exchange: Exchange, capture: Capture | None) -> None:
        self.call = call
        self.exchange = exchange
        self.capture = capture
        self.connection = call.connection
        self.limiter: Limiter | None = None
        self.body: Body | None = None
        self.open: Reply | None = None
        self.resent = False
        self.hint = ""

    def go(self, decision: Decision) -> None:
        """It is to be forwarded."""
        self.decision = decision
        self.upstream = decision.upstream
        self.head = decision.head

    def free(self) -> None:
        """Let go of the body, if there is one; nothing is sent any more."""
        if self.body is not None:
            self.body.close()
            self.body = None

    def sending(self, dialled: Dialled | None) -> None:
        """From the first byte on nobody knows, until it is answered."""
        self.exchange.outcome = _UNKNOWN
        if self.capture is not None:
            self.capture.sending(dialled)
        if self.exchange.method not in READ_METHODS:
            self.connection.heeds = False

    def drop(self) -> None:
        """Let go of a reply that another one takes the place of."""
        if self.capture is not None:
            self.capture.part(self.reply.ready() or b"")
        self.reply.close()


class Handler:
    """Answers every request on the traffic listener.

    Args:
        upstreams: in any order, each with a mount of its own.
        limits: of one request.
        bodies: holds request bodies.
        callers: who may call.
        headers: what is done to them.
        is_own_authority: whether a `host:port` is this listener, or a name of an upstream's here.
        observe: takes the record of every exchange, once.
        emit: takes events.
        watch: captures exchanges as they happen, or None.
        monotonic: seconds, for durations.
    """

    def __init__(
        self,
        upstreams: tuple[Upstream, ...],
        *,
        limits: Limits,
        bodies: Bodies,
        callers: Callers,
        headers: Headers,
        is_own_authority: Callable[[str], bool],
        observe: Observe,
        emit: Emit,
        watch: Watch | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch = watch
        self._gate = Gate(
            upstreams,
            limit=limits.head,
            callers=callers,
            headers=headers,
            is_own_authority=is_own_authority,
            emit=emit,
        )
        self.preview = self._gate.preview
        self._limits = limits
        self._bodies = bodies
        self._callers = callers
        self._headers = headers
        self._observe = observe
        self._emit = emit
        self._monotonic = monotonic

    async def __call__(self, call: Call) -> RawReply:
        """Answer one request (`server.Answer`)."""
        started = self._monotonic()
        exchange = Exchange(request_id(call.fields.get("X-Request-Id")), started, call.method)
        capture = None
        if self._watch is not None:
            start = f"{call.target} {'HTTP/1.0' if call.http10 else 'HTTP/1.1'}"
            begin = partial(self._watch, exchange, start, call.headers)
            capture = Guarded(begin, told=partial(self._internal, exchange))
        course = _Course(call, exchange, capture)
        connection = call.connection
        connection.heeds = True
        try:
            decision = self._gate.decide(call, exchange)  # steps 1 to 3
            if not isinstance(decision, Decision):
                body = {} if decision is None else await self._login(course, decision)
                return self._local(course, body)
            course.go(decision)
            if decision.starts_trace:
                exchange.trace = new_request_id()
                line = trace_line(exchange.trace, span=new_span_id(), sampled=False)
                course.head = course.head.with_line(line)
            course.limiter = self._callers.registry.enter(decision.identity.caller)
            if decision.length is not None:
                await self._read(course, decision.length)
            await self._steps_5_to_7(course)
        except ProxyError as error:
            return self._refusal(course, error)
        except CallerLeft:
            exchange.status = 499
            return _ENDS
        except asyncio.CancelledError:
            if connection.left and (task := asyncio.current_task()) is not None:
                task.uncancel()
                exchange.status = 499
                return _ENDS
            exchange.error = "cancelled"  # the drain's limit is over
            raise
        except Exception as fault:  # noqa: BLE001 - a fault of ours is answered and reported too
            return self._refusal(course, self._internal(exchange, fault))
        else:
            if course.body is not None and course.body.size > LONGEST:
                course.free()
            connection.heeds = False  # from here on, writing to it tells
            return await self._deliver(course)
        finally:
            connection.heeds = False
            if course.body is not None:
                if exchange.outcome is _UNKNOWN and course.body.size <= LONGEST:
                    exchange.reference = find_reference(b"".join(course.body))
                course.free()
            if course.open is not None:
                course.open.close()
            if course.limiter is not None:
                course.limiter.leave()
            exchange.seconds = self._monotonic() - started
            if capture is not None:
                capture.end()
            self._observe(exchange)

    # -- steps 4 to 7 --------------------------------------------------------------------

    async def _read(self, course: _Course, length: int) -> None:
        """Step 4, if there is a body."""
        most = course.decision.identity.caller.body_limit or None
        body = await read_body(course.call, length=length, bodies=self._bodies, most=most)
        course.body = body
        course.exchange.body_bytes = body.size
        if course.capture is not None:
            course.capture.body(body)
        if length == CHUNKED:
            course.head = course.head.with_length(body.size)

    async def _steps_5_to_7(self, course: _Course) -> None:
        exchange, session = course.exchange, course.upstream.session
        kind, pair = course.decision.route.kind, course.decision.pair
        course.deadline = course.upstream.dialler.deadline()

        # 5 borrow
        token = session.lend()
        if token is None:
            token = await self._waiting(course, session.borrow())
        course.token = token

        # 6 attempt
        verdict = await self._attempt(course, why="first try")

        # 7 judge
        if verdict is _ANSWER:
            exchange.outcome = _ANSWERED
            return
        if not may_replay(verdict, kind=kind):
            session.refused(token, by=pair)
            exchange.outcome, course.hint = _UNKNOWN, _HINT_REQUERY
            return
        exchange.outcome = Outcome.REFUSED
        try:
            try:
                course.connection.heed()
            except CallerLeft:
                session.refused(token, by=pair)  # nor need the next find out
                raise
            course.token = await self._waiting(course, session.renew(after=token, by=pair))
        except RenewalNotAllowed as error:
            exchange.detail = course.hint = error.description
            return
        except TokenUnavailable as error:
            course.drop()
            error.outcome = Outcome.REFUSED
            raise
        except BaseException:
            course.drop()
            raise
        course.drop()
        exchange.replayed, exchange.envelope = True, ""
        try:
            verdict = await self._attempt(course, why="replay with a new token")
        except ProxyError as error:
            if error.outcome is Outcome.NOT_SENT:  # the replay was not, the first try was
                error.outcome = Outcome.REFUSED
            raise
        if verdict is not _ANSWER and session.refused_again(course.token.generation, by=pair):
            fields: dict[str, object] = {"caller": exchange.caller, "route": exchange.route}
            fields |= {"request_id": exchange.request_id, "hint": _HINT_REFUSED}
            self._emit(Event("refusal_remembered", "warning", exchange.upstream, fields))
        if verdict is Verdict.REFUSAL_UNPROVEN and kind is not Kind.READ:
            course.hint = _HINT_REQUERY  # and the outcome stays what sending made it: unknown
            return
        exchange.outcome = _ANSWERED

    async def _login(self, course: _Course, asked: LoginAsked) -> Mapping[str, object]:
        call, exchange, upstream = course.call, course.exchange, asked.upstream
        exchange.route, exchange.kind = f"/v1/auth/token/{asked.call}", "login"
        if call.method != "POST":
            raise MethodNotAllowed(
                "The login calls are answered by the proxy, and only to POST.",
                allow="POST",
                hint="They never reach Nomba: a second login would end the shared session.",
            )
        self._callers.pages.check(call.headers, any_host=True)
        data = b""
        if asked.length is not None:
            body = await read_body(
                call, length=asked.length, bodies=self._bodies, most=_LOGIN_LIMIT
            )
            exchange.body_bytes = body.size
            data = b"".join(body)
            if course.capture is not None:
                course.capture.body((data,))
            body.close()
        answer = self._callers.login.answer(
            LoginCall(asked.call, data, upstream.name, upstream.account, asked.accounts)
        )
        exchange.caller = answer.caller
        if answer.problem:
            exchange.error, exchange.detail = CallerUnknown.code, answer.problem
        return answer.body

    async def _attempt(self, course: _Course, *, why: str) -> Verdict:
        """Send, at most twice; the reply is the course's."""
        exchange, token, capture = course.exchange, course.token, course.capture
        method = exchange.method
        exchange.attempts += 1
        exchange.generation = token.generation
        started = self._monotonic()
        try:
            reply = await self._send(course, why=why)
        except ProxyError as error:
            if capture is not None:
                capture.failed(error.code)
            if (
                not isinstance(error, UpstreamError)
                or course.resent
                or not may_resend(
                    error.outcome,
                    late=isinstance(error, UpstreamTimeout),
                    stale=error.stale,
                    method=method,
                )
            ):
                raise
            course.resent = True
            exchange.attempts += 1
            sent = error.outcome is not Outcome.NOT_SENT
            try:
                why = "sent again over a new connection"
                reply = await self._send(course, why=why, fresh=True)
            except ProxyError as last:
                if capture is not None:
                    capture.failed(last.code)
                if sent:
                    last.outcome = _UNKNOWN
                    last.hint = "A first try was sent, over a connection that ended without a word."
                raise
        course.reply = course.open = reply
        exchange.upstream_seconds = self._monotonic() - started
        head = reply.head
        status = head.status
        if capture is not None:
            capture.answered(status, reason=head.reason, headers=head.headers)
        body, complete = b"", False
        if method != "HEAD" and needs_body(status, media=head.media, length=head.length):
            found = reply.peeked(PEEK_LIMIT)
            if found is None:
                found = await self._peek(course, reply)
            body, complete = found
        verdict, exchange.envelope = judge(status, coding=head.coding, body=body, complete=complete)
        if verdict is _ANSWER and status not in _NO_WORD_OF_THE_TOKEN:
            course.upstream.session.accepted(token.generation, by=course.decision.pair)
        return verdict

    def _send(self, course: _Course, *, why: str, fresh: bool = False) -> Awaitable[Reply]:
        """Send once; money goes over a connection that is new or was just used."""
        dialler, head, account = course.upstream.dialler, course.head, course.decision.account
        token = course.token
        if course.capture is not None:
            head = course.capture.attempt(
                head, account=account, token=token.access, generation=token.generation, why=why
            )
        text = token.access.reveal(to=dialler.origin.text)
        return dialler.send(
            head.with_token(text, account=account),
            body=course.body or (),
            head_only=course.exchange.method == "HEAD",
            fresh=fresh,
            recent=course.decision.route.kind is _MONEY,
            sending=course.sending,
            interim=partial(self._interim, course),
            deadline=course.deadline,
        )

    @staticmethod
    async def _peek(course: _Course, reply: Reply) -> tuple[bytes, bool]:
        trickles = reply.head.length is None and reply.head.status == 200
        try:
            return await reply.peek(PEEK_LIMIT, patience=_PATIENCE if trickles else None)
        except BaseException as error:
            if isinstance(error, ProxyError) and course.capture is not None:
                course.capture.failed(error.code)
            raise

    async def _waiting(self, course: _Course, token: Awaitable[Token]) -> Token:
        started = self._monotonic()
        if course.capture is not None:
            course.capture.waiting()
        try:
            return await token
        finally:
            if course.capture is not None:
                course.capture.waited()
            course.exchange.waited += self._monotonic() - started

    def _interim(self, course: _Course, status: int, reason: bytes, headers: RawHeaders) -> None:
        """Pass an interim reply on (RFC 9110 section 15.2): a proxy does, but not to HTTP/1.0."""
        transport = course.call.connection.transport
        if transport is None or course.call.http10:
            return
        fields = [one for one in headers if one[0].lower() != b"content-length"]
        transport.write(self._render(course, ReplyHead(status, reason=reason, headers=fields)))

    # -- step 8, and what stands in for it -------------------------------------------------

    async def _deliver(self, course: _Course) -> RawReply:
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
                    exchange.reply_bytes = len(whole)
                    if capture is not None:
                        capture.part(whole)
                    if connection.write(head + whole):
                        await connection.caught_up(stall=self._limits.write_stall)
            except ConnectionError:
                exchange.status = 499
            except TimeoutError:  # it reads next to nothing, and holds a connection to the upstream
                exchange.status, exchange.error = 499, "caller_stalled"
                connection.cut(reset=True)
            else:
                return _STAYS if keep_alive else _ENDS
            await _hear_out(exchange, reply)
        except asyncio.CancelledError:
            exchange.error, exchange.outcome = "cancelled", _UNKNOWN
            connection.cut(reset=call.http10 and reply.head.length is None)
            raise
        except Exception as fault:  # noqa: BLE001 - nothing may end a cut reply cleanly
            error = fault if isinstance(fault, ProxyError) else self._internal(exchange, fault)
            exchange.error, exchange.detail = error.code, error.description
            exchange.outcome = _UNKNOWN
            if capture is not None:
                capture.failed(error.code)
            connection.cut(reset=call.http10 and reply.head.length is None)
        return _ENDS

    async def _pass_on(self, course: _Course, head: bytes, *, chunked: bool) -> None:
        """Pass a reply on as it comes, no faster than the caller reads it."""
        connection, reply, stall = course.connection, course.reply, self._limits.write_stall
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
        course: _Course,
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

    def _refusal(self, course: _Course, error: ProxyError) -> RawReply:
        call, exchange = course.call, course.exchange
        exchange.status = error.status
        exchange.outcome = error.outcome
        exchange.error = error.code
        exchange.detail = f"{error.description} {error.logged}".rstrip()
        keep_alive = call.stays_open and not error.close
        data = refusal(
            error,
            request_id=exchange.request_id,
            keep_alive=keep_alive,
            http10=call.http10,
            head_only=call.method == "HEAD",
            timing=self._timing(exchange) if self._headers.server_timing else "",
        )
        if course.capture is not None:
            course.capture.reply(data)
        return RawReply(data, keep_alive, self._limits.write_stall)

    def _timing(self, exchange: Exchange) -> str:
        """Where the time went until now, in milliseconds (W3C Server Timing)."""
        spent = (
            ("total", self._monotonic() - exchange.started),
            ("token", exchange.waited),
            ("upstream", exchange.upstream_seconds),
        )
        return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in spent)

    def _local(self, course: _Course, body: Mapping[str, object]) -> RawReply:
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
        return RawReply(data, keep_alive, self._limits.write_stall)

    def _internal(self, exchange: Exchange, fault: Exception) -> ProxyError:
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
