"""A session over a scripted issuer, in a time that only the test moves."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from proxy.core.secret import Secret
from proxy.core.session import Limits
from proxy.settings import parse_origin
from proxy.tokens.asking import Clocks
from proxy.tokens.file_store import FileStore, MachineClock
from proxy.tokens.keyring import Keyring
from proxy.tokens.known import Known
from proxy.tokens.manager import Session
from proxy.tokens.nomba import Credentials, Grant, IssuerError, NombaAuth
from proxy.tokens.seal import Identity, Seal
from proxy.tokens.store import MemoryStore
from proxy.upstream.dialler import Dialler, Timeouts

ORIGIN = "https://issuer.test"
SECRET = "the-client-secret"


async def settle():
    """Let every task run until it waits for something that only time or a test brings."""
    for _ in range(20):
        await asyncio.sleep(0)


async def closed(session, time):
    """Close a session, and let as much time pass as it gives a renewal under way."""
    closing = asyncio.create_task(session.close(revoke=False))
    await time.advance(3)
    await closing


@dataclass
class FrozenTime:
    """The loop's timers and a session's clocks, moved by hand only.

    `alive` and `wall` are offsets of those clocks: moving one alone is a machine that
    slept (timers did not run), or a wall clock that somebody set.
    """

    now: float = 1000.0
    alive: float = 0.0
    wall: float = 1_780_000_000.0
    random: float = 0.0

    @property
    def clocks(self):
        return Clocks(
            alive=lambda: self.now + self.alive,
            wall=lambda: self.now + self.wall,
            random=lambda: self.random,
        )

    async def advance(self, seconds, *, step=0.5):
        end = self.now + seconds
        await settle()
        while self.now < end:
            self.now = min(end, self.now + step)
            await settle()


@dataclass
class Issuer:
    """Stands in for NombaAuth: every call is counted, can be held, and can fail.

    `failing` maps a call's name to the exception it raises; `takes` is how long a call
    lasts; `token` overrides the access token brought. `takes_secret` are the client secrets that it
    takes, if not all; `secrets` are those it was given.
    """

    time: FrozenTime
    life: float = 1000.0
    takes: float = 0.0
    token: str = ""
    refresh_token: str = "refresh"
    account_id: str = "account"
    date: Callable[[], float | None] = lambda: None
    failing: dict[str, Exception] = field(default_factory=dict)
    calls: list[tuple[str, float]] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    takes_secret: set[str] = field(default_factory=set)
    secrets: list[str] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)

    def __post_init__(self):
        self.credentials = Credentials(ORIGIN, "client", "account")

    def count(self, *names):
        return sum(name in names for name, _ in self.calls)

    @property
    def names(self):
        return [name for name, _ in self.calls]

    @property
    def gaps(self):
        times = [at for _, at in self.calls]
        return [later - sooner for sooner, later in pairwise(times)]

    def hold(self, name):
        """Keep calls of that name unanswered until the event is set."""
        return self.gates.setdefault(name, asyncio.Event())

    async def issue(self, secret, *, sending=bool):
        self.secrets.append(secret.reveal(to=ORIGIN))
        if self.takes_secret and self.secrets[-1] not in self.takes_secret:
            await self._work("issue")
            raise WRONG_SECRET
        return await self._grant("issue")

    async def refresh(self, *, access_token, refresh_token, sending=bool):
        return await self._grant("refresh")

    async def revoke(self, access_token):
        await self._work("revoke")
        self.revoked.append(access_token.reveal(to=ORIGIN))

    async def _work(self, name):
        self.calls.append((name, self.time.now))
        self.time.now += self.takes
        await asyncio.sleep(0)
        if name in self.gates:
            await self.gates[name].wait()
        if name in self.failing:
            raise self.failing[name]

    async def _grant(self, name):
        await self._work(name)
        token = self.token or f"token-{len(self.calls)}"
        return Grant(
            access_token=Secret(token, origin=ORIGIN),
            refresh_token=Secret(self.refresh_token, origin=ORIGIN),
            life=self.life,
            account_id=self.account_id,
            date=self.date(),
        )


class Remembering(Known):
    """Remembers every token there was."""

    def __init__(self, *args, **options):
        self.tokens = {}
        super().__init__(*args, **options)

    def __setattr__(self, name, value):
        if name == "held" and value.token is not None:
            self.tokens[value.token.generation] = value.token
        super().__setattr__(name, value)


class Counted(Session):
    """A session whose tokens tests call by their generation."""

    def __init__(self, auth, *, limits, **options):
        self.known = Remembering("nomba", **options)
        super().__init__(self.known, auth=auth, limits=limits)

    async def renew(self, *, after, by):
        self.known.listen()
        return await super().renew(after=self.known.tokens[after], by=by)

    def refused(self, generation, *, by):
        self.known.listen()
        super().refused(self.known.tokens[generation], by=by)


DOWN = IssuerError("issue: no connection", reason="unreachable")
WRONG_SECRET = IssuerError("issue: HTTP 401, envelope code 401", reason="credentials")


@pytest.fixture
def down():
    return {"issue": DOWN, "refresh": DOWN, "revoke": DOWN}


@pytest.fixture
def wrong_secret():
    return {"issue": WRONG_SECRET, "refresh": WRONG_SECRET}


@pytest.fixture
async def time():
    frozen = FrozenTime()
    loop = asyncio.get_running_loop()
    loop.time = lambda: frozen.now
    yield frozen
    del loop.time


@pytest.fixture
def counted():
    return Counted


@pytest.fixture
def issuer(time):
    return Issuer(time)


@pytest.fixture
def events():
    """What the session emitted."""
    return []


@pytest.fixture
def file_store(tmp_path, time):
    """Make a store as another process would, of the session in a folder of this test."""

    def make(*, warn=None, boot="boot", clocks=time.clocks, keyring=None):
        identity = Identity(ORIGIN, "client")
        seal = Seal(identity, keyring=keyring or Keyring(Secret(SECRET, origin=ORIGIN)))
        clock = MachineClock(boot, alive=clocks.alive, wall=clocks.wall)
        return FileStore(
            tmp_path, identity=identity, seal=seal, clock=clock, warn=warn or pytest.fail
        )

    return make


@pytest.fixture
async def join(issuer, time, events, file_store):
    """Another process that shares the session in a file, with client secrets: joins as just started."""
    joined = []

    async def start(*secrets, warn=None, auth=issuer, **limits):
        keyring = Keyring(*(Secret(one, origin=ORIGIN) for one in secrets or (SECRET,)))
        session = Counted(
            auth,
            keyring=keyring,
            store=file_store(warn=warn, keyring=keyring),
            limits=Limits(**limits),
            clocks=time.clocks,
            emit=events.append,
        )
        joined.append(session)
        session.start()
        await settle()
        return session

    yield start
    for session in joined:
        await closed(session, time)


@pytest.fixture(params=["memory", "file"])
def store(request, file_store):
    """A new store of either kind."""
    return MemoryStore if request.param == "memory" else file_store


@pytest.fixture
async def begin(time, issuer, events, store):
    """Start a session; keyword arguments are its settings."""
    begun = []

    async def start(**settings):
        session = Counted(
            issuer,
            keyring=Keyring(Secret(SECRET, origin=ORIGIN)),
            store=store(),
            limits=Limits(**settings),
            clocks=time.clocks,
            emit=events.append,
        )
        begun.append(session)
        session.start()
        await settle()
        return session

    yield start
    for session in begun:
        await closed(session, time)


@pytest.fixture
async def session(begin):
    """A session with a token of generation 1 that lives 1000 s and is due after 750 s."""
    return await begin()


@pytest.fixture
def credentials(simulator):
    """What the simulator knows us by."""
    switches = simulator.switches
    return Credentials(
        simulator.origin,
        switches.client_id,
        switches.account_id,
    )


@pytest.fixture
async def call(simulator):
    """What carries the token calls to the simulator, over real sockets."""
    return Dialler(parse_origin(simulator.origin), timeouts=Timeouts()).call


@pytest.fixture
def auth(credentials, call):
    """The three wire calls."""
    return NombaAuth(credentials, call=call, timeout=20.0)
