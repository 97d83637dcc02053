"""Many replicas behind a balancer share one session for a day: what it costs, in simulated time.

    python bench/fleet.py --seed 7 --picture docs/fleet.svg          # or: make fleet

Each replica is the real `Session` over the real `ValkeyStore`, with a clock of its own. Played are:
the server (bench/fleet_store.py), the network, the issuer, which has one living token, the callers,
and what befalls a replica that holds the lease: it is killed at any moment of a renewal, or stopped
for longer than the lease lasts. The same seed brings the same day.

Callers are simulated only while it matters: from when a token dies until a replica was served with
the next. What comes at random has no memory, so nothing is lost.
"""

import argparse
import asyncio
import contextvars
import math
import selectors
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fleet_picture import picture
from fleet_store import Link, Server

from proxy.core.secret import Secret
from proxy.core.session import Limits, Token
from proxy.errors import RenewalNotAllowed, TokenUnavailable
from proxy.tokens import valkey_store as real
from proxy.tokens.asking import Clocks
from proxy.tokens.keyring import Keyring
from proxy.tokens.known import Known
from proxy.tokens.manager import Session
from proxy.tokens.nomba import Credentials, Grant, IssuerError
from proxy.tokens.seal import Identity, Seal
from proxy.tokens.valkey_store import ValkeyStore

ORIGIN = "https://issuer.test"
PAIR = ("caller", "/v1/accounts/balance")
LIFE = 1800.0  # seconds that a token lives
LIMITS = Limits()
LEASE = 3.0
CONNECT = (0.05, 0.15)  # seconds that a connection to the issuer takes, with TLS
CALL = (0.03, 0.12)  # seconds that a token call takes there, and the same back
REQUEST = (0.01, 0.05)  # the same of a request
RENEWAL = 0.4  # seconds, the longest that one takes if nothing goes wrong
STOPPED = (LEASE + 0.5, 12.0)  # seconds
RESTART = (2.0, 10.0)  # seconds until another replica takes the place of a killed one
START = 1000.0  # of the time
STEPS = 20  # that the picture shows of a distribution
ROLL_OUT = 30.0  # seconds in which all replicas are started


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while nothing else is to be done."""

    def __init__(self) -> None:
        self.now = START
        super().__init__(_Waits(self))

    def time(self) -> float:
        return self.now


class _Waits(selectors.SelectSelector):
    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list:
        if timeout is None:
            raise RuntimeError("nothing is left that could happen")
        self._loop.now += max(timeout, 0.0)
        return []


@dataclass
class Round:
    """A renewal, with all that was tried and went wrong before every replica had a living token.

    Attributes:
        begun: when the first replica asked for the lease, in seconds.
        made: when the issuer made a token.
        asked: the replicas that asked for the lease.
        dark: for how long replicas had no living token, in seconds.
        refused: requests that were sent with a dead token.
        failed: holders that failed meanwhile: when, and whether `killed` or `stopped`.
    """

    begun: float
    made: list[float] = field(default_factory=list)
    asked: set["Replica"] = field(default_factory=set)
    dark: list[float] = field(default_factory=list)
    refused: int = 0
    failed: list[tuple[float, str]] = field(default_factory=list)


@dataclass
class Day:
    """What has happened.

    Attributes:
        rounds: the first is the start.
        waited: of requests that were refused: seconds until they were answered all the same.
        unanswered: requests that were not: why.
        scripts: that the server has run.
        messages: that it has sent.
    """

    rounds: list[Round] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    scripts: int = 0
    messages: int = 0


class Issuer:
    """Makes tokens; each ends the one before it."""

    def __init__(self, fleet: "Fleet") -> None:
        self._fleet = fleet
        self._living, self._dies_at = "", 0.0
        self._count = 0

    def knows(self, access: Secret) -> bool:
        """Whether it is that of the living token."""
        return access.holds(self._living) and self._fleet.loop.time() < self._dies_at

    def takes(self, token: Token | None) -> bool:
        """Whether a request with this token is answered."""
        return token is not None and self.knows(token.access)

    def make(self) -> str:
        """A new token."""
        self._count += 1
        self._living = f"token-{self._count}"
        self._dies_at = self._fleet.loop.time() + LIFE
        self._fleet.made()
        return self._living


class Auth:
    """One replica's calls to the issuer, in the place of `NombaAuth`."""

    def __init__(self, replica: "Replica") -> None:
        self.credentials = Credentials(ORIGIN, "client", "account")
        self._replica = replica

    async def issue(self, _secret: Secret, *, sending: Callable[[], object]) -> Grant:
        return await self._ask(None, sending)

    async def refresh(
        self, *, access_token: Secret, refresh_token: Secret, sending: Callable[[], object]
    ) -> Grant:
        del refresh_token
        return await self._ask(access_token, sending)

    async def _ask(self, access: Secret | None, sending: Callable[[], object]) -> Grant:
        fleet, answer = self._replica.fleet, asyncio.get_running_loop().create_future()
        await asyncio.sleep(fleet.random.uniform(*CONNECT))
        await self._replica.running.wait()
        sending()

        def serve() -> None:
            good = access is None or fleet.issuer.knows(access)
            made = fleet.issuer.make() if good else ""
            fleet.later(CALL, lambda: answer.done() or answer.set_result(made))

        fleet.later(CALL, serve)
        made = await answer
        await self._replica.running.wait()
        if not made:
            raise IssuerError("refresh: HTTP 401", reason="credentials")
        token, refresh = (Secret(text, origin=ORIGIN) for text in (made, "refresh"))
        return Grant(access_token=token, refresh_token=refresh, life=LIFE, account_id="account")


