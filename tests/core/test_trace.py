"""W3C Trace Context: which `traceparent` counts, as the specification has it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.ids import new_request_id, new_span_id
from proxy.core.trace import Trace, read_trace, trace_line

ID, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (f"00-{ID}-{PARENT}-01", True),
        (f"00-{ID}-{PARENT}-00", False),
        (f"00-{ID}-{PARENT}-03", True),  # other flags are let be
        (f"00-{ID}-{PARENT}-02", False),
        (f" 00-{ID}-{PARENT}-01\t", True),
        (f"01-{ID}-{PARENT}-01", True),  # a later version is read as far as it is known
        (f"cc-{ID}-{PARENT}-01-what-the-future-will-be-like", True),
    ],
)
def test_one_that_counts(value, sampled):
    assert read_trace([value.encode()]) == Trace(ID, PARENT, sampled)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"00-{ID}-{PARENT}",
        f"00-{ID}-{PARENT}-1",
        f"00-{ID}-{PARENT}-01-",
        f"00-{ID}-{PARENT}-01-more",
        f"cc-{ID}-{PARENT}-01.more",
        f"ff-{ID}-{PARENT}-01",
        f"0-{ID}-{PARENT}-01",
        f"00-{ID.upper()}-{PARENT}-01",
        f"00-{ID}-{PARENT.upper()}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"00-{ID[1:]}-{PARENT}-01",
        f"00-{ID}g-{PARENT}-01",
        f"00-{ID}-{PARENT}-0g",
        f"00_{ID}_{PARENT}_01",
        f"00-{ID}-{PARENT}-01\n",
    ],
)
def test_one_that_does_not(value):
    assert read_trace([value.encode()]) is None


def test_none_or_two_do_not():
    good = f"00-{ID}-{PARENT}-01".encode()
    assert read_trace([]) is None
    assert read_trace([good, good]) is None


@given(st.binary())
def test_rubbish_does_not_and_breaks_nothing(value):
    assert read_trace([value]) is None


@pytest.mark.parametrize("sampled", [True, False])
def test_what_is_written_can_be_read(sampled):
    trace, span = new_request_id(), new_span_id()
    line = trace_line(trace, span=span, sampled=sampled)
    name, value = line.removesuffix(b"\r\n").split(b": ")
    assert name == b"traceparent"
    assert read_trace([value]) == Trace(trace, span, sampled)


def test_ids_of_spans_differ():
    ids = {new_span_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{16}", one) for one in ids)
