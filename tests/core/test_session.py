"""What follows from what is known of a session, without any waiting."""

from dataclasses import replace

import pytest

from proxy.core.lifetime import Lifetime
from proxy.core.secret import Secret
from proxy.core.session import (
    TABLE,
    Asked,
    Decision,
    Held,
    Limits,
    Phase,
    Trouble,
    accepted,
    by_issue,
    decide,
    died,
    failed,
    force,
    granted,
    newer,
    phase,
    why_not,
)

ORIGIN = "https://issuer.test"
LIMITS = Limits()
WALL = 1_780_000_000.0


def grant(held, text="token", *, now=0.0, life=1000.0, refresh="refresh"):
    lifetime = Lifetime.begin(life, now=now, wall=WALL + now, early=300, urgent=30, jitter=0)
    access, refresh = Secret(text, origin=ORIGIN), Secret(refresh, origin=ORIGIN)
    return granted(
        held, access=access, refresh=refresh, lifetime=lifetime, secret="digest", now=0.0
    )


@pytest.fixture
def held():
    """A token of generation 1 that lives 1000 s: renewed from 750 s on, urgent from 970 s on."""
    return grant(Held())


def at(held, now, asked=Asked.WANTED):
    return decide(held, asked, now=now, wall=WALL + now)


def test_the_table_decides_everything_that_can_be_asked():
    assert set(TABLE) == set(Asked)
    assert all(set(row) == set(Phase) for row in TABLE.values())


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0, Phase.FRESH),
        (749.9, Phase.FRESH),
        (750, Phase.SOON),
        (969.9, Phase.SOON),
        (970, Phase.NOW),
        (999.9, Phase.NOW),
        (1000, Phase.EMPTY),
        (99_999, Phase.EMPTY),
    ],
)
def test_a_token_goes_through_its_phases(held, now, expected):
    assert phase(held, now=now, wall=WALL + now) is expected


@pytest.mark.parametrize("jump", [-3600, 3600])
@pytest.mark.parametrize("now", [0, 749.9, 750, 970, 999.9, 1000])
def test_a_jump_of_the_wall_clock_only_ever_renews_earlier(held, now, jump):
    before = phase(held, now=now, wall=WALL + now)
    after = phase(held, now=now, wall=WALL + now + jump)
    assert after is (Phase.SOON if before is Phase.FRESH and jump > 0 else before)


@pytest.mark.parametrize(
    ("now", "wanted", "look", "refused"),
    [
        (0, Decision.LEND, Decision.REST, Decision.FORCE),
        (750, Decision.LEND, Decision.RENEW, Decision.FORCE),
        (970, Decision.TRY, Decision.RENEW, Decision.FORCE),
        (1000, Decision.WAIT, Decision.RENEW, Decision.RENEW),
    ],
)
def test_what_is_done_in_each_phase(held, now, wanted, look, refused):
    assert at(held, now) is wanted
    assert at(held, now, Asked.LOOK) is look
    assert at(held, now, Asked.REFUSED) is refused
    assert at(held, now, Asked.OPERATOR) is Decision.RENEW


@pytest.mark.parametrize(
    ("now", "wanted", "look"),
    [
        (750, Decision.LEND, Decision.REST),
        (970, Decision.LEND, Decision.REST),
        (1000, Decision.FAIL, Decision.REST),
    ],
)
def test_while_failures_hold_renewals_off_the_living_token_is_lent(held, now, wanted, look):
    held = replace(held, trouble=Trouble(1, now + 1, "unreachable", "down"))
    assert at(held, now) is wanted
    assert at(held, now, Asked.LOOK) is look
    assert at(held, now + 1, Asked.LOOK) is Decision.RENEW


def test_a_stopped_session_does_nothing_but_what_an_operator_says(held):
    held = replace(held, stopped=True)
    assert at(held, 0) is Decision.FAIL
    assert at(held, 0, Asked.LOOK) is Decision.REST
    assert at(held, 0, Asked.REFUSED) is Decision.FAIL
    assert at(held, 0, Asked.OPERATOR) is Decision.RENEW


def test_a_refresh_needs_a_living_token_of_its_own(held):
    assert not by_issue(held, Decision.RENEW, now=0)
    assert by_issue(held, Decision.FORCE, now=0)
    assert by_issue(held, Decision.RENEW, now=1000)
    assert by_issue(held.without(held.token), Decision.RENEW, now=0)
    assert by_issue(replace(held, calling=True), Decision.RENEW, now=0)
    assert by_issue(grant(Held(), refresh=""), Decision.RENEW, now=0)


