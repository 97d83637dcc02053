"""One request, eight steps; the first three are `gate.py`, the last is `replying.py`.

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
from functools import partial

from proxy.body import Bodies
from proxy.callers.login import LoginCall
from proxy.calls import Call, CallerLeft, RawReply
from proxy.core.capture import Guarded, Watch
from proxy.core.exchange import Emit, Event, Exchange, Observe
from proxy.core.heads import CHUNKED
from proxy.core.ids import new_request_id, new_span_id, request_id
from proxy.core.judge import (
    PEEK_LIMIT,
    Verdict,
    is_success,
    judge,
    may_replay,
    may_resend,
    needs_body,
)
from proxy.core.reference import LONGEST, find_reference
from proxy.core.routes import Kind
from proxy.core.session import Token
from proxy.core.trace import trace_line
from proxy.course import Course
from proxy.errors import (
    CallerUnknown,
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
from proxy.replying import Replies
from proxy.upstream.reply import Reply

_PATIENCE = 1.0  # seconds that the beginning of a stream is held back to be judged
_NO_WORD_OF_THE_TOKEN = frozenset({403, 429})  # statuses that come before it is looked at
# Python 3.11 looks a member up by its name every time.
_UNKNOWN, _ANSWERED, _ANSWER = Outcome.UNKNOWN, Outcome.ANSWERED, Verdict.ANSWER
_MONEY = Kind.MONEY
_ENDS = RawReply()
_LOGIN_LIMIT = 16 * 1024  # bytes of a login's body
_HINT_REQUERY = (
    "the token was refused but the work may have been done: "
    "requery by merchantTxRef or orderReference before repeating"
)
_HINT_SENT_TWICE = (
    "it was sent once more after a 401, which Nomba is taken to answer before any work: if this says "
    "that it is a duplicate, the first was done; requery by merchantTxRef or orderReference"
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
        self._replies = Replies(
            headers=headers, stall=limits.write_stall, emit=emit, monotonic=monotonic
        )
        self._bodies = bodies
        self._callers = callers
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
            capture = Guarded(begin, told=partial(self._replies.internal, exchange))
        course = Course(call, exchange, capture)
        connection = call.connection
        connection.heeds = True
        try:
            decision = self._gate.decide(call, exchange)  # steps 1 to 3
            if not isinstance(decision, Decision):
                body = {} if decision is None else await self._login(course, decision)
                return self._replies.local(course, body)
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
            return self._replies.refusal(course, error)
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
            return self._replies.refusal(course, self._replies.internal(exchange, fault))
        else:
            if course.body is not None and course.body.size > LONGEST:
                course.free()
            connection.heeds = False  # from here on, writing to it tells
            return await self._replies.deliver(course)
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

    async def _read(self, course: Course, length: int) -> None:
        """Step 4, if there is a body."""
        most = course.decision.identity.caller.body_limit or None
        body = await read_body(course.call, length=length, bodies=self._bodies, most=most)
        course.body = body
        course.exchange.body_bytes = body.size
        if course.capture is not None:
            course.capture.body(body)
        if length == CHUNKED:
            course.head = course.head.with_length(body.size)

    async def _steps_5_to_7(self, course: Course) -> None:
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
        if (
            kind is _MONEY
            and verdict is _ANSWER
            and not is_success(course.reply.head.status, envelope=exchange.envelope)
        ):
            course.hint = _HINT_SENT_TWICE

    async def _login(self, course: Course, asked: LoginAsked) -> Mapping[str, object]:
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

    async def _attempt(self, course: Course, *, why: str) -> Verdict:
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

    def _send(self, course: Course, *, why: str, fresh: bool = False) -> Awaitable[Reply]:
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
            interim=partial(self._replies.interim, course),
            deadline=course.deadline,
        )

    @staticmethod
    async def _peek(course: Course, reply: Reply) -> tuple[bytes, bool]:
        trickles = reply.head.length is None and reply.head.status == 200
        try:
            return await reply.peek(PEEK_LIMIT, patience=_PATIENCE if trickles else None)
        except BaseException as error:
            if isinstance(error, ProxyError) and course.capture is not None:
                course.capture.failed(error.code)
            raise

    async def _waiting(self, course: Course, token: Awaitable[Token]) -> Token:
        started = self._monotonic()
        if course.capture is not None:
            course.capture.waiting()
        try:
            return await token
        finally:
            if course.capture is not None:
                course.capture.waited()
            course.exchange.waited += self._monotonic() - started
