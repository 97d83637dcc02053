"""Buckets and counters, in a time that is an argument."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.limits import Bucket, Limiter


def test_a_burst_passes_and_then_as_many_as_the_rate_says():
    bucket = Bucket(2.0, burst=3, now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(100.4) == pytest.approx(0.1)
    assert bucket.take(100.5) == 0.0
    assert bucket.take(1000.0) == bucket.take(1000.0) == bucket.take(1000.0) == 0.0
    assert bucket.take(1000.0) == 0.5


@given(st.lists(st.floats(0, 10), max_size=60), st.floats(0.1, 50), st.integers(1, 20))
def test_no_course_lets_more_through_than_burst_and_rate(pauses, rate, burst):
    bucket, now, passed = Bucket(rate, burst=burst, now=0.0), 0.0, 0
    for pause in pauses:
        now += pause
        passed += bucket.take(now) == 0.0
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