class Watched(Known):
    """What is known of a session, which tells which token would be lent from now on."""

    def __init__(self, *args, replica: "Replica", **options) -> None:
        self.replica = replica
        super().__init__(*args, **options)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "held":
            self.replica.has(value.token)


_OWNER: contextvars.ContextVar["Replica"] = contextvars.ContextVar("owner")


class Replica:
    """One process."""

    def __init__(self, fleet: "Fleet") -> None:
        self.fleet = fleet
        self.running = asyncio.Event()
        self.running.set()
        self.tasks: dict[asyncio.Task, None] = {}  # all that it would take with it
        self.dark: float | None = math.nan  # since when its token is dead; NaN: it never had one
        self._served: Token | None = None
        self._calling = False  # whether callers are simulated now
        offset, random = fleet.random.uniform(0, 1e6), fleet.random.random
        clocks = Clocks(
            alive=lambda: fleet.loop.time() + offset,
            wall=lambda: fleet.loop.time() + 1.78e9,
            random=random,
        )
        self.link = Link(
            fleet.server,
            alive=clocks.alive,
            random=fleet.random,
            running=self.running,
            ran=self._ran,
        )
        identity = Identity(ORIGIN, "client")
        keyring = Keyring(Secret("the-client-secret", origin=ORIGIN))
        store = ValkeyStore(
            self.link,
            identity=identity,
            seal=Seal(identity, keyring=keyring),
            lease=LEASE,
            alive=clocks.alive,
            wall=clocks.wall,
            random=random,
            warn=bool,
        )
        known = Watched(
            "nomba", replica=self, keyring=keyring, store=store, clocks=clocks, emit=bool
        )
        self.session = Session(known, auth=Auth(self), limits=LIMITS)
        with self._owning():
            self._keep = asyncio.create_task(self.link.keep())
            self.session.start()

    @contextmanager
    def _owning(self) -> Iterator[None]:
        mark = _OWNER.set(self)
        yield
        _OWNER.reset(mark)

    def _ran(self, script: str, brought: list, task: str) -> None:
        self.fleet.day.scripts += 1
        if script == real._ACQUIRE and task.startswith("renew"):
            self.fleet.round.asked.add(self)
            if brought[0] == 0:
                self.fleet.leased(self)

    # -- what befalls it ---------------------------------------------------------------------

    def kill(self) -> None:
        """As SIGKILL: what was sent is on its way, nothing else is."""
        self.link.gone = True
        for task in [*self.tasks]:
            task.cancel()

    def stop(self, seconds: float) -> None:
        """As SIGSTOP, and SIGCONT later. Meanwhile nobody calls it."""
        self.running.clear()
        self.fleet.loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self.running.set()
        if self.dark is not None:
            self.dark = self.fleet.loop.time()

    # -- what it has -------------------------------------------------------------------------

    def lost(self) -> None:
        """The issuer has made a token."""
        if self.dark is None:
            self.dark = self.fleet.loop.time()
            self._called()

    def has(self, token: Token | None) -> None:
        """It would lend this one."""
        if self.dark is None or not self.fleet.issuer.takes(token):
            return
        if math.isnan(self.dark):
            self._called()
        else:
            self.fleet.round.dark.append(self.fleet.loop.time() - self.dark)
        self.dark = None

    def _called(self) -> None:
        if not self._calling:
            self._calling = True
            with self._owning():
                asyncio.create_task(self._call())  # noqa: RUF006 - it is kept by whom it is of

    async def _call(self) -> None:
        """Callers, until one was served with the living token."""
        while not self.fleet.issuer.takes(self._served):
            await asyncio.sleep(self.fleet.random.expovariate(self.fleet.rate))
            await self.running.wait()
            try:
                self._served = await self._one()
            except (TokenUnavailable, RenewalNotAllowed) as error:
                self.fleet.day.unanswered.append(type(error).__name__)
        self._calling = False

    async def _one(self) -> Token | None:
        """One request: the token that it was answered with."""
        session, day = self.session, self.fleet.day
        token = session.lend() or await session.borrow()
        if await self._answered(token):
            return token
        refused = asyncio.get_running_loop().time()
        token = await session.renew(after=token, by=PAIR)
        if await self._answered(token):
            day.waited.append(asyncio.get_running_loop().time() - refused)
            return token
        session.refused_again(token.generation, by=PAIR)
        day.unanswered.append("refused_again")
        return None

    async def _answered(self, token: Token) -> bool:
        random = self.fleet.random
        await asyncio.sleep(random.uniform(*REQUEST))
        good = self.fleet.issuer.takes(token)
        self.fleet.round.refused += not good
        await asyncio.sleep(random.uniform(*REQUEST))
        await self.running.wait()
        if good:
            self.session.accepted(token.generation, by=PAIR)
        return good


