"""What is told of a session: to operators, to callers that get no token, and to the log."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from proxy.core.exchange import Event
from proxy.core.session import Held
from proxy.errors import TokenUnavailable

# Troubles with the store, which are this process's alone.
STORES = frozenset({"store", "sealed"})
# Troubles of this process alone, of which others know nothing, that others can end: it lacks a secret.
SECRETS = frozenset({"sealed", "secret"})
_OTHERS_LOG_IN = (
    "Others log in with another client secret: give this process the same one (client_secret, or "
    "client_secret_next). Or log in with the one it has, which cuts off all that have not that one: "
    "nomba-proxy token renew"
)
_HINTS: Mapping[str, str] = {
    "credentials": "Nomba refused our credentials: check client id, secret, parent account "
    "and environment, then: nomba-proxy token renew",
    "store": "The session could not be shared, so nobody logs in: mend what `store` names "
    "(nomba-proxy check --show).",
    "secret": _OTHERS_LOG_IN,
    "sealed": _OTHERS_LOG_IN,
}

State = Literal["empty", "living", "stopped"]


@dataclass(frozen=True, slots=True)
class Status:
    """What there is to show of a session: nothing in it is secret.

    Attributes:
        state: `living`, `empty` (no token yet, or a dead one) or `stopped`.
        token: digest of the access token, or "".
        generation: 0 before the first token.
        expires_in: seconds the token still lives; 0 for none.
        renews_in: seconds until the background renewal; 0 for none.
        renewing: whether a renewal is under way.
        failures: renewals failed in a row.
        last_error: why the last one failed, or "".
        retry_in: seconds until the next try after failures.
        skew: seconds that the issuer's clock is ahead of ours; None if that is not known.
        store: why the store cannot be used, or "".
        secret: digest of the client secret in force, or "".
        secret_pending: whether another one is set here.
        secret_retry_in: seconds until that is tried again, if it was refused; else 0.
    """

    state: State
    token: str
    generation: int
    expires_in: float
    renews_in: float
    renewing: bool
    failures: int
    last_error: str
    retry_in: float
    skew: float | None
    store: str = ""
    secret: str = ""
    secret_pending: bool = False
    secret_retry_in: float = 0.0


def unavailable(
    name: str, held: Held, *, living: bool, waiting: bool, now: float
) -> TokenUnavailable:
    """Why there is no token, or no newer one, and what to do.

    Args:
        name: the upstream's name.
        held: what is known.
        living: whether there is a token, which was refused.
        waiting: whether another process has had the right to renew all the time.
        now: the time.
    """
    if held.stopped:
        return TokenUnavailable(
            "The session was stopped by an operator.",
            hint="Start it again with: nomba-proxy token renew",
            retry_after=30,
        )
    trouble = held.trouble
    # Where the store is, is for operators: it is in the log, and `token show` tells it.
    text = "its store cannot be used" if trouble.reason in STORES else trouble.text
    if waiting:
        text = "another process holds the right to renew and does not let go of it"
    what = "No newer token for" if living else "There is no living token for"
    return TokenUnavailable(
        f"{what} {name}{f' ({text})' if text else ''}.",
        hint=_HINTS.get(
            trouble.reason,
            "Nomba's token call does not succeed at the moment; retry after the delay.",
        ),
        retry_after=max(1, math.ceil(trouble.retry_at - now) if trouble.failures else 1),
    )


def rival(name: str, deaths: int) -> Event:
    """Somebody else seems to log in: so many tokens that worked died early."""
    told: dict[str, object] = {
        "deaths": deaths,
        "reason": f"{deaths} tokens that worked were refused before their time, within minutes.",
        "hint": "Somebody else seems to log in with our credentials: another proxy, a script or "
        "an app with the same client id. Nomba keeps one session; point it at this proxy, or "
        "give it credentials of its own.",
    }
    return Event("session_rival", "error", name, told)
