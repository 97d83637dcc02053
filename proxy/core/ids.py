"""Ids of requests, the caller's if it is sane, else ours; and of traces."""

import random
import re

_SANE = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


def new_request_id() -> str:
    """32 random hex digits: to tell requests apart, not to keep a secret."""
    return f"{random.getrandbits(128):032x}"


def new_span_id() -> str:
    """16 random hex digits, not all of them 0 (W3C Trace Context, section 3.2.2.4)."""
    return f"{random.getrandbits(64) or 1:016x}"


def request_id(sent: str | None) -> str:
    """The id of an exchange.

    Args:
        sent: value of the caller's `X-Request-Id`, or None. Nomba has no request id of
            its own (facts, section 4), so ours is the one to search logs for.
    """
    return sent if sent is not None and _SANE.fullmatch(sent) else new_request_id()
