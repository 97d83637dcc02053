"""A fleet of replicas that share a session on a Valkey server, while everything is killed under them."""

import asyncio
import json
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
from harness import LOST, Line
from processes import GET, until
from replicas import Replica
from valkeys import ValkeyServer

from proxy.simulator import Switches, parse_fault
from proxy.simulator.simulator import Simulator

ISSUE, REFRESH = "/v1/auth/token/issue", "/v1/auth/token/refresh"
LOGINS = {ISSUE, REFRESH}
KEY = "a signing key that all replicas have"


class Issuer:
    """A simulator under the single-session rule, and when it brought which token.

    A token lives for whole seconds, which its JWT alone tells: with the times of a reply, in whole
    seconds as well, it would seem to live a second shorter now and then.
    """

    def __init__(self, *, lifetime):
        switches = Switches(
            rate_limit=0, recipient_limit=0, lifetime=lifetime, expires_at_form="absent"
        )
        assert switches.refresh_kills_old
        self.switches = switches
        self.tried = []  # (time, path, secret or None, status)
        # What is killed in the middle of its call gets no reply, and yet ends the others' session.
        self.simulator = Simulator(switches, memory=4_000_000, observe=self._note)

    def _note(self, request, reply):
        if request.path in LOGINS:
            secret = json.loads(request.body).get("client_secret")
            status = reply.status if reply is not None else 0
            self.tried.append((time.monotonic(), request.path, secret, status))

    @property
    def renewals(self):
        """When a token was brought."""
        return [at for at, _, _, status in self.tried if status == 200]

    def count(self, path, secret=None, *, status=200):
        """How many calls were answered so."""
        return sum(
            (one[1], one[3]) == (path, status) and secret in {None, one[2]} for one in self.tried
        )

    def asker(self, replicas):
        """The replica whose token call is held up."""
        newest = next(one for one in reversed(self.simulator.received) if one.path in LOGINS)
        for one in self.simulator._server._connections:
            if one._reader._connection == newest.connection:
                port = one._transport.get_extra_info("peername")[1]
                return next((replica for replica in replicas if replica.has_socket(port)), None)
        return None


@pytest.fixture
def fleet(tmp_path):
    """Start replicas that share a store: `fleet(issuer, server, count)`."""

    @asynccontextmanager
    async def begin(issuer, server, count, *, each=lambda _: {}):
        switches = issuer.switches
        env = {
            "NOMBA_CLIENT_ID": switches.client_id,
            "NOMBA_CLIENT_SECRET": switches.client_secret,
            "NOMBA_ACCOUNT_ID": switches.account_id,
            "NOMBA_BASE_URL": issuer.simulator.origin,
            "NOMBA_PROXY_STORE": server.url,
            "NOMBA_PROXY_CALLERS_SIGNING_KEY": KEY,
            # Whoever is stopped while it connects is not to find, as it goes on, that it had no time.
            "NOMBA_PROXY_TIMEOUTS_CONNECT": "30",
        }
        mine = [{**env, **each(number)} for number in range(count)]
        mine = [{key: value for key, value in one.items() if value} for one in mine]
        replicas = [Replica(tmp_path / f"replica-{n}", **one) for n, one in enumerate(mine)]
        try:
            await asyncio.gather(*(one.start() for one in replicas))
            yield replicas
        finally:
            await asyncio.gather(*(one.stop() for one in replicas))

    return begin


@pytest.fixture
async def keeping(tmp_path):
    """A running server that has its data again after it was killed."""
    folder = tmp_path / "keeping"
    folder.mkdir()
    server = ValkeyServer(folder, keeps=True)
    await server.start()
    yield server
    await server.kill()


