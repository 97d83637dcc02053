"""Name and class a request by Nomba's endpoint table.

The classes decide what may be done with a request: a `read` may be replayed after a
refusal that proves nothing, `money` may not be sent for an account nobody meant.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, lru_cache

from proxy.core.target import Target, canonical_path
from proxy.data import operations
from proxy.errors import TargetAmbiguous

READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# The login calls, which never reach Nomba: it keeps a single session, and a login
# of the caller's own would end the one everybody shares. The bare path is an alias
# that public integrations use.
LOGIN_PATHS = {
    "/v1/auth/token": "issue",
    "/v1/auth/token/issue": "issue",
    "/v1/auth/token/refresh": "refresh",
    "/v1/auth/token/revoke": "revoke",
}
_LOGIN_REACH = re.compile(r"/v1/auth/token(?:/|$)")
# Bytes that some servers trim and at which others cut: a path is judged both ways.
_ODD = re.compile(r"[^a-z0-9/_-]+")
_SLASHES = re.compile(r"/{2,}")
_PATHS = 1024  # that are known again, if they are not longer than
_PATH = 256  # bytes


class Kind(StrEnum):
    """What a request can do at Nomba."""

    READ = "read"
    WRITE = "write"
    MONEY = "money"


_GRAVITY = {Kind.READ: 0, Kind.WRITE: 1, Kind.MONEY: 2}


@dataclass(frozen=True, slots=True)
class Route:
    """What the endpoint table says of a request.

    Attributes:
        template: the operation's path template, or `other`: safe as a metric label.
        kind: `read`, `write` or `money`.
        account_at: which part of the path, split at its slashes, names a sub-account.
    """

    template: str
    kind: Kind
    account_at: int | None = None


_ACCOUNTS = frozenset({"{subaccountid}", "{accountid}"})
_UNKNOWN_READ = Route("other", Kind.READ)
_UNKNOWN_MONEY = Route("other", Kind.MONEY)


@dataclass(slots=True)
class _Node:
    routes: dict[str, Route] = field(default_factory=dict)
    literal: dict[str, "_Node"] = field(default_factory=dict)
    variable: "_Node | None" = None


def _build() -> _Node:
    root = _Node()
    for operation in operations():
        node = root
        # `/sandbox` is no part of the canonical path, so the table loses it too.
        segments = canonical_path(operation.template.encode()).split("/")
        for segment in segments[1:]:
            if segment.startswith("{"):
                node.variable = node.variable or _Node()
                node = node.variable
            else:
                node = node.literal.setdefault(segment, _Node())
        if operation.money:
            kind = Kind.MONEY
        elif operation.method in READ_METHODS or operation.pages:
            kind = Kind.READ  # some lists are asked for with POST (facts, section 4)
        else:
            kind = Kind.WRITE
        account_at = next((at for at, one in enumerate(segments) if one in _ACCOUNTS), None)
        route = Route(operation.template, kind, account_at)
        node.routes.setdefault(operation.method, route)
    return root


@cache
def changing_routes() -> frozenset[str]:
    """The templates of all operations that are no reads, and `other`."""
    return frozenset(
        one.template
        for one in operations()
        if one.money or not (one.method in READ_METHODS or one.pages)
    ) | {"other"}


@cache
def families() -> frozenset[str]:
    """The families of operations there are: the word behind the version, else `other`."""
    return frozenset(
        canonical_path(one.template.encode()).split("/")[2] for one in operations()
    ) | {"other"}


def family(path: str) -> str:
    """The family of a canonical path, whether or not it is an operation anybody knows."""
    segments = path.split("/", 3)
    found = segments[2] if len(segments) > 2 else ""
    return found if found in families() else "other"


class RouteTable:
    """The endpoint table, ready to be asked."""

    def __init__(self) -> None:
        self._root = _build()
        self._known = lru_cache(_PATHS)(self._classify)

    def classify(self, method: str, target: Target) -> Route:
        """The route of a request; what is unknown and no read counts as money.

        An upstream may know no path parameters, end a path at one, or tell cases apart:
        where such a reading is an operation of more weight than the canonical form, that it is.

        Args:
            method: as sent, upper case.
            target: the parsed target.
        """
        path = target.path
        return (self._known if len(path) <= _PATH else self._classify)(
            method, path, target.canonical
        )

    def _classify(self, method: str, path: bytes, canonical: str) -> Route:
        wanted = "GET" if method == "HEAD" else method
        route = self._lookup(wanted, canonical)
        if route is not None and method not in READ_METHODS and route.kind is not Kind.MONEY:
            text = path.decode("ascii")
            for reading in (text, text.partition(";")[0]):
                sent = self._lookup(wanted, reading)
                if sent is not None and _GRAVITY[sent.kind] > _GRAVITY[route.kind]:
                    return sent
        if route is not None:
            return route
        return _UNKNOWN_READ if method in READ_METHODS else _UNKNOWN_MONEY

    def reread(self, method: str, path: str) -> Route:
        """The route of another reading of a path, in canonical form."""
        wanted = "GET" if method == "HEAD" else method
        unknown = _UNKNOWN_READ if method in READ_METHODS else _UNKNOWN_MONEY
        return self._lookup(wanted, path) or unknown

    def _lookup(self, method: str, path: str) -> Route | None:
        return _find(self._root, path[1:].split("/"), 0, method)


def _find(node: _Node, segments: list[str], at: int, method: str) -> Route | None:
    if at == len(segments):
        return node.routes.get(method)
    segment = segments[at]
    child = node.literal.get(segment)
    if child is not None:
        found = _find(child, segments, at + 1, method)
        if found is not None:
            return found
    if node.variable is not None and segment:
        return _find(node.variable, segments, at + 1, method)
    return None


def login_call(decoded: str) -> str | None:
    """Which login call a path is, in any reading an upstream could make of it.

    Args:
        decoded: `Target.decoded`.

    Returns:
        `issue`, `refresh` or `revoke`; None for a path that is no login.

    Raises:
        TargetAmbiguous: the path lies in the login's reach but is none of the calls.
    """
    return (_known_login_call if len(decoded) <= _PATH else _login_call)(decoded)


def _login_call(decoded: str) -> str | None:
    call = LOGIN_PATHS.get(decoded)
    if call is None and any(
        _LOGIN_REACH.search(_SLASHES.sub("/", _ODD.sub(instead, decoded))) for instead in ("", "/")
    ):
        raise TargetAmbiguous(
            "This path is too close to Nomba's login calls to be forwarded.",
            hint=f"The login calls are POST {', '.join(LOGIN_PATHS)}; the proxy answers them.",
        )
    return call


_known_login_call = lru_cache(_PATHS)(_login_call)
