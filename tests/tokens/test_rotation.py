"""A client secret is replaced by another one while the session lives, over processes and time."""

import asyncio

import pytest

from proxy.core.secret import Secret
from proxy.errors import TokenUnavailable
from proxy.tokens.keyring import Keyring
from proxy.tokens.nomba import IssuerError

ORIGIN = "https://issuer.test"
PAIR = ("shop", "/v1/x")
DOWN = IssuerError("issue: no connection", reason="unreachable")


def secret(text):
    return None if text is None else Secret(text, origin=ORIGIN)


def digest(text):
    return secret(text).digest()


def named(events, name):
    return [event for event in events if event.name == name]


async def settle():
    for _ in range(60):
        await asyncio.sleep(0)


@pytest.fixture
def join(join):
    """Another process that shares the session, with a client secret and perhaps the next one."""
    return lambda *secrets, **options: join(*(secrets or ("old",)), **options)


@pytest.fixture
def takes(issuer):
    """`takes("new")`: the client secrets that the issuer takes from now on."""

    def change(*texts):
        issuer.takes_secret = set(texts)

    change("old")
    return change


async def changed(session, time, current, following=None, **options):
    session.given(secret(current), secret(following), **options)
    await time.advance(1)


# -- the switch ---------------------------------------------------------------------------


async def test_a_login_with_the_new_secret_is_the_switch(join, issuer, takes, time, events):
    session = await join()
    takes("new")
    await changed(session, time, "new")
    assert session.lend().generation == 2
    assert issuer.secrets == ["old", "new"]
    assert session.status().secret == digest("new")
    [event] = named(events, "secret_switched")
    assert event.fields == {"secret": digest("new"), "before": digest("old")}


async def test_a_next_secret_is_put_in_force_at_once(join, issuer, takes, time):
    takes("old", "new")
    session = await join("old", "new")
    await time.advance(1000)
    assert set(issuer.secrets) == {"new"}
    assert not session.status().secret_pending


async def test_a_next_secret_that_comes_later_is_put_in_force_then(join, issuer, takes, time):
    session = await join()
    takes("old", "new")
    await changed(session, time, "old", "new")
    assert issuer.secrets == ["old", "new"]


async def test_that_the_next_one_is_the_current_one_now_changes_nothing(join, issuer, takes, time):
    takes("new")
    session = await join("old", "new")
    await changed(session, time, "new")
    await time.advance(100)
    assert issuer.secrets == ["new"]
    assert not session.status().secret_pending


async def test_forwards_and_back(join, issuer, takes, time):
    session = await join()
    takes("old", "new")
    for text in ("new", "old", "new"):
        await changed(session, time, text)
        assert session.status().secret == digest(text)
    assert issuer.secrets == ["old", "new", "old", "new"]
    assert session.lend().generation == 4


async def test_the_old_token_is_used_until_the_new_one_is_there(join, issuer, takes, time):
    session = await join()
    gate = issuer.hold("issue")
    takes("new")
    await changed(session, time, "new")
    assert session.lend().generation == 1
    gate.set()
    await time.advance(1)
    assert session.lend().generation == 2


async def test_what_cannot_be_reached_is_tried_again_until_it_can(join, issuer, takes, time):
    session = await join()
    takes("new")
    issuer.failing = {"issue": DOWN}
    await changed(session, time, "new")
    assert session.status().failures
    assert session.lend().generation == 1
    issuer.failing = {}
    await time.advance(5)
    assert session.status().secret == digest("new")


async def test_the_old_token_is_revoked_afterwards_if_that_is_set(join, issuer, takes, time):
    session = await join(revoke_old=True)
    takes("new")
    await changed(session, time, "new")
    assert issuer.names == ["issue", "issue", "revoke"]
    assert issuer.revoked == ["token-1"]


async def test_it_is_not_revoked_unless_that_is_set(join, issuer, takes, time):
    session = await join()
    takes("new")
    await changed(session, time, "new")
    assert issuer.revoked == []


