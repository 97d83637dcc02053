"""When a session renews, what it lends meanwhile, and what it never does."""

import asyncio
import contextlib
import itertools
import random

import pytest

from proxy.core.secret import Secret
from proxy.core.session import Limits
from proxy.errors import RenewalNotAllowed, TokenUnavailable
from proxy.tokens.asking import Clocks
from proxy.tokens.keyring import Keyring
from proxy.tokens.known import Known
from proxy.tokens.manager import Session
from proxy.tokens.nomba import IssuerError
from proxy.tokens.store import MemoryStore

ORIGIN = "https://issuer.test"
PAIR = ("shop", "/v1/x")
ISSUE = "/v1/auth/token/issue"
REFRESH = "/v1/auth/token/refresh"


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def ended(tasks):
    """Wait for tasks without a timer: time stands still here."""
    await asyncio.wait(tasks)
    return [task.exception() or task.result() for task in tasks]


def together(count, call, **options):
    return [asyncio.create_task(call(**options)) for _ in range(count)]


def named(events, name):
    return [event for event in events if event.name == name]


def value(token):
    return token.access.reveal(to=ORIGIN)


@pytest.fixture
def issuing(issuer):
    """Issue calls are held until this is set."""
    return issuer.hold("issue")


# -- one flight -------------------------------------------------------------------------


async def test_two_hundred_borrowers_cost_one_issue(begin, issuer, issuing):
    session = await begin()
    borrowers = together(200, session.borrow)
    await settle()
    issuing.set()
    assert {token.generation for token in await ended(borrowers)} == {1}
    assert issuer.names == ["issue"]


async def test_two_hundred_refused_callers_cost_one_issue_and_none_fails(session, issuer):
    gate = issuer.hold("issue")
    callers = together(200, lambda: session.renew(after=1, by=PAIR))
    await settle()
    gate.set()
    assert {token.generation for token in await ended(callers)} == {2}
    assert issuer.names == ["issue", "issue"]


async def test_a_waiter_that_leaves_cancels_neither_the_flight_nor_the_others(
    begin, issuer, issuing
):
    session = await begin()
    borrowers = together(10, session.borrow)
    await settle()
    for leaving in borrowers[:5]:
        leaving.cancel()
    await settle()
    issuing.set()
    assert {token.generation for token in await ended(borrowers[5:])} == {1}
    assert all(leaving.cancelled() for leaving in borrowers[:5])
    assert issuer.names == ["issue"]


async def test_the_only_waiter_that_leaves_does_not_cancel_the_flight(session, issuer):
    gate = issuer.hold("issue")
    [caller] = together(1, lambda: session.renew(after=1, by=PAIR))
    await settle()
    caller.cancel()
    await settle()
    gate.set()
    await settle()
    assert session.lend().generation == 2
    assert issuer.names == ["issue", "issue"]


async def test_a_late_refusal_of_an_old_token_costs_nothing(session, issuer):
    second = await session.renew(after=1, by=PAIR)
    assert await session.renew(after=1, by=PAIR) is second
    session.refused(1, by=PAIR)
    await settle()
    assert session.lend() is second
    assert issuer.names == ["issue", "issue"]


async def test_a_refusal_during_a_background_renewal_waits_for_that_one(session, issuer, time):
    gate = issuer.hold("refresh")
    await time.advance(750)
    [caller] = together(1, lambda: session.renew(after=1, by=PAIR))
    await settle()
    gate.set()
    [token] = await ended([caller])
    assert token.generation == 2
    assert issuer.names == ["issue", "refresh"]


# -- forced renewal ---------------------------------------------------------------------


async def test_a_forced_renewal_of_a_fresh_token_is_by_issue_and_brings_another(session, issuer):
    first = session.lend()
    second = await session.renew(after=1, by=PAIR)
    assert (second.generation, issuer.names) == (2, ["issue", "issue"])
    assert value(second) != value(first)


async def test_a_forced_renewal_that_brings_the_same_token_is_a_failure(session, issuer):
    issuer.token = value(session.lend())
    with pytest.raises(TokenUnavailable, match="old token"):
        await session.renew(after=1, by=PAIR)
    assert session.lend() is None


async def test_a_refused_token_is_never_lent_again(session, issuer, time, down):
    issuer.failing = down
    with pytest.raises(TokenUnavailable):
        await session.renew(after=1, by=PAIR)
    for _ in range(60):
        await time.advance(1)
        assert session.lend() is None
        with pytest.raises(TokenUnavailable):
            await session.borrow()


async def test_a_refused_token_is_not_lent_while_its_successor_is_on_the_way(session, issuer):
    issuer.hold("issue")
    [caller] = together(1, lambda: session.renew(after=1, by=PAIR))
    await settle()
    assert session.lend() is None
    caller.cancel()


async def test_a_refusal_that_is_not_replayed_renews_all_the_same(session, issuer):
    session.refused(1, by=PAIR)
    assert session.lend() is None
    await settle()
    assert session.lend().generation == 2
    assert issuer.names == ["issue", "issue"]


# -- the gap ----------------------------------------------------------------------------


def anybody(*, count=itertools.count()):  # noqa: B008 - it goes on
    """Another caller every time, so that none of them is remembered."""
    return f"caller-{next(count)}", "/v1/x"


@pytest.fixture
async def gap(session):
    """Two generations in a row were refused and never accepted: the third is lent."""
    await session.renew(after=1, by=anybody())
    await session.renew(after=2, by=anybody())
    return session


