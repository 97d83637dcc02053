"""A session kept on a real Valkey server: what several replicas and crashes make of it."""

import asyncio
import random
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from processes import until

from proxy.core.lifetime import Lifetime
from proxy.core.secret import STORE, Secret
from proxy.core.session import Held, Limits, Trouble, granted
from proxy.errors import TokenUnavailable
from proxy.tokens.asking import Clocks
from proxy.tokens.keyring import Keyring
from proxy.tokens.nomba import Credentials, Grant, IssuerError
from proxy.tokens.seal import Identity, Seal
from proxy.tokens.store import StoreFailed
from proxy.tokens.valkey_store import _ASK, ValkeyStore
from proxy.valkey import StoreClock, Unreachable, Valkey

ORIGIN = "https://issuer.test"
PAIR = ("shop", "/v1/x")


def secret(text="secret"):
    return Secret(text, origin=ORIGIN)


class Issuer:
    """Counts, takes its time, and notes when two call at once."""

    def __init__(self):
        self.credentials = Credentials(ORIGIN, "client", "account")
        self.calls, self.life, self.takes = [], 1000.0, 0.0
        self.now = self.most = 0
        self.connected = asyncio.Event()
        self.connected.set()

    async def issue(self, _, *, sending):
        return await self._grant("issue", sending)

    async def refresh(self, *, access_token, refresh_token, sending):
        return await self._grant("refresh", sending)

    async def _grant(self, name, sending):
        await self.connected.wait()
        sending()
        self.calls.append(name)
        number = len(self.calls)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.now -= 1
        access, refresh = secret(f"token-{number}"), secret("refresh")
        return Grant(access, refresh, self.life, "account", None)


@pytest.fixture
def issuer():
    return Issuer()


@pytest.fixture
def said():
    """What stores and servers said: warnings and the names of events."""
    return []


@pytest.fixture
async def connect(valkey, said):
    """A replica's store; its clocks are off by so many seconds."""
    async with AsyncExitStack() as stack:

        async def begin(*, secrets=("secret",), off=0.0, lease=3.0, start=True, kind=Valkey):
            def alive():
                return time.monotonic() + off

            def wall():
                return time.time() + off

            link = kind(
                "127.0.0.1",
                port=valkey.port,
                shown=valkey.url,
                alive=alive,
                random=random.random,
                emit=lambda event: said.append(event.name),
            )
            stack.push_async_callback(link.close)
            keyring = Keyring(*map(secret, secrets))
            identity = Identity(ORIGIN, "client")
            store = ValkeyStore(
                link,
                identity=identity,
                seal=Seal(identity, keyring=keyring),
                lease=lease,
                alive=alive,
                wall=wall,
                random=lambda: 0.0,
                warn=said.append,
            )
            store.clocks, store.link, store.keyring = (
                Clocks(alive, wall, random.random),
                link,
                keyring,
            )
            if start:
                link.start()
            return store

        yield begin


@pytest.fixture
async def join(connect, issuer, said, counted):
    """A replica's session."""
    async with AsyncExitStack() as stack:

        async def begin(*, auth=issuer, limits=None, **options):
            store = await connect(**options)
            session = counted(
                auth,
                keyring=store.keyring,
                store=store,
                limits=limits or Limits(),
                clocks=store.clocks,
                emit=lambda event: said.append(event.name),
            )
            stack.push_async_callback(session.close, revoke=False)
            session.start()
            return session

        yield begin


def some(clocks, text="token", *, generation=0):
    now = clocks.alive()
    lifetime = Lifetime.begin(1000.0, now=now, wall=clocks.wall(), early=300, urgent=30, jitter=0)
    return granted(
        Held(generation=generation),
        access=secret(text),
        refresh=secret(f"refresh-{text}"),
        lifetime=lifetime,
        secret=secret().digest(),
        now=now,
    )


async def put(store, held):
    async with store.lease():
        return await store.save(held)


async def got(store):
    async with store.lease() as held:
        return held


# -- one session -----------------------------------------------------------------------------


async def test_replicas_share_one_login(join, issuer):
    several = [await join() for _ in range(5)]
    tokens = [await session.borrow() for session in several]
    assert {token.access.reveal(to=ORIGIN) for token in tokens} == {"token-1"}
    assert issuer.calls == ["issue"]