class Fleet:
    """All of them.

    Args:
        loop: whose time it is.
        seed: of everything random.
        replicas: how many.
        rate: requests a second that each gets.
        failing: the share of the renewals whose holder fails.
    """

    def __init__(
        self, loop: Loop, *, seed: int, replicas: int, rate: float, failing: float
    ) -> None:
        self.loop = loop
        self.random = Random(seed)
        self.rate = rate
        self.day = Day()
        self._failing = failing
        self.issuer = Issuer(self)
        self.server = Server(loop.time)
        self.server.publish = self._publish
        self._replicas: list[Replica] = []
        self._settled = False  # whether all have been started
        for _ in range(replicas):
            self.later((0.0, ROLL_OUT), self._begin)
        self.loop.call_later(ROLL_OUT, self._settle)

    def later(self, seconds: tuple[float, float], work) -> None:
        """Do something in so many seconds."""
        self.loop.call_later(self.random.uniform(*seconds), work)

    def _begin(self) -> None:
        self._replicas.append(Replica(self))

    def _settle(self) -> None:
        self._settled = True

    @property
    def round(self) -> Round:
        """The present one. Renewals are twenty minutes apart, unless something went wrong."""
        now, rounds = self.loop.time(), self.day.rounds
        if not rounds or now - rounds[-1].begun > LIFE / 4:
            rounds.append(Round(now))
        return rounds[-1]

    def _publish(self, message: bytes) -> None:
        self.day.messages += len(self._replicas)
        for one in self._replicas:
            one.link.tell(message)

    def end(self) -> None:
        """All are gone."""
        for one in self._replicas:
            one.kill()

    def made(self) -> None:
        """The issuer has made a token."""
        self.round.made.append(self.loop.time())
        for one in self._replicas:
            one.lost()

    def leased(self, replica: Replica) -> None:
        """A replica may renew: now it may fail."""
        if self._settled and self.random.random() < self._failing:
            holder = self.server.holder
            self.later((0.0, RENEWAL), lambda: self._fail(replica, holder))

    def _fail(self, replica: Replica, holder: bytes) -> None:
        if self.server.holder != holder:
            return  # it was done before
        how = self.random.choice(("killed", "stopped"))
        self.round.failed.append((self.loop.time(), how))
        if how == "stopped":
            replica.stop(self.random.uniform(*STOPPED))
            return
        replica.kill()
        self._replicas.remove(replica)
        self.later(RESTART, self._begin)


