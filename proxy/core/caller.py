"""Who a caller is and what it may do: decisions on values, with a reason.

A rule is one line of text, and the first that fits decides; what no rule allows is
refused once there are rules:

    allow GET /v1/transactions/**
    deny  POST,PUT /v2/transfers/*
    allow family:checkout
    allow class:read
    deny  any

GET stands for HEAD too. `*` is one segment of a path, `**` at the end is all that follows. Paths are compared in
the canonical form (`core.target`), and where an upstream could decode further than that,
in both readings: both have to be allowed.
"""

import hashlib
import hmac
import math
import re
from dataclasses import dataclass
from enum import StrEnum

from proxy.core.certificate import CertificatePattern
from proxy.core.routes import Kind, Route, families, family
from proxy.core.target import canonical_path
from proxy.errors import AccountMismatch, CallerForbidden

KEY_PREFIX = "npk_"
NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
ANONYMOUS, OWNER = "anonymous", "owner"
RESERVED = frozenset({ANONYMOUS, OWNER})
# Those that Nomba has. A rule for another would fit nothing: "deny PSOT any" would deny nothing.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# Bytes of a decoded path at which some servers cut, or that they trim away.
_ODD = re.compile(r"[\x00-\x20\x7f?#]|\.(?=/|$)")
_DIGEST = re.compile(r"hmac-sha256:([0-9a-f]{16}):([0-9a-f]{64})")


class Role(StrEnum):
    """What a caller may do at most."""

    FULL = "full"
    NO_MONEY = "no-money"
    READ_ONLY = "read-only"


_ROLE_KINDS = {
    Role.FULL: frozenset(Kind),
    Role.NO_MONEY: frozenset({Kind.READ, Kind.WRITE}),
    Role.READ_ONLY: frozenset({Kind.READ}),
}


# -- secrets -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Digest:
    """A caller's secret as it is kept: a keyed digest, from which nobody gets it back.

    The secrets are made by us with 256 random bits, so there is nothing to guess; the key
    (salt) keeps the same secret from having the same digest twice.
    """

    salt: str
    value: str

    @classmethod
    def of(cls, secret: str, *, salt: str) -> "Digest":
        """The digest of a secret; `salt` is 16 random hex digits."""
        return cls(salt, hmac.new(salt.encode(), secret.encode(), hashlib.sha256).hexdigest())

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Read what `str` wrote.

        Raises:
            ValueError: it is none.
        """
        found = _DIGEST.fullmatch(text)
        if found is None:
            raise ValueError("is no digest of a secret; `nomba-proxy caller add` makes one")
        return cls(found[1], found[2])

    @property
    def id(self) -> str:
        """Names the secret in a phantom token; says nothing of it."""
        return self.value[:12]

    def fits(self, secret: str) -> bool:
        """Whether it is the digest of this secret (constant time)."""
        return hmac.compare_digest(self.of(secret, salt=self.salt).value, self.value)

    def __str__(self) -> str:
        return f"hmac-sha256:{self.salt}:{self.value}"


# -- rules -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a caller's rules.

    Attributes:
        text: as it was written.
        allow: whether what it fits is allowed.
        methods: upper case; empty for every method. GET stands for HEAD too.
        path: of the canonical path, or None for every path.
        family, kind: of the operation, or "" and None for every one.
    """

    text: str
    allow: bool
    methods: frozenset[str]
    path: re.Pattern[str] | None = None
    family: str = ""
    kind: Kind | None = None

    def fits(self, method: str, *, path: str, route: Route) -> bool:
        """Whether a request is one of those it speaks of."""
        return (
            (not self.methods or ("GET" if method == "HEAD" else method) in self.methods)
            and (self.path is None or self.path.fullmatch(path) is not None)
            and self.family in {"", family(path)}
            and self.kind in {None, route.kind}
        )


def parse_rule(text: str) -> Rule:
    """Read a rule.

    Raises:
        ValueError: it is none; the text says why and what to write.
    """
    words = text.split()
    if len(words) not in {2, 3} or words[0] not in {"allow", "deny"}:
        raise ValueError("write: allow|deny [METHOD,…] /path | family:NAME | class:NAME | any")
    methods = _methods(words[1]) if len(words) == 3 else frozenset()
    allow, what = words[0] == "allow", words[-1]
    if what == "any":
        return Rule(text, allow, methods)
    if what.startswith("/"):
        return Rule(text, allow, methods, path=_path_pattern(what))
    name, colon, value = what.partition(":")
    if name == "family" and colon:
        if value not in families():
            raise ValueError(f"no family {value!r}; there are: {', '.join(sorted(families()))}")
        return Rule(text, allow, methods, family=value)
    if name == "class" and colon and value in set(Kind):
        return Rule(text, allow, methods, kind=Kind(value))
    raise ValueError(
        f"{what!r} is no path such as /v1/accounts/*, family:NAME, "
        "class:read, class:write, class:money or any"
    )


def _methods(text: str) -> frozenset[str]:
    methods = frozenset(text.upper().split(","))
    if unknown := sorted(methods.difference(_METHODS)):
        raise ValueError(
            f"{unknown[0]!r} is no method of Nomba's; write some of {','.join(_METHODS)}"
        )
    if "HEAD" in methods and "GET" not in methods:
        raise ValueError("GET stands for HEAD too: write GET")
    return methods


def _path_pattern(text: str) -> re.Pattern[str]:
    if "?" in text or "#" in text:
        raise ValueError("a path has no query; rules do not look at it")
    canonical = canonical_path(text.encode("utf-8"))
    parts = canonical.split("/")[1:]
    rest = parts[-1] == "**"
    if rest:
        parts.pop()
    if any("*" in part and part != "*" for part in parts):
        raise ValueError("* stands for a whole segment, ** for all that follows, at the end only")
    middle = "".join("/[^/]+" if part == "*" else "/" + re.escape(part) for part in parts)
    return re.compile(middle + ("(?:/.*)?" if rest else ""), re.DOTALL)