async def test_a_new_token_is_there_without_being_asked_for(join, issuer):
    one, other = await join(), await join()
    await one.borrow(), await other.borrow()
    await one.renew(after=1, by=PAIR)
    await until(lambda: other.known.held.generation == 2)
    assert issuer.calls == ["issue", "issue"]


async def test_refusals_everywhere_cost_one_renewal(join, issuer):
    issuer.takes = 0.2
    several = [await join() for _ in range(5)]
    for session in several:
        await session.borrow()
    tokens = await asyncio.gather(
        *(session.renew(after=1, by=("c", f"/{at}")) for session in several for at in range(10))
    )
    assert {token.generation for token in tokens} == {2}
    assert issuer.calls == ["issue", "issue"]


async def test_many_lifetimes_are_renewed_once_each_by_one_at_a_time(join, issuer):
    issuer.life, issuer.takes = 2.0, 0.02
    several = [await join() for _ in range(4)]
    await until(lambda: all(session.known.held.generation >= 5 for session in several))
    assert issuer.most == 1
    assert len(issuer.calls) <= 1 + max(session.known.held.generation for session in several)


async def test_an_acceptance_is_known_to_all(join):
    one, other = await join(), await join()
    await one.borrow(), await other.borrow()
    one.accepted(1, by=PAIR)
    await until(lambda: other.known.listen() or other.known.held.accepted)


# -- what is kept ------------------------------------------------------------------------------


async def test_everything_that_is_known_comes_back_to_another_replica(connect):
    one, other = await connect(), await connect(off=5000.0)
    now = one.clocks.alive()
    before = replace(
        some(one.clocks),
        forced=((now - 1, "shop"),),
        deaths=((1, now - 2),),
        rejected=(("digest", now - 3),),
        gap_until=now + 4,
        trouble=Trouble(2, now + 5, "reply", "no"),
        stopped=True,
        unaccepted=1,
    )
    await put(one, before)
    after = (await got(other)).moved(-5000.0)

    def about(held):
        return [
            *(held.forced[0][0], held.deaths[0][1], held.rejected[0][1], held.gap_until),
            *(held.trouble.retry_at, held.switched, held.token.lifetime.dies_at),
        ]

    assert about(after) == pytest.approx(about(before), abs=1.0)
    assert after.token.lifetime.dies_at <= before.token.lifetime.dies_at
    assert after.token.same(before.token)
    plain = {"stopped": True, "unaccepted": 1, "secret": before.secret}
    assert {name: getattr(after, name) for name in plain} == plain


@pytest.mark.parametrize("off", [-3600.0, 3600.0])
async def test_replicas_with_wrong_clocks_agree(join, issuer, off):
    right, wrong = await join(), await join(off=off)
    await right.borrow(), await wrong.borrow()
    left = [session.status() for session in (right, wrong)]
    assert left[0].expires_in == pytest.approx(left[1].expires_in, abs=1.0)
    assert left[0].renews_in == pytest.approx(left[1].renews_in, abs=1.0)
    for session in (right, wrong):
        session.known.wake.set()
    await asyncio.sleep(0.2)
    assert issuer.calls == ["issue"]  # nobody takes it for due
    await wrong.renew(after=1, by=PAIR)
    await until(lambda: right.known.held.generation == 2)
    assert right.status().expires_in == pytest.approx(1000, abs=2)
    assert issuer.calls == ["issue", "issue"]


async def test_times_do_not_wander_when_many_write_the_same_token(connect):
    several = [await connect(off=100.0 * at) for at in range(3)]
    await put(several[0], some(several[0].clocks))
    died = [(await got(several[0])).token.lifetime.dies_at]
    for store in several * 20:
        await put(store, replace(await got(store), accepted=True))
    died.append((await got(await connect())).token.lifetime.dies_at)
    assert died[1] == pytest.approx(died[0], abs=0.05)


async def test_nobody_who_looks_at_the_server_sees_a_token(connect, valkey):
    await put(await connect(), some((await connect()).clocks, "MARKED-TOKEN"))
    client = valkey.client()
    found = b"".join(
        b"".join(client.hgetall(key).values())
        for key in client.keys("*")
        if client.type(key) == b"hash"
    )
    assert b"nomba-proxy session 2" in found
    assert b"MARKED-TOKEN" not in found
    assert b"secret" not in found.replace(b"nomba-proxy session 2", b"")