async def test_the_third_token_in_a_row_refused_unused_is_not_renewed_for_ten_seconds(
    gap, issuer, time
):
    for _ in range(9):
        with pytest.raises(RenewalNotAllowed, match="a moment ago"):
            await gap.renew(after=3, by=anybody())
        gap.refused(3, by=anybody())
        await time.advance(1)
    assert issuer.count("issue") == 3
    await time.advance(1)
    assert (await gap.renew(after=3, by=anybody())).generation == 4


async def test_in_the_gap_the_token_is_still_lent(gap):
    gap.refused(3, by=PAIR)
    await settle()
    assert gap.lend().generation == 3


async def test_the_gap_opens_again_while_nothing_is_accepted(gap, issuer, time):
    for generation in range(3, 8):
        await time.advance(10)
        await gap.renew(after=generation, by=anybody())
        with pytest.raises(RenewalNotAllowed):
            await gap.renew(after=generation + 1, by=anybody())
    assert issuer.count("issue") == 8


async def test_an_accepted_token_is_renewed_at_once_even_in_the_gap(gap):
    gap.accepted(3, by=PAIR)
    assert (await gap.renew(after=3, by=anybody())).generation == 4


async def test_accepted_tokens_never_open_a_gap(session, issuer):
    for generation in range(1, 20):
        session.accepted(generation, by=PAIR)
        await session.renew(after=generation, by=anybody())
    assert issuer.count("issue") == 20


async def test_a_late_acceptance_of_an_old_token_does_not_count(gap):
    gap.accepted(2, by=PAIR)
    with pytest.raises(RenewalNotAllowed):
        await gap.renew(after=3, by=anybody())


async def test_two_hundred_refusals_of_one_token_count_once(session):
    await ended(together(200, lambda: session.renew(after=1, by=PAIR)))
    assert (await session.renew(after=2, by=anybody())).generation == 3


# -- what is refused whatever the token ----------------------------------------------------


@pytest.fixture
async def remembered(session):
    """Generations 1 and 2 were refused for PAIR; others are served with the second."""
    second = await session.renew(after=1, by=PAIR)
    session.accepted(2, by=("other", "/v1/y"))
    assert session.refused_again(second.generation, by=PAIR)
    return session


async def test_a_pair_refused_with_two_generations_causes_no_renewal_for_a_while(
    remembered, issuer, time
):
    for _ in range(59):
        with pytest.raises(RenewalNotAllowed, match="Two tokens in a row"):
            await remembered.renew(after=2, by=PAIR)
        remembered.refused(2, by=PAIR)
        assert remembered.lend().generation == 2
        await time.advance(1)
    assert issuer.count("issue") == 2
    await time.advance(1)
    assert (await remembered.renew(after=2, by=PAIR)).generation == 3


async def test_if_nobody_had_the_new_one_accepted_it_is_remembered_for_the_gap_only(
    session, issuer, time
):
    """Somebody else may have logged in twice: then the token is dead, and a renewal helps."""
    await session.renew(after=1, by=PAIR)
    assert session.refused_again(2, by=PAIR)
    with pytest.raises(RenewalNotAllowed, match="Two tokens"):
        await session.renew(after=2, by=PAIR)
    await time.advance(10)
    assert (await session.renew(after=2, by=PAIR)).generation == 3


async def test_what_was_served_until_now_may_find_two_tokens_dead(session, issuer):
    """A rival logs in, we renew, and at once it logs in again: the third token is asked for."""
    session.accepted(1, by=PAIR)
    await session.renew(after=1, by=PAIR)
    assert not session.refused_again(2, by=PAIR)
    assert (await session.renew(after=2, by=PAIR)).generation == 3
    assert session.refused_again(3, by=PAIR)  # nobody is as fast as that: it is not the token
    with pytest.raises(RenewalNotAllowed, match="Two tokens in a row"):
        await session.renew(after=3, by=PAIR)
    assert issuer.count("issue") == 3


async def test_it_is_told_once_that_a_pair_is_remembered(remembered):
    assert not remembered.refused_again(2, by=PAIR)
    assert not remembered.refused_again(3, by=PAIR)


async def test_other_pairs_still_cause_renewals(remembered):
    other_caller = await remembered.renew(after=2, by=("other", PAIR[1]))
    remembered.accepted(3, by=("other", PAIR[1]))
    assert other_caller.generation == 3
    assert (await remembered.renew(after=3, by=(PAIR[0], "/v1/y"))).generation == 4


async def test_a_remembered_pair_still_gets_a_newer_token_that_is_there(remembered):
    await remembered.renew(after=2, by=anybody())
    assert (await remembered.renew(after=2, by=PAIR)).generation == 3


async def test_a_pair_is_forgotten_once_a_token_is_accepted_for_it(remembered):
    remembered.accepted(2, by=PAIR)
    assert (await remembered.renew(after=2, by=PAIR)).generation == 3


async def test_a_late_refusal_says_nothing_of_the_present_token(session):
    second = await session.renew(after=1, by=anybody())
    session.accepted(2, by=PAIR)
    session.refused(1, by=PAIR)  # of a request that had been on its way
    assert not session.refused_again(second.generation, by=PAIR)


async def test_many_refusals_of_one_generation_remember_nobody(session):
    for _ in range(5):
        session.refused(1, by=PAIR)
    await settle()
    assert not session.refused_again(1, by=PAIR)
    assert (await session.renew(after=2, by=anybody())).generation == 3


# -- the budget ----------------------------------------------------------------------------


