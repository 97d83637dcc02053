"""The reference under which a request can be asked for again, when nobody knows what became of it."""

import re
from functools import cache

import orjson

from proxy.data import operations

# What an operator can paste into a requery; anything else is no reference.
_SOUND = re.compile(r"[\x21-\x7e]{1,64}")
LONGEST = 16 * 1024  # bytes of a body that is looked into


@cache
def _places() -> tuple[tuple[str, ...], ...]:
    """Where it stands in a body: `merchantTxRef`, `order.orderReference` … (`endpoints.csv`)."""
    every = {one.idempotency_field.partition(" ")[0] for one in operations()} - {""}
    return tuple(tuple(one.split(".")) for one in sorted(every))


def find_reference(body: bytes) -> str:
    """The caller's own reference in a request body; "" if there is none.

    Args:
        body: as it was sent; anything but a JSON object has none.
    """
    try:
        found = orjson.loads(body)
    except ValueError:
        return ""
    for place in _places():
        value = found
        for name in place:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str) and _SOUND.fullmatch(value):
            return value
    return ""
