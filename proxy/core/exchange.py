"""What is remembered of one exchange: the record every observer is given, once."""

from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.errors import Outcome


@dataclass(slots=True)
class Exchange:
    """One request and its reply, with all its attempts.

    It holds no header values, query strings or bodies, so no observer can leak one; of a
    body whose fate nobody knows, its reference.

    Attributes:
        request_id: the caller's sane `X-Request-Id`, or ours.
        started: the monotonic clock when the head had been read, in seconds.
        method: as sent.
        caller: who called (`anonymous` before callers are configured, `-` before known).
        upstream: name of the selected upstream, or `-`.
        route: the endpoint table's template, or `other`.
        kind: `read`, `write`, `money` or `login`.
        status: status the caller got; 499 if it left first; 0 before.
        outcome: what became of the request at the upstream.
        attempts: tries to send it to the upstream, those included that found no connection.
        replayed: whether one of them was a replay, after an auth refusal.
        envelope: the code in the envelope of the upstream's reply (`core.judge.CODES`), `other`
            for one not listed there, or "" where none was looked for or found.
        trace: id of the trace that it is part of (`core.trace`), or "".
        generation: the token's generation of the last attempt; 0 for none.
        error: the proxy's own error code, or "".
        detail: why that happened, redacted by construction: our words, no caller data.
        reference: the caller's own, by which a request can be asked for whose outcome is
            `unknown` (`core.reference`); "" for all others.
        account_replaced: whether a differing accountId of the caller was replaced.
        body_bytes, reply_bytes: sizes of the two bodies.
        waited: seconds spent waiting for a token.
        upstream_seconds: from the first byte sent to the reply's head, last attempt.
        seconds: the whole exchange.
    """

    request_id: str
    started: float
    method: str = "-"
    caller: str = "-"
    upstream: str = "-"
    route: str = "other"
    kind: str = "-"
    status: int = 0
    outcome: Outcome = Outcome.NOT_SENT
    attempts: int = 0
    replayed: bool = False
    envelope: str = ""
    trace: str = ""
    generation: int = 0
    error: str = ""
    detail: str = ""
    reference: str = ""
    account_replaced: bool = False
    body_bytes: int = 0
    reply_bytes: int = 0
    waited: float = 0.0
    upstream_seconds: float = 0.0
    seconds: float = 0.0


Observe = Callable[[Exchange], None]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened outside an exchange, for the log and the metrics.

    Attributes:
        name: `snake_case`, stable.
        level: `info`, `warning` or `error`.
        upstream: name of the upstream concerned, or "".
        fields: what else there is to say: no secrets, no caller data.
    """

    name: str
    level: str = "info"
    upstream: str = ""
    fields: dict[str, object] = field(default_factory=dict)


Emit = Callable[[Event], None]
