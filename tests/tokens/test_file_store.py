"""A session kept in a file: what several processes and restarts make of it."""

import asyncio
import os
import signal
import sys
from dataclasses import replace

import pytest

from proxy.core.lifetime import Lifetime
from proxy.core.secret import Secret
from proxy.core.session import Held, Trouble, granted
from proxy.errors import RenewalNotAllowed, TokenUnavailable
from proxy.tokens.asking import Clocks
from proxy.tokens.keyring import Keyring
from proxy.tokens.store import StoreFailed

ORIGIN = "https://issuer.test"
SECRET = "the-client-secret"
PAIR = ("shop", "/v1/x")


async def settle():
    for _ in range(40):
        await asyncio.sleep(0)


def named(events, name):
    return [event for event in events if event.name == name]


def some(text="token", *, generation=0):
    lifetime = Lifetime.begin(1000.0, now=1000, wall=0, early=300, urgent=30, jitter=0)
    access, refresh = Secret(text, origin=ORIGIN), Secret("refresh-" + text, origin=ORIGIN)
    held = granted(
        Held(generation=generation),
        access=access,
        refresh=refresh,
        lifetime=lifetime,
        secret=Secret(SECRET, origin=ORIGIN).digest(),
        now=1000,
    )
    return replace(
        held, forced=((1.0, "shop"),), deaths=((1, 2.0),), trouble=Trouble(1, 5.0, "reply", "no")
    )


@pytest.fixture
async def pair(join):
    """Two processes with one session."""
    return await join(), await join()


def path(tmp_path):
    [found] = [one for one in tmp_path.glob("session-*") if one.suffix != ".lock"]
    return found


# -- several processes ----------------------------------------------------------------------


async def test_the_second_process_logs_in_no_more(pair, issuer):
    assert [one.lend().generation for one in pair] == [1, 1]
    assert issuer.names == ["issue"]


async def test_many_that_start_at_once_cost_one_login(join, issuer, time):
    sessions = [await join() for _ in range(4)]
    tokens = [await one.borrow() for one in sessions]
    assert {token.generation for token in tokens} == {1}
    assert issuer.names == ["issue"]


async def test_when_it_is_due_one_of_them_renews_and_all_have_the_new_token(pair, issuer, time):
    await time.advance(760)
    assert [one.lend().generation for one in pair] == [2, 2]
    assert issuer.names == ["issue", "refresh"]


async def test_a_token_refused_in_both_is_renewed_once(pair, issuer, time):
    renewing = [asyncio.create_task(one.renew(after=1, by=PAIR)) for one in pair * 20]
    await time.advance(1)
    assert {task.result().generation for task in renewing} == {2}
    assert issuer.names == ["issue", "issue"]


async def test_a_refused_token_is_lent_by_no_process_while_it_is_renewed(pair, issuer):
    one, other = pair
    gate = issuer.hold("issue")
    one.refused(1, by=PAIR)
    await settle()
    assert other.lend() is None
    gate.set()
    await settle()
    assert other.lend().generation == 2


async def test_a_late_refusal_in_the_other_process_costs_nothing(pair, issuer):
    one, other = pair
    await one.renew(after=1, by=PAIR)
    assert (await other.renew(after=1, by=PAIR)).generation == 2
    assert issuer.names == ["issue", "issue"]


async def test_what_one_saw_accepted_the_other_does_not_take_for_unusable(pair, issuer):
    one, other = pair
    for generation in range(1, 6):
        assert one.lend().generation == generation
        one.accepted(generation, by=PAIR)
        await settle()
        assert (
            await other.renew(after=generation, by=(f"{generation}", "/v1/x"))
        ).generation == generation + 1
    assert issuer.count("issue") == 6


async def test_the_gap_is_one_for_all(pair):
    one, other = pair
    await one.renew(after=1, by=("a", "/"))
    await other.renew(after=2, by=("b", "/"))
    with pytest.raises(RenewalNotAllowed):
        await one.renew(after=3, by=("c", "/"))
    assert one.lend().generation == 3


