"""Steps 1 to 3: what is decided of a request from its head alone.

Nothing is waited for here. What was decided holds for the next request of the same connection
if its head is the same to the byte: programs ask alike again and again. Whether its caller may
still call is asked every time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from proxy.callers.login import Login
from proxy.callers.registry import Identity, Registry
from proxy.calls import Call
from proxy.core.account import AccountDecision, AccountRule, decide_account
from proxy.core.browser import Pages
from proxy.core.caller import Caller, Reading, check_accounts, check_upstream, why_refused
from proxy.core.exchange import Emit, Event, Exchange
from proxy.core.heads import CHUNKED, CallerHead, RequestHead, field_value
from proxy.core.heads import Headers as RawHeaders
from proxy.core.mounts import Mount, Mounts, called_by
from proxy.core.origin import ENVIRONMENTS, Origin, host_name
from proxy.core.refusals import Pair
from proxy.core.routes import Kind, Route, RouteTable, login_call
from proxy.core.target import Target, parse_target, strip_mount
from proxy.core.trace import TRACEPARENT, TRACESTATE, read_trace
from proxy.errors import (
    CallerForbidden,
    HostRefused,
    LoopDetected,
    MethodNotAllowed,
    UpgradeUnsupported,
)
from proxy.tokens.manager import Session
from proxy.upstream.dialler import Dialler

_TOLD_APART = 200  # characters of a path by which refusals are remembered
_NOT_FORWARDED = {  # and what to do instead
    "CONNECT": "Use the proxy as the base URL of Nomba's API, not as an HTTP proxy.",
    "TRACE": "Its reply would show the token; the inspector shows what is sent.",
}
_PARENT, _BOTH = frozenset({TRACEPARENT}), frozenset({TRACEPARENT, TRACESTATE})
_REMEMBERED = 4096  # bytes of a head that is worth a connection's memory


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
        trace: `pass` a trace of the caller's on as it is; `start` one where there is none; or
            `continue` it: each attempt says its own (`core.capture.Capture.attempt`).
        server_timing: whether replies say where the time went (`Server-Timing`).
    """

    via: bytes
    via_upstream: bool = True
    keep_forwarded: bool = False
    rewrite_location: bool = True
    trace: Literal["pass", "start", "continue"] = "pass"
    server_timing: bool = False


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
class LoginAsked:
    """A login call, which is answered by us.

    Attributes:
        upstream: to which it would have gone.
        call: `issue`, `refresh` or `revoke`.
        accounts: the ids that the caller sent.
        length: of its body; `CHUNKED`, or None for no body.
    """

    upstream: Upstream
    call: str
    accounts: tuple[str, ...]
    length: int | None


class Decision:
    """How a request is forwarded.

    Attributes:
        gate: that decided.
        upstream: where it goes.
        length: of its body; `CHUNKED`, or None for no body.
        identity: who calls.
        route: what it asks for.
        account: whose request it is.
        replaced: whether the caller named another account.
        pair: who calls what, and where: refusals are remembered by it.
        head: what is sent, but for the token, and the length of a body that came in chunks.
        trace: id of the trace that the head passes on, or "".
        starts_trace: whether one is to be started, and said in the head.
    """

    __slots__ = (
        *("account", "gate", "head", "identity", "length", "pair", "replaced", "route"),
        *("starts_trace", "trace", "upstream"),
        *("_headers", "_method", "_target", "_version"),
    )

    def __init__(
        self,
        call: Call,
        *,
        gate: "Gate",
        upstream: Upstream,
        length: int | None,
        identity: Identity,
        route: Route,
        account: AccountDecision,
        pair: Pair,
        head: RequestHead,
        trace: str = "",
        starts_trace: bool = False,
    ) -> None:
        self._method, self._target, self._version = call.method, call.target, call.version
        self._headers = call.headers
        self.gate = gate
        self.upstream = upstream
        self.length = length
        self.identity = identity
        self.route = route
        self.account = account.account
        self.replaced = account.replaced is not None
        self.pair = pair
        self.head = head
        self.trace = trace
        self.starts_trace = starts_trace

    def fits(self, call: Call) -> bool:
        """Whether a request has the very same head."""
        return (
            self._target == call.target
            and self._headers == call.headers
            and self._method == call.method
            and self._version == call.version
        )


