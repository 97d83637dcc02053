"""One request, eight steps, one file.

1. **parse** the raw target; refuse what can be read two ways
2. **identify** the caller from the head alone, before a body byte is read
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
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial

from proxy.body import Bodies
from proxy.callers.login import Login, LoginCall
from proxy.callers.registry import Registry
from proxy.core.account import AccountRule, decide_account
from proxy.core.browser import Pages
from proxy.core.caller import Caller, Reading, check_accounts, check_upstream, why_refused
from proxy.core.capture import NO_CAPTURE, Capture, Dialled, Watch
from proxy.core.exchange import Emit, Event, Exchange, Observe
from proxy.core.heads import CallerHead, RequestHead, reply_head
from proxy.core.heads import Headers as RawHeaders
from proxy.core.ids import request_id
from proxy.core.judge import PEEK_LIMIT, Verdict, judge, may_replay, may_resend, needs_body
from proxy.core.limits import Limiter
from proxy.core.mounts import Mount, Mounts, called_by
from proxy.core.refusal import local_reply
from proxy.core.routes import READ_METHODS, Kind, Route, RouteTable, login_call
from proxy.core.session import Pair, Token
from proxy.core.target import Target, parse_target, strip_mount
from proxy.errors import (
    CallerForbidden,
    CallerUnknown,
    Internal,
    LoopDetected,
    MethodNotAllowed,
    Outcome,
    ProxyError,
    RenewalNotAllowed,
    TokenUnavailable,
    UpgradeUnsupported,
    UpstreamError,
    UpstreamTimeout,
)
from proxy.quiet import refusal
from proxy.server import Call, CallerLeft, Departure, RawReply, read_body
from proxy.tokens.manager import Session
from proxy.upstream.dialler import Dialler
from proxy.upstream.reply import Reply

_PATIENCE = 1.0  # seconds that the beginning of a stream is held back to be judged
_MARKED = 6  # bytes from which on a token is not found in a reply by chance
_TOLD_APART = 200  # characters of a path by which refusals are remembered
_NOT_FORWARDED = frozenset({"CONNECT", "TRACE"})
_NO_WORD_OF_THE_TOKEN = frozenset({403, 429})  # statuses that come before it is looked at
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
class Upstream:
    """One configured upstream, wired.

    Attributes:
        name: for logs and metrics.
        mount: where callers reach it.
        dialler: carries requests to it.
        session: lends its token; other upstreams may share it.
        account: whose requests these are.
    """

    name: str
    mount: Mount
    dialler: Dialler
    session: Session
    account: AccountRule

    @property
    def host(self) -> bytes:
        """Value of `Host`."""
        return self.dialler.origin.authority.encode("ascii")

    def locate(self, location: bytes) -> bytes:
        """Where a caller finds what the upstream's `Location` names."""
        return self.mount.locate(location, origin=self.dialler.origin)


