"""Bodies: whole, in order, as often as wanted, and never more than there is room for."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.body import Bodies, BodyLimits
from proxy.errors import BodyTooLarge, Overloaded


def bodies(**limits):
    return Bodies(BodyLimits(**{"size": 1000, "memory": 100, **limits}))


@given(st.lists(st.binary(max_size=200), max_size=8), st.integers(0, 400))
def test_what_was_added_comes_out_again_as_often_as_wanted(parts, memory):
    whole = b"".join(parts)
    every = bodies(size=2000, memory=memory)
    body = every.begin()
    for part in parts:
        body.add(part)
    for _ in range(2):
        given_back = list(body)
        assert b"".join(given_back) == whole
        assert b"" not in given_back
    assert body.size == len(whole)
    assert every.memory + every.spooled == len(whole)
    assert bool(every.spooled) == (len(whole) > memory)
    body.close()
    body.close()
    assert (every.memory, every.spooled, list(body)) == (0, 0, [])


def test_a_large_body_leaves_nothing_in_memory_and_no_name_on_disk(tmp_path):
    every = bodies(size=10_000_000, spool_dir=str(tmp_path))
    body = every.begin()
    content = os.urandom(3_000_000)
    for at in range(0, len(content), 65536):
        body.add(content[at : at + 65536])
    assert (every.memory, every.spooled) == (0, len(content))
    assert list(tmp_path.iterdir()) == []
    parts = list(body)
    assert b"".join(parts) == content
    assert max(map(len, parts)) <= 256 * 1024
    body.close()


def test_one_body_may_be_so_large():
    every = bodies()
    body = every.begin()
    body.add(b"x" * 1000)
    with pytest.raises(BodyTooLarge) as caught:
        body.add(b"x")
    assert (caught.value.outcome, caught.value.close) == ("not_sent", True)
    assert body.size == 1000
    body.close()


@pytest.mark.parametrize(
    ("limits", "size", "named"),
    [
        ({"memory_budget": 150}, 100, "body.memory_budget"),
        ({"spool_budget": 1500}, 900, "body.spool_budget"),
    ],
)
def test_all_together_may_be_so_large_and_what_is_let_go_of_is_free_again(limits, size, named):
    every = bodies(**limits)
    first, second = every.begin(), every.begin()
    first.add(b"x" * size)
    with pytest.raises(Overloaded) as caught:
        second.add(b"x" * size)
    assert named in caught.value.hint
    assert (caught.value.outcome, caught.value.retry_after) == ("not_sent", 1)
    second.close()
    first.close()
    third = every.begin()
    third.add(b"x" * size)
    third.close()
    assert (every.memory, every.spooled) == (0, 0)


def test_a_folder_that_cannot_be_written_is_overloaded_and_nothing_leaks(tmp_path):
    every = bodies(spool_dir=str(tmp_path / "nowhere"))
    body = every.begin()
    body.add(b"x" * 50)
    with pytest.raises(Overloaded) as caught:
        body.add(b"x" * 100)
    assert os.strerror(errno.ENOENT) in caught.value.hint
    body.close()
    assert (every.memory, every.spooled) == (0, 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_overloaded_and_nothing_leaks():
    every = bodies()
    body = every.begin()
    body.add(b"x" * 50)
    body._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - the body closes it
    with pytest.raises(Overloaded) as caught:
        body.add(b"x" * 100)
    assert os.strerror(errno.ENOSPC) in caught.value.hint
    body.close()
    assert (every.memory, every.spooled) == (0, 0)