async def test_refusals_cause_so_many_renewals_a_minute_and_no_more(begin, issuer, time):
    session = await begin(budget=3)
    for generation in range(1, 4):
        session.accepted(generation, by=PAIR)
        await session.renew(after=generation, by=anybody())
        await time.advance(10)
    session.accepted(4, by=PAIR)
    for _ in range(3):  # the first of the three was half a minute ago
        with pytest.raises(RenewalNotAllowed, match="3 renewals within a minute"):
            await session.renew(after=4, by=anybody())
        assert session.lend().generation == 4
        await time.advance(10)
    assert (await session.renew(after=4, by=anybody())).generation == 5
    session.accepted(5, by=PAIR)
    with pytest.raises(RenewalNotAllowed):
        await session.renew(after=5, by=anybody())


async def test_what_never_was_served_cannot_keep_what_was_from_a_renewal(session, issuer, time):
    """One caller asks for many things that are refused whatever the token; then the token dies."""
    for number in range(40):
        session.accepted(session.lend().generation, by=("bank", "/v1/y"))
        bad = ("shop", f"/v1/{number}")
        generation = session.lend().generation
        with contextlib.suppress(RenewalNotAllowed):
            await session.renew(after=generation, by=bad)
            session.refused_again(generation + 1, by=bad)
        await time.advance(0.1)
    assert issuer.count("issue") == 1 + 7
    good = ("shop", "/v1/good")
    session.accepted(8, by=good)
    assert (await session.renew(after=8, by=good)).generation == 9


async def test_what_is_renewed_because_it_is_due_is_in_no_budget(begin, issuer, time):
    issuer.life = 4.0
    await begin(budget=1)
    await time.advance(60)
    assert issuer.count("refresh") >= 19


# -- somebody else -------------------------------------------------------------------------


async def test_three_generations_that_die_early_are_a_rival(session, issuer, events, time):
    for generation in range(1, 4):
        assert not named(events, "session_rival")
        await session.renew(after=generation, by=PAIR)
        session.accepted(generation + 1, by=PAIR)
        await time.advance(100)
    [told] = named(events, "session_rival")
    assert told.fields["deaths"] == 3
    assert "log in with our credentials" in told.fields["hint"]


async def test_deaths_that_are_far_between_are_none(begin, issuer, events, time):
    issuer.life = 40_000.0
    session = await begin()
    for generation in range(1, 6):
        await session.renew(after=generation, by=PAIR)
        session.accepted(generation + 1, by=PAIR)
        await time.advance(301, step=10)
    assert not named(events, "session_rival")


async def test_what_is_refused_whatever_the_token_is_no_sign_of_one(session, events, time):
    for generation in range(1, 7):
        session.accepted(generation, by=("good", "/v1/y"))
        pair = ("bad", f"/v1/{generation}")
        await session.renew(after=generation, by=pair)
        session.refused_again(generation + 1, by=pair)
        await time.advance(20)
    assert not named(events, "session_rival")


async def test_nor_is_what_was_mended_hours_after_it_was_refused(begin, issuer, events, time):
    """Whose access was not granted tried once, at different times, and all were let in at one."""
    issuer.life = 40_000.0
    session = await begin()
    for generation in range(1, 5):
        session.accepted(generation, by=("good", "/v1/y"))
        await session.renew(after=generation, by=("late", f"/v1/{generation}"))
        session.refused_again(generation + 1, by=("late", f"/v1/{generation}"))
        await time.advance(700, step=10)
    for generation in range(1, 5):
        session.accepted(5, by=("late", f"/v1/{generation}"))
        await time.advance(1)
    assert not named(events, "session_rival")


async def test_what_an_operator_revokes_is_no_sign_of_one(session, events):
    for generation in range(1, 6):
        session.accepted(generation, by=PAIR)
        await session.revoke(stop=False)
        session.refused(generation, by=anybody())  # late, of what was under way
    assert not named(events, "session_rival")


async def test_nor_is_what_was_refused_before_the_new_token_is_there(session, issuer, events, time):
    for generation in range(1, 5):
        session.accepted(generation, by=PAIR)
        issuer.gates.clear()
        issue = issuer.hold("issue")
        revoking = asyncio.create_task(session.revoke(stop=False))
        await time.advance(0.5)
        waiting = asyncio.create_task(session.renew(after=generation, by=PAIR))
        await time.advance(0.5)
        issue.set()
        await revoking
        assert (await waiting).generation == generation + 1
        session.accepted(generation + 1, by=PAIR)
        await time.advance(0.5)
    assert not named(events, "session_rival")


# -- the issuer's clock --------------------------------------------------------------------


@pytest.mark.parametrize(("ahead", "warnings"), [(0, 0), (59, 0), (-59, 0), (62, 1), (-3600, 1)])
async def test_the_skew_is_told_and_above_a_minute_warned_of(
    begin, issuer, events, time, ahead, warnings
):
    issuer.date = lambda: int(time.clocks.wall() + ahead)
    await begin()
    [renewed] = named(events, "token_renewed")
    assert abs(renewed.fields["skew_seconds"] - ahead) <= 0.5
    assert len(named(events, "clock_skewed")) == warnings


async def test_an_issuer_without_a_date_has_no_skew(begin, events):
    await begin()
    assert "skew_seconds" not in named(events, "token_renewed")[0].fields


# -- background renewal -----------------------------------------------------------------


async def test_renewal_is_by_refresh_at_the_due_time_without_traffic(session, issuer, time):
    await time.advance(749)
    assert issuer.names == ["issue"]
    await time.advance(1)
    assert issuer.names == ["issue", "refresh"]
    assert session.lend().generation == 2


async def test_the_margin_is_five_minutes_of_a_long_life(begin, issuer, time):
    issuer.life = 3600.0
    await begin()
    await time.advance(3299)
    assert issuer.names == ["issue"]
    await time.advance(1)
    assert issuer.names == ["issue", "refresh"]