class Stalls:
    """For how long the machine held us, a replica or the server up: each is asked what takes no time.

    None of it has to do with tokens, so what they do late is no stall.
    """

    def __init__(self, replicas, server):
        self.seconds = 0.0  # of all that took more than a moment
        asking = [lambda: self._ping(server.port), *(one.alive for one in replicas)]
        self._tasks = [asyncio.create_task(self._measure(one)) for one in asking]

    async def _measure(self, ask):
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.05)
            await ask()
            if (late := time.monotonic() - began - 0.05) > 0.1:
                self.seconds += late

    @staticmethod
    async def _ping(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"PING\r\n")
            await reader.readline()
        finally:
            writer.close()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for one in self._tasks:
            one.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Load:
    """Callers, each with a connection that it keeps as long as it can.

    Args:
        replicas: that they ask.
        each: callers of one.
        pause: seconds between two requests, at least and at most.
    """

    def __init__(self, replicas, each, *, pause):
        self.statuses, self.odd, self.lost = Counter(), [], 0
        self._pause = pause
        self._done = asyncio.Event()
        self._callers = [
            asyncio.create_task(self._call(replica, number))
            for replica in replicas
            for number in range(each)
        ]

    async def _call(self, replica, number):
        line, dice = Line(("127.0.0.1", replica.port)), random.Random(number)
        while not self._done.is_set():
            try:
                reply = await asyncio.wait_for(line.ask(GET), 60)
            except LOST:
                self.lost += 1
            else:
                self.statuses[reply.status] += 1
                if reply.status != 200:
                    self.odd.append((time.monotonic(), reply))
            await asyncio.sleep(dice.uniform(*self._pause))
        line.close()

    def unharmed(self):
        """Raise what a caller has raised."""
        for one in self._callers:
            if one.done():
                one.result()
        return True

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self._done.set()
        await asyncio.gather(*self._callers)


# -- chaos ------------------------------------------------------------------------------------------


class Misfortune:
    """What happens to replicas and to their store.

    Args:
        seed: of all that is left to chance.
        issuer: whose token calls are held up, so that their caller can be hit meanwhile.
        replicas: none of which is hit twice at once.
        server: that is killed too.
    """

    def __init__(self, seed, *, issuer, replicas, server):
        self.happened = Counter()
        self.outages = []  # when the store was killed, and when it was there again
        self._rng = random.Random(seed)
        self._issuer, self._replicas, self._server = issuer, replicas, server
        self._busy = set()
        self._catching = asyncio.Lock()
        self._done = asyncio.Event()
        self._tasks = [
            asyncio.create_task(one) for one in (self._hit(), self._hit(), self._hit_store())
        ]

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self._done.set()
        await asyncio.gather(*self._tasks)

    def goes_on(self):
        """Raise what has gone wrong with doing harm."""
        for one in self._tasks:
            if one.done():
                one.result()
        return True

    @property
    def hits(self):
        return sum(n for what, n in self.happened.items() if not what.startswith("store"))

    @property
    def restarts(self):
        return len(self.outages)

    async def _rest(self, least, most):
        with suppress(TimeoutError):
            await asyncio.wait_for(self._done.wait(), self._rng.uniform(least, most))

    async def _hit(self):
        """Kill a replica, or stop it for longer than its lease: any one, or one that renews."""
        await self._rest(0, 1)
        while not self._done.is_set():
            how = self._rng.choice(("kill", "kill", "stop"))
            if self._rng.random() < 0.5:
                async with self._catching:
                    victim, holds = await self._catch()
                what = f"{how} in a renewal"
            else:
                victim, holds, what = self._rng.choice(self._replicas), (), how
            if victim is not None and victim not in self._busy:
                self.happened[what] += 1
                await self._strike(victim, how, holds)
            for hold in holds:
                hold.release()
            await self._rest(0.5, 3)

    async def _strike(self, victim, how, holds):
        self._busy.add(victim)
        if how == "kill":
            victim.signal(signal.SIGKILL)
        else:
            victim.signal(signal.SIGSTOP)
        for hold in holds:
            hold.release()
        if how == "kill":
            await victim.gone()
            await asyncio.sleep(self._rng.uniform(0, 1))
            await victim.start()
        else:
            # Longer than a lease, much shorter than a connect may take here.
            await asyncio.sleep(self._rng.uniform(3.5, 4.8))
            victim.signal(signal.SIGCONT)
        self._busy.discard(victim)

    async def _catch(self):
        """The replica that renews next, held up before or after the issuer has done it."""
        simulator, before = self._issuer.simulator, self._rng.random() < 0.5
        holds = [simulator.hold(path, before=before) for path in LOGINS]
        while not self._done.is_set():
            if any(hold.held for hold in holds):
                return self._issuer.asker(self._replicas), holds
            await asyncio.sleep(0.01)
        return None, holds

    async def _hit_store(self):
        """Kill it; it comes again as it was, empty, or as it was before its last death."""
        kept = self._server.folder / "appendonlydir"
        before = self._server.folder / "before"
        while not self._done.is_set():
            await self._rest(2, 9)
            if self._done.is_set():
                return
            how = self._rng.choice(("kept", "empty", "older"))
            began = time.monotonic()
            await self._server.kill()
            await asyncio.sleep(self._rng.choice((0, 0.3, self._rng.uniform(0.5, 3))))
            dead = self._server.folder / "dead"
            kept.rename(dead)
            if how == "kept":
                shutil.copytree(dead, kept)
            elif how == "older" and before.exists():
                shutil.copytree(before, kept)
            shutil.rmtree(before, ignore_errors=True)
            dead.rename(before)
            await self._server.start()
            self.outages.append((began, time.monotonic()))
            self.happened[f"store {how}"] += 1

    def store_was_down(self, at, *, within):
        """Whether the store was down then, or came back only just before."""
        return any(began <= at <= ended + within for began, ended in self.outages)