# -- the lease -------------------------------------------------------------------------------


async def extending():
    """The task that extends the lease that is held: those of others before it may end a moment later."""

    def found():
        every = [one for one in asyncio.all_tasks() if one.get_name() == "extend the lease"]
        return every if len(every) == 1 else None

    [task] = await until(found)
    return task


async def test_one_holds_the_lease_at_a_time(connect):
    one, other = await connect(), await connect()
    order = []

    async def hold(store, name):
        async with store.lease():
            order.append(f"{name} has it")
            await asyncio.sleep(0.2)
            order.append(f"{name} lets go")

    await asyncio.gather(hold(one, "a"), hold(other, "b"))
    assert order in (
        ["a has it", "a lets go", "b has it", "b lets go"],
        ["b has it", "b lets go", "a has it", "a lets go"],
    )


async def test_it_is_extended_for_as_long_as_it_is_held(connect):
    one, other = await connect(), await connect()
    await put(one, some(one.clocks))
    async with one.lease():
        taking = asyncio.create_task(got(other))
        await asyncio.sleep(4)  # it lasts for three, and is extended every second
        assert not taking.done()
    assert (await taking).generation == 1


async def test_of_a_holder_that_is_gone_it_ends_by_itself(connect):
    one, other = await connect(lease=0.6), await connect(lease=0.6)
    await put(other, some(other.clocks))
    holding = one.lease()
    await holding.__aenter__()
    (await extending()).cancel()  # it is gone
    assert (await got(other)).generation == 1
    await holding.__aexit__(None, None, None)


async def test_a_wait_that_is_cut_off_leaves_no_lease_behind(connect, valkey):
    one, other = await connect(lease=60.0), await connect(lease=60.0)
    await put(one, some(one.clocks))
    async with one.lease():
        waiting = [asyncio.create_task(got(other)) for _ in range(3)]
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    client = valkey.client()
    await until(lambda: client.keys("*:lease") == [])  # which would be there for a minute


async def test_what_became_moot_while_it_was_waited_for_is_not_waited_for(connect):
    one, other = await connect(), await connect()
    await put(one, some(one.clocks))
    moot = False
    async with one.lease():

        async def want():
            async with other.lease(lambda: moot) as held:
                return held

        waiting = asyncio.create_task(want())
        await asyncio.sleep(0.1)
        moot = True
        assert await asyncio.wait_for(waiting, 5) is None


async def overtaken(one, other, *, generation=1):
    """One holds the lease but was stopped, so another one took it and wrote."""
    holding = one.lease()
    held = await holding.__aenter__()
    await one._valkey.run(
        "redis.call('DEL', KEYS[1]) return {redis.call('TIME')}", keys=(one._keys[1],)
    )
    await put(other, some(other.clocks, "theirs", generation=generation))
    return holding, held


async def test_who_was_overtaken_writes_nothing_and_adopts_what_is_there(connect, said):
    one, other = await connect(), await connect()
    await put(one, some(one.clocks))
    holding, held = await overtaken(one, other)
    kept = await one.save(some(one.clocks, "late", generation=held.generation))
    assert kept.token.access == secret("theirs")
    assert (await got(other)).token.access == secret("theirs")
    assert "lease was lost" in " ".join(said)
    await holding.__aexit__(None, None, None)


async def test_the_fence_holds_even_where_the_lease_is_free_again(connect):
    one, other = await connect(), await connect()
    await put(one, some(one.clocks))
    holding, _ = await overtaken(one, other, generation=0)  # the same generation as before
    await one.save(some(one.clocks, "late", generation=5))
    assert (await got(other)).token.access == secret("theirs")
    await holding.__aexit__(None, None, None)


async def test_a_late_writer_that_nobody_has_overtaken_is_let_in(connect):
    one, other = await connect(), await connect()
    await put(one, some(one.clocks))
    async with one.lease() as held:
        await one._valkey.run(
            "redis.call('DEL', KEYS[1]) return {redis.call('TIME')}", keys=(one._keys[1],)
        )
        late = some(one.clocks, "late", generation=held.generation)
        assert await one.save(late) is late
    assert (await got(other)).token.access == secret("late")