async def test_back_off_is_one_for_all(pair, issuer, time, down):
    issuer.failing = down
    await time.advance(760, step=0.1)
    alone = issuer.count("issue")
    assert 4 <= alone <= 8  # at 750 s, and 0.5, 1, 2, 4 s later, a quarter of chance added
    time.alive += 1000
    for one in pair * 10:
        with pytest.raises(TokenUnavailable, match="no connection"):
            await one.borrow()
    assert issuer.count("issue") == alone + 1  # by then it was time to try again


async def test_a_stop_stops_all_and_a_renewal_starts_all(pair, issuer, time):
    one, other = pair
    await one.revoke(stop=True)
    assert other.status().state == "stopped"
    with pytest.raises(TokenUnavailable, match="stopped"):
        await other.borrow()
    assert (await other.renew_now()).generation == 2
    assert one.lend().generation == 2


async def test_a_revocation_holds_the_others_requests_until_the_new_token_is_there(pair, issuer):
    one, other = pair
    gate = issuer.hold("revoke")
    revoking = asyncio.create_task(one.revoke(stop=False))
    await settle()
    borrowing = asyncio.create_task(other.borrow())
    await settle()
    assert not borrowing.done()
    gate.set()
    assert await revoking == ""
    await issuer.time.advance(1)  # it tries the lock again and again
    assert (await borrowing).generation == 2
    assert issuer.names == ["issue", "revoke", "issue"]


async def test_what_others_write_does_not_bring_a_refused_token_back(pair, file_store, issuer):
    one, _ = pair
    third = file_store()
    async with third.lease() as held:
        one.refused(1, by=PAIR)
        await settle()
        await third.save(replace(held, accepted=True))  # another one saw it work
        assert one.lend() is None


async def test_a_refusal_that_meets_a_background_renewal_passes_on_in_the_gap(
    join, file_store, issuer, time
):
    """What the table says under the lease is what counts, and the token is lent again."""
    session = await join(gap=100.0)
    await session.renew(after=1, by=("a", "/"))
    await session.renew(after=2, by=("b", "/"))
    async with file_store().lease():
        time.wall += 3600  # it is due now, and waits for the lease
        await time.advance(16)
        renewing = asyncio.create_task(session.renew(after=3, by=("c", "/")))
        await settle()
        assert session.lend() is None
    await time.advance(1)
    with pytest.raises(RenewalNotAllowed, match="a moment ago"):
        await renewing
    assert session.lend().generation == 4  # it was due all the same


async def test_a_renewal_under_way_at_the_end_is_waited_for_and_kept(join, issuer, time):
    first = await join()
    gate = issuer.hold("issue")
    first.refused(1, by=PAIR)
    await settle()
    closing = asyncio.create_task(first.close(revoke=False))
    await time.advance(1)
    assert not closing.done()
    gate.set()
    await closing
    second = await join()
    assert second.lend().generation == 2
    assert issuer.names == ["issue", "issue"]


# -- restarts ---------------------------------------------------------------------------------


async def test_a_restart_logs_in_no_more(join, issuer):
    first = await join()
    await first.close(revoke=False)
    second = await join()
    assert (await second.borrow()).generation == 1
    assert second.ready
    assert issuer.names == ["issue"]


async def test_a_restart_after_the_tokens_death_logs_in(join, issuer, time):
    first = await join()
    await first.close(revoke=False)
    time.alive += 1001
    second = await join()
    assert (await second.borrow()).generation == 2
    assert issuer.names == ["issue", "issue"]


async def test_what_was_revoked_at_the_end_is_not_used_again(join, issuer):
    first = await join()
    await first.close(revoke=True)
    second = await join()
    assert (await second.borrow()).generation == 2
    assert issuer.names == ["issue", "revoke", "issue"]


async def test_what_is_revoked_at_the_end_is_no_sign_of_a_rival(join, issuer, events, time):
    one = await join()
    for generation in range(1, 5):
        one.accepted(generation, by=PAIR)
        await (await join()).close(revoke=True)
        waiting = asyncio.create_task(one.renew(after=generation, by=PAIR))
        await time.advance(1)
        assert (await waiting).generation == generation + 1
        one.accepted(generation + 1, by=PAIR)
        await time.advance(0.5)
    assert not named(events, "session_rival")