@pytest.mark.parametrize("several", [False, True])
async def test_a_secret_that_was_wrong_from_the_start_is_mended_at_once(
    join, issuer, takes, time, several
):
    takes("new")
    session = await join()
    others = [await join() for _ in range(2)] if several else []
    await time.advance(100)
    assert session.status().failures >= 2
    await changed(session, time, "new")
    assert session.lend().generation == 1
    assert issuer.secrets.count("new") == 1
    assert [one.lend().generation for one in others] == [1] * len(others)


async def test_a_second_wrong_one_is_not_tried_again_and_again(join, issuer, takes, time):
    takes("right")
    session = await join()
    await changed(session, time, "wrong")
    await time.advance(25)
    assert issuer.secrets == ["old", "wrong"]


async def test_a_stopped_session_switches_when_it_is_started(join, issuer, takes, time):
    session = await join()
    await session.revoke(stop=True)
    takes("new")
    await changed(session, time, "new")
    await time.advance(60)
    assert issuer.secrets == ["old"]
    await session.renew_now()
    assert session.status().secret == digest("new")


# -- a wrong one --------------------------------------------------------------------------


async def test_a_refused_secret_changes_nothing_but_is_said(join, issuer, takes, time, events):
    session = await join()
    await changed(session, time, "wrong")
    assert session.lend().generation == 1
    assert session.status().failures == 0
    assert session.status().secret == digest("old")
    assert session.status().secret_pending
    [event] = named(events, "secret_refused")
    assert event.level == "error"
    await time.advance(760)
    assert session.lend().generation == 2  # renewed as ever


async def test_a_refused_secret_is_tried_again_every_ten_minutes(join, issuer, takes, time):
    session = await join()
    await changed(session, time, "wrong")
    await time.advance(590)
    assert issuer.secrets == ["old", "wrong"]
    await time.advance(30)
    assert issuer.secrets == ["old", "wrong", "wrong"]
    takes("wrong")
    await time.advance(600)
    assert session.status().secret == digest("wrong")


async def test_an_operator_has_it_tried_at_once(join, issuer, takes, time):
    session = await join()
    await changed(session, time, "wrong")
    await changed(session, time, "wrong", again=True)
    assert issuer.secrets == ["old", "wrong", "wrong"]
    takes("wrong")
    await session.renew_now()
    assert session.status().secret == digest("wrong")


async def test_all_processes_together_try_a_refused_secret_once(join, issuer, takes, time):
    several = [await join() for _ in range(4)]
    for session in several:
        await changed(session, time, "wrong")
    await time.advance(100)
    assert issuer.secrets == ["old", "wrong"]


async def test_nor_do_those_try_it_that_waited_for_their_turn_meanwhile(join, issuer, takes, time):
    several = [await join() for _ in range(4)]
    issue = issuer.hold("issue")
    for session in several:
        await changed(session, time, "wrong")
    issue.set()
    await time.advance(100)
    assert issuer.secrets == ["old", "wrong"]


async def test_a_wrong_next_secret_does_not_keep_the_first_login_from_succeeding(
    join, issuer, takes, events, time
):
    session = await join("old", "wrong")
    await time.advance(300)
    assert session.lend().generation == 1
    assert issuer.secrets == ["wrong", "old"]
    assert len(named(events, "secret_refused")) == 1


async def test_what_was_set_before_a_wrong_one_goes_on_even_if_the_session_ends(
    join, issuer, takes, time
):
    session = await join()
    await changed(session, time, "wrong")
    assert (await session.renew(after=1, by=PAIR)).generation == 2
    assert issuer.secrets == ["old", "wrong", "old"]


async def test_taking_back_a_wrong_one_costs_nothing(join, issuer, takes, time):
    session = await join()
    await changed(session, time, "wrong")
    await changed(session, time, "old")
    await time.advance(700)
    assert issuer.secrets == ["old", "wrong"]
    assert not session.status().secret_pending