def test_one_unaccepted_generation_is_renewed_and_the_second_in_a_row_opens_the_gap(held):
    assert not why_not(held, "shop", now=0, limits=LIMITS)
    second = grant(force(held, "shop", now=0, limits=LIMITS), "2")
    assert not why_not(second, "shop", now=1, limits=LIMITS)
    third = grant(force(second, "shop", now=1, limits=LIMITS), "3")
    assert why_not(third, "shop", now=10.9, limits=LIMITS)
    assert not why_not(third, "shop", now=11, limits=LIMITS)
    assert not why_not(accepted(third, 3), "shop", now=2, limits=LIMITS)
    assert accepted(third, 2) is third


def test_a_renewal_that_its_process_did_not_survive_is_nobody_elses_doing(held):
    lost = replace(held, calling=True, gap_until=100.0)
    assert not why_not(lost, "shop", now=1, limits=LIMITS)
    after = force(replace(lost, accepted=True), "shop", now=1, limits=LIMITS)
    assert after.unaccepted == 0
    assert died(after, 1, now=2) == (after, 0)


def test_a_token_whose_renewal_was_begun_is_due(held):
    assert at(replace(held, calling=True), 0, Asked.LOOK) is Decision.RENEW
    assert at(replace(held, calling=True), 0) is Decision.LEND


def test_a_rival_is_three_deaths_within_ten_minutes(held):
    told = []
    for generation, now in enumerate((0, 599, 601, 650), 1):
        held, deaths = died(held, generation, now=now)
        told.append(deaths)
    assert told == [0, 0, 0, 3]
    assert held.deaths == ()


def test_a_token_that_we_have_replaced_ourselves_does_not_die_of_a_rival(held):
    replaced = grant(held, "next")
    assert died(replaced, 1, now=2) == (replaced, 0)
    forced = grant(force(held, "shop", now=1, limits=LIMITS), "next")
    assert died(forced, 1, now=2)[0].deaths == ((1, 2),)


def test_a_death_is_counted_once(held):
    for _ in range(5):
        held, deaths = died(held, 1, now=0)
        assert deaths == 0


def test_the_budget_counts_a_minute_back(held):
    limits = replace(LIMITS, budget=2)
    for now, who in ((0, "shop"), (30, "bank")):
        assert not why_not(held, who, now=now, limits=limits)
        fresh = grant(force(held, who, now=now, limits=limits), str(now), now=now)
        held = accepted(fresh, fresh.generation)
    assert why_not(held, "third", now=59, limits=limits)
    assert not why_not(held, "third", now=60, limits=limits)


def test_one_caller_gets_no_more_than_a_quarter_of_the_budget(held):
    limits = replace(LIMITS, budget=8)
    for now in range(2):
        assert not why_not(held, "shop", now=now, limits=limits)
        fresh = grant(force(held, "shop", now=now, limits=limits), str(now), now=now)
        held = accepted(fresh, fresh.generation)
    assert "this caller" in why_not(held, "shop", now=3, limits=limits)
    assert not why_not(held, "bank", now=3, limits=limits)


@pytest.mark.parametrize(
    ("reason", "delays"),
    [("unreachable", [0.5, 1, 2, 4, 8, 16, 30, 30]), ("credentials", [30, 60, 120, 240, 480, 600])],
)
def test_failures_back_off(held, reason, delays):
    for number, delay in enumerate(delays, 1):
        held = failed(held, reason=reason, text="no", now=100, jitter=0)
        assert held.trouble == Trouble(number, 100 + delay, reason, "no")
    assert grant(held, "2").trouble == Trouble()


def test_the_store_is_believed_unless_it_has_lost_something(held):
    older, second = held, grant(held, "2")
    assert newer(older, second) is second
    assert newer(second, older) is second
    assert newer(second, Held()) is second
    refused_elsewhere = second.without(second.token)
    assert newer(second, refused_elsewhere) is refused_elsewhere
    assert newer(accepted(second, 2), second).accepted
    failing = failed(second, reason="store", text="no", now=5, jitter=0)
    assert newer(failing, second).trouble == failing.trouble
    assert newer(failing, grant(second, "3")).trouble == Trouble()


def test_nothing_that_is_known_prints_a_token(held):
    assert "refresh" not in repr(held).replace("refresh=Secret(***)", "")
    assert "Secret(***)" in repr(held)