async def test_who_ends_does_not_revoke_what_another_has_replaced(join, issuer, time):
    one, other = await join(), await join()
    refresh = issuer.hold("refresh")
    renewing = asyncio.create_task(other.renew_now())
    await time.advance(0.5)
    closing = asyncio.create_task(one.close(revoke=True))
    await time.advance(1)
    refresh.set()
    await time.advance(1)
    await closing
    assert (await renewing).generation == 2
    assert issuer.revoked == []


async def test_who_ends_does_not_wait_for_a_renewal_without_end(join, issuer, time):
    one, other = await join(), await join()
    refresh = issuer.hold("refresh")
    renewing = asyncio.create_task(other.renew_now())
    await time.advance(0.5)
    closing = asyncio.create_task(one.close(revoke=True))
    await time.advance(4)
    assert closing.done()
    refresh.set()
    await time.advance(1)
    assert (await renewing).generation == 2
    assert issuer.revoked == []


async def test_a_stop_outlives_a_restart(join, issuer):
    first = await join()
    await first.revoke(stop=True)
    await first.close(revoke=False)
    second = await join()
    with pytest.raises(TokenUnavailable, match="stopped"):
        await second.borrow()
    assert issuer.names == ["issue", "revoke"]


async def test_a_renewal_that_its_process_did_not_survive_is_made_again_by_issue(
    join, file_store, issuer, time, events
):
    """Killed between the call and its answer: perhaps the old token is dead, perhaps not."""
    first = await join()
    first.accepted(1, by=PAIR)
    await settle()
    await first.close(revoke=False)
    store = file_store()
    async with store.lease() as held:
        await store.save(replace(held, calling=True))
    second = await join()
    await time.advance(1)  # traffic or not
    assert second.lend().generation == 2
    assert issuer.names == ["issue", "issue"]
    async with store.lease() as held:
        assert (held.calling, held.deaths, held.unaccepted) == (False, (), 0)