async def test_a_secret_in_force_that_is_refused_gives_way_to_the_next(join, issuer, takes, time):
    session = await join()
    await changed(session, time, "new")  # not valid yet
    takes("new")
    assert (await session.renew(after=1, by=PAIR)).generation == 2
    assert issuer.secrets == ["old", "new", "old", "new"]
    assert session.status().secret == digest("new")
    assert not session.status().secret_pending


# -- several processes ----------------------------------------------------------------------


async def test_one_login_switches_them_all_one_after_the_other(join, issuer, takes, time):
    one, other = await join(), await join()
    takes("new")
    await changed(one, time, "new")
    assert (await other.borrow()).generation == 2
    await changed(other, time, "new")
    await time.advance(100)
    assert issuer.secrets == ["old", "new"]


async def test_who_has_not_heard_yet_goes_on_with_the_new_token(join, issuer, takes, time):
    one, other = await join(), await join()
    takes("new")
    await changed(one, time, "new")
    await time.advance(2500)  # whoever renews, by refresh
    assert (one.lend().generation, other.lend().generation) == (5, 5)
    assert issuer.secrets == ["old", "new"]


async def test_who_has_not_heard_yet_does_not_log_in_but_waits(join, issuer, takes, time, events):
    one, other = await join(), await join()
    takes("new")
    await changed(one, time, "new")
    waiting = asyncio.create_task(other.renew(after=2, by=PAIR))
    await time.advance(3)
    assert not waiting.done()
    assert issuer.secrets == ["old", "new"]
    assert named(events, "token_renewal_failed")[-1].fields["cause"] == "secret"
    await one.renew(after=2, by=PAIR)
    await time.advance(1)
    assert other.lend().generation == 3


async def test_what_one_process_lacks_is_no_trouble_of_the_others(join, issuer, takes, time):
    one, other = await join(), await join()
    takes("new")
    await changed(one, time, "new")
    waiting = asyncio.create_task(other.renew(after=2, by=PAIR))
    await time.advance(3)
    assert other.status().failures
    other.accepted(2, by=("another", "/v1/x"))  # of a request that was under way; all are told
    await time.advance(1)
    assert one.status().failures == 0
    await one.renew(after=2, by=PAIR)
    assert other.lend().generation == 3  # the next request finds what the other one has brought
    await time.advance(0)
    assert waiting.done()
    assert (await waiting).generation == 3


async def test_who_waits_for_others_is_not_kept_when_the_process_ends(join, issuer, takes, time):
    one, other = await join(), await join()
    takes("new")
    await changed(one, time, "new")
    waiting = asyncio.create_task(other.renew(after=2, by=PAIR))
    await time.advance(1)
    closing = asyncio.create_task(other.close(revoke=False))
    await time.advance(3)
    assert waiting.done()
    assert "shutting down" in waiting.exception().description
    await closing


async def test_who_hears_at_last_logs_in_at_once(join, issuer, takes, time):
    one, other = await join(), await join()
    takes("new")
    await changed(one, time, "new")
    other.refused(2, by=PAIR)
    await time.advance(20)
    assert other.status().retry_in > 5
    waiting = asyncio.create_task(other.borrow())
    await changed(other, time, "new")
    assert waiting.done()
    assert (await waiting).generation == 3
    assert other.status().failures == 0
    assert issuer.secrets == ["old", "new", "new"]


async def test_who_waits_for_others_looks_what_they_have_brought(join, issuer, takes, time):
    one, other = await join(), await join(wait_limit=10.0)
    takes("new")
    await changed(one, time, "new")
    other.refused(2, by=PAIR)
    await time.advance(17)
    waiting = asyncio.create_task(other.borrow())
    await time.advance(1)
    await one.renew(after=2, by=PAIR)
    await time.advance(2)  # it tries again in 13
    assert waiting.done()
    assert (await waiting).generation == 3


