"""How long a token lives, and when to renew it. `now` is always an argument.

Nomba says `expiresAt`; the lifetime that its documentation names (30 minutes) and the
one that circulates (60) are both seen, so no constant is trusted (facts, section 1).
Life is a difference of two of the issuer's own times, never of its clock and ours: a
fresh token is not expired on arrival, whatever our clock says.
"""

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import orjson

MAX_LIFE = 24 * 3600.0
DEFAULT_LIFE = 300.0
_TIMESTAMP = re.compile(
    r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}:\d{2})(?:[.,](\d{1,9}))?\s*(Z|[+-]\d{2}:?\d{2})?",
    re.IGNORECASE,
)


def parse_timestamp(value: object) -> float | None:
    """Epoch seconds of an `expiresAt`, or None if it is none of the forms seen.

    Forms (facts, section 1): RFC 3339 with Z, with an offset or with no zone (= UTC),
    with 0 to 9 fraction digits; epoch seconds or milliseconds, as a number or as text.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        found = _TIMESTAMP.fullmatch(text)
        if found is None:
            return _epoch(text)
        day, clock, fraction, zone = found.groups()
        offset = "+00:00" if zone in {None, "Z", "z"} else zone
        try:
            moment = datetime.fromisoformat(f"{day}T{clock}{offset}")
        except ValueError:
            return None
        return moment.timestamp() + float(f"0.{fraction or 0}")
    if isinstance(value, int | float):
        return _epoch(value)
    return None


def _epoch(value: str | float) -> float | None:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    # 1e11 seconds is the year 5138; in milliseconds it is 1973: between them lies no doubt.
    seconds = number / 1000 if number >= 1e11 else number
    return seconds if 0 < seconds < 1e11 else None


def parse_http_date(value: str | None) -> float | None:
    """Epoch seconds of a `Date` field (RFC 9110 section 5.6.7), or None."""
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _jwt_life(token: str) -> float | None:
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return None
    if not isinstance(claims, dict):
        return None
    expires, issued = parse_timestamp(claims.get("exp")), parse_timestamp(claims.get("iat"))
    return expires - issued if expires and issued else None


def token_life(data: Mapping[str, object], *, date: str | None) -> float:
    """Seconds a token lives, counted from before the call that brought it was sent.

    In order: `expiresAt` minus the `Date` of the same reply, the JWT's `exp` minus `iat`,
    `expires_in` / `expiresIn`, five minutes; each only if it lies within 24 hours.

    Args:
        data: the envelope's `data`.
        date: the reply's `Date` field.
    """
    expires, dated = parse_timestamp(data.get("expiresAt")), parse_http_date(date)
    token = data.get("access_token")
    told = data.get("expires_in") or data.get("expiresIn")
    candidates = (
        expires - dated if expires is not None and dated is not None else None,
        _jwt_life(token) if isinstance(token, str) else None,
        _number(told),
    )
    for life in candidates:
        if life is not None and 0 < life <= MAX_LIFE:
            return life
    return DEFAULT_LIFE


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The times of one token.

    Attributes:
        renew_at: when to renew, by the clock that runs during sleep.
        dies_at: when the token is dead, by the same clock.
        renew_wall: when to renew, by the wall clock; a jump of it may only renew earlier.
        urgent_at: from when on requests wait for the renewal: a token that dies on the way
            leaves one that moves money half known.
    """

    renew_at: float
    dies_at: float
    renew_wall: float
    urgent_at: float = math.inf

    @classmethod
    def begin(
        cls,
        life: float,
        *,
        now: float,
        wall: float,
        early: float,
        jitter: float,
        urgent: float = 0.0,
    ) -> "Lifetime":
        """The times of a token whose call was sent at `now`.

        Args:
            life: seconds the token lives (`token_life`).
            now: by the clock that runs during sleep.
            wall: the wall clock at the same moment.
            early: seconds before the end at which to renew, at most a quarter of the life.
            jitter: 0 to 1; moves the renewal earlier by up to a tenth of `early`.
            urgent: seconds before the end from which requests wait, at most an eighth of the life.
        """
        margin = min(early * (1 + jitter / 10), life / 4)
        return cls(
            renew_at=now + life - margin,
            dies_at=now + life,
            renew_wall=wall + life - margin,
            urgent_at=now + life - min(urgent, life / 8),
        )

    def due_in(self, *, now: float, wall: float) -> float:
        """Seconds until it is time to renew in the background; 0 or less if it is."""
        return min(self.renew_at - now, self.renew_wall - wall)

    def dead(self, *, now: float) -> bool:
        """Whether the token may not be used any more."""
        return now >= self.dies_at

    def urgent(self, *, now: float) -> bool:
        """Whether a request had better wait for a newer token."""
        return now >= self.urgent_at

    def moved(self, by: float) -> "Lifetime":
        """The same by a clock that is `by` seconds ahead; the wall clock is everybody's."""
        return replace(
            self,
            renew_at=self.renew_at + by,
            dies_at=self.dies_at + by,
            urgent_at=self.urgent_at + by,
        )


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays after failed renewals: exponential, capped, with full-range jitter upwards.

    Attributes:
        first: seconds after the first failure.
        cap: the longest delay before jitter, in seconds.
    """

    first: float
    cap: float

    def delay(self, failures: int, *, jitter: float) -> float:
        """Seconds to wait after the nth failure in a row.

        Args:
            failures: how many failures in a row, from 1.
            jitter: 0 to 1; lengthens the delay by up to a quarter.
        """
        return min(self.cap, self.first * 2.0 ** min(failures - 1, 30)) * (1 + jitter / 4)