# -- callers -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who calls, and what it may do.

    Attributes:
        name: for logs and metrics.
        secrets: digests of those that are valid now; two while one is being replaced.
        certificates: it is known by a certificate that fits one of these patterns.
        uids: it is known by these, at a Unix socket.
        enabled: whether it may call at all.
        expires: epoch seconds until which it may.
        upstreams: names of those it may use; empty for every one.
        accounts: ids, lower case, that it may act for, sub-accounts included; empty for
            whatever the upstream's policy lets through.
        role: what it may do at most.
        rules: the first that fits decides; if there are any, nothing else is allowed.
        observe: only report what role and rules would refuse.
        rate: requests a second, `burst` of them at once; 0 for no limit.
        concurrent: requests at a time; 0 for no limit.
        body_limit: bytes of a request body; 0 for the proxy's own limit.
    """

    name: str
    secrets: tuple[Digest, ...] = ()
    certificates: tuple[CertificatePattern, ...] = ()
    uids: frozenset[int] = frozenset()
    enabled: bool = True
    expires: float = math.inf
    upstreams: frozenset[str] = frozenset()
    accounts: frozenset[str] = frozenset()
    role: Role = Role.FULL
    rules: tuple[Rule, ...] = ()
    observe: bool = False
    rate: float = 0.0
    burst: int = 1
    concurrent: int = 0
    body_limit: int = 0

    @property
    def unrestricted(self) -> bool:
        """Whether it may do whatever the proxy forwards."""
        narrowed = self.upstreams or self.accounts or self.rules
        return self.role is Role.FULL and not narrowed

    @property
    def here_only(self) -> bool:
        """Whether it is known by a uid alone, which no network carries."""
        return bool(self.uids) and not (self.secrets or self.certificates)

    def find(self, secret: str) -> Digest | None:
        """The digest of this secret, if it is one of the caller's."""
        found = None
        for one in self.secrets:  # all of them, so that time tells nothing
            if one.fits(secret):
                found = one
        return found


@dataclass(frozen=True, slots=True)
class Roster:
    """The configured callers.

    Attributes:
        callers: in order.
        anonymous: what was chosen when the first of them was added: whether callers
            nobody knows stay; None if nobody was asked.
    """

    callers: tuple[Caller, ...] = ()
    anonymous: bool | None = None

    @property
    def keeps_anonymous(self) -> bool:
        """Whether callers nobody knows may stay where the settings leave it to us."""
        return not self.callers if self.anonymous is None else self.anonymous

    def after(self, before: "Roster") -> "Roster":
        """The roster in force once this one follows another.

        A door that is closed is opened by a roster that says so, never by one that says
        nothing: it may be what is left of a file.
        """
        if self.anonymous is not None:
            return self
        return Roster(self.callers, before.keeps_anonymous and self.keeps_anonymous)


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a request: its canonical path and what the endpoint table says."""

    path: str
    route: Route


def why_refused(caller: Caller, *, method: str, readings: tuple[Reading, ...]) -> str:
    """Why role or rules refuse a request, or "" if they allow it in every reading.

    Args:
        caller: who asks.
        method: upper case.
        readings: every path an upstream could take the target for.
    """
    for one in readings:
        if one.route.kind not in _ROLE_KINDS[caller.role]:
            return f"its role is {caller.role}, and this is {_ARTICLE[one.route.kind]} operation"
        if not caller.rules:
            continue
        if _ODD.search(one.path):
            return "its rules do not judge a path with spaces, controls, ? or # in it"
        fitting = (r for r in caller.rules if r.fits(method, path=one.path, route=one.route))
        first = next(fitting, None)
        if first is None:
            return "none of its rules allows it"
        if not first.allow:
            return f"its rule {first.text!r} refuses it"
    return ""


_ARTICLE = {Kind.READ: "a read", Kind.WRITE: "a write", Kind.MONEY: "a money"}


def check_upstream(caller: Caller, *, upstream: str) -> None:
    """Refuse an upstream that is not the caller's.

    Raises:
        CallerForbidden: it may not use this one.
    """
    if caller.upstreams and upstream not in caller.upstreams:
        raise CallerForbidden(
            f"Caller {caller.name} may not use upstream {upstream}.",
            hint=f"It may use: {', '.join(sorted(caller.upstreams))} (caller.upstreams).",
        )


def check_accounts(caller: Caller, *, account: str, readings: tuple[Reading, ...]) -> None:
    """Refuse a request for an account that is not the caller's.

    A path that names a sub-account acts for that one, every other request for the account
    in the header. Bodies and queries are not looked into.

    Args:
        caller: who asks.
        account: the `accountId` the request goes out with.
        readings: as for `why_refused`.

    Raises:
        AccountMismatch: one of the readings acts for another account.
        CallerForbidden: an operation nobody knows, which could name any.
    """
    if not caller.accounts:
        return
    for one in readings:
        if one.route.template == "other":
            raise CallerForbidden(
                f"Caller {caller.name} may act for some accounts only, and nobody knows for which "
                "this operation does.",
                hint="Use an operation of Nomba's documented API, or a caller without accounts.",
            )
        at = one.route.account_at
        acting = account.lower() if at is None else one.path.split("/")[at]
        if acting not in caller.accounts:
            raise AccountMismatch(
                f"Caller {caller.name} may not act for the account of this request.",
                hint="Its accounts are listed in caller.accounts; a path without a sub-account "
                "acts for the parent account.",
            )
