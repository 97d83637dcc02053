"""The error tree: every reply the proxy makes by itself instead of forwarding.

    ProxyError                       status  outcome
    ├── TargetAmbiguous                 400  not_sent
    ├── HeadInvalid                     400  not_sent
    ├── LoginInvalid                    400  not_sent
    ├── CallerUnknown                   401  not_sent
    │   └── RefreshTokenUnknown         404  not_sent
    ├── CallerForbidden                 403  not_sent
    ├── AccountMismatch                 403  not_sent
    ├── HostRefused                     403  not_sent
    ├── OriginRefused                   403  not_sent
    ├── MountUnknown                    404  not_sent
    ├── MethodNotAllowed                405  not_sent
    ├── HeadTimeout                     408  not_sent
    ├── BodyTimeout                     408  not_sent
    ├── BodyTooLarge                    413  not_sent
    ├── RateLimited                     429  not_sent
    ├── HeadTooLarge                    431  not_sent
    ├── UpgradeUnsupported              501  not_sent
    ├── LoopDetected                    508  not_sent
    ├── Internal                        500  as far as the exchange got
    ├── TokenUnavailable                503  not_sent (refused after a first try)
    │   └── RenewalNotAllowed           (never sent: the original reply is delivered)
    ├── Overloaded                      503  not_sent (refused after a first try)
    └── UpstreamError
        ├── UpstreamUnreachable         502  not_sent (refused after a first try)
        ├── UpstreamBroken              502  unknown
        └── UpstreamTimeout             504  unknown (while connecting as unreachable)

`Outcome` is the answer to the one question a payments team has after an error:
did the request reach Nomba, and may it have done something?
"""

from enum import StrEnum
from typing import ClassVar


class Outcome(StrEnum):
    """What is known of a request's fate; the value of `Nomba-Proxy-Outcome`."""

    NOT_SENT = "not_sent"
    REFUSED = "refused"
    ANSWERED = "answered"
    UNKNOWN = "unknown"


class ProxyError(Exception):
    """A request that the proxy answers itself.

    Attributes:
        code: stable name, the value of `Nomba-Proxy-Error`.
        status: HTTP status of the reply.
        outcome: what became of the request at the upstream.
        hint: what the reader can do next, in one sentence.
        retry_after: whole seconds for `Retry-After`, or None.
        close: whether the caller's connection cannot be used again.
        logged: what the line in the log says beside the description, and the reply does not.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(
        self,
        description: str,
        *,
        hint: str = "",
        outcome: Outcome = Outcome.NOT_SENT,
        retry_after: int | None = None,
        close: bool = False,
        logged: str = "",
    ) -> None:
        super().__init__(description)
        self.description = description
        self.hint = hint
        self.outcome = outcome
        self.retry_after = retry_after
        self.close = close
        self.logged = logged


class TargetAmbiguous(ProxyError):
    """The request target can be read in two ways, so it is not forwarded."""

    code = "target_ambiguous"
    status = 400


class HeadInvalid(ProxyError):
    """The request head breaks the protocol or contradicts itself."""

    code = "head_invalid"
    status = 400


class CallerUnknown(ProxyError):
    """Nobody we know is calling, and anonymous callers are not allowed."""

    code = "caller_unknown"
    status = 401


class LoginInvalid(ProxyError):
    """A login whose body cannot be understood."""

    code = "login_invalid"
    status = 400


class RefreshTokenUnknown(CallerUnknown):
    """A login by a refresh token that nobody was given, or whose time is over."""

    code = "refresh_token_unknown"
    status = 404


class CallerForbidden(ProxyError):
    """The caller is known and may not do this."""

    code = "caller_forbidden"
    status = 403


class AccountMismatch(ProxyError):
    """The request is for an account that the upstream does not serve, or is not the caller's."""

    code = "account_mismatch"
    status = 403


class HostRefused(ProxyError):
    """A target or `Host` that is not this proxy's: no forward proxy, no DNS rebinding."""

    code = "host_refused"
    status = 403


class OriginRefused(ProxyError):
    """A web page of somebody else's calls through a browser on this machine."""

    code = "origin_refused"
    status = 403


class RateLimited(ProxyError):
    """The caller asks for more than it may."""

    code = "rate_limited"
    status = 429


class MountUnknown(ProxyError):
    """No configured upstream is mounted at this path."""

    code = "mount_unknown"
    status = 404


class MethodNotAllowed(ProxyError):
    """CONNECT, TRACE, or anything but POST on the login paths.

    Attributes:
        allow: value of `Allow` (RFC 9110 section 15.5.6).
    """

    code = "method_not_allowed"
    status = 405

    def __init__(
        self, description: str, *, allow: str, hint: str = "", close: bool = False
    ) -> None:
        super().__init__(description, hint=hint, close=close)
        self.allow = allow


class HeadTimeout(ProxyError):
    """The caller began a request head and did not end it."""

    code = "head_timeout"
    status = 408


class BodyTimeout(ProxyError):
    """The caller stopped sending its body."""

    code = "body_timeout"
    status = 408


class BodyTooLarge(ProxyError):
    """The body is larger than `body.limit`."""

    code = "body_too_large"
    status = 413


class HeadTooLarge(ProxyError):
    """The request head is larger than the limits allow."""

    code = "head_too_large"
    status = 431


class Internal(ProxyError):
    """A fault of ours."""

    code = "internal"
    status = 500


class UpgradeUnsupported(ProxyError):
    """A protocol upgrade that the proxy does not speak."""

    code = "upgrade_unsupported"
    status = 501


class LoopDetected(ProxyError):
    """The request has been here before: it would go round for ever."""

    code = "loop_detected"
    status = 508


class TokenUnavailable(ProxyError):
    """There is no living token, and none could be had in time."""

    code = "token_unavailable"
    status = 503


class RenewalNotAllowed(TokenUnavailable):
    """A forced renewal was asked for again too soon; the refusal itself is delivered."""


class Overloaded(ProxyError):
    """More is under way than the proxy takes on."""

    code = "overloaded"
    status = 503


class UpstreamError(ProxyError):
    """The upstream gave no usable reply.

    Attributes:
        stale: whether a used connection ended without a byte of a reply: the upstream may
            have closed it before the request came.
    """

    stale = False


class UpstreamUnreachable(UpstreamError):
    """No connection could be made: name, connect or TLS failed before a byte was sent."""

    code = "upstream_unreachable"
    status = 502


class UpstreamBroken(UpstreamError):
    """The connection was lost, or the reply was no HTTP, after bytes had been sent."""

    code = "upstream_broken"
    status = 502


class UpstreamTimeout(UpstreamError):
    """The upstream did not connect, answer or finish in time."""

    code = "upstream_timeout"
    status = 504


def codes() -> frozenset[str]:
    """Every code that a refusal can have."""
    found, kinds = set(), [ProxyError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        found.add(kind.code)
    return frozenset(found)
