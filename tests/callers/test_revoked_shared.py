"""Revoked tokens on a server that replicas share, each with a clock of its own."""

import asyncio
import random
import time
from contextlib import AsyncExitStack

import pytest
from processes import until

from proxy.app.sessions import alive_clock
from proxy.callers.login import Login, LoginCall
from proxy.callers.registry import Door, Registry
from proxy.callers.revoked import Revoked
from proxy.callers.revoked_shared import SharedRevoked
from proxy.core.account import AccountRule
from proxy.core.caller import Roster
from proxy.core.heads import CallerHead
from proxy.core.phantom import Phantoms
from proxy.core.secret import Secret
from proxy.errors import CallerUnknown, TokenUnavailable
from proxy.valkey import Valkey

KEY = b"k" * 40
HOUR = 3600.0
ACCOUNT = AccountRule("account-1", policy="force", allowed=frozenset(), override_money=False)


class Replica:
    """What of a replica has to do with phantom tokens.

    Args:
        ahead: seconds that its wall clock is ahead of this machine's.
    """

    def __init__(self, valkey, folder, *, ahead=0.0, key=KEY, limit=100_000):
        self.events = []
        self.valkey = Valkey(
            "127.0.0.1",
            port=valkey.port,
            shown=valkey.url,
            alive=alive_clock(),
            random=random.random,
            emit=self.events.append,
        )
        self.wall = self.valkey.wall(lambda: time.time() + ahead)
        self.own = Revoked(folder / "revoked", wall=self.wall, monotonic=time.monotonic)
        self.revoked = SharedRevoked(
            self.own,
            valkey=self.valkey,
            key=key,
            wall=self.wall,
            alive=alive_clock(),
            random=random.random,
            emit=self.events.append,
            limit=limit,
        )
        self.phantoms = Phantoms(key, lifetime=HOUR, refresh_lifetime=24 * HOUR)
        self.registry = Registry(
            Roster((), anonymous=False),
            doors={
                "nomba": Door(False, client_id="app", client_secrets=(Secret("s", origin="o"),))
            },
            phantoms=self.phantoms,
            revoked=self.revoked,
            wall=self.wall,
            monotonic=time.monotonic,
        )
        self.login = Login(
            self.registry,
            phantoms=self.phantoms,
            revoked=self.revoked,
            wall=self.wall,
            emit=self.events.append,
        )

    def log_in(self):
        body = b'{"client_id":"app","client_secret":"s"}'
        answer = self.login.answer(LoginCall("issue", body, "nomba", ACCOUNT, ()))
        return answer.body["data"]["access_token"].encode()

    def takes(self, token):
        try:
            head = CallerHead([(b"Authorization", b"Bearer " + token)])
            self.registry.identify(head, upstream="nomba")
        except CallerUnknown:
            return False
        return True

    async def knows(self, *ids):
        await until(lambda: all(one in self.revoked for one in ids))

    async def stop(self):
        await self.revoked.close()
        await self.valkey.close()


@pytest.fixture
async def replica(valkey, tmp_path):
    """Start replicas; each has a folder of its own, and has looked once."""
    async with AsyncExitStack() as stack:

        async def begin(*, folder=None, looks=True, **options):
            folder = folder or tmp_path / f"replica-{time.monotonic_ns()}"
            one = Replica(valkey, folder, **options)
            stack.push_async_callback(one.stop)
            one.valkey.start()
            if looks:
                await until(lambda: looked(one))
            return one

        yield begin


def looked(one):
    try:
        return "nobody's" not in one.revoked
    except TokenUnavailable:
        return False


def later(seconds=HOUR):
    return int(time.time() + seconds)


@pytest.fixture
def stored(valkey):
    """What lies on the server, without its mark."""

    def look():
        with valkey.client() as client:
            names = list(client.scan_iter("nomba-proxy:*:revoked"))
            assert len(names) < 2
            found = client.zrangebyscore(names[0], "-inf", "(+inf") if names else []
        return {one.decode() for one in found}

    return look


# -- what one revokes, all refuse -------------------------------------------------------------


async def test_what_one_replica_revokes_the_others_hear_of(replica, stored):
    one, other = await replica(), await replica()
    one.revoked.add("gone", expires=later())
    assert "gone" in one.revoked  # at once
    await other.knows("gone")
    assert stored() == {"gone"}
    assert "kept" not in other.revoked


