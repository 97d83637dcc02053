"""Buckets and counters, in a time that is an argument."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.limits import Limiter


def waits(limiter, *times):
    return [limiter.enter(now) for now in times]


def test_a_burst_passes_and_then_as_many_as_the_rate_says():
    limiter = Limiter(0.5, 3, 0, now=100.0)
    assert waits(limiter, *[100.0] * 4) == [0, 0, 0, 2]
    assert waits(limiter, 101.5, 102.0) == [1, 0]
    assert waits(limiter, *[1000.0] * 4) == [0, 0, 0, 2]


@given(st.lists(st.floats(0, 10), max_size=60), st.floats(0.1, 50), st.integers(1, 20))
def test_no_course_lets_more_through_than_burst_and_rate(pauses, rate, burst):
    limiter, now, passed = Limiter(rate, burst, 0, now=0.0), 0.0, 0
    for pause in pauses:
        now += pause
        passed += limiter.enter(now) == 0
    assert passed <= burst + rate * now + 1e-6


def test_who_waits_as_long_as_it_is_told_passes():
    limiter = Limiter(0.5, 1, 0, now=0.0)
    assert limiter.enter(0.0) == 0
    assert limiter.enter(0.1) == 2
    assert limiter.enter(2.1) == 0


def test_so_many_at_a_time_and_one_more_when_one_has_left():
    limiter = Limiter(0.0, 1, 2, now=0.0)
    assert [limiter.enter(0.0) for _ in range(3)] == [0, 0, 1]
    limiter.leave()
    assert limiter.enter(0.0) == 0


def test_who_is_refused_for_the_rate_takes_no_place():
    limiter = Limiter(1.0, 1, 1, now=0.0)
    assert limiter.enter(0.0) == 0
    limiter.leave()
    assert limiter.enter(0.0) == 1
    assert limiter.enter(5.0) == 0


def test_other_limits_forget_nothing_that_is_under_way():
    limiter = Limiter(0.0, 1, 1, now=0.0)
    assert limiter.enter(0.0) == 0
    limiter.change(5.0, 5, 1, now=0.0)
    assert limiter.enter(0.0) == 1
    limiter.leave()
    assert limiter.enter(0.0) == 0