@pytest.mark.timeout(900)
async def test_chaos_a_fleet_whose_processes_and_store_are_killed_shows_nobody_a_401(
    fleet, keeping, size, figure, chaos_seed
):
    """Under the single-session rule, at no more logins than lifetimes, kills and restarts."""
    life, wanted, count, each = size(3.0, 4.0), size(8, 60), size(3, 8), size(20, 50)
    issuer = Issuer(lifetime=life)
    async with issuer.simulator, fleet(issuer, keeping, count) as replicas:
        load = Load(replicas, each, pause=size((0.1, 0.5), (0.5, 2)))
        fate = Misfortune(chaos_seed, issuer=issuer, replicas=replicas, server=keeping)
        async with load, fate:
            await until(
                lambda: load.unharmed() and fate.goes_on() and len(issuer.renewals) >= wanted,
                seconds=800,
            )
        ended = time.monotonic()
    made = issuer.renewals
    took = ended - made[0]
    # Renewed at three quarters of its life, and by those who learn of it from the store a tenth of the
    # rest sooner. What was renewed much sooner than that was lost by somebody who was killed.
    lifetimes = int(took / (life * 0.725)) + 1
    early = sum(later - sooner < life * 0.6 for sooner, later in pairwise(made))
    by_issue = sum(path == ISSUE and status == 200 for _, path, _, status in issuer.tried)
    hints = Counter((one.status, one.json["proxy"]["hint"]) for _, one in load.odd)
    for name, what in (
        ("seed", chaos_seed),
        (
            "fleet",
            f"{count} replicas, {each} callers of each, {took:.0f} s, tokens of {life:.0f} s",
        ),
        ("hits", dict(sorted(fate.happened.items()))),
        ("replies", f"{sum(load.statuses.values())}, of them 401: {load.statuses[401]}"),
        ("other statuses", {one: n for one, n in load.statuses.items() if one not in {200, 401}}),
        ("  store down then", sum(fate.store_was_down(at, within=1.0) for at, _ in load.odd)),
        ("connections lost", load.lost),
        ("renewals", f"{len(made)}, {by_issue} of them by issue"),
        ("  at most", f"{lifetimes} lifetimes + {fate.hits} hits + {fate.restarts} restarts"),
        ("before their time", f"{early}; at most {fate.hits} hits + {fate.restarts} restarts"),
    ):
        figure("fleet", f"{name:<18} {what}")
    assert load.statuses[401] == 0
    assert set(load.statuses) <= {200, 503}, hints
    # There may be no token while the store is away: not so because a replica was killed.
    assert all(hint.startswith("The session could not be shared") for _, hint in hints), hints
    assert all(one.get("Retry-After") for _, one in load.odd)
    assert len(made) <= lifetimes + fate.hits + fate.restarts
    assert early <= fate.hits + fate.restarts
    assert fate.hits >= wanted / 4
    assert fate.restarts >= wanted / 12