async def test_a_replica_that_starts_later_knows_at_once(replica):
    one = await replica()
    ids = [f"token-{number}" for number in range(2500)]
    for at, token_id in enumerate(ids):  # more than are read at once, many over at the same time
        one.revoked.add(token_id, expires=later(HOUR + at % 2))
    await until(lambda: not one.revoked._unwritten)
    third = await replica()
    assert all(token_id in third.revoked for token_id in ids)


async def test_before_the_server_was_reached_nobody_knows(replica, valkey):
    await valkey.kill()
    one = await replica(looks=False)
    with pytest.raises(TokenUnavailable):
        one.takes(one.log_in())
    one.revoked.add("gone", expires=later())
    assert "gone" in one.revoked
    await valkey.start()
    await until(lambda: looked(one))


async def test_another_key_has_another_set(replica, valkey):
    one, other = await replica(), await replica(key=b"o" * 40)
    one.revoked.add("gone", expires=later())
    other.revoked.add("else", expires=later())
    await until(lambda: len(valkey.client().keys("nomba-proxy:*:revoked")) == 2)
    assert "gone" not in other.revoked
    assert not any(KEY in name for name in valkey.client().scan_iter())


async def test_a_message_that_is_lost_costs_two_seconds(replica, valkey):
    one = await replica()
    one.revoked.add("first", expires=later())
    await until(lambda: not one.revoked._unwritten)
    client = valkey.client()
    [name] = client.keys("nomba-proxy:*:revoked")
    client.zremrangebyscore(name, "+inf", "+inf")
    client.zadd(name, {"another-mark": "+inf", "unheard": later()})
    await one.knows("unheard")


async def test_what_was_heard_is_not_read_again(replica, valkey):
    one, other = await replica(), await replica()
    valkey.client().config_resetstat()
    for number in range(5):
        one.revoked.add(f"token-{number}", expires=later())
        await other.knows(f"token-{number}")

    def calls(name):
        found = valkey.client().info("commandstats")
        return sum(found.get(f"cmdstat_{one}", {"calls": 0})["calls"] for one in name.split())

    await until(lambda: calls("eval evalsha") >= 5 + 2 * 2)  # each has looked twice since
    # All ask for the mark; one may have looked while it was told.
    assert calls("zrangebyscore") <= calls("eval evalsha") + 1


async def test_what_is_over_is_not_written_again_and_again(replica, valkey):
    one = await replica()
    one.revoked.add("brief", expires=(end := later(3)))
    await until(lambda: one.own.entries() and one.wall() > end + 1)
    assert "brief" in one.own.entries()  # its file has not changed since
    one.revoked._known.forget(one.wall())
    valkey.client().config_resetstat()
    await until(lambda: valkey.client().info("commandstats").get("cmdstat_evalsha"))
    await until(lambda: not one.revoked._unwritten)
    assert "cmdstat_zremrangebyscore" not in valkey.client().info("commandstats")


@pytest.mark.parametrize("message", [b" ", b"x", b"- y", b"a b c:d :: e:" + b"9" * 5000, b"\xff"])
async def test_nonsense_on_the_channel_is_passed_over(replica, valkey, message):
    one, other = await replica(), await replica()
    valkey.client().publish(one.revoked._keys[1], message)
    one.revoked.add("gone", expires=later())
    await other.knows("gone")


# -- the server is away, or has lost everything -------------------------------------------------


async def test_what_is_revoked_while_the_server_is_away_is_told_once_it_is_back(replica, valkey):
    one, other = await replica(), await replica()
    await valkey.kill()
    one.revoked.add("gone", expires=later())
    one.revoked.add("gone-too", expires=later())
    await until(lambda: any(event.name == "revocation_not_stored" for event in one.events))
    await asyncio.sleep(1.5)  # it is tried again meanwhile
    await valkey.start()
    await other.knows("gone", "gone-too")
    third = await replica()
    assert {"gone", "gone-too"} <= set(third.revoked._known.ends)
    assert [event.name for event in one.events].count("revocation_not_stored") == 1


async def test_what_the_server_has_lost_others_write_back(replica, valkey, stored):
    one, other = await replica(), await replica()
    one.revoked.add("gone", expires=later())
    await other.knows("gone")
    await one.stop()  # who revoked it is there no more
    await valkey.kill()
    await valkey.start()
    await until(lambda: stored() == {"gone"})
    third = await replica()
    assert "gone" in third.revoked