class Gate:
    """Decides.

    Args:
        upstreams: in any order, each with a mount of its own.
        limit: bytes of a whole request head.
        callers: who may call.
        headers: what is done to them.
        is_own_authority: whether a `host:port` is this listener, or a name of an upstream's here.
        emit: takes events.
    """

    def __init__(
        self,
        upstreams: tuple[Upstream, ...],
        *,
        limit: int,
        callers: Callers,
        headers: Headers,
        is_own_authority: Callable[[str], bool],
        emit: Emit,
    ) -> None:
        self._upstreams = {one.mount: one for one in upstreams}
        self._mounts = Mounts(self._upstreams)
        # Most proxies have one upstream, which is asked for everything.
        only = upstreams[0] if len(upstreams) == 1 else None
        self._only = only if only and not (only.mount.prefix or only.mount.hosts) else None
        self._limit = limit
        self._callers = callers
        self._headers = headers
        self._is_own_authority = is_own_authority
        self._emit = emit
        self._routes = RouteTable()

    def decide(self, call: Call, exchange: Exchange) -> Decision | LoginAsked | None:
        """What becomes of a request; None for a question to the proxy itself (`OPTIONS *`).

        Args:
            call: the request.
            exchange: is told what has been found out, also when that ends in a refusal.

        Raises:
            ProxyError: it is refused.
        """
        known: Decision | None = call.connection.known
        if (
            known is not None
            and known.gate is self  # settings may have changed
            and known.fits(call)
            and self._callers.registry.knows_still(known.identity)
        ):
            exchange.upstream, exchange.caller = known.upstream.name, known.identity.caller.name
            exchange.route, exchange.kind = known.route.template, known.route.kind
            exchange.account_replaced = known.replaced
            if known.trace:
                exchange.trace = known.trace
            return known
        return self._look(call, exchange)

    def _look(self, call: Call, exchange: Exchange) -> Decision | LoginAsked | None:
        method, headers = call.method, call.headers

        # 1 parse
        raw = call.target.encode("utf-8", "surrogateescape")
        head = CallerHead(
            headers,
            target_length=len(raw),
            limit=self._limit,
            version=call.version,
            keep_forwarded=self._headers.keep_forwarded,
        )
        if method in _NOT_FORWARDED:
            raise MethodNotAllowed(
                f"{method} is not forwarded.",
                allow="GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
                hint=_NOT_FORWARDED[method],
                close=True,
            )
        if raw == b"*" and method == "OPTIONS":
            return None
        if head.vias and head.names_us(self._headers.via):
            raise LoopDetected(
                "The request has been through this proxy before.",
                hint="upstream.addresses, DNS or upstream.base_url leads back here; "
                "upstream.addresses has to name where the upstream really is.",
                close=True,
            )
        target = parse_target(raw, is_own_authority=self._is_own_authority)
        if head.upgrades:
            _refuse_upgrade(head.upgrades)
        upstream = self._select(target, headers)
        exchange.upstream = upstream.name
        _check_environment(headers, origin=upstream.dialler.origin)
        target, login = _forwarded(target, mount=upstream.mount)
        if login is not None:  # its credentials are in its body
            return LoginAsked(upstream, login, head.accounts, head.length)

        # 2 identify
        identity = self._callers.registry.identify(
            head, upstream=upstream.name, peer=call.connection.peer
        )
        caller = identity.caller
        exchange.caller = caller.name
        if identity.ambient:
            self._callers.pages.check(headers)

        # 3 authorize
        route = self._routes.classify(method, target)
        exchange.route, exchange.kind = route.template, route.kind
        account = decide_account(
            upstream.account, sent=head.accounts, kind=route.kind, own=caller.accounts
        )
        exchange.account_replaced = account.replaced is not None
        observed = False
        if not caller.unrestricted:
            observed = self._authorize(
                caller,
                exchange=exchange,
                upstream=upstream,
                target=target,
                route=route,
                account=account.account,
            )
        trace, starts_trace = self._trace(head)
        if trace:
            exchange.trace = trace
        decision = Decision(
            call,
            gate=self,
            upstream=upstream,
            length=head.length,
            identity=identity,
            route=route,
            account=account,
            pair=(caller.name, f"{upstream.name}{target.canonical[:_TOLD_APART]}"),
            head=head.forward(
                method.encode("ascii"),
                target=target.raw,
                host=upstream.dialler.origin.authority.encode("ascii"),
                body_length=None if head.length == CHUNKED else head.length,
                via=self._headers.via if self._headers.via_upstream else b"",
            ),
            trace=trace,
            starts_trace=starts_trace,
        )
        if not observed and head.size <= _REMEMBERED:
            call.connection.known = decision
        return decision

    def _trace(self, head: CallerHead) -> tuple[str, bool]:
        """The trace that a head passes on, and whether one is to be started instead."""
        does = self._headers.trace
        trace = read_trace(head.traces) if head.traces else None
        if does == "pass":
            return trace.id if trace else "", False
        if trace is None:
            head.leave_out(_BOTH)
        elif does == "continue":
            head.leave_out(_PARENT)
        else:
            return trace.id, False
        return "", does == "start"

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
        target, login = _forwarded(target, mount=upstream.mount)
        if login is not None:
            return upstream.name, "login"
        kinds = {
            self._routes.classify(method, target).kind,
            self._routes.reread(method, target.decoded).kind,
        }
        gravest = next(kind for kind in (Kind.MONEY, Kind.WRITE, Kind.READ) if kind in kinds)
        return upstream.name, gravest

    def _select(self, target: Target, headers: RawHeaders) -> Upstream:
        if self._only is not None:
            return self._only
        host = called_by(headers, authority=target.authority) if self._mounts.by_host else ""
        return self._upstreams[self._mounts.find(target.path, host=host)]

    def _authorize(
        self,
        caller: Caller,
        *,
        exchange: Exchange,
        upstream: Upstream,
        target: Target,
        route: Route,
        account: str,
    ) -> bool:
        """Refuse what the caller may not do, in any way an upstream could read it.

        Returns:
            Whether that was told of and let through.
        """
        check_upstream(caller, upstream=upstream.name)
        readings: tuple[Reading, ...] = (Reading(target.canonical, route),)
        if target.decoded != target.canonical:
            further = self._routes.reread(exchange.method, target.decoded)
            readings += (Reading(target.decoded, further),)
        check_accounts(caller, account=account, readings=readings)
        why = why_refused(caller, method=exchange.method, readings=readings)
        if not why:
            return False
        if not caller.observe:
            raise CallerForbidden(
                f"Caller {caller.name} may not do this: {why}.",
                hint="Its role and rules: nomba-proxy caller list --json",
            )
        fields: dict[str, object] = {"caller": caller.name, "reason": why}
        fields |= {"request_id": exchange.request_id, "route": route.template}
        self._emit(Event("policy_observed", "warning", upstream.name, fields))
        return True