async def test_jitter_moves_the_renewal_earlier_only(begin, issuer, time):
    time.random, issuer.life = 0.999, 3600.0
    await begin()
    await time.advance(3269)
    assert issuer.names == ["issue"]
    await time.advance(2)
    assert issuer.names == ["issue", "refresh"]


async def test_requests_during_a_background_renewal_get_the_living_token(session, issuer, time):
    gate = issuer.hold("refresh")
    await time.advance(750)
    assert issuer.count("refresh") == 1
    assert (await session.borrow()).generation == 1
    gate.set()
    await settle()
    assert (await session.borrow()).generation == 2


async def test_renewals_go_on_for_as_long_as_the_session(session, issuer, time):
    await time.advance(7500, step=5)
    assert issuer.names == ["issue"] + ["refresh"] * 10
    assert session.lend().generation == 11


async def test_a_session_without_a_refresh_token_renews_by_issue(begin, issuer, time):
    issuer.refresh_token = ""
    await begin()
    await time.advance(750)
    assert issuer.names == ["issue", "issue"]


@pytest.mark.parametrize("reason", ["unreachable", "credentials", "reply"])
async def test_any_failure_of_refresh_falls_back_to_one_issue(
    session, issuer, time, events, reason
):
    issuer.failing = {"refresh": IssuerError("refresh: no", reason=reason)}
    await time.advance(760)
    assert issuer.names == ["issue", "refresh", "issue"]
    assert session.lend().generation == 2
    assert len(named(events, "token_refresh_failed")) == 1
    assert not named(events, "token_renewal_failed")


async def test_a_refresh_that_brings_the_same_token_falls_back_to_issue(session, issuer, time):
    issuer.token = value(session.lend())
    gate = issuer.hold("issue")
    await time.advance(750)
    issuer.token = ""
    gate.set()
    await settle()
    assert issuer.names == ["issue", "refresh", "issue"]
    assert session.lend().generation == 2


async def test_life_counts_from_before_the_call_was_sent(begin, issuer, time):
    issuing = issuer.hold("issue")
    session = await begin()
    await time.advance(15)
    issuing.set()
    await settle()
    assert session.status().expires_in == 985


# -- never a dead token -----------------------------------------------------------------


async def test_a_dead_token_is_not_lent_even_if_no_timer_ran_since(session, issuer, time):
    issuer.hold("issue")
    time.alive += 1000  # the machine slept
    assert session.lend() is None
    [borrower] = together(1, session.borrow)
    await settle()
    assert not borrower.done()
    issuer.gates["issue"].set()
    [token] = await ended([borrower])
    assert (token.generation, issuer.names) == (2, ["issue", "issue"])


async def test_a_token_one_moment_before_its_death_is_lent(session, time, issuer, down):
    issuer.failing = down
    time.alive += 999.99
    assert (await session.borrow()).generation == 1


async def test_after_a_sleep_the_background_renews_within_a_look(session, issuer, time):
    time.alive += 2000
    await time.advance(15)
    assert issuer.names == ["issue", "issue"]
    assert session.lend().generation == 2


async def test_a_token_that_dies_during_its_renewal_is_not_lent(session, issuer, time):
    gate = issuer.hold("refresh")
    await time.advance(969.5)
    assert session.lend().generation == 1
    await time.advance(30.5)
    assert session.lend() is None
    [borrower] = together(1, session.borrow)
    await settle()
    gate.set()
    [token] = await ended([borrower])
    assert token.generation == 2


async def test_a_token_is_lent_until_its_true_end_while_renewals_fail(session, issuer, time, down):
    issuer.failing = down
    await time.advance(750)
    for _ in range(249):
        assert (await session.borrow()).generation == 1
        await time.advance(1)
    await time.advance(1)
    with pytest.raises(TokenUnavailable):
        await session.borrow()


# -- a token that is about to die ----------------------------------------------------------


async def test_requests_wait_for_a_newer_token_when_little_life_is_left(session, issuer, time):
    time.alive += 969.9  # no timer ran, so nothing was renewed in the background
    assert session.lend().generation == 1
    time.alive += 0.1
    assert session.lend() is None
    assert (await session.borrow()).generation == 2
    assert issuer.names == ["issue", "refresh"]


async def test_many_that_wait_wait_for_one_renewal(session, issuer, time):
    gate = issuer.hold("refresh")
    time.alive += 980
    borrowers = together(20, session.borrow)
    await settle()
    assert not any(one.done() for one in borrowers)
    gate.set()
    assert {token.generation for token in await ended(borrowers)} == {2}
    assert issuer.names == ["issue", "refresh"]


async def test_if_that_renewal_fails_the_living_token_has_to_do(session, issuer, time, down):
    issuer.failing = down
    time.alive += 980
    assert (await session.borrow()).generation == 1
    assert issuer.names == ["issue", "refresh", "issue"]
    assert (await session.borrow()).generation == 1  # no second try at once
    assert issuer.names == ["issue", "refresh", "issue"]


async def test_that_renewal_is_waited_for_as_long_as_the_living_token_is_still_good_afterwards(
    session, issuer, time
):
    issuer.hold("refresh")
    time.alive += 995  # it lives five more seconds, and what would replace it never comes
    [borrower] = together(1, session.borrow)
    await time.advance(2)
    assert not borrower.done()
    await time.advance(1)
    assert (await borrower).generation == 1


async def test_that_renewal_is_waited_for_no_longer_than_the_limit(begin, issuer, time):
    session = await begin(wait_limit=3.0)
    issuer.hold("refresh")
    time.alive += 975
    [borrower] = together(1, session.borrow)
    await time.advance(3.5)
    assert (await borrower).generation == 1