async def test_a_replica_that_was_restarted_meanwhile_tells_what_it_had_no_time_to(
    replica, valkey, tmp_path, stored
):
    one, other = await replica(folder=tmp_path / "one"), await replica()
    await valkey.kill()
    one.revoked.add("gone", expires=later())
    await one.stop()
    await replica(folder=tmp_path / "one", looks=False)
    await valkey.start()
    await other.knows("gone")


async def test_a_process_tells_what_another_of_its_machine_could_not(replica, tmp_path, stored):
    one = await replica(folder=tmp_path / "one")
    beside = Revoked(tmp_path / "one/revoked", wall=time.time, monotonic=time.monotonic)
    beside.add("gone", expires=later())
    beside.add("over", expires=later(-5))
    await until(lambda: stored() == {"gone"})
    assert one.revoked._unwritten == {}


async def test_what_is_revoked_last_is_written_before_the_end(replica, stored):
    one = await replica()
    one.revoked.add("gone", expires=later())
    await one.stop()
    assert stored() == {"gone"}


async def test_the_log_says_where_it_is_not_kept_either(replica, valkey, tmp_path):
    (tmp_path / "file").write_text("")
    one = await replica(folder=tmp_path / "file")
    one.revoked.add("first", expires=later())
    await until(lambda: not one.revoked._unwritten)
    assert not [event for event in one.events if event.name == "revocation_not_stored"]
    await valkey.kill()
    one.revoked.add("second", expires=later())
    await until(lambda: any(event.name == "revocation_not_stored" for event in one.events))
    assert "state folder" in one.events[-1].fields["reason"]


# -- what is over, and what is too much ---------------------------------------------------------


async def test_what_is_over_is_forgotten_on_both_sides(replica, stored):
    one, other = await replica(), await replica()
    one.revoked.add("short", expires=later(4))
    one.revoked.add("long", expires=later())
    await other.knows("short", "long")
    while "short" in stored():
        one.revoked.add(f"more-{time.monotonic()}", expires=later())
        await asyncio.sleep(0.05)
    assert "long" in stored()
    other.revoked._known.forget(other.wall())
    assert "short" not in other.revoked


async def test_a_flood_stays_within_a_limit(replica, stored):
    one, other = await replica(limit=50), await replica(limit=50)
    for number in range(500):
        one.revoked.add(f"token-{number:03}", expires=later(HOUR) + number)
    last = {f"token-{number:03}" for number in range(450, 500)}
    await until(lambda: stored() == last)
    await other.knows(*last)
    assert len(other.revoked._known.ends) <= 55
    dropped = [event for event in one.events if event.name == "revocations_dropped"]
    assert len(dropped) == 1
    third = await replica(limit=50)
    assert set(third.revoked._known.ends) == last


async def test_a_set_that_nobody_needs_goes_by_itself(replica, valkey):
    one = await replica()
    for seconds in (HOUR, 2 * HOUR, 5):
        one.revoked.add(f"for {seconds}", expires=later(seconds))
        await until(lambda: not one.revoked._unwritten)
    [name] = valkey.client().keys("nomba-proxy:*:revoked")
    assert 2 * HOUR - 60 < valkey.client().ttl(name) <= 2 * HOUR + 60


# -- clocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("issuer", [HOUR, -HOUR, 0.0])
async def test_replicas_whose_clocks_are_hours_apart_take_each_others_tokens(replica, issuer):
    one = await replica(ahead=issuer)
    others = [await replica(ahead=ahead) for ahead in (HOUR, -HOUR, 5 * HOUR)]
    token = one.log_in()
    assert [other.takes(token) for other in others] == [True] * 3


@pytest.mark.parametrize("issuer", [HOUR, -HOUR])
async def test_and_refuse_one_that_has_expired(replica, issuer):
    one = await replica(ahead=issuer)
    others = [await replica(ahead=ahead) for ahead in (HOUR, -HOUR, -5 * HOUR)]
    secret, then = one.registry.secret_of("owner", upstream="nomba"), one.wall() - HOUR
    pairs = [
        one.phantoms.issue("owner", upstream="nomba", secret=secret, now=now, chance=bytes(56))
        for now in (then - 2, then + 60)
    ]
    taken = [[other.takes(pair.access.encode()) for pair in pairs] for other in others]
    assert taken == [[False, True]] * 3


async def test_until_the_server_is_reached_the_own_clock_is_used(replica, valkey):
    await valkey.kill()
    one = await replica(ahead=HOUR, looks=False)
    assert one.wall() - time.time() > HOUR / 2
    await valkey.start()
    await until(lambda: looked(one))
    assert abs(one.wall() - time.time()) < HOUR / 2