def _forwarded(target: Target, *, mount: Mount) -> tuple[Target, str | None]:
    """What goes to the upstream, which is what is judged; and which login call it is.

    A login below a mount is ours, also where the mount is kept and Nomba would not know it as one.

    Raises:
        TargetAmbiguous: as `login_call`.
    """
    if not mount.prefix:
        return target, login_call(target.decoded)
    below = strip_mount(target, mount=mount.prefix)
    call = login_call(below.decoded)
    if mount.strip:
        return below, call
    return target, call or login_call(target.decoded)


def _check_environment(headers: RawHeaders, *, origin: Origin) -> None:
    """Refuse who calls one of Nomba's environments by its name and would get the other.

    A hosts entry brings both names here, and an app that tries something in the sandbox must not
    move real money.

    Raises:
        HostRefused: it would.
    """
    host = field_value(headers, b"host")
    if host is None or b"nomba.com" not in host.lower():
        return
    name = host_name(host.decode("latin-1"))
    meant = ENVIRONMENTS.get(name)
    if meant is not None and origin.environment in ENVIRONMENTS.values() and origin.host != name:
        raise HostRefused(
            f"The request was meant for {name}, and this upstream is {origin.environment}.",
            hint="Configure an upstream for it, and give each its `hosts` "
            "(docs/hard-coded-hosts.md).",
        )


def _refuse_upgrade(wanted: list[bytes]) -> None:
    if all(one.strip().lower() == b"h2c" for one in wanted):  # h2c may be ignored, and is
        return
    raise UpgradeUnsupported(
        "Protocol upgrades are not forwarded.",
        hint="Nomba's API is plain HTTP requests and replies.",
        close=True,
    )