async def test_a_short_life_is_about_to_die_in_its_last_eighth(begin, issuer, time):
    issuer.life = 40.0
    session = await begin()
    time.alive += 34.9
    assert session.lend().generation == 1
    time.alive += 0.2
    assert session.lend() is None


# -- the wall clock ---------------------------------------------------------------------


async def test_a_wall_clock_that_jumps_ahead_renews_once_and_early(session, issuer, time):
    time.wall += 3600
    await time.advance(15)
    assert issuer.names == ["issue", "refresh"]
    await time.advance(700)
    assert issuer.names == ["issue", "refresh"]


@pytest.mark.parametrize("jump", [-3600, -1_000_000, 3600])
async def test_no_jump_of_the_wall_clock_lets_a_token_live_longer_or_die_sooner(
    session, issuer, time, down, jump
):
    issuer.failing = down
    time.wall += jump
    await time.advance(999)
    assert (await session.borrow()).generation == 1
    await time.advance(1)
    with pytest.raises(TokenUnavailable):
        await session.borrow()


async def test_a_wall_clock_that_jumps_back_does_not_delay_the_renewal(session, issuer, time):
    time.wall -= 3600
    await time.advance(750)
    assert issuer.names == ["issue", "refresh"]


# -- an issuer that is down -------------------------------------------------------------


@pytest.fixture
async def without(begin, issuer, down):
    """A session that began while the issuer was down."""
    issuer.failing = down
    return await begin()


async def test_borrowers_are_told_when_to_come_back(without, time):
    await time.advance(8)  # the next try is 8 s after the one at 7.5 s
    with pytest.raises(TokenUnavailable) as caught:
        await without.borrow()
    assert caught.value.retry_after == 8
    assert (caught.value.status, caught.value.outcome) == (503, "not_sent")


async def test_back_off_grows_and_is_capped(without, issuer, time):
    await time.advance(200)
    assert issuer.gaps[:9] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert set(issuer.names) == {"issue"}


async def test_back_off_with_jitter_stays_within_a_quarter_more(begin, issuer, time, down):
    issuer.failing, time.random = down, 0.999
    await begin()
    await time.advance(300, step=0.25)
    assert all(gap <= 30 * 1.25 + 0.25 for gap in issuer.gaps)
    assert issuer.gaps[-1] > 30


async def test_borrowers_do_not_add_calls_to_a_failing_issuer(without, issuer, time):
    for _ in range(120):
        await ended(together(10, without.borrow))
        await time.advance(0.5)
    assert issuer.count("issue") == 7  # at 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s


async def test_an_issuer_that_comes_back_is_found_by_the_background(without, issuer, time, events):
    await time.advance(10)
    issuer.failing = {}
    await time.advance(6)
    assert without.lend().generation == 1
    assert without.status().failures == 0
    assert named(events, "token_renewed")


async def test_after_a_recovery_back_off_begins_anew(without, issuer, time, down):
    await time.advance(10)
    issuer.failing = {}
    await time.advance(6)
    issuer.failing = down
    with pytest.raises(TokenUnavailable) as caught:
        await without.renew(after=1, by=PAIR)
    assert caught.value.retry_after == 1


async def test_a_failed_background_renewal_is_tried_again_with_growing_gaps(
    session, issuer, time, down
):
    issuer.failing = down
    await time.advance(766)
    issues = [at for name, at in issuer.calls if name == "issue"]
    assert [at - 1750 for at in issues[1:]] == [0, 0.5, 1.5, 3.5, 7.5, 15.5]


async def test_a_session_is_ready_only_after_its_first_token(without, issuer, time):
    assert not without.ready
    issuer.failing = {}
    await time.advance(1)
    assert without.ready


async def test_an_issuer_that_hangs_costs_a_borrower_the_wait_limit_and_no_more(
    begin, issuer, issuing, time
):
    session = await begin(wait_limit=20)
    borrowers = together(3, session.borrow)
    await time.advance(19)
    assert not any(borrower.done() for borrower in borrowers)
    await time.advance(1)
    assert [type(error) for error in await ended(borrowers)] == [TokenUnavailable] * 3
    issuing.set()
    await settle()
    assert session.lend().generation == 1  # the flight went on without them
    assert issuer.names == ["issue"]


# -- a wrong secret ---------------------------------------------------------------------


@pytest.fixture
async def refused(begin, issuer, wrong_secret):
    """A session whose credentials the issuer refuses."""
    issuer.failing = wrong_secret
    return await begin()


async def test_a_wrong_secret_backs_off_from_thirty_seconds_to_ten_minutes(refused, issuer, time):
    await time.advance(2400, step=2)
    assert issuer.gaps == [30, 60, 120, 240, 480, 600, 600]


async def test_a_wrong_secret_is_told_apart(refused, events):
    with pytest.raises(TokenUnavailable) as caught:
        await refused.borrow()
    assert "client id, secret" in caught.value.hint
    assert caught.value.retry_after == 30
    [failed] = named(events, "token_renewal_failed")
    assert failed.fields["cause"] == "credentials"


async def test_an_unreachable_issuer_is_not_called_a_wrong_secret(without, events):
    with pytest.raises(TokenUnavailable) as caught:
        await without.borrow()
    assert "secret" not in caught.value.hint
    assert named(events, "token_renewal_failed")[0].fields["cause"] == "unreachable"


@pytest.mark.parametrize("living", [True, False])
@pytest.mark.parametrize("cause", ["down", "wrong_secret"])
async def test_somebody_has_to_act_on_a_failed_renewal_once_there_is_no_token_or_time_mends_nothing(
    begin, issuer, events, time, request, living, cause
):
    failing = request.getfixturevalue(cause)
    if not living:
        issuer.failing = failing
    await begin()
    issuer.failing = failing
    await time.advance(760 if living else 1)
    levels = {one.level for one in named(events, "token_renewal_failed")}
    assert levels == {"warning" if living and cause == "down" else "error"}