async def test_who_slept_through_the_end_of_its_lease_does_not_log_in(
    join, connect, issuer, valkey
):
    session = await join(lease=0.6)
    await session.borrow()
    issuer.connected.clear()
    renewing = asyncio.create_task(session.renew(after=1, by=PAIR))
    await until(lambda: session.known.held.calling)
    (await extending()).cancel()
    await until(lambda: not session.known.store.sure())
    other = await connect()
    await put(other, some(other.clocks, "theirs", generation=1))
    issuer.connected.set()
    assert (await renewing).access == secret("theirs")
    assert issuer.calls == ["issue"]


# -- a server that loses everything ------------------------------------------------------------


async def test_who_remembers_writes_back_what_the_server_has_lost(connect, valkey):
    one = await connect()
    await put(one, some(one.clocks, generation=6))
    await valkey.kill()
    await valkey.start()
    fresh = await connect()
    held = await got(fresh)
    assert (held.generation, held.token.access) == (7, secret("token"))


async def test_a_replica_that_starts_beside_an_empty_server_waits_for_that(join, issuer, valkey):
    one = await join()
    await one.borrow()
    await valkey.kill()
    fresh = await join()
    await valkey.start()
    assert (await until(fresh.lend)).generation == 1
    assert issuer.calls == ["issue"]


async def test_a_generation_is_never_taken_back(join, issuer, valkey):
    one, other = await join(), await join()
    await one.borrow(), await other.borrow()
    await one.renew(after=1, by=PAIR)
    await until(lambda: other.known.held.generation == 2)
    valkey.client().flushall()
    token = await other.renew(after=2, by=PAIR)
    assert token.generation == 3
    await until(lambda: one.known.held.generation == 3)


async def test_who_logged_in_beside_what_was_written_back_meanwhile_is_newer(connect, valkey):
    fresh = await connect()
    async with fresh.lease() as held:  # nobody remembers anything, so far
        assert held.generation == 0
        late = await connect()
        late.remember(some(late.clocks, "old", generation=8))
        await late._look(b"")
        kept = await fresh.save(some(fresh.clocks, "new"))
    assert kept.generation == kept.token.generation == 10
    await late._look(b"")
    assert late.news().token.access == secret("new")


async def test_a_grant_is_kept_though_the_server_has_lost_the_lease_and_all_else(connect, valkey):
    one = await connect()
    await put(one, some(one.clocks))
    async with one.lease() as held:
        valkey.client().flushall()
        fresh = some(one.clocks, "new", generation=held.generation)
        assert await one.save(fresh) is fresh
    assert (await got(await connect())).token.access == secret("new")


async def test_a_generation_is_not_taken_back_where_only_the_session_was_lost(connect):
    one = await connect(start=False)
    await put(one, some(one.clocks, generation=6))
    async with one.lease() as held:
        await one._valkey.run(
            "redis.call('DEL', KEYS[1]) return {redis.call('TIME')}", keys=(one._keys[0],)
        )
        found = await one.save(some(one.clocks, "late", generation=held.generation))
    assert found.generation == 8
    assert (await got(await connect())).generation == 8


async def test_who_lost_the_lease_and_finds_nothing_keeps_what_it_has(connect, said):
    """Somebody else has it, on a server that has lost all, and has not written yet."""
    one = await connect(start=False)
    await put(one, some(one.clocks))
    async with one.lease() as held:
        await one._valkey.run(
            "redis.call('DEL', KEYS[1], KEYS[2]) redis.call('SET', KEYS[2], 'another', 'PX', 100) "
            "return {redis.call('TIME')}",
            keys=one._keys[:2],
        )
        assert (await one.save(replace(held, accepted=True))).generation == 1
        late = some(one.clocks, "late", generation=1)
        assert (await one.save(late)).token.access == secret("late")
    assert (await got(one)).token.access == secret("late")


async def test_what_is_written_back_is_not_written_over_the_same_generation(connect):
    one, late = await connect(), await connect(start=False)
    late.remember(some(late.clocks, "old"))
    await put(one, some(one.clocks, "new"))
    await late._run(_ASK)
    await late._refill()
    assert (await got(one)).token.access == secret("new")


