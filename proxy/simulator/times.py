"""Moments in the many forms in which Nomba writes them."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Literal

TimeForm = Literal[
    "seconds-z",
    "millis-z",
    "micros-z",
    "nanos-z",
    "offset",
    "no-zone",
    "epoch-seconds",
    "epoch-millis",
    "absent",
]

_LAGOS = timezone(timedelta(hours=1))
_FRACTION_DIGITS = {"millis-z": 3, "micros-z": 6, "nanos-z": 9}


def write_time(at: float, *, form: TimeForm) -> str | int | None:
    """A moment in one of its forms.

    Args:
        at: unix seconds.
        form: the form wanted; fractions are cut, not rounded.

    Returns:
        Text, a number for the epoch forms, None for `absent`.
    """
    micros = round(at * 1_000_000)
    seconds, rest = divmod(micros, 1_000_000)
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    match form:
        case "seconds-z":
            return f"{text}Z"
        case "offset":
            return moment.astimezone(_LAGOS).isoformat()
        case "no-zone":
            return text
        case "epoch-seconds":
            return seconds
        case "epoch-millis":
            return micros // 1000
        case "absent":
            return None
        case _:
            return f"{text}.{f'{rest:06}000'[: _FRACTION_DIGITS[form]]}Z"


def jwt_expired(at: float) -> str:
    """The words an expired JWT is refused with (O).

    Args:
        at: its expiry in unix seconds.
    """
    return f"JWT expired at {write_time(at, form='seconds-z')}."