@dataclass(frozen=True, slots=True)
class Headers:
    """What the proxy does to headers beside what HTTP asks of it.

    Attributes:
        via: our own entry in `Via`, by which a loop is found.
        via_upstream: whether the upstream is told it.
        keep_forwarded: whether `Forwarded`, `X-Forwarded-*` and `X-Real-IP` pass.
        rewrite_location: whether a `Location` on the upstream's origin becomes ours.
    """

    via: bytes
    via_upstream: bool = True
    keep_forwarded: bool = False
    rewrite_location: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller may ask of us.

    Attributes:
        head: bytes of a whole request head.
        write_stall: seconds in which it has to read something of its reply.
    """

    head: int = 64 * 1024
    write_stall: float = 60.0


@dataclass(frozen=True, slots=True)
class Callers:
    """Who may call.

    Attributes:
        registry: knows them.
        login: answers those that log in as if we were Nomba.
        pages: which web pages may call without a key.
    """

    registry: Registry
    login: Login
    pages: Pages


@dataclass(frozen=True, slots=True)
class _Local:
    """An answer of ours that is no error: a login, or `OPTIONS *`."""

    body: Mapping[str, object]


class _Course:
    """One exchange on its way through the steps.

    Args:
        call: the caller's request.
        exchange: the record of it.
        capture: is told.

    Attributes:
        departure: of the caller.
        limiter: has let it in, and is told when it ends.
        upstream: where it goes.
        head: to be sent.
        account: whose request it is.
        body: in parts; can be gone through more than once.
        kind: what it can do.
        pair: who calls what, and where: refusals are remembered by it.
        ambient: whether no page of another origin may read the reply.
        deadline: loop time at which it has to be over, whatever is sent in it.
        resent: whether the one resend over a fresh connection has been had.
        token: the one of the last attempt, which must not come back in its reply.
        reply: to the last attempt.
        hint: for the caller, if the outcome needs one.
    """

    __slots__ = (
        *("account", "ambient", "body", "call", "capture", "deadline", "departure", "exchange"),
        *("head", "hint", "kind", "limiter", "pair", "reply", "resent", "token", "upstream"),
    )
    upstream: Upstream
    head: RequestHead
    account: str
    kind: Kind
    pair: Pair
    ambient: bool
    deadline: float
    token: Token
    reply: Reply

    def __init__(self, call: Call, exchange: Exchange, capture: Capture) -> None:
        self.call = call
        self.exchange = exchange
        self.capture = capture
        self.departure = Departure(call)
        self.limiter: Limiter | None = None
        self.body: Iterable[bytes] = ()
        self.resent = False
        self.hint = ""

    def sending(self, dialled: Dialled | None) -> None:
        """From the first byte on nobody knows, until it is answered."""
        self.exchange.outcome = Outcome.UNKNOWN
        self.capture.sending(dialled)
        if self.exchange.method not in READ_METHODS:
            self.departure.ignore()

    def drop(self) -> None:
        """Let go of a reply that another one takes the place of."""
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
        self._upstreams = {one.mount: one for one in upstreams}
        self._mounts = Mounts(self._upstreams)
        self._limits = limits
        self._bodies = bodies
        self._callers = callers
        self._headers = headers
        self._is_own_authority = is_own_authority
        self._observe = observe
        self._emit = emit
        self._monotonic = monotonic
        self._routes = RouteTable()

    async def __call__(self, call: Call) -> RawReply:
        """Answer one request (`server.Answer`)."""
        started = self._monotonic()
        exchange = Exchange(request_id(call.fields.get("X-Request-Id")), started, call.method)
        capture = NO_CAPTURE
        if self._watch is not None:
            start = f"{call.target} {'HTTP/1.0' if call.http10 else 'HTTP/1.1'}"
            capture = self._watch(exchange, start, call.headers)
        course = _Course(call, exchange, capture)
        departure = course.departure
        try:
            local = await self._steps_1_to_7(course)
        except ProxyError as error:
            return self._refusal(course, error)
        except CallerLeft:
            exchange.status = 499
            return _ENDS
        except asyncio.CancelledError:
            if departure.left and (task := asyncio.current_task()) is not None:
                task.uncancel()
                exchange.status = 499
                return _ENDS
            exchange.error = "cancelled"  # the drain's limit is over
            raise
        except Exception as fault:  # noqa: BLE001 - a fault of ours is answered and reported too
            return self._refusal(course, self._internal(exchange, fault))
        else:
            if local is not None:
                return self._local(course, local)
            departure.ignore()  # from here on, writing to it tells
            try:
                return await self._deliver(course)
            finally:
                course.reply.close()
        finally:
            departure.ignore()
            if course.limiter is not None:
                course.limiter.leave()
            exchange.seconds = self._monotonic() - started
            capture.end()
            self._observe(exchange)

    def preview(self, method: str, raw: bytes) -> tuple[str, str]:
        """The upstream and the kind that a request would be of, in its gravest reading.

        Args:
            method: upper case.
            raw: the target as it would stand in the request line.

        Raises:
            ProxyError: it would be refused, or depends on the name in `Host`.
        """
        target = parse_target(raw, is_own_authority=self._is_own_authority)
        upstream = self._upstreams[self._mounts.find_by_path(target.path)]
        target, call = _forwarded(target, mount=upstream.mount)
        if call is not None:
            return upstream.name, "login"
        kinds = {
            self._routes.classify(method, target).kind,
            self._routes.reread(method, target.decoded).kind,
        }
        gravest = next(kind for kind in (Kind.MONEY, Kind.WRITE, Kind.READ) if kind in kinds)
        return upstream.name, gravest

    # -- steps 1 to 7 --------------------------------------------------------------------

    async def _steps_1_to_7(self, course: _Course) -> _Local | None:
        """All before a reply can be delivered; an answer of ours, if that takes its place."""
        call, exchange = course.call, course.exchange
        method, headers = call.method, call.headers

        # 1 parse
        raw = call.target.encode("utf-8", "surrogateescape")
        head = CallerHead(
            headers,
            target_length=len(raw),
            limit=self._limits.head,
            version=call.version,
            keep_forwarded=self._headers.keep_forwarded,
        )
        if method in _NOT_FORWARDED:
            raise MethodNotAllowed(
                f"{method} is not forwarded.",
                allow="GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
                close=True,
            )
        if raw == b"*" and method == "OPTIONS":
            return _Local({})
        if head.vias and head.names_us(self._headers.via):
            raise LoopDetected(
                "The request has been through this proxy before.",
                hint="A hosts entry, DNS or upstream.base_url leads back here; upstream.addresses "
                "names where the upstream really is.",
                close=True,
            )
        target = parse_target(raw, is_own_authority=self._is_own_authority)
        if head.upgrades:
            _refuse_upgrade(head.upgrades)
        upstream = course.upstream = self._select(target, headers)
        exchange.upstream = upstream.name
        target, login = _forwarded(target, mount=upstream.mount)
        if login is not None:  # its credentials are in its body
            return await self._login(course, login, head=head)

        # 2 identify
        identity = self._callers.registry.identify(head, upstream=upstream.name)
        caller = identity.caller
        exchange.caller = caller.name
        course.ambient = identity.ambient
        if course.ambient:
            self._callers.pages.check(headers)

        # 3 authorize
        route = self._routes.classify(method, target)
        exchange.route, exchange.kind = route.template, route.kind
        course.kind = route.kind
        account = decide_account(
            upstream.account, sent=head.accounts, kind=route.kind, own=caller.accounts
        )
        course.account = account.account
        if account.replaced is not None:
            exchange.account_replaced = True
        if not caller.unrestricted:
            self._authorize(caller, course=course, target=target, route=route)
        course.limiter = self._callers.registry.enter(caller)

        # 4 read
        body = None
        if head.length is not None:
            body = await read_body(
                call, length=head.length, bodies=self._bodies, most=caller.body_limit or None
            )
        try:
            if body is not None:
                exchange.body_bytes = body.size
                course.body = body
                course.capture.body(body)
            course.head = head.forward(
                method.encode("ascii"),
                target=target.raw,
                host=upstream.host,
                body_length=None if body is None else body.size,
                via=self._headers.via if self._headers.via_upstream else b"",
            )
            course.pair = (caller.name, f"{upstream.name}{target.canonical[:_TOLD_APART]}")
            course.deadline = upstream.dialler.deadline()
            await self._steps_5_to_7(course)
        finally:
            if body is not None:
                body.close()
        return None

    async def _steps_5_to_7(self, course: _Course) -> None:
        exchange, session = course.exchange, course.upstream.session

        # 5 borrow
        token = session.lend()
        if token is None:
            token = await self._waiting(course, session.borrow())
        course.token = token

        # 6 attempt
        verdict = await self._attempt(course, why="first try")

        # 7 judge
        if verdict is Verdict.ANSWER:
            exchange.outcome = Outcome.ANSWERED
            return
        if not may_replay(verdict, kind=course.kind):
            session.refused(token, by=course.pair)
            exchange.outcome, course.hint = Outcome.UNKNOWN, _HINT_REQUERY
            return
        exchange.outcome = Outcome.REFUSED
        try:
            try:
                course.departure.heed()
            except CallerLeft:
                session.refused(token, by=course.pair)  # nor need the next find out
                raise
            course.token = await self._waiting(course, session.renew(after=token, by=course.pair))
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
        try:
            verdict = await self._attempt(course, why="replay with a new token")
        except ProxyError as error:
            if error.outcome is Outcome.NOT_SENT:  # the replay was not, the first try was
                error.outcome = Outcome.REFUSED
            raise
        if verdict is not Verdict.ANSWER and session.refused_again(
            course.token.generation, by=course.pair
        ):
            fields: dict[str, object] = {"caller": exchange.caller, "route": exchange.route}
            fields |= {"request_id": exchange.request_id, "hint": _HINT_REFUSED}
            self._emit(Event("refusal_remembered", "warning", exchange.upstream, fields))
        if verdict is Verdict.REFUSAL_UNPROVEN and course.kind is not Kind.READ:
            course.hint = _HINT_REQUERY  # and the outcome stays what sending made it: unknown
            return
        exchange.outcome = Outcome.ANSWERED

    def _select(self, target: Target, headers: RawHeaders) -> Upstream:
        host = called_by(headers, authority=target.authority) if self._mounts.by_host else ""
        return self._upstreams[self._mounts.find(target.path, host=host)]

    def _authorize(self, caller: Caller, *, course: _Course, target: Target, route: Route) -> None:
        """Refuse what the caller may not do, in any way an upstream could read it."""
        upstream, exchange = course.upstream, course.exchange
        check_upstream(caller, upstream=upstream.name)
        readings: tuple[Reading, ...] = (Reading(target.canonical, route),)
        if target.decoded != target.canonical:
            further = self._routes.reread(exchange.method, target.decoded)
            readings += (Reading(target.decoded, further),)
        check_accounts(caller, account=course.account, readings=readings)
        why = why_refused(caller, method=exchange.method, readings=readings)
        if not why:
            return
        if not caller.observe:
            raise CallerForbidden(
                f"Caller {caller.name} may not do this: {why}.",
                hint="Its role and rules: nomba-proxy caller list --json",
            )
        fields: dict[str, object] = {"caller": caller.name, "reason": why}
        fields |= {"request_id": exchange.request_id, "route": route.template}
        self._emit(Event("policy_observed", "warning", upstream.name, fields))

    async def _login(self, course: _Course, login: str, *, head: CallerHead) -> _Local:
        call, exchange, upstream = course.call, course.exchange, course.upstream
        exchange.route, exchange.kind = f"/v1/auth/token/{login}", "login"
        if call.method != "POST":
            raise MethodNotAllowed(
                "The login calls are answered by the proxy, and only to POST.",
                allow="POST",
                hint="They never reach Nomba: a second login would end the shared session.",
            )
        self._callers.pages.check(call.headers, any_host=True)
        data = b""
        if head.length is not None:
            body = await read_body(call, length=head.length, bodies=self._bodies, most=_LOGIN_LIMIT)
            exchange.body_bytes = body.size
            data = b"".join(body)
            course.capture.body((data,))
            body.close()
        answer = self._callers.login.answer(
            LoginCall(login, data, upstream.name, upstream.account, head.accounts)
        )
        exchange.caller = answer.caller
        if answer.problem:
            exchange.error, exchange.detail = CallerUnknown.code, answer.problem
        return _Local(answer.body)

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
                capture.failed(last.code)
                if sent:
                    last.outcome = Outcome.UNKNOWN
                    last.hint = "A first try was sent, over a connection that ended without a word."
                raise
        exchange.upstream_seconds = self._monotonic() - started
        status = reply.status
        capture.answered(status, reason=reply.reason, headers=reply.headers)
        body, complete = b"", False
        if method != "HEAD" and needs_body(status, media=reply.media, length=reply.length):
            found = reply.peeked(PEEK_LIMIT)
            if found is None:
                found = await self._peek(course, reply)
            body, complete = found
        verdict = judge(status, coding=reply.coding, body=body, complete=complete)
        if verdict is Verdict.ANSWER and status not in _NO_WORD_OF_THE_TOKEN:
            course.upstream.session.accepted(token.generation, by=course.pair)
        course.reply = reply
        return verdict

    def _send(self, course: _Course, *, why: str, fresh: bool = False) -> Awaitable[Reply]:
        """Send once; money goes over a connection that is new or was just used."""
        dialler, head, account = course.upstream.dialler, course.head, course.account
        token = course.token
        course.capture.attempt(
            head, account=account, token=token.access, generation=token.generation, why=why
        )
        text = token.access.reveal(to=dialler.origin.text)
        return dialler.send(
            head.with_token(text, account=account),
            body=course.body,
            head_only=course.exchange.method == "HEAD",
            fresh=fresh,
            recent=course.kind is Kind.MONEY,
            sending=course.sending,
            interim=partial(self._interim, course),
            deadline=course.deadline,
        )

    @staticmethod
    async def _peek(course: _Course, reply: Reply) -> tuple[bytes, bool]:
        trickles = reply.length is None and reply.status == 200
        try:
            return await reply.peek(PEEK_LIMIT, patience=_PATIENCE if trickles else None)
        except BaseException as error:
            if isinstance(error, ProxyError):
                course.capture.failed(error.code)
            reply.close()
            raise

    async def _waiting(self, course: _Course, token: Awaitable[Token]) -> Token:
        started = self._monotonic()
        course.capture.waiting()
        try:
            return await token
        finally:
            course.capture.waited()
            course.exchange.waited += self._monotonic() - started

    def _interim(self, course: _Course, status: int, reason: bytes, headers: RawHeaders) -> None:
        """Pass an interim reply on (RFC 9110 section 15.2): a proxy does, but not to HTTP/1.0."""
        transport = course.call.connection.transport
        if transport is None or course.call.http10:
            return
        fields = [one for one in headers if one[0].lower() != b"content-length"]
        transport.write(self._reply_head(course, status, reason=reason, headers=fields))

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
        if course.hint:
            own += b"Nomba-Proxy-Hint: %b\r\n" % course.hint.encode()
        if reply.length is None and not reply.bodyless:
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
        exchange.status = reply.status
        head = self._reply_head(
            course, reply.status, reason=reply.reason, headers=reply.headers, own=own, final=True
        )
        capture.reply(head)
        try:
            try:
                if whole is None:
                    await self._pass_on(course, head, chunked=chunked)
                else:
                    exchange.reply_bytes = len(whole)
                    capture.part(whole)
                    if connection.write(head + whole):
                        await connection.caught_up(stall=self._limits.write_stall)
            except ConnectionError:
                exchange.status = 499
            except TimeoutError:  # it reads nothing, and holds a connection to the upstream
                exchange.status, exchange.error = 499, "caller_stalled"
                connection.cut(reset=True)
            else:
                return _STAYS if keep_alive else _ENDS
            await _hear_out(exchange, reply)
        except asyncio.CancelledError:
            exchange.error, exchange.outcome = "cancelled", Outcome.UNKNOWN
            connection.cut(reset=call.http10 and reply.length is None)
            raise
        except Exception as fault:  # noqa: BLE001 - nothing may end a cut reply cleanly
            error = fault if isinstance(fault, ProxyError) else self._internal(exchange, fault)
            exchange.error, exchange.detail = error.code, error.description
            exchange.outcome = Outcome.UNKNOWN
            capture.failed(error.code)
            connection.cut(reset=call.http10 and reply.length is None)
        return _ENDS

    async def _pass_on(self, course: _Course, head: bytes, *, chunked: bool) -> None:
        """Pass a reply on as it comes, no faster than the caller reads it."""
        connection, stall = course.call.connection, self._limits.write_stall
        if connection.write(head):
            await connection.caught_up(stall=stall)
        async for part in course.reply.parts():
            course.exchange.reply_bytes += len(part)
            course.capture.part(part)
            if connection.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part):
                await connection.caught_up(stall=stall)
        if chunked:
            connection.write(b"0\r\n\r\n")

    def _reply_head(
        self,
        course: _Course,
        status: int,
        *,
        reason: bytes,
        headers: RawHeaders,
        own: bytes = b"",
        final: bool = False,
    ) -> bytes:
        """A reply's head, our token masked should the upstream have put it there.

        It is looked for once, in what is ready to be written.
        """
        upstream = course.upstream
        location = upstream.locate if final and self._headers.rewrite_location else None
        shared = not course.ambient
        render = partial(reply_head, status, own=own, location=location, shared=shared)
        head = render(reason=reason, headers=headers)
        text = course.token.access.reveal(to=upstream.dialler.origin.text).encode()
        if head.find(text) < 0 or len(text) < _MARKED:
            return head
        told: dict[str, object] = {"request_id": course.exchange.request_id}
        self._emit(Event("token_in_reply", "error", upstream.name, told))
        masked = [(n.replace(text, b"x"), v.replace(text, b"***")) for n, v in headers]
        return render(reason=reason.replace(text, b"***"), headers=masked)

    def _refusal(self, course: _Course, error: ProxyError) -> RawReply:
        call, exchange = course.call, course.exchange
        exchange.status = error.status
        exchange.outcome = error.outcome
        exchange.error = error.code
        exchange.detail = error.description
        keep_alive = call.stays_open and not error.close
        data = refusal(
            error,
            request_id=exchange.request_id,
            keep_alive=keep_alive,
            http10=call.http10,
            head_only=call.method == "HEAD",
        )
        course.capture.reply(data)
        return RawReply(data, keep_alive, self._limits.write_stall)

    def _local(self, course: _Course, local: _Local) -> RawReply:
        call, exchange = course.call, course.exchange
        exchange.status = 200
        keep_alive = call.stays_open
        data = local_reply(
            200,
            body=local.body,
            request_id=exchange.request_id,
            outcome=exchange.outcome,
            date=formatdate(usegmt=True),
            keep_alive=keep_alive,
            http10=call.http10,
        )
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
        exchange.outcome = Outcome.UNKNOWN
        return
    async for _ in reply.parts():
        pass


def _forwarded(target: Target, *, mount: Mount) -> tuple[Target, str | None]:
    """What goes to the upstream, which is what is judged; and which login call it is.

    A login below a mount is ours, also where the mount is kept and Nomba would not know it as one.

    Raises:
        TargetAmbiguous: as `login_call`.
    """
    below = strip_mount(target, mount=mount.prefix)
    call = login_call(below.decoded)
    if mount.strip:
        return below, call
    return target, call or login_call(target.decoded)


def _refuse_upgrade(wanted: list[bytes]) -> None:
    if all(one.strip().lower() == b"h2c" for one in wanted):  # h2c may be ignored, and is
        return
    raise UpgradeUnsupported(
        "Protocol upgrades are not forwarded.",
        hint="Nomba's API is plain HTTP requests and replies.",
        close=True,
    )