async def test_a_mark_is_not_made_on_what_turns_out_to_be_older(connect):
    fresh = await connect()
    async with fresh.lease() as held:
        late = await connect()
        late.remember(some(late.clocks, "old", generation=8))
        await late._look(b"")
        kept = await fresh.save(replace(held, calling=True))
    assert kept.generation == 9
    assert not (await got(late)).calling


# -- a server that cannot be reached -------------------------------------------------------------


async def test_a_token_is_used_until_it_dies_while_the_server_is_down(join, issuer, valkey, said):
    issuer.life = 6.0
    session = await join()
    await session.borrow()
    await valkey.kill()
    await until(lambda: session.status().failures)
    assert session.lend() is not None or session.known.living() is not None
    assert issuer.calls == ["issue"]
    assert "valkey://127.0.0.1" in session.status().store
    await until(lambda: session.known.living() is None)
    with pytest.raises(TokenUnavailable) as refused:
        await session.borrow()
    assert "store" in refused.value.hint
    assert issuer.calls == ["issue"]
    assert said.count("store_lost") == 1
    await valkey.start()
    assert (await until(session.lend)).generation == 2
    assert session.status().store == ""
    assert session.status().failures == 0


async def test_who_may_renews_alone_once_the_token_is_about_to_die(join, issuer, valkey, said):
    issuer.life = 3.0
    session = await join(limits=Limits(alone=True))
    await session.borrow()
    await valkey.kill()
    await until(lambda: session.known.held.generation == 2)
    assert "renewing_alone" in said
    issuer.life = 1000.0
    await until(lambda: session.known.held.generation == 3)
    await valkey.start()
    other = await join()
    assert (await other.borrow()).generation == 3  # written back
    assert len(issuer.calls) == 3


