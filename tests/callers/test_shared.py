"""Counts in memory that processes share."""

import os

import pytest

from proxy.callers.shared import Counts, SharedTally
from proxy.core.limits import Limiter, Tally


@pytest.fixture
def counts():
    return Counts(3)


def limiter(counts, column, *, rate=0.0, burst=1, concurrent=0):
    tally = counts.tally("shop", column=column)
    return Limiter(rate, burst, concurrent, now=100.0, tally=tally)


def test_a_rate_is_of_all_together(counts):
    one, other = (limiter(counts, at, rate=1.0, burst=3) for at in (0, 1))
    assert [one.enter(100.0), other.enter(100.0), one.enter(100.0)] == [0, 0, 0]
    assert [other.enter(100.0), one.enter(100.0)] == [1, 1]
    assert [other.enter(101.0), one.enter(101.0)] == [0, 1]


def test_who_comes_later_does_not_fill_the_bucket_again(counts):
    assert [limiter(counts, 0, rate=1.0, burst=2).enter(100.0) for _ in range(2)] == [0, 0]
    assert limiter(counts, 1, rate=1.0, burst=2).enter(100.0) == 1


def test_how_many_at_a_time_is_of_all_together(counts):
    one, other = (limiter(counts, at, concurrent=2) for at in (0, 1))
    assert [one.enter(1.0), other.enter(1.0), one.enter(1.0), other.enter(1.0)] == [0, 0, 1, 1]
    one.leave()
    assert other.enter(1.0) == 0


def test_the_requests_of_a_process_that_ended_are_forgotten(counts):
    one, other = (limiter(counts, at, concurrent=1) for at in (0, 1))
    assert [one.enter(1.0), other.enter(1.0)] == [0, 1]
    counts.forget(0)
    assert other.enter(1.0) == 0


def test_callers_are_counted_apart(counts):
    for number in range(8192):
        tally = counts.tally(f"caller-{number}", column=0)
        assert isinstance(tally, SharedTally)
        tally.under_way, tally.level, tally.filled = number, number * 0.5, 7.0
    for number in range(8192):
        found = counts.tally(f"caller-{number}", column=1)
        assert (found.elsewhere, found.level, found.under_way) == (number, number * 0.5, 0)


def test_of_a_process_that_ended_all_is_forgotten_and_of_the_others_nothing(counts):
    for column in range(3):
        for number in range(50):
            counts.tally(f"caller-{number}", column=column).under_way = column + 1
    counts.forget(1)
    for number in range(50):
        found = counts.tally(f"caller-{number}", column=0)
        assert (found.under_way, found.elsewhere) == (1, 3)


def test_where_there_is_no_room_a_caller_is_counted_alone(counts):
    for number in range(8192):
        counts.tally(f"caller-{number}", column=0)
    assert type(counts.tally("one-more", column=0)) is Tally


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the test runner has threads
def test_a_forked_process_counts_in_the_same_place(counts):
    mine = limiter(counts, 0, concurrent=5)
    child = os.fork()
    if not child:
        other = limiter(counts, 1, concurrent=5)
        os._exit(sum(other.enter(1.0) for _ in range(3)))
    assert os.waitpid(child, 0)[1] == 0
    assert [mine.enter(1.0) for _ in range(3)] == [0, 0, 1]