async def test_who_waits_for_others_is_told_at_once_that_an_operator_stopped_them(
    join, issuer, takes, time
):
    one, other = await join(), await join()
    takes("new")
    await changed(one, time, "new")
    waiting = asyncio.create_task(other.renew(after=2, by=PAIR))
    await time.advance(1)
    await one.revoke(stop=True)
    await time.advance(1)
    later = asyncio.create_task(other.borrow())
    await time.advance(0)
    for request in (waiting, later):
        assert request.done()
        assert "stopped by an operator" in request.exception().description


async def test_who_never_hears_says_what_to_do_and_can_be_told_to_log_in(join, issuer, takes, time):
    one, other = await join(), await join()
    takes("old", "new")
    await changed(one, time, "new")
    await one.close(revoke=False)
    waiting = asyncio.create_task(other.renew(after=2, by=PAIR))
    await time.advance(25)
    with pytest.raises(TokenUnavailable) as refused:
        await waiting
    assert "nomba-proxy token renew" in refused.value.hint
    assert issuer.secrets == ["old", "new"]
    renewing = asyncio.create_task(other.renew_now())
    await time.advance(3)
    await renewing
    assert issuer.secrets == ["old", "new", "old"]
    assert other.status().secret == digest("old")


async def test_a_process_with_the_new_secret_alone_reads_what_was_switched(
    join, issuer, takes, time
):
    one = await join()
    takes("new")
    await changed(one, time, "new")
    fresh = await join("new")
    assert fresh.lend().generation == 2
    assert issuer.secrets == ["old", "new"]


async def test_a_process_that_was_started_with_the_old_one_does_not_switch_back(
    join, issuer, takes, time
):
    takes("old", "new")
    one = await join()
    await changed(one, time, "new")
    late = await join("old")
    await time.advance(700)
    assert late.lend() is not None
    assert issuer.secrets == ["old", "new"]
    assert one.status().secret == digest("new")


async def test_a_quarter_of_an_hour_later_the_old_secret_opens_nothing(join, issuer, takes, time):
    one = await join()
    takes("new")
    await changed(one, time, "new")
    await time.advance(1900)
    warnings = []
    issuer.failing = {"issue": DOWN}
    late = await join("old", warn=warnings.append)
    assert late.lend() is None
    assert "another client secret" in warnings[0]


async def test_an_operator_does_not_have_a_refused_token_refreshed(join, issuer, takes, time):
    session = await join()
    issuer.failing = {"issue": DOWN}
    session.refused(1, by=PAIR)
    await time.advance(0.1)
    issuer.failing = {}
    await session.renew_now()
    assert issuer.names == ["issue", "issue", "issue"]


# -- the keyring ------------------------------------------------------------------------------


def texts(secrets):
    return [one.reveal(to=ORIGIN) for one in secrets]


def test_a_keyring_logs_in_with_what_is_in_force_and_then_with_what_is_set():
    keyring = Keyring(secret("a"))
    assert texts(keyring.order("")) == ["a"]
    assert keyring.change(secret("b"), secret("c"))
    assert texts(keyring.order("")) == ["c", "b"]
    assert texts(keyring.order(digest("a"))) == ["a", "c", "b"]
    assert texts(keyring.order(digest("b"))) == ["b", "c"]
    assert keyring.order(digest("x")) == ()


def test_a_keyring_that_is_given_the_same_has_not_changed():
    keyring = Keyring(secret("a"), secret("b"))
    assert not keyring.change(secret("a"), secret("b"))
    assert keyring.change(secret("b"))
    assert texts(keyring.known) == ["b", "a"]


def test_a_keyring_remembers_a_few_of_those_before():
    keyring = Keyring(secret("0"))
    for number in range(1, 20):
        keyring.change(secret(str(number)))
    assert texts(keyring.known) == [str(number) for number in range(19, 10, -1)]