class AnswersLate(Valkey):
    """Keeps back the answer to whatever writes a session, while it is told to."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.answers = asyncio.Event()
        self.answers.set()

    async def run(self, script, **options):
        found = await super().run(script, **options)
        if "ARGV[6]" in script:
            await self.answers.wait()
        return found


class LosesWrites(Valkey):
    """Nothing that writes a session gets through, while it is told so."""

    lost = False

    async def run(self, script, **options):
        if self.lost and "ARGV[6]" in script:
            raise Unreachable("lost")
        return await super().run(script, **options)


async def test_a_stop_that_could_not_be_written_is_none_when_the_server_is_back(join, issuer):
    session = await join(kind=LosesWrites)
    await session.borrow()
    store = session.known.store
    store.link.lost = True
    assert "nothing was done" in await session.revoke(stop=True)
    store.link.lost = False
    await until(session.known.changed.done, seconds=6)  # it was said that the server is back
    assert session.status().state == "living"
    assert (await session.borrow()).generation == 1


async def test_what_is_noted_beside_a_renewal_without_the_server_takes_nothing_back(
    join, issuer, valkey, said
):
    issuer.life = 8.0
    session = await join(limits=Limits(alone=True), kind=AnswersLate)
    await session.borrow()
    await valkey.kill()
    issuer.connected.clear()
    await until(lambda: "renewing_alone" in said)
    await valkey.start()
    store = session.known.store
    await until(lambda: not store.problem)
    store.link.answers.clear()
    session.accepted(1, by=PAIR)
    await asyncio.sleep(0.3)  # it notes that, or would wait for the answer
    issuer.life = 1000.0
    issuer.connected.set()
    await until(lambda: session.known.held.generation == 2 and not session.status().renewing)
    store.link.answers.set()
    for _ in range(200):
        assert session.known.held.generation == 2
        await asyncio.sleep(0.001)
    assert len(issuer.calls) == 2


async def test_nobody_renews_alone_while_the_token_lives_on(join, issuer, valkey):
    session = await join(limits=Limits(alone=True))
    token = await session.borrow()
    await valkey.kill()
    due = replace(token.lifetime, renew_at=0.0)
    session.known.held = replace(session.known.held, token=replace(token, lifetime=due))
    session.known.wake.set()
    await until(lambda: session.status().failures)
    assert issuer.calls == ["issue"]


async def test_a_server_that_hangs_is_one_that_cannot_be_reached(join, issuer, valkey):
    session = await join()
    await session.borrow()
    valkey.pause()
    try:
        with pytest.raises(TokenUnavailable):
            await session.renew(after=1, by=PAIR)
    finally:
        valkey.go_on()
    assert issuer.calls == ["issue"]
    assert (await until(session.lend)).generation == 2


async def test_a_replica_starts_without_the_server_and_logs_in_once_it_is_there(
    join, issuer, valkey
):
    await valkey.kill()
    session = await join()
    await until(lambda: session.status().failures)
    assert issuer.calls == []
    assert not session.ready
    await valkey.start()
    assert (await until(session.lend)).generation == 1


async def test_a_grant_that_could_not_be_stored_is_used_and_written_back(join, issuer, valkey):
    issuer.takes = 0.5
    session = await join()
    await session.borrow()
    renewing = asyncio.create_task(session.renew(after=1, by=PAIR))
    await until(lambda: len(issuer.calls) == 2)
    await valkey.kill()
    assert (await renewing).generation == 2
    await valkey.start()
    other = await join()
    assert (await other.borrow()).generation == 2
    assert issuer.calls == ["issue", "issue"]


# -- other secrets -----------------------------------------------------------------------------


async def test_who_cannot_open_the_session_never_logs_in(join, issuer, said):
    await (await join()).borrow()
    stranger = await join(secrets=("another",), limits=Limits(wait_limit=1.0))
    with pytest.raises(TokenUnavailable) as refused:
        await stranger.borrow()
    assert issuer.calls == ["issue"]
    assert "client_secret_next" in refused.value.hint
    assert "another client secret" in " ".join(said)
    assert "another client secret" in stranger.status().store


async def test_nor_does_it_where_it_may_do_without_a_server_that_is_away(join, issuer):
    await (await join()).borrow()
    limits = Limits(wait_limit=1.0, alone=True)
    stranger = await join(secrets=("another",), limits=limits)
    with pytest.raises(TokenUnavailable):
        await stranger.borrow()
    assert issuer.calls == ["issue"]


async def test_it_has_the_session_once_it_is_sealed_for_it_too(join, issuer):
    one = await join()
    await one.borrow()
    stranger = await join(secrets=("another",))
    waiting = asyncio.create_task(stranger.borrow())
    one.given(secret("another"), None)
    await waiting  # the old token, or the new one
    await until(lambda: stranger.known.held.generation == 2)
    assert issuer.calls == ["issue", "issue"]
    assert stranger.status().store == ""


class Refuses(Issuer):
    """Takes no client secret."""

    async def _grant(self, name, sending):
        self.calls.append(name)
        raise IssuerError("issue: HTTP 401, envelope code 401", reason="credentials")


async def test_who_never_had_a_token_keeps_nobody_from_one(join, issuer):
    """The first one to start was given a wrong secret."""
    wrong = await join(secrets=("wrong",), auth=Refuses())
    await until(lambda: wrong.status().failures)
    right = await join(limits=Limits(wait_limit=5.0))
    assert (await right.borrow()).generation == 1
    await until(lambda: "another client secret" in wrong.status().store)
    assert issuer.calls == ["issue"]


async def test_an_operator_can_have_it_log_in(join, issuer):
    one = await join()
    await one.borrow()
    stranger = await join(secrets=("another",))
    await until(lambda: stranger.status().failures)
    assert (await stranger.renew_now()).generation == 2
    assert issuer.calls == ["issue", "issue"]


@pytest.mark.parametrize("generation", [1, 100])
async def test_a_value_that_was_damaged_is_written_anew_by_who_remembers_it(
    join, valkey, said, generation
):
    one = await join()
    await one.borrow()
    client = valkey.client()
    [key] = client.keys("*:session")
    value = client.hget(key, "value")
    damaged = value[:-1] + bytes([value[-1] ^ 1])
    client.hset(key, mapping={"value": damaged, "count": 77, "generation": generation})
    client.publish(key.replace(b":session", b":news"), "w")
    await until(lambda: "written anew" in " ".join(said))
    token = await one.renew(after=one.known.held.generation, by=PAIR)
    assert token.generation > generation
    assert (await until((await join()).lend)).generation == token.generation


async def test_who_knows_nothing_does_not_log_in_over_a_damaged_one(connect, valkey):
    one = await connect()
    await put(one, some(one.clocks))
    await one.link.close()
    client = valkey.client()
    [key] = client.keys("*:session")
    client.hset(key, "value", b"nonsense")
    with pytest.raises(StoreFailed) as refused:
        await got(await connect())
    assert refused.value.reason == "sealed"


# -- the server's clock -----------------------------------------------------------------------


def test_the_clock_is_known_within_two_bounds_that_every_answer_narrows():
    clock = StoreClock()
    clock.heard(1000.0, asked=9.0, now=10.0)
    assert (clock.there, clock.here) == (990.0, -991.0)
    clock.heard(1001.0, asked=10.5, now=10.6)
    assert (clock.there, clock.here) == (pytest.approx(990.4), pytest.approx(-990.5))
    clock.heard(1002.0, asked=10.0, now=15.0)  # a slow answer says less
    assert (clock.there, clock.here) == (pytest.approx(990.4), pytest.approx(-990.5))


def test_a_clock_that_was_set_is_believed():
    clock = StoreClock()
    clock.heard(1000.0, asked=10.0, now=10.1)
    clock.heard(9000.0, asked=11.0, now=11.1)
    assert clock.there == pytest.approx(8988.9)


def test_bounds_are_forgotten_after_a_minute():
    clock = StoreClock()
    clock.heard(1000.0, asked=10.0, now=10.1)
    clock.heard(1065.0, asked=75.0, now=76.0)
    assert (clock.there, clock.here) == (pytest.approx(989.0), pytest.approx(-990.0))


# -- connections ----------------------------------------------------------------------------------


async def test_a_connection_that_ended_in_between_is_no_failure(connect, valkey, said):
    one = await connect()
    await put(one, some(one.clocks))
    valkey.client().client_kill_filter(_type="normal", skipme=True)
    await put(one, some(one.clocks, generation=1))
    assert "store_lost" not in said


class AnswersAreLost(Valkey):
    """Runs whatever writes a session twice, as if the first answer had been lost."""

    async def run(self, script, **options):
        if "ARGV[6]" in script:
            await super().run(script, **options)
        return await super().run(script, **options)


async def test_a_write_whose_answer_was_lost_is_known_as_ours(connect):
    one = await connect(kind=AnswersAreLost)
    async with one.lease() as held:
        fresh = some(one.clocks, "new", generation=held.generation)
        assert await one.save(fresh) is fresh
        again = replace(fresh, accepted=True)
        assert await one.save(again) is again
    assert (await got(await connect())).accepted


# -- clocks and values that are not what they should be -----------------------------------------------


async def rewritten(valkey, **fields):
    """Somebody writes to the server by hand."""
    client = valkey.client()
    [key] = client.keys("*:session")
    client.hset(key, mapping=fields)
    client.publish(key.replace(b":session", b":news"), "w")


@pytest.mark.parametrize("field", ["generation", "count", "fence", "issued"])
async def test_a_number_that_is_none_stops_nobody(join, valkey, field):
    one, other = await join(), await join()
    await one.borrow(), await other.borrow()
    for text in ("abc", "nan", "-1", "1.5", "1e300", ""):
        await rewritten(valkey, **{field: text})
        token = await one.renew_now()
        await until(lambda new=token: other.known.held.token and other.known.held.token.same(new))


async def test_a_lease_without_an_end_is_none(join, valkey):
    session = await join()
    await session.borrow()
    [key] = valkey.client().keys("*:session")
    valkey.client().set(key.replace(b":session", b":lease"), "mine for ever")
    assert (await session.renew(after=1, by=PAIR)).generation == 2


async def test_an_old_value_with_a_new_number_is_not_believed(join, valkey, said):
    session = await join()
    await session.borrow()
    [key] = valkey.client().keys("*:session")
    old = valkey.client().hget(key, "value")
    await session.renew(after=1, by=PAIR)
    await rewritten(valkey, value=old, generation=100, count=200)
    await until(lambda: "another one than its number says" in " ".join(said))
    assert session.lend().access == secret("token-2")
    assert (await session.renew(after=session.known.held.generation, by=PAIR)).generation > 100


async def test_who_logged_in_beside_a_server_that_had_lost_all_is_not_undone(connect, valkey):
    several = [await connect(start=False) for _ in range(2)]
    one, fresh = several
    await put(one, some(one.clocks, "old", generation=8))
    valkey.client().flushall()
    await put(fresh, some(fresh.clocks, "new"))  # nobody has told it of the old one in time
    await one._look(b"")
    assert (await got(fresh)).token.access == secret("new")
    assert one.news().token.access == secret("new")
    await fresh._look(b"")
    assert (await got(one)).generation == (await got(fresh)).generation == 10


async def test_what_was_renewed_without_the_server_is_not_undone_by_what_is_older(connect):
    one, other = await connect(start=False), await connect(start=False)
    await put(one, some(one.clocks))
    await got(other)
    await asyncio.sleep(0.01)
    await put(other, some(other.clocks, "older", generation=1))
    await asyncio.sleep(0.01)
    newest = some(one.clocks, "newest", generation=2)
    one.remember(newest)
    assert (await got(one)).token.access == secret("newest")
    await one._look(b"")
    assert (await got(other)).token.access == secret("newest")


async def test_times_of_a_clock_that_was_set_back_are_not_waited_for(connect):
    one = await connect()
    now = one.clocks.alive()
    late = replace(
        some(one.clocks),
        trouble=Trouble(1, now + 5000, "unreachable", "no"),
        gap_until=now + 5000,
        switched=now + 5000,
        rejected=(("digest", now + 5000),),
    )
    await put(one, late)
    held = await got(await connect())
    latest = now + 760
    assert held.trouble.retry_at < latest
    assert held.gap_until < latest
    assert held.switched < latest
    assert held.rejected[0][1] < latest


async def test_a_token_that_is_known_does_not_live_longer_by_the_servers_clock(connect):
    one = await connect()
    held = some(one.clocks)
    await put(one, held)
    one.link.clock._low -= 3600  # it was set back
    one.link.clock._high -= 3600
    one.link.clock._since = one.clocks.alive()
    one._count = 0
    await one._look(b"")
    assert one.news().token.lifetime.dies_at <= held.token.lifetime.dies_at + 1


async def test_a_token_that_dies_sooner_by_the_servers_clock_is_not_due_by_anothers(connect):
    slow, one = await connect(off=-3600.0), await connect()
    await put(slow, some(slow.clocks))
    first = (await got(one)).token
    later = replace(first.lifetime, dies_at=first.lifetime.dies_at + 5)
    one.remember(replace(one._known, token=replace(first, lifetime=later)))
    lifetime = (await got(one)).token.lifetime
    assert lifetime.dies_at < later.dies_at
    assert lifetime.due_in(now=one.clocks.alive(), wall=one.clocks.wall()) > 600


@pytest.mark.parametrize(
    ("password", "answer", "reason"),
    [
        ("", lambda _: b":5\r\n" * 20, "an answer that is none"),
        ("MARKED-PASSWORD", lambda said: b"-ERR unknown: " + said + b"\r\n", "unknown"),
    ],
)
async def test_what_an_odd_server_says_is_told_without_the_password(said, password, answer, reason):
    async def serve(reader, writer):
        while data := await reader.read(4096):
            writer.write(answer(data.replace(b"\r\n", b" ")))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    link = Valkey(
        "127.0.0.1",
        port=server.sockets[0].getsockname()[1],
        password=lambda: Secret(password, origin=STORE) if password else None,
        shown="valkey://there",
        alive=time.monotonic,
        random=random.random,
        emit=lambda event: said.append(str(event)),
    )
    with pytest.raises(Unreachable) as refused:
        await link.run("return 1", keys=("x",))
    await link.close()
    server.close()
    assert reason in link.problem
    assert "MARKED-PASSWORD" not in " ".join([*said, str(refused.value), link.problem])


async def test_what_a_look_stumbles_over_is_said_and_the_others_go_on(connect, said):
    one = await connect(start=False)
    looked = asyncio.Event()

    async def stumble(_):
        raise KeyError("odd")

    async def look(_):
        looked.set()

    one.link.follow("nomba-proxy:a", stumble)
    one.link.follow("nomba-proxy:b", look)
    one.link.start()
    await asyncio.wait_for(looked.wait(), 10)
    assert "store_odd" in said
