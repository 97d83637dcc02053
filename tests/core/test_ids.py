import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.ids import new_request_id, request_id


@pytest.mark.parametrize("sent", ["a", "req-1", "A.b_c:d@e/f+g=h", "x" * 128])
def test_a_sane_id_of_the_callers_is_kept(sent):
    assert request_id(sent) == sent


@pytest.mark.parametrize(
    "sent", [None, "", "x" * 129, "a b", "a\n", "a\r\nSet-Cookie: x", "é", "a,b", '"', "<b>", "١"]
)
def test_anything_else_is_replaced_by_one_of_ours(sent):
    assert len(request_id(sent)) == 32


@given(st.text())
def test_an_id_can_always_stand_in_a_header(sent):
    assert request_id(sent).isascii()
    assert request_id(sent).isprintable()


def test_ids_of_ours_are_32_hex_digits_and_differ():
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(bytes.fromhex(one)) == 16 for one in ids)