async def test_a_renewal_says_how_long_its_call_took(begin, issuer, events, time):
    issuer.takes = 2.0
    session = await begin()
    await time.advance(3)
    assert session.lend() is not None
    [told] = named(events, "token_renewed")
    assert told.fields["duration_seconds"] == pytest.approx(2.0, abs=0.6)


async def test_borrowers_do_not_hammer_with_a_wrong_secret(refused, issuer, time):
    for _ in range(29):
        await ended(together(50, refused.borrow))
        await time.advance(1)
    assert issuer.names == ["issue"]


async def test_an_issuer_that_is_down_for_ten_minutes_around_the_end_of_a_token(
    begin, issuer, time, down
):
    issuer.life = 1800.0
    session = await begin()
    await time.advance(1490)  # ten seconds before it is due
    began, told = time.now, {"lent": 0, "refused": 0}
    issuer.failing = down
    while time.now < began + 600:
        await time.advance(1)
        if time.now < 1000 + 1800:
            assert (await session.borrow()).generation == 1
            told["lent"] += 1
            continue
        with pytest.raises(TokenUnavailable) as caught:
            await session.borrow()
        assert 1 <= caught.value.retry_after <= 38
        told["refused"] += 1
    assert told == {"lent": 309, "refused": 291}
    tries = [at for name, at in issuer.calls if name == "issue" and at >= began]
    gaps = [later - sooner for sooner, later in itertools.pairwise(tries)]
    assert gaps[:7] == pytest.approx([0.5, 1, 2, 4, 8, 16, 30])
    assert gaps[7:] == pytest.approx([30] * len(gaps[7:]))
    assert 19 <= len(gaps) <= 25
    issuer.failing = {}
    await time.advance(30)  # one step of the curve
    assert (await session.borrow()).generation == 2


# -- revocation -------------------------------------------------------------------------


async def test_revoke_holds_requests_until_the_new_token_is_there(session, issuer):
    old = value(session.lend())
    gate = issuer.hold("revoke")
    revoking = asyncio.create_task(session.revoke(stop=False))
    await settle()
    borrowers = together(20, session.borrow)
    await settle()
    assert session.lend() is None
    assert not any(borrower.done() for borrower in borrowers)
    gate.set()
    assert {token.generation for token in await ended(borrowers)} == {2}
    assert await revoking == ""
    assert (issuer.names, issuer.revoked) == (["issue", "revoke", "issue"], [old])


async def test_a_stopped_session_stays_without_a_token_until_it_is_renewed(session, issuer, time):
    assert await session.revoke(stop=True) == ""
    await time.advance(3600, step=5)
    assert issuer.names == ["issue", "revoke"]
    assert session.status().state == "stopped"
    with pytest.raises(TokenUnavailable, match="stopped") as caught:
        await session.borrow()
    assert "token renew" in caught.value.hint
    assert (await session.renew_now()).generation == 2
    assert session.status().state == "living"


async def test_a_renewed_session_is_kept_again_after_a_stop(session, issuer, time):
    await session.revoke(stop=True)
    await session.renew_now()
    await time.advance(770)
    assert issuer.names == ["issue", "revoke", "issue", "refresh"]


async def test_a_late_refusal_does_not_wake_a_stopped_session(session, issuer):
    await session.revoke(stop=True)
    with pytest.raises(TokenUnavailable):
        await session.renew(after=1, by=PAIR)
    session.refused(1, by=PAIR)
    await settle()
    assert issuer.names == ["issue", "revoke"]


@pytest.mark.parametrize("stop", [True, False])
async def test_a_revocation_that_was_not_confirmed_is_reported(session, issuer, events, stop):
    issuer.failing = {"revoke": IssuerError("revoke: HTTP 500", reason="reply")}
    assert await session.revoke(stop=stop) == "revoke: HTTP 500"
    [told] = named(events, "token_revoked")
    assert (told.fields["confirmed"], told.level) == (False, "warning")
    assert (session.lend() is None) == stop


@pytest.mark.parametrize("stop", [True, False])
async def test_a_revocation_that_met_a_fault_is_reported_too(session, issuer, stop):
    issuer.failing = {"revoke": RuntimeError("a bug")}
    try:
        told = await session.revoke(stop=stop)
    except TokenUnavailable:
        told = "no token"
    assert told != ""


async def test_revoke_waits_for_a_renewal_under_way_and_revokes_what_it_brought(
    session, issuer, time
):
    gate = issuer.hold("refresh")
    await time.advance(750)
    revoking = asyncio.create_task(session.revoke(stop=True))
    await settle()
    gate.set()
    await revoking
    assert issuer.names == ["issue", "refresh", "revoke"]
    assert issuer.revoked == ["token-2"]


async def test_two_revocations_at_once_take_turns(session, issuer):
    await ended(together(2, lambda: session.revoke(stop=False)))
    assert issuer.names == ["issue", "revoke", "issue", "revoke", "issue"]
    assert session.lend().generation == 3


async def test_revoke_says_so_if_no_new_token_can_be_had(session, issuer, down):
    issuer.failing = {"issue": down["issue"]}
    with pytest.raises(TokenUnavailable):
        await session.revoke(stop=False)
    assert session.lend() is None


async def test_revoking_without_a_token_just_obtains_one(without, issuer):
    issuer.failing = {}
    assert await without.revoke(stop=False) == ""
    assert issuer.names == ["issue", "issue"]
    assert without.lend().generation == 1


