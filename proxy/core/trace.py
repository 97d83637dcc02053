"""W3C Trace Context (level 1): the `traceparent` of a caller, read and written.

A proxy that takes no part in tracing passes `traceparent` and `tracestate` on as they are. One that
does has to start anew where there is no `traceparent`, or more than one, or one that cannot be
read, and to drop `tracestate` with it (sections 4.2 and 4.3).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# The fields of their own, lower case.
TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"
_SAMPLED = 0x01
# A later version may have more behind these (section 3.2.4), this one has not.
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Trace:
    """What a caller said of the trace that its request is part of.

    Attributes:
        id: the trace's: 32 hex digits.
        parent: the caller's span: 16 hex digits.
        sampled: whether the caller may have recorded it.
    """

    id: str
    parent: str
    sampled: bool


def read_trace(values: Sequence[bytes]) -> Trace | None:
    """The trace of a request, by all values of its `traceparent`; None if they are not one that counts."""
    if len(values) != 1:
        return None
    found = _FORM.fullmatch(values[0].strip(b" \t"))
    if found is None:
        return None
    version, trace, parent, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if not trace.strip(b"0") or not parent.strip(b"0"):
        return None
    return Trace(trace.decode(), parent.decode(), bool(int(flags, 16) & _SAMPLED))


def trace_line(trace: str, *, span: str, sampled: bool) -> bytes:
    """A line of a request's head that says what it is part of.

    Args:
        trace: id of the trace, 32 hex digits.
        span: id of whoever sends the request, 16 hex digits.
        sampled: whether that may have recorded it.
    """
    return f"traceparent: 00-{trace}-{span}-{'01' if sampled else '00'}\r\n".encode()
