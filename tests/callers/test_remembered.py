"""What is remembered of revoked tokens, and what is dropped when there are too many."""

import pytest

from proxy.callers.remembered import Remembered
from proxy.callers.revoked import Revoked


def remembered(*ends, limit=100, now=1000.0):
    kept = Remembered(limit)
    for number, end in enumerate(ends):
        kept.learn({f"token-{number}": end}, now=now)
    return kept


def test_what_is_over_is_forgotten():
    kept = remembered(1100, 1300)
    kept.forget(1200.0)
    assert kept.ends == {"token-1": 1300}


def test_what_ends_this_second_is_not_over():
    kept = remembered(1100)
    kept.forget(1100.0)
    assert kept.ends


@pytest.mark.parametrize("ends", [range(2000, 2500), range(2500, 2000, -1)])
def test_of_too_many_those_are_dropped_that_are_over_soonest(ends):
    kept = remembered(*ends)
    assert len(kept.ends) <= 110
    kept.forget(1000.0)
    assert set(kept.ends.values()) == set(sorted(ends)[-100:])


def test_who_knows_the_same_drops_the_same_in_whatever_order_it_came():
    ends = {f"token-{number * 7919 % 1000}": 2000 + number % 3 for number in range(1000)}
    one, other = Remembered(100), Remembered(100)
    one.learn(ends, now=1000.0)
    for token_id, end in reversed(ends.items()):
        other.learn({token_id: end}, now=1000.0)
    one.forget(1000.0)
    other.forget(1000.0)
    assert one.ends == other.ends
    assert len(one.ends) == 100


def test_what_was_dropped_is_not_taken_again():
    kept = remembered(*range(2000, 2500))
    kept.learn({"token-0": 2000}, now=1000.0)
    assert "token-0" not in kept.ends


def test_a_flood_does_not_fill_the_file(tmp_path):
    path = tmp_path / "revoked"
    revoked = Revoked(path, wall=lambda: 1000.0, monotonic=lambda: 1000.0, limit=100)
    sizes = set()
    for number in range(2000):
        revoked.add(f"{number:016x}", expires=2_000_000_000 + number)
        sizes.add(path.stat().st_size)
    assert max(sizes) < 100 * 64 + 64
    assert f"{1999:016x}" in Revoked(path, wall=lambda: 1000.0, monotonic=lambda: 1000.0)
