"""Who is refused whatever the token."""

from proxy.core.refusals import Refusals

PAIR = ("shop", "/v1/x")


def test_a_pair_is_remembered_after_two_generations_and_for_a_while():
    refusals = Refusals(60.0)
    assert not refusals.note(PAIR, 1, now=0)
    assert not refusals.note(PAIR, 1, now=1)
    assert not refusals.remembered(PAIR, now=1)
    assert refusals.note(PAIR, 2, now=2)
    assert not refusals.note(PAIR, 3, now=3)
    assert refusals.remembered(PAIR, now=61.9)
    assert not refusals.remembered(PAIR, now=62)
    assert not refusals.note(PAIR, 3, now=62)
    assert refusals.note(PAIR, 4, now=63, memory=10.0)
    assert refusals.remembered(PAIR, now=72.9)
    assert not refusals.remembered(PAIR, now=73)


def test_refusals_that_lie_far_apart_are_not_successive():
    refusals = Refusals(60.0)
    assert not refusals.note(PAIR, 1, now=0)
    assert not refusals.note(PAIR, 6, now=60)
    assert refusals.accepted(PAIR, 7, clock=lambda: 61) == 6
    assert refusals.accepted(PAIR, 7, clock=lambda: 61) == 0


def test_what_was_refused_long_before_it_was_accepted_is_not_told():
    refusals = Refusals(60.0)
    refusals.note(PAIR, 1, now=0)
    assert refusals.accepted(PAIR, 2, clock=lambda: 60) == 0


def test_a_refusal_of_a_token_that_had_served_the_pair_says_nothing_of_the_pair():
    refusals = Refusals(60.0)
    refusals.accepted(PAIR, 1, clock=lambda: 0)
    assert refusals.served(PAIR, 1)
    assert not refusals.note(PAIR, 1, now=0)
    assert not refusals.served(PAIR, 2)
    assert not refusals.note(PAIR, 2, now=1)
    assert not refusals.note(PAIR, 2, now=1)
    assert not refusals.note(("other", "/v1/x"), 1, now=1)
    assert refusals.note(("other", "/v1/x"), 2, now=1)
    assert refusals.note(PAIR, 3, now=3)
    assert refusals.accepted(PAIR, 4, clock=lambda: 4) == 1


def test_pairs_without_end_take_no_memory_without_end():
    refusals = Refusals(60.0)
    for number in range(10_000):
        refusals.note(("shop", f"/{number}"), 1, now=0)
        refusals.accepted(("bank", f"/{number}"), 1, clock=lambda: 0)
    assert len(refusals._refused) <= 4096
    assert len(refusals._served) <= 4096
    assert not refusals.served(("bank", "/0"), 1)
    assert refusals.served(("bank", "/9999"), 1)