# -- an operator's renewal --------------------------------------------------------------


async def test_an_operator_renews_a_living_token_by_refresh(session, issuer):
    assert (await session.renew_now()).generation == 2
    assert issuer.names == ["issue", "refresh"]


async def test_an_operator_does_not_wait_for_back_off(refused, issuer):
    issuer.failing = {}
    assert (await refused.renew_now()).generation == 1
    assert issuer.names == ["issue", "issue"]


async def test_an_operator_ends_the_gap(gap):
    assert (await gap.renew_now()).generation == 4
    assert (await gap.renew(after=4, by=anybody())).generation == 5


async def test_an_operator_is_told_of_a_failure_and_the_living_token_stays(session, issuer, down):
    issuer.failing = down
    with pytest.raises(TokenUnavailable, match="no connection"):
        await session.renew_now()
    assert session.lend().generation == 1


async def test_an_operator_who_comes_during_a_background_renewal_makes_no_other(
    session, issuer, time
):
    gate = issuer.hold("refresh")
    await time.advance(760)
    renewing = asyncio.create_task(session.renew_now())
    await settle()
    assert not renewing.done()
    gate.set()
    await time.advance(1)
    assert (await renewing).generation == 2
    assert issuer.names == ["issue", "refresh"]


async def test_operators_at_once_share_a_renewal(session, issuer):
    await ended(together(5, session.renew_now))
    assert issuer.names == ["issue", "refresh"]


# -- faults, floods and ends ------------------------------------------------------------


@pytest.mark.parametrize("fault", [RuntimeError, KeyError, AssertionError, TimeoutError])
async def test_an_unexpected_exception_backs_off_instead_of_spinning(
    begin, issuer, time, events, fault
):
    issuer.failing = {"issue": fault("the-client-secret")}
    session = await begin()
    await time.advance(60)
    assert issuer.count("issue") == 7
    assert "the-client-secret" not in repr(events) + session.status().last_error
    issuer.failing = {}
    await time.advance(30)
    assert session.lend().generation == 1


async def test_an_unexpected_exception_of_refresh_does_not_cost_the_living_token(
    session, issuer, time
):
    issuer.failing = {"refresh": ZeroDivisionError()}
    await time.advance(760)
    assert session.lend() is not None
    assert issuer.count("refresh", "issue") < 8


@pytest.mark.parametrize("life", [0.0, 0.001, 0.1, 1.0, 5.0])
async def test_no_life_however_short_makes_the_background_spin(begin, issuer, time, life):
    issuer.life = life
    await begin()
    await time.advance(10, step=0.01)
    assert issuer.count("issue", "refresh") <= 21  # at most one in half a second


@pytest.mark.parametrize("life", [0.0, 0.001, 0.01])
async def test_a_borrower_of_tokens_that_are_dead_on_arrival_does_not_spin(
    begin, issuer, time, life
):
    issuer.life, issuer.takes = life, 0.02
    session = await begin(wait_limit=20)
    borrowing = asyncio.create_task(session.borrow())
    for _ in range(400):
        await time.advance(0.1)
        if borrowing.done():
            break
    await asyncio.wait([borrowing])
    assert isinstance(borrowing.exception(), TokenUnavailable)
    assert issuer.count("issue", "refresh") <= 100


async def test_close_leaves_no_task_and_lends_nothing(begin):
    before = asyncio.all_tasks()
    session = await begin()
    await session.close(revoke=False)
    await settle()
    assert asyncio.all_tasks() == before
    assert session.lend() is None


async def test_close_ends_a_renewal_that_does_not_end_by_itself(begin, issuer, issuing, time):
    before = asyncio.all_tasks()
    session = await begin()
    closing = asyncio.create_task(session.close(revoke=False))
    await time.advance(3)
    await closing
    await settle()
    assert asyncio.all_tasks() == before
    assert issuer.names == ["issue"]


async def test_close_right_after_start_leaves_no_task(issuer, time):
    before = asyncio.all_tasks()
    known = Known(
        "nomba",
        keyring=Keyring(Secret("the-client-secret", origin="https://issuer.test")),
        store=MemoryStore(),
        clocks=time.clocks,
        emit=lambda event: None,
    )
    session = Session(known, auth=issuer, limits=Limits())
    session.start()
    await session.close(revoke=False)
    await settle()
    assert asyncio.all_tasks() == before


async def test_close_starts_nothing_for_borrowers_who_still_wait(begin, issuer, issuing, time):
    session = await begin()
    borrowers = together(3, session.borrow)
    await settle()
    closing = asyncio.create_task(session.close(revoke=False))
    await time.advance(3)
    await closing
    started = issuer.names
    issuing.set()
    for borrower in borrowers:
        borrower.cancel()
    await asyncio.wait(borrowers)
    await settle()
    assert started == ["issue"]
    assert session.lend() is None


async def test_a_closed_session_starts_nothing_for_a_late_borrower(begin, issuer):
    session = await begin()
    await session.close(revoke=True)
    with pytest.raises(TokenUnavailable):
        await session.borrow()
    assert issuer.names == ["issue", "revoke"]


@pytest.mark.parametrize("revoke", [True, False])
async def test_close_revokes_only_if_asked_to(begin, issuer, revoke):
    session = await begin()
    await session.close(revoke=revoke)
    assert issuer.revoked == (["token-1"] if revoke else [])


async def test_close_survives_a_revocation_that_fails(begin, issuer, down):
    session = await begin()
    issuer.failing = down
    await session.close(revoke=True)
    assert session.lend() is None


# -- what is shown ----------------------------------------------------------------------


