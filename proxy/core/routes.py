"""Name and class a request by Nomba's endpoint table.

The classes decide what may be done with a request: a `read` may be replayed after a
refusal that proves nothing, `money` may not be sent for an account nobody meant.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum

from proxy.core.target import canonical_path
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
_LOGIN_REACH = re.compile(r"/v1/auth/token(?:[^a-z0-9_-]|$)")


class Kind(StrEnum):
    """What a request can do at Nomba."""

    READ = "read"
    WRITE = "write"
    MONEY = "money"


@dataclass(frozen=True, slots=True)
class Route:
    """What the endpoint table says of a request.

    Attributes:
        template: the operation's path template, or `other`: safe as a metric label.
        kind: `read`, `write` or `money`.
    """

    template: str
    kind: Kind


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
        for segment in canonical_path(operation.template.encode())[1:].split("/"):
            if segment.startswith("{"):
                node.variable = node.variable or _Node()
                node = node.variable
            else:
                node = node.literal.setdefault(segment, _Node())
        if operation.money:
            kind = Kind.MONEY
        else:
            kind = Kind.READ if operation.method in READ_METHODS else Kind.WRITE
        node.routes.setdefault(operation.method, Route(operation.template, kind))
    return root


class RouteTable:
    """The endpoint table, ready to be asked."""

    def __init__(self) -> None:
        self._root = _build()

    def classify(self, method: str, canonical: str) -> Route:
        """The route of a request; what is unknown and no read counts as money.

        Args:
            method: as sent, upper case.
            canonical: `Target.canonical`.
        """
        wanted = "GET" if method == "HEAD" else method
        route = _find(self._root, canonical[1:].split("/"), 0, wanted)
        if route is not None:
            return route
        return _UNKNOWN_READ if method in READ_METHODS else _UNKNOWN_MONEY


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
    if not _LOGIN_REACH.match(decoded):
        return None
    call = LOGIN_PATHS.get(decoded)
    if call is None:
        raise TargetAmbiguous(
            "This path is too close to Nomba's login calls to be forwarded.",
            hint=f"The login calls are POST {', '.join(LOGIN_PATHS)}; the proxy answers them.",
        )
    return call