# -- rotation ---------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_client_secrets_are_replaced_under_load_and_no_caller_notices(
    fleet, valkey, size, figure, tmp_path
):
    """Forwards, back by a next one, and to a wrong one, replica by replica."""
    count, delay = 3, size(0.2, 5)
    issuer = Issuer(lifetime=size(4.0, 8.0))
    switches, (first, second, wrong) = issuer.switches, ("first-secret", "second-one", "wrong-one")
    switches.client_secret = first
    files = [(tmp_path / f"secret-{n}", tmp_path / f"next-{n}") for n in range(count)]

    def files_of(number):
        current, following = files[number]
        current.write_text(first)
        named = {"NOMBA_CLIENT_SECRET_FILE": current, "NOMBA_CLIENT_SECRET_NEXT_FILE": following}
        return {"NOMBA_CLIENT_SECRET": "", **{key: str(value) for key, value in named.items()}}

    async def roll_out(secret, *, following=False):
        for pair in files:
            pair[following].write_text(secret)
            await asyncio.sleep(delay)

    async def agreed(condition):
        """What all tell of the session, once it is so for each."""
        for _ in range(600):
            load.unharmed()
            told = await asyncio.gather(*(one.token() for one in replicas))
            if all(map(condition, told)) and len({one["secret"] for one in told}) == 1:
                return told[0]["secret"]
            await asyncio.sleep(0.05)
        raise AssertionError(told)

    def in_force(digest):
        return lambda told: told["secret"] != digest and not told["secret_pending"]

    def said(event):
        return sum(replica.log.read_text().count(f'"event":"{event}"') for replica in replicas)

    async with issuer.simulator, fleet(issuer, valkey, count, each=files_of) as replicas:
        async with Load(replicas, size(10, 50), pause=(0.05, 0.3)) as load:
            at_first = await agreed(in_force(""))
            # Nomba takes both for a while.
            switches.client_secret = second
            switches.other_clients = (f"{switches.client_id}:{first}",)
            await roll_out(second)
            at_second = await agreed(in_force(at_first))
            # Back: Nomba takes the old one no more from the moment on that it takes the new one.
            switches.client_secret, switches.other_clients = first, ()
            await roll_out(first, following=True)
            assert await agreed(in_force(at_second)) == at_first
            await roll_out(first)
            await roll_out("", following=True)
            # One that Nomba does not know stays without effect.
            await roll_out(wrong)
            await until(lambda: said("secret_refused"))
            assert await agreed(lambda told: told["secret_pending"]) == at_first
            before = len(issuer.renewals)
            await until(lambda: len(issuer.renewals) >= before + size(1, 4), seconds=60)
            issuer.simulator.inject(parse_fault(f"drop-after path={REFRESH}"))  # so it logs in
            logins = issuer.count(ISSUE, first)
            await until(lambda: issuer.count(ISSUE, first) > logins, seconds=60)
            await roll_out(first)
            assert await agreed(lambda told: not told["secret_pending"]) == at_first
        refused = said("secret_refused")
    figure(
        "fleet",
        f"{'rotation':<18} {count} replicas, {sum(load.statuses.values())} requests "
        f"{dict(load.statuses)}, {load.lost} lost: there, back, and to a wrong one, which was tried "
        f"{issuer.count(ISSUE, wrong, status=401)} time",
    )
    assert (set(load.statuses), load.lost) == ({200}, 0)
    assert issuer.count(ISSUE, wrong, status=401) == refused == 1