async def test_the_status_shows_the_session_and_no_secret(session, time):
    await time.advance(100)
    status = session.status()
    assert (status.state, status.generation, status.renewing) == ("living", 1, False)
    assert (status.expires_in, status.renews_in) == (900, 650)
    assert status.token == session.lend().access.digest()
    assert "token-1" not in repr(status)


async def test_the_status_of_a_failing_session_says_why_and_when(refused):
    status = refused.status()
    assert (status.state, status.failures, status.retry_in) == ("empty", 1, 30)
    assert "HTTP 401" in status.last_error


async def test_no_event_holds_a_secret(session, issuer, time, events, down):
    await time.advance(760)
    await session.renew(after=2, by=PAIR)
    await session.revoke(stop=False)
    issuer.failing = down
    await time.advance(800)
    shown = repr(events) + repr(session.lend())
    assert not any(f"token-{number}" in shown for number in range(1, 9))
    assert "the-client-secret" not in shown


@pytest.mark.parametrize(("account", "warnings"), [("account", 0), ("ACCOUNT", 0), ("other", 1)])
async def test_a_token_of_another_account_is_warned_about(begin, issuer, events, account, warnings):
    issuer.account_id = account
    await begin()
    assert len(named(events, "token_account_differs")) == warnings


# -- over the wire ----------------------------------------------------------------------


class Sleep:
    """How far the clocks are ahead of the timers: a machine that slept."""

    seconds = 0.0


@pytest.fixture
def sleep():
    return Sleep()


@pytest.fixture
async def wired(auth, sleep, simulator):
    """A session whose issuer is the simulator."""
    loop = asyncio.get_running_loop()
    clocks = Clocks(
        alive=lambda: loop.time() + sleep.seconds,
        wall=lambda: 1_780_000_000 + sleep.seconds,
        random=random.Random(1).random,
    )
    known = Known(
        "nomba",
        keyring=Keyring(Secret(simulator.switches.client_secret, origin=simulator.origin)),
        store=MemoryStore(),
        clocks=clocks,
        emit=lambda event: None,
    )
    session = Session(known, auth=auth, limits=Limits())
    session.start()
    yield session
    await session.close(revoke=False)


async def test_two_hundred_first_requests_cost_one_issue_on_the_wire(wired, simulator):
    tokens = await asyncio.gather(*(wired.borrow() for _ in range(200)))
    assert {token.generation for token in tokens} == {1}
    assert [request.path for request in simulator.received] == [ISSUE]


async def test_two_hundred_refusals_cost_one_issue_on_the_wire(wired, simulator):
    first = await wired.borrow()
    simulator.revoke()
    tokens = await asyncio.gather(*(wired.renew(after=first, by=PAIR) for _ in range(200)))
    assert {token.generation for token in tokens} == {2}
    assert [request.path for request in simulator.received] == [ISSUE, ISSUE]


REFRESH_FAILURES = {
    "expired bearer": {"status": 400, "body": {"code": "400", "description": "JWT expired at x"}},
    "unknown refresh token": {"status": 404, "body": {"code": "404", "description": "not found"}},
    "401": {"status": 401},
    "403 page": {"status": 403, "body": b"<html>"},
    "429": {"status": 429},
    "500": {"status": 500},
    "200 with 02": {"body": {"code": "02", "description": "Token expired"}},
    "200 with 401": {"body": {"code": "401", "description": "re-authenticate"}},
    "200 without data": {"body": {"code": "00", "description": "Success"}},
    "empty": {"body": b""},
    "dropped before": {"drop": True},
    "dropped after the work": {"drop": True, "before": False},
    "lost reply": {"status": 502, "before": False},
}


@pytest.mark.parametrize("failure", REFRESH_FAILURES)
async def test_each_documented_failure_of_refresh_ends_in_one_issue(wired, simulator, failure):
    await wired.borrow()
    simulator.fail(REFRESH, **REFRESH_FAILURES[failure])
    assert (await wired.renew_now()).generation == 2
    assert [request.path for request in simulator.received] == [ISSUE, REFRESH, ISSUE]


async def test_a_session_revoked_behind_our_back_is_found_at_renewal(wired, simulator):
    await wired.borrow()
    simulator.revoke()
    assert (await wired.renew_now()).generation == 2
    assert [request.status for request in simulator.received] == [200, 401, 200]


async def test_after_a_sleep_longer_than_its_life_no_dead_token_is_sent(wired, simulator, sleep):
    await wired.borrow()
    sleep.seconds += 3600
    assert (await wired.borrow()).generation == 2
    assert simulator.count(REFRESH) == 0


@pytest.mark.parametrize("skew", [600, -600, 3600, -3600])
async def test_the_issuers_clock_changes_no_life(wired, simulator, skew):
    simulator.switches.clock_skew = skew
    await wired.borrow()
    assert 1790 < wired.status().expires_in <= 1800


async def test_revocation_and_new_token_work_on_the_wire(wired, simulator):
    await wired.borrow()
    assert await wired.revoke(stop=False) == ""
    assert [request.status for request in simulator.received] == [200, 200, 200]
    assert wired.lend().generation == 2


async def test_a_token_that_was_refused_before_is_not_taken_for_a_new_one(session, issuer):
    await session.renew(after=1, by=PAIR)
    issuer.token = "token-1"  # an issuer behind a cache brings the first one back
    with pytest.raises(TokenUnavailable, match="old token"):
        await session.renew(after=2, by=PAIR)
    assert session.lend() is None


async def test_a_plain_revoke_does_not_end_a_stop(session, issuer):
    await session.revoke(stop=True)
    await session.revoke(stop=False)
    assert session.status().state == "stopped"
    assert issuer.names == ["issue", "revoke"]