HOLDER = """
import asyncio, sys
from pathlib import Path
from proxy.core.secret import Secret
from proxy.core.session import Held
from proxy.tokens.file_store import FileStore, MachineClock
from proxy.tokens.keyring import Keyring
from proxy.tokens.seal import Identity, Seal

async def main():
    origin, identity = sys.argv[2], Identity(sys.argv[2], "client")
    seal = Seal(identity, keyring=Keyring(Secret("the-client-secret", origin=origin)))
    clock = MachineClock("boot", alive=lambda: 1000.0, wall=lambda: 0.0)
    store = FileStore(Path(sys.argv[1]), identity=identity, seal=seal, clock=clock, warn=print)
    async with store.lease():
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_lease_of_a_killed_process_is_free(tmp_path, file_store):
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, str(tmp_path), ORIGIN), stdout=asyncio.subprocess.PIPE
    )
    assert await holder.stdout.readline() == b"held\n"
    store = file_store()
    asyncio.get_running_loop().__dict__.pop("time", None)  # this one waits for real

    async def take():
        async with store.lease():
            return True

    taking = asyncio.create_task(take())
    await asyncio.sleep(0.1)
    assert not taking.done()
    holder.send_signal(signal.SIGKILL)
    assert await taking
    await holder.wait()
    asyncio.get_running_loop().time = lambda: 0.0  # the fixture takes it away


# -- what is in the file ----------------------------------------------------------------------


async def test_everything_that_is_known_comes_back(file_store):
    one, other = file_store(), file_store()
    for held in (some(), replace(some(), token=None), Held(stopped=True)):
        async with one.lease():
            await one.save(held)
        assert other.news() == held
        assert other.news() is None
        async with other.lease() as stored:
            assert stored == held


async def test_the_files_are_the_owners_alone_and_hold_no_secret(file_store, tmp_path):
    store = file_store()
    async with store.lease():
        await store.save(some("the-access-token"))
    assert {oct(one.stat().st_mode & 0o777) for one in tmp_path.iterdir()} == {"0o600"}
    data = b"".join(one.read_bytes() for one in tmp_path.iterdir())
    for secret in (b"the-access-token", b"the-client-secret", b"account"):
        assert secret not in data
    assert len(list(tmp_path.iterdir())) == 2


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-1],
    "cut in the head": lambda data: data[:10],
    "longer": lambda data: data + b"x",
    "one bit of the value": lambda data: flipped(data, len(data) // 2),
    "one bit of the nonce": lambda data: flipped(data, data.index(b"\n", 30) + 1),
    "one bit of the secret's digest": lambda data: flipped(data, 25),
    "another format": lambda data: data.replace(b"session 2", b"session 9"),
    "something else": lambda data: b'{"access_token": "evil"}',
    "large": lambda data: data + bytes(10_000_000),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_corrupt_content_is_ignored_with_one_warning_and_healed(
    join, issuer, tmp_path, damage
):
    first = await join()
    await first.close(revoke=False)
    path(tmp_path).write_bytes(DAMAGE[damage](path(tmp_path).read_bytes()))
    warnings = []
    second = await join(warn=warnings.append)
    assert second.lend() is not None
    assert issuer.names == ["issue", "issue"]
    [text] = warnings
    assert str(path(tmp_path)) in text
    third = await join()
    assert third.lend().generation == second.lend().generation
    assert issuer.names == ["issue", "issue"]


async def test_a_stop_is_kept_in_the_place_of_what_is_corrupt(join, issuer, tmp_path):
    said = []
    one, other = await join(warn=said.append), await join(warn=said.append)
    stored = path(tmp_path)
    stored.write_bytes(stored.read_bytes()[:-1])
    assert await one.revoke(stop=True) == ""
    assert other.status().state == "stopped"
    assert (await join(warn=said.append)).status().state == "stopped"
    assert issuer.names == ["issue", "revoke"]


async def test_a_file_that_is_lost_while_all_run_costs_nothing(pair, issuer, time, tmp_path):
    one, other = pair
    path(tmp_path).unlink()
    await time.advance(760)
    assert (one.lend().generation, other.lend().generation) == (2, 2)
    assert issuer.names == ["issue", "refresh"]


async def test_what_cannot_be_read_at_the_moment_is_read_later(join, tmp_path):
    said = []
    one, other = await join(), await join(warn=said.append)
    await one.revoke(stop=True)
    stored, aside = path(tmp_path), tmp_path / "aside"
    stored.rename(aside)
    stored.symlink_to(aside)  # which is not followed
    assert other.status().state == "living"
    aside.replace(stored)
    assert other.status().state == "stopped"
    assert len(said) == 1


async def test_who_has_a_lock_that_was_removed_hears_what_is_told_in_the_new_one(
    join, time, tmp_path
):
    one, other = await join(), await join()
    [lock] = tmp_path.glob("session-*.lock")
    lock.unlink()
    await one.revoke(stop=True)
    await time.advance(1)
    assert other.lend() is None
    assert other.status().state == "stopped"


async def test_a_lock_that_was_removed_is_made_again(pair, issuer, time, tmp_path):
    one, other = pair
    next(tmp_path.glob("*.lock")).unlink()
    await time.advance(760)
    assert (await one.borrow()).generation == 2
    assert (await other.borrow()).generation == 2
    assert issuer.names == ["issue", "refresh"]


async def test_after_that_there_is_still_one_holder_at_a_time(file_store, time, tmp_path):
    one, other = file_store(), file_store()
    next(tmp_path.glob("*.lock")).unlink()

    async def take():
        async with other.lease():
            return True

    async with one.lease():
        taking = asyncio.create_task(take())
        await time.advance(1)
        assert not taking.done()
    await time.advance(1)
    assert taking.result()


async def test_what_another_secret_wrote_is_ignored_and_said_to_be(join, issuer, time):
    warnings = []
    await join(warn=warnings.append)
    session = await join("a-new-client-secret", warn=warnings.append)
    assert session.lend() is not None
    assert issuer.names == ["issue", "issue"]
    assert "another client secret" in warnings[0]


async def test_after_the_machine_was_started_anew_the_wall_clock_says_what_is_left(
    file_store, time
):
    before = file_store()
    async with before.lease():
        await before.save(some())  # at 1000; it dies at 2000
    clocks = Clocks(alive=lambda: 10.0, wall=lambda: time.clocks.wall() + 400, random=lambda: 0)
    async with file_store(boot="another", clocks=clocks).lease() as held:
        assert held.token.lifetime.dies_at == pytest.approx(610)
        assert held.token.lifetime.renew_at == pytest.approx(360)


async def test_after_that_with_a_wall_clock_set_back_nothing_is_lent(file_store, time):
    before = file_store()
    async with before.lease():
        await before.save(some())
    clocks = Clocks(alive=lambda: 10.0, wall=lambda: time.clocks.wall() - 400, random=lambda: 0)
    async with file_store(boot="another", clocks=clocks).lease() as held:
        assert held.token is None
        assert held.generation == 1


# -- a store that cannot be used ---------------------------------------------------------------


async def test_nobody_logs_in_who_could_not_let_the_others_know(join, issuer, tmp_path, events):
    session = await join()
    (tmp_path / f".{path(tmp_path).name}").mkdir()
    with pytest.raises(TokenUnavailable) as caught:
        await session.renew(after=1, by=PAIR)
    assert "shared" in caught.value.hint
    assert "is a directory" in session.status().last_error.lower()
    assert str(tmp_path) not in caught.value.description  # where it is, is not for callers
    assert issuer.names == ["issue"]
    [told] = named(events, "token_renewal_failed")
    assert told.fields["cause"] == "store"


async def test_a_store_that_fails_backs_off_like_an_issuer(join, issuer, tmp_path, time, events):
    session = await join()
    (tmp_path / f".{path(tmp_path).name}").mkdir()
    await time.advance(900)
    failures = [one.fields["failures"] for one in named(events, "token_renewal_failed")]
    assert failures == list(range(1, len(failures) + 1))
    assert 5 <= len(failures) <= 14
    assert session.lend().generation == 1
    (tmp_path / f".{path(tmp_path).name}").rmdir()
    await time.advance(40)
    assert session.lend().generation == 2


async def test_that_the_store_works_again_is_not_overlooked(join, issuer, tmp_path, time):
    session = await join()
    in_the_way = path(tmp_path).with_name(f".{path(tmp_path).name}")
    in_the_way.mkdir()
    with pytest.raises(TokenUnavailable):
        await session.renew_now()
    in_the_way.rmdir()
    assert session.status().failures == 1
    await time.advance(2)
    assert session.status().failures == 0
    assert issuer.names == ["issue"]


async def test_a_token_that_could_not_be_kept_is_kept_as_soon_as_it_can_be(
    pair, issuer, tmp_path, time
):
    one, other = pair
    issue = issuer.hold("issue")
    waiting = asyncio.create_task(one.renew(after=1, by=PAIR))
    await time.advance(0.5)
    in_the_way = path(tmp_path).with_name(f".{path(tmp_path).name}")
    in_the_way.mkdir()
    issue.set()
    assert (await waiting).generation == 2
    in_the_way.rmdir()
    await time.advance(40)  # before the other one, which has not looked yet, logs in
    assert one.lend() == other.lend()
    assert issuer.names == ["issue", "issue"]


async def test_how_often_a_store_failed_is_not_counted_against_the_issuer(
    join, issuer, tmp_path, time, down
):
    session = await join()
    in_the_way = path(tmp_path).with_name(f".{path(tmp_path).name}")
    in_the_way.mkdir()
    await time.advance(850)
    assert session.status().failures > 5
    in_the_way.rmdir()
    issuer.failing = down
    await time.advance(40)  # it tries again within that, and fails at Nomba's
    assert issuer.count("issue") >= 5  # the first, and no half a minute between the others
    assert (await join()).status().failures == session.status().failures < 8


async def test_a_revocation_that_cannot_be_kept_is_not_called_one(join, issuer, tmp_path):
    session = await join()
    (tmp_path / f".{path(tmp_path).name}").mkdir()
    assert "store" in await session.revoke(stop=True)
    assert "revoke" not in issuer.names


async def test_a_folder_that_was_removed_is_made_again(pair, issuer, tmp_path, time):
    one, other = pair
    for file in tmp_path.iterdir():
        file.unlink()
    tmp_path.rmdir()
    await time.advance(760)
    assert (one.lend().generation, other.lend().generation) == (2, 2)
    assert issuer.names == ["issue", "refresh"]


async def test_who_has_another_secret_leaves_the_session_alone_until_it_has_a_token(
    join, issuer, time, wrong_secret
):
    first = await join()
    await first.close(revoke=False)
    issuer.failing = wrong_secret
    mistaken = await join("a-mistyped-secret", warn=lambda _: None)
    await time.advance(100)
    assert mistaken.status().failures == 3
    issuer.failing = {}
    again = await join()
    assert (await again.borrow()).generation == 1
    assert issuer.names == ["issue"] * 4


async def test_a_stop_holds_in_a_process_that_just_noted_an_acceptance(join, file_store):
    one, other = await join(), await join()
    third = file_store()
    async with third.lease() as held:
        one.accepted(1, by=PAIR)  # waits for the lease to let the others know
        await settle()
        await third.save(replace(held, token=None, stopped=True))
    for _ in range(3):
        await settle()
    assert other.lend() is None
    assert one.status().state == "stopped"
    assert one.lend() is None


async def test_a_stop_is_not_made_where_nobody_would_hear_of_it(join, issuer, tmp_path, time, down):
    session = await join(alone=True)
    issuer.failing = down
    await time.advance(990)  # it is about to die: now it may be renewed without the store
    in_the_way = path(tmp_path).with_name(f".{path(tmp_path).name}")
    in_the_way.mkdir()
    assert "nothing was done" in await session.revoke(stop=True)
    assert issuer.count("revoke") == 0
    assert session.status().state == "living"
    in_the_way.rmdir()


@pytest.mark.parametrize("by", [PAIR, ("another", "/v1/x")])
async def test_what_others_are_let_know_of_takes_nothing_back(join, issuer, tmp_path, time, by):
    """Two renewals could not be stored; what is noted then is of the second one."""
    session = await join(alone=True)
    in_the_way = path(tmp_path).with_name(f".{path(tmp_path).name}")
    in_the_way.mkdir()  # where the next value would be written first
    await time.advance(995)
    assert issuer.names == ["issue", "refresh"]
    session.refused(2, by=PAIR)
    await time.advance(1)
    assert session.lend().generation == 3
    in_the_way.rmdir()
    session.accepted(3, by=by)  # so the second has died, or not: the others are told
    await time.advance(1)
    assert session.lend().generation == 3
    assert (await join()).lend().generation == 3
    assert issuer.names == ["issue", "refresh", "issue"]


async def test_a_lock_that_cannot_be_looked_at_is_given_back(file_store, tmp_path):
    one, other = file_store(), file_store()
    async with one.lease():
        pass
    async with other.lease():
        pass
    aside = tmp_path.with_name("aside")
    tmp_path.rename(aside)
    tmp_path.write_text("no folder")
    with pytest.raises(StoreFailed):
        async with one.lease():
            pass
    tmp_path.unlink()
    aside.rename(tmp_path)
    async with asyncio.timeout(5), other.lease() as held:
        assert held is not None


async def test_a_pipe_in_the_place_of_the_session_is_ignored(join, issuer, tmp_path):
    first = await join()
    await first.close(revoke=False)
    found = path(tmp_path)
    found.unlink()
    os.mkfifo(found)
    warnings = []
    second = await join(warn=warnings.append)
    assert second.lend() is not None
    assert len(warnings) == 1


async def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path, issuer, time):
    from proxy.tokens.file_store import FileStore, MachineClock
    from proxy.tokens.seal import Identity, Seal

    (tmp_path / "file").write_text("")
    identity = Identity(ORIGIN, "client")
    seal = Seal(identity, keyring=Keyring(Secret(SECRET, origin=ORIGIN)))
    clock = MachineClock("", alive=lambda: 0.0, wall=lambda: 0.0)
    folder = tmp_path / "file" / "x"
    with pytest.raises(StoreFailed, match="file"):
        FileStore(folder, identity=identity, seal=seal, clock=clock, warn=pytest.fail)