# -- clocks -----------------------------------------------------------------------------------------

ANOTHER_TIME = """
import os, time
right, off = time.time, float(os.environ["CLOCK_OFF"])
time.time = lambda: right() + off
time.time_ns = lambda: int(time.time() * 1e9)
"""


@pytest.mark.timeout(300)
async def test_replicas_whose_clocks_are_an_hour_off_agree_on_when_a_token_dies(
    fleet, valkey, size, figure, tmp_path
):
    """It is lent by all until it dies, and by none afterwards; none renews sooner or later."""
    offs = (-3600, 0, 3600)
    (tmp_path / "sitecustomize.py").write_text(ANOTHER_TIME)
    issuer = Issuer(lifetime=size(4.0, 8.0))
    life, wanted, told = issuer.switches.lifetime, size(1, 20), []

    def clock_of(number):
        return {"PYTHONPATH": str(tmp_path), "CLOCK_OFF": str(offs[number])}

    async def lent_until(replica):
        """Ask until there is no token; when the last request was sent that had one."""
        line, last = Line(("127.0.0.1", replica.port)), 0.0
        while True:
            asked = time.monotonic()
            reply = await asyncio.wait_for(line.ask(GET), 60)
            if reply.status == 503:
                line.close()
                return last
            assert reply.status == 200
            last = asked
            await asyncio.sleep(0.03)

    async def everyone():
        """What each tells of one and the same token."""
        for _ in range(100):
            now = await asyncio.gather(*(one.token() for one in replicas))
            if len({(one["generation"], one["token"]) for one in now}) == 1:
                return now
            await asyncio.sleep(0.02)
        raise AssertionError(now)

    async with (
        issuer.simulator,
        fleet(issuer, valkey, len(offs), each=clock_of) as replicas,
        Stalls(replicas, valkey) as stalls,
    ):
        asking = [asyncio.create_task(lent_until(one)) for one in replicas]
        await until(lambda: issuer.renewals)
        for at, one in enumerate(replicas):  # each reckons from its own clock once
            for _ in range(20):
                await one.renew()
                told.append(await everyone())
                if told[-1][at]["skew"] is not None:  # nobody has renewed in between
                    break
        by_word = len(issuer.renewals)
        while len(issuer.renewals) < by_word + wanted:
            told.append(await everyone())
            await asyncio.sleep(0.1)
        # From now on nobody gets another one; what is refused now was lent too long.
        before = issuer.simulator.received[-1].number
        issuer.simulator.inject(parse_fault("reply path=/v1/auth/token/* status=500 times=always"))
        lasts = await asyncio.gather(*asking)
    made = issuer.renewals
    # Only who has renewed knows how far it is off.
    skews = {round(one["skew"], -2) for now in told for one in now if one["skew"] is not None}
    expiries = [[one["expires_in"] for one in now] for now in told]
    apart = max(max(one) - min(one) for one in expiries)
    gaps = [later - sooner for sooner, later in pairwise(made[by_word - 1 :])]
    figure(
        "fleet",
        f"{'clocks':<18} off by {offs} s: {len(made)} renewals of tokens of {life:.0f} s, "
        f"{min(gaps):.1f} to {max(gaps):.1f} s apart, expiry told at most {apart:.1f} s apart, stalls "
        f"of {stalls.seconds:.1f} s, lent until {', '.join(f'{last - made[-1]:.2f}' for last in lasts)} s",
    )
    assert skews == {3600, 0, -3600}  # their clocks were off
    # On a machine that held somebody up, all may be as much sooner or later.
    late = stalls.seconds
    assert issuer.count(ISSUE) == 1 or late > life / 4  # it had died before it could be renewed
    assert life * 0.7 - late < min(gaps) <= max(gaps) < life + late
    assert apart < life / 8 + late
    assert all(life * 7 / 8 - late < last - made[-1] <= life for last in lasts)
    refused = [one for one in issuer.simulator.received if one.number > before]
    assert late or not any(one.status == 401 for one in refused)