def owned(loop: asyncio.AbstractEventLoop, coro, **options) -> asyncio.Task:
    """A task that its replica's death ends."""
    task = asyncio.Task(coro, loop=loop, **options)
    if (owner := _OWNER.get(None)) is not None:
        owner.tasks[task] = None
        task.add_done_callback(owner.tasks.pop)
    return task


def simulate(
    *, seed: int, replicas: int = 200, hours: float = 24.0, rate: float = 0.2, failing: float = 0.2
) -> Day:
    """What happens.

    Args:
        seed: of all that is random.
        replicas: how many.
        hours: how long.
        rate: requests a second that each replica gets.
        failing: the share of the leases whose holder fails, if it is not too late by then.
    """
    loop = Loop()
    loop.set_task_factory(owned)

    async def run() -> Day:
        fleet = Fleet(loop, seed=seed, replicas=replicas, rate=rate, failing=failing)
        await asyncio.sleep(hours * 3600)
        fleet.end()
        await asyncio.sleep(1)
        return fleet.day

    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


# -- what is told of it --------------------------------------------------------------------------


def at(values: list[float], share: float) -> float:
    """The value below which this share of them lies (nearest rank); 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def figures(day: Day) -> dict:
    """What the table and the picture show, rounded."""
    shown = [
        {
            "hour": round((one.begun - START) / 3600, 3),
            "failed": [how for _, how in one.failed],
            "dark": [round(at(one.dark, share / STEPS) * 1000, 1) for share in range(STEPS + 1)],
        }
        for one in day.rounds[1:]
    ]
    return {"replicas": len(day.rounds[0].asked), "lifetimes": len(shown), "rounds": shown}


def table(day: Day, *, requests: float) -> str:
    """What has happened, for people."""
    rounds = day.rounds[1:]
    quiet, rough = ([one for one in rounds if bool(one.failed) is bad] for bad in (False, True))
    failed = [how for one in rounds for _, how in one.failed]
    made = sum(len(one.made) for one in rounds)
    refused = sum(one.refused for one in rounds)
    why = f" ({', '.join(sorted(set(day.unanswered)))})" if day.unanswered else ""
    told = {
        "lifetimes used up": f"{len(rounds)}",
        "tokens made": f"{made}, {made - len(rounds)} more than lifetimes",
        "holders that failed": f"{len(failed)}: {failed.count('killed')} killed, {failed.count('stopped')} stopped",
        "requests": f"{requests:.0f}",
        "refused, dead token": f"{refused}",
        "answered all the same": f"{len(day.waited)}",
        "not answered": f"{len(day.unanswered)}{why}",
        "scripts a renewal": f"{day.scripts / len(day.rounds):.0f}",
        "messages a renewal": f"{day.messages / len(day.rounds):.0f}",
    }
    lines = [f"{name:<24}{what}" for name, what in told.items()]
    lines += ["", f"{'':50}{'p50':>8}{'p99':>8}{'max':>8}"]
    rows = [
        ("replicas that asked for the lease", [float(len(one.asked)) for one in rounds]),
    ]
    for name, some in (("nothing", quiet), ("a holder", rough)):
        dark = [[one * 1000 for one in each.dark] for each in some]
        rows += [
            (
                f"ms without a living token, where {name} failed",
                [one for each in dark for one in each],
            ),
            ("  the same, the last replica of each renewal", [max(each) for each in dark]),
        ]
    rows += [
        ("ms that a refused request was late", [one * 1000 for one in day.waited]),
    ]
    for name, values in rows:
        lines.append(
            f"{name:<50}" + "".join(f"{at(values, share):>8.0f}" for share in (0.5, 0.99, 1))
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--replicas", type=int, default=200)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--rate", type=float, default=0.2, help="requests a second and replica")
    parser.add_argument("--failing", type=float, default=0.2, help="share of the holders")
    parser.add_argument("--picture", type=Path, help="an SVG file to write")
    options = vars(parser.parse_args())
    path = options.pop("picture")
    day = simulate(**options)
    print(", ".join(f"{name} {value}" for name, value in options.items()), "", sep="\n")
    print(table(day, requests=options["replicas"] * options["hours"] * 3600 * options["rate"]))
    if path is not None:
        path.write_text(picture(figures(day)))


if __name__ == "__main__":
    main()
