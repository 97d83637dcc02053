"""What a worker's handler tells reaches the one ring as if it had been told there, or not at all."""

import asyncio
import contextlib
import gzip
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web
from harness import read_reply

from proxy.body import Bodies, BodyLimits
from proxy.callers.registry import Identity
from proxy.core.account import AccountRule
from proxy.core.browser import Pages
from proxy.core.caller import Caller
from proxy.core.capture import Dialled
from proxy.core.exchange import Event, Exchange
from proxy.core.heads import CallerHead
from proxy.core.lifetime import Lifetime
from proxy.core.mounts import Mount
from proxy.core.secret import Secret
from proxy.core.session import Token
from proxy.errors import Outcome
from proxy.gate import Callers, Headers, Upstream
from proxy.handler import Handler, Limits
from proxy.inspector.exit import Exit
from proxy.inspector.hub import Clock, Hub, listen
from proxy.inspector.looks import MASK
from proxy.inspector.redact import Redactor
from proxy.inspector.relay import MOST, Relay, connect_to
from proxy.inspector.replay import Door, Preview, Replayer
from proxy.inspector.ring import Ring
from proxy.inspector.sessions import Sessions
from proxy.server import TrafficServer
from proxy.settings import parse_origin
from proxy.upstream.dialler import Dialler, Timeouts

MARK = "MARKED-SECRET"
LIMIT = 1000
TOKEN = Secret(f"{MARK}-token-1", origin="https://x")
NEWER = Secret(f"{MARK}-token-2", origin="https://x")
HEADERS = [
    (b"Host", b"x"),
    (b"Authorization", b"Bearer MARKED-SECRET-key"),
    (b"Cookie", b"MARKED-SECRET-cookie"),
    (b"X-Odd", b"caf\xe9 \xc3\xa9"),
    (b"Content-Length", b"3"),
]
JSON = (b"Content-Type", b"application/json")


class Time:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Room:
    """The inspector's process: a ring with its hub."""

    def __init__(self, now=time.monotonic, wall=time.time):
        self.clock = Clock(now_wall=wall, now_monotonic=now)
        self.ring = Ring(
            budget=1 << 24,
            body_limit=LIMIT,
            is_secret=Redactor().is_secret,
            wall=self.clock.wall,
            monotonic=self.clock.monotonic,
        )
        self.sessions = Sessions({}, wall=self.clock.wall)
        self.hub = Hub(self.ring, self.sessions, clock=self.clock)
        self.exit = Exit(Redactor())

    def show(self):
        return [shown(one) for one in self.ring]


def shown(recording):
    return json.loads(json.dumps(asdict(Exit(Redactor()).show(recording)), default=str))


async def until(true):
    for _ in range(1000):
        if found := true():
            return found
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come about")


@pytest.fixture
async def stack():
    async with contextlib.AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def events():
    return []


@pytest.fixture
def begin(events, stack):
    """A relay to whatever `connect` connects to."""

    def begin(connect, **options):
        relay = Relay(
            connect,
            is_secret=Redactor().is_secret,
            body_limit=LIMIT,
            emit=events.append,
            **options,
        )
        stack.push_async_callback(relay.close)
        return relay

    return begin


@pytest.fixture
def room():
    return Room()


def once(way):
    """What connects to a hub that is there once."""
    ways = [way]

    def connect():
        if not ways:
            raise ConnectionRefusedError
        return ways.pop()

    return connect


def run(stack, work):
    task = asyncio.ensure_future(work)

    async def stop():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(stop)
    return task


@pytest.fixture
def joined(begin, room, stack):
    """A relay that is connected to the room's hub by a socket pair."""

    def join(**options):
        here, there = socket.socketpair()
        run(stack, room.hub.take(there))
        return begin(once(here), **options)

    return join


def record(number=0, **fields):
    exchange = Exchange(f"id-{number}", started=1000.0, method="POST")
    for name, value in fields.items():
        setattr(exchange, name, value)
    return exchange


def head(*more):
    incoming = CallerHead([*HEADERS, *more])
    return incoming.forward(b"POST", target=b"/x", host=b"h", body_length=3)


# -- ways an exchange can go: told to `watch`, with the time moved on between any two calls -------


def answered(watch, exchange):
    exchange.body_bytes = 3
    exchange.route, exchange.kind, exchange.caller = "/v1/x", "money", "shop"
    capture = watch(exchange, "/x?pin=1234&a=\udce9 HTTP/1.1", HEADERS)
    yield
    capture.body((b'{"', b"merchantTxRef", b'":"r-1"}'))
    yield
    capture.waiting()
    yield
    capture.waited()
    yield
    capture.attempt(head(), account="acc", token=TOKEN, generation=1, why="first try")
    yield
    capture.sending(Dialled(exchange.started + 1, exchange.started + 2, exchange.started + 3))
    yield
    headers = [JSON, (b"Set-Cookie", b"MARKED-SECRET"), (b"Date", b"now")]
    capture.answered(200, reason=b"OK", headers=headers)
    yield
    given = (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: MARKED-SECRET\r\nContent-Type: application/json\r\n\r\n"
    )
    capture.reply(given)
    yield
    for part in (b'{"code":"00",', b'"description":', b'"fine"}'):
        capture.part(part)
        yield
    exchange.status, exchange.outcome, exchange.attempts = 200, Outcome.ANSWERED, 1
    exchange.seconds, exchange.generation, exchange.reply_bytes = 11.0, 1, 50
    capture.end()


def replayed(watch, exchange):
    capture = watch(exchange, "/x HTTP/1.1", HEADERS)
    yield
    capture.body(())
    for token, status, said in ((TOKEN, 401, b"no"), (NEWER, 200, b"yes")):
        yield
        mark = token.reveal(to="https://x").encode()
        capture.attempt(head(), account="acc", token=token, generation=1, why="some try")
        yield
        capture.sending(None)
        yield
        headers = [(b"Content-Encoding", b"gzip"), (b"X-Echo", b"it was " + mark), JSON]
        capture.answered(status, reason=b"Said " + mark, headers=headers)
        yield
        capture.part(gzip.compress(b'{"message":"%b: %b"}' % (said, mark)))
        yield
        capture.waiting()
        yield
        capture.waited()
    capture.reply(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n")
    exchange.status, exchange.outcome, exchange.attempts = 200, Outcome.ANSWERED, 2
    capture.end()


def too_large(watch, exchange):
    exchange.body_bytes = 5000
    capture = watch(exchange, "/x HTTP/1.0", HEADERS)
    yield
    capture.body(b"%04d" % at * 100 for at in range(13))
    capture.attempt(head(), account="acc", token=TOKEN, generation=1, why="first try")
    capture.sending(None)
    yield
    capture.answered(200, reason=b"", headers=[])
    capture.reply(b"HTTP/1.1 200 \r\n\r\n")
    for size in (0, 400, 700, 0, 300, 5000):
        capture.part(b"\x00\xff" * (size // 2))
        yield
    capture.failed("upstream_broken")
    exchange.error, exchange.outcome = "upstream_broken", Outcome.UNKNOWN
    capture.end()


def refused(watch, exchange):
    capture = watch(exchange, "/x HTTP/1.1", [(b"Content-Length", b"10")])
    capture.failed("nobody is there to fail")
    yield
    exchange.status, exchange.error, exchange.detail = 403, "caller_forbidden", "ask for it"
    capture.reply(b'HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\n\r\n{"code":"403"}')
    capture.end()


def unreadable(watch, exchange):
    exchange.status = 400
    watch(exchange, "", ()).end()
    yield


WAYS = [answered, replayed, too_large, refused, unreadable]


@pytest.mark.parametrize("often", [False, True], ids=["sent at its end", "sent after every call"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_an_exchange_is_shown_as_if_it_had_been_told_to_the_ring_itself(
    way, often, begin, stack
):
    now = Time()
    local, far = Room(now, now), Room(now, now)
    here, there = socket.socketpair()
    relay = begin(once(here), monotonic=now)
    run(stack, far.hub.take(there))
    for _ in itertools.zip_longest(
        way(local.ring.watch, record()), way(relay.watch, record()), fillvalue=None
    ):
        if often:
            relay._flush()
        now.now += 1
    await until(lambda: [one for one in far.ring if one.done])
    assert far.show() == local.show()
    assert local.ring.used - 2000 < far.ring.used <= local.ring.used  # of fewer parts
    assert MARK not in json.dumps(far.show())


async def test_what_is_under_way_is_seen_before_it_is_over(joined, room):
    relay = joined()
    exchange = record(kind="money", route="/v1/x")
    told = answered(relay.watch, exchange)
    next(told)
    (recording,) = await until(lambda: list(room.ring))
    row = room.exit.row(recording)
    assert (row["state"], row["kind"], row["path"]) == ("pending", "money", "/x?pin=•••&a=é")
    for _ in range(5):
        next(told)
    await until(lambda: recording.attempts and recording.attempts[0].sent)
    assert not recording.done
    for _ in told:
        pass
    await until(lambda: recording.done)
    assert [one.number for one in room.ring] == [1]
    assert room.exit.row(recording)["state"] == "ok"


async def test_a_note_is_a_row(joined, room):
    joined().note(record(status=400, error="head_invalid"))
    await until(lambda: list(room.ring))
    (one,) = room.show()
    assert (one["row"]["status"], one["row"]["state"], one["request"]) == (400, "failed", None)


async def test_two_workers_get_numbers_in_the_order_they_tell_in(joined, room):
    one, other = joined(), joined()
    told = []
    for number in range(6):
        told.append(answered((one, other)[number % 2].watch, record(number)))
        next(told[-1])
        await until(lambda: len(list(room.ring)) == len(told))
    for way in reversed(told):
        for _ in way:
            pass
    await until(lambda: all(one.done for one in room.ring))
    assert [(one.number, one.exchange.request_id) for one in room.ring] == [
        (number + 1, f"id-{number}") for number in range(6)
    ]


async def test_no_secret_is_in_what_travels(begin):
    here, there = socket.socketpair()
    there.setblocking(False)
    relay = begin(once(here))
    loop = asyncio.get_running_loop()
    for _ in answered(relay.watch, record()):
        relay._flush()
    for _ in replayed(relay.watch, record(status=200)):
        pass
    relay.emit(Event("token_renewed", fields={"secret": TOKEN}))
    sent = b""
    while sent.count(b'["end",') < 2 or b"token_renewed" not in sent:
        sent += await asyncio.wait_for(loop.sock_recv(there, 1 << 20), 5)
    # An upstream that repeats the token in the clear says it, as any body is what it is.
    said = sent.replace(b"it was MARKED-SECRET-token", b"").replace(
        b"Said MARKED-SECRET-token", b""
    )
    assert MARK.encode() not in said
    assert sent.count(MASK.encode("utf-8").decode("latin-1").encode()) > 5
    assert b"merchantTxRef" in sent
    there.close()


async def test_no_more_of_a_body_travels_than_is_kept(begin):
    here, there = socket.socketpair()
    relay = begin(once(here))
    capture = relay.watch(record(body_bytes=5000), "/x HTTP/1.1", ())
    capture.body((b"Q" * 900, b"Q" * 4100))
    for _ in range(2):
        capture.attempt(head(), account="a", token=TOKEN, generation=1, why="first try")
        capture.answered(200, reason=b"OK", headers=())
        for size in (900, 4100, 10_000):
            capture.part(b"Z" * size)
    capture.end()
    relay._flush()
    sent = there.recv(1 << 20)
    assert b'["end",' in sent
    assert (sent.count(b"Q"), sent.count(b"Z")) == (LIMIT, 2 * LIMIT)
    there.close()


async def test_a_token_that_an_upstream_repeats_is_masked_without_being_known(joined, room):
    relay = joined()
    for _ in replayed(relay.watch, record()):
        pass
    await until(lambda: any(one.done for one in room.ring))
    (one,) = room.show()
    assert "no: •••" in one["attempts"][0]["reply"]["body"]["text"]
    assert dict(one["attempts"][1]["reply"]["headers"])["X-Echo"] == "it was •••"
    assert one["row"]["description"] == "yes: •••"


# -- when one of the two ends --------------------------------------------------------------------

WORKER = """
import asyncio, sys
from pathlib import Path
from proxy.core.exchange import Exchange
from proxy.inspector.relay import Relay, connect_to

async def main():
    relay = Relay(connect_to(Path(sys.argv[1])), is_secret=lambda _: False, body_limit=9, emit=print)
    done = relay.watch(Exchange("done", 0.0), "/done HTTP/1.1", ())
    done.end()
    relay.watch(Exchange("half", 0.0, kind="money"), "/half HTTP/1.1", ())
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, "hub")


async def test_what_a_killed_worker_had_under_way_is_over_and_nobody_knows(room, stack, path):
    listener = stack.enter_context(listen(path))
    run(stack, room.hub.serve(listener))
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(path)])
    try:
        await until(lambda: len(list(room.ring)) == 2)
        done, half = room.ring
        assert (done.done, half.done) == (True, False)
    finally:
        worker.kill()
        worker.wait(10)
    await until(lambda: half.done)
    row = room.exit.row(half)
    assert (row["error"], row["outcome"], row["state"]) == ("worker_lost", "unknown", "unknown")
    assert row["seconds"] > 0
    assert room.exit.row(done)["error"] == ""


async def test_what_ended_before_its_worker_did_stays_as_it_was(joined, room):
    relay = joined()
    for _ in answered(relay.watch, record()):
        pass
    await relay.close()
    await until(lambda: any(one.done for one in room.ring))
    assert room.show()[0]["row"]["state"] == "ok"


async def test_a_relay_finds_a_hub_that_was_started_anew(begin, stack, path, events):
    first, second = Room(), Room()
    listener = stack.enter_context(listen(path))
    relay = begin(connect_to(path))
    serving = run(stack, first.hub.serve(listener))
    half = answered(relay.watch, record("half"))
    next(half)
    await until(lambda: list(first.ring))
    serving.cancel()
    await until(lambda: relay.dropped == 1)  # it was told to nobody else
    for number in range(3):  # nobody is there, but the listener is
        for _ in answered(relay.watch, record(number)):
            pass
    relay._flush()
    for _ in half:
        pass
    run(stack, second.hub.serve(listener))
    await until(lambda: len([one for one in second.ring if one.done]) == 3)
    assert [one.exchange.request_id for one in second.ring] == ["id-0", "id-1", "id-2"]
    await until(lambda: second.hub.dropped == 1)
    assert [(one.name, one.fields) for one in events] == [("captures_dropped", {"dropped": 1})]


async def test_where_nobody_listens_captures_are_dropped_and_counted(begin, stack, path, events):
    now = Time()
    relay = begin(connect_to(path), monotonic=now)
    for number in range(3):
        for _ in answered(relay.watch, record(number)):
            relay._flush()
    assert (relay.dropped, relay.held) == (3, 0)
    room = Room(now, now)
    run(stack, room.hub.serve(stack.enter_context(listen(path))))
    now.now += 1
    for _ in answered(relay.watch, record(3)):
        pass
    await until(lambda: [one.exchange.request_id for one in room.ring if one.done] == ["id-3"])
    await until(lambda: room.hub.dropped == 3)
    assert [one.fields for one in events] == [{"dropped": 3}]


async def test_a_hub_that_is_slow_holds_nobody_up_and_gets_whole_captures_only(
    begin, room, stack, events
):
    here, there = socket.socketpair()
    budget = 200_000
    relay = begin(once(here), budget=budget)
    exchange = record("early")
    early = relay.watch(exchange, "/early HTTP/1.1", HEADERS)
    relay._flush()
    for number in range(1000):
        for _ in answered(relay.watch, record(number)):
            pass
        if number % 3 == 0:
            relay._flush()
        assert relay.held <= budget
    for _ in range(100):  # there is no room for the rest of it
        early.waiting()
        early.waited()
    exchange.status, exchange.outcome = 200, Outcome.ANSWERED
    early.end()
    dropped = relay.dropped
    assert 1 < dropped < 1000
    run(stack, room.hub.take(there))
    await until(lambda: relay.held == 0)
    await until(lambda: room.hub.dropped == dropped)
    assert sum(one.fields["dropped"] for one in events) == dropped
    first, *others = room.show()
    assert first["row"]["detail"].startswith("the inspector could not keep up")
    assert (first["row"]["status"], first["request"], first["attempts"]) == (200, None, [])
    assert len(others) == 1001 - dropped
    for one in others:
        assert one["row"]["state"] == "ok"
        assert one["reply"]["body"]["text"] == '{"code":"00","description":"fine"}'


async def test_what_grows_on_its_way_is_weighed_as_it_travels(joined, room):
    relay = joined(budget=5000)
    capture = relay.watch(record("zeros", status=200), "/zeros HTTP/1.1", ())
    relay._flush()
    capture.body((b"\0" * LIMIT,))  # each of them six characters
    capture.end()
    relay._flush()
    assert (relay.dropped, relay.held) == (1, 0)
    for _ in refused(relay.watch, record("small")):
        pass
    await until(lambda: len([one for one in room.ring if one.done]) == 2)
    first, second = room.show()
    assert first["row"]["detail"].startswith("the inspector could not keep up")
    assert second["row"]["detail"] == "ask for it"


async def test_what_waits_for_a_hub_that_goes_is_counted(begin):
    here, there = socket.socketpair()
    relay = begin(once(here))
    number = 0
    while not relay._blocked:
        for _ in answered(relay.watch, record(number)):
            pass
        number += 1
        if number % 100 == 0:
            relay._flush()
    half = relay.watch(record("half"), "/half HTTP/1.1", ())
    relay._flush()
    there.close()
    await until(lambda: relay.dropped)
    half.end()
    assert relay.dropped <= number + 1
    assert relay.dropped > 100
    assert relay.held == 0


async def test_a_capture_that_cannot_be_said_is_dropped_alone(joined, room):
    relay = joined()
    for number, caller in enumerate(["shop", "half \ud800", "till"]):
        for _ in refused(relay.watch, record(number, caller=caller)):
            pass
    await until(lambda: len(list(room.ring)) == 2)
    assert [one.exchange.caller for one in room.ring] == ["shop", "till"]
    assert relay.dropped == 1


NOW = time.monotonic()
EXCHANGE = json.loads(json.dumps(asdict(record())))
BEGIN = ["begin", NOW, "/x HTTP/1.1", ""]
RENEWED = {"life_seconds": 1.0, "grant": "issue", "for": "due", "generation": 2}
RENEWED = {"name": "token_renewed", "level": "info", "upstream": "live", "fields": RENEWED}


@pytest.mark.parametrize(
    "frame",
    [
        b"{",
        b"[" * 100_000,
        b'"capture"',
        {"capture": 1},
        ["capture", "1", EXCHANGE, [BEGIN]],
        ["capture", 1, {}, [BEGIN]],
        ["capture", 1, EXCHANGE | {"status": "200"}, [BEGIN]],
        ["capture", 1, EXCHANGE | {"outcome": "fine"}, [BEGIN]],
        ["capture", 1, EXCHANGE, [["begin", NOW, "/x", "\u2022"]]],
        ["capture", 1, EXCHANGE, [["begin", None, "/x", ""]]],
        ["capture", 1, EXCHANGE, [["begin", 1e300, "/x HTTP/1.1", ""]]],
        ["capture", 1, EXCHANGE, [["end", NOW]]],
        ["capture", 1, EXCHANGE, [BEGIN, BEGIN]],
        ["capture", 1, EXCHANGE, [BEGIN, ["forget", NOW]]],
        ["capture", 1, EXCHANGE, [BEGIN, ["waited", NOW]]],
        ["capture", 1, EXCHANGE, [BEGIN, ["part", NOW, "x", 0]]],
        ["capture", 1, EXCHANGE, [BEGIN, ["attempt", NOW, "", "a", ["1", 1, ""], 1, ""]]],
        ["capture", 1, EXCHANGE, [BEGIN, ["end", NOW], ["end", NOW]]],
        ["event", NOW, {"name": "token_renewed", "fields": {}}],
        ["event", NOW, {"name": "token_renewed", "level": "", "upstream": "", "fields": {}}],
        ["event", 1e300, RENEWED],
        ["event", NOW, RENEWED | {"fields": RENEWED["fields"] | {"life_seconds": []}}],
        ["dropped", "1"],
    ],
    ids=map(str, itertools.count()),
)
async def test_who_says_what_no_relay_would_is_let_go_of_alone(frame, joined, room, stack):
    good = joined()
    half = answered(good.watch, record())
    next(half)
    here, there = socket.socketpair()
    taken = run(stack, room.hub.take(there))
    data = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
    here.sendall(len(data).to_bytes(4) + data)
    await asyncio.wait_for(taken, 5)
    here.close()
    for _ in half:
        pass
    await until(lambda: "ok" in {room.exit.row(one)["state"] for one in room.ring})
    assert all(one.done for one in room.ring)
    assert room.clock.at is None


async def test_a_frame_has_a_largest_size(room, stack):
    here, there = socket.socketpair()
    taken = run(stack, room.hub.take(there))
    here.sendall((MOST + 1).to_bytes(4))
    await asyncio.wait_for(taken, 5)
    here.close()


async def test_renewals_are_told_to_the_sessions(joined, room):
    now = Time()
    relay = joined(monotonic=now)
    room.clock.now_monotonic, room.clock.now_wall = now, lambda: now.now + 1e9
    fields = {"life_seconds": 1800.0, "grant": "issue", "for": "due", "generation": 2}
    relay.emit(Event("token_renewed", upstream="live", fields=fields))
    relay.emit(Event("policy_observed", "warning", "live", {"reason": "half \ud800"}))
    now.now += 5  # meanwhile
    status = {"state": "living", "expires_in": 1700.0}
    view = SimpleNamespace(environment="production", status=lambda: status)
    room.sessions.views["live"] = view
    (renewal,) = await until(lambda: room.sessions.show()[0]["renewals"])
    assert (renewal["grant"], renewal["generation"]) == ("issue", 2)
    assert renewal["at"] == "2001-09-09T02:03:20.000Z"  # when it was told, not when it came


# -- two workers ---------------------------------------------------------------------------------


class Lender:
    """A session that has a new token whenever it is asked for one."""

    def __init__(self, origin):
        self._origin = origin
        self._generation = 1

    def lend(self):
        secret = Secret(f"{MARK}-{self._generation}", origin=self._origin)
        return Token(secret, secret, self._generation, Lifetime(1e9, 1e9, 1e18))

    async def renew(self, *, after, by):
        self._generation = max(self._generation, after.generation + 1)
        return self.lend()

    def accepted(self, generation, *, by):
        pass


@pytest.fixture
async def worker(upstream, stack):
    """A handler on a port of its own, watched by a relay."""

    async def begin(relay):
        origin = parse_origin(upstream.origin)
        dialler = Dialler(origin, timeouts=Timeouts())
        stack.callback(dialler.close)
        anybody = SimpleNamespace(
            identify=lambda *_, **__: Identity(Caller("anonymous"), "anonymous"),
            enter=lambda _: None,
        )
        handler = Handler(
            (Upstream("scripted", Mount(), dialler, Lender(origin.text), AccountRule("a")),),
            limits=Limits(),
            bodies=Bodies(BodyLimits()),
            callers=Callers(anybody, None, Pages(hosts=frozenset({"x"}))),
            headers=Headers(via=b"1.1 test"),
            is_own_authority=lambda _: False,
            observe=lambda _: None,
            emit=relay.emit,
            watch=relay.watch,
        )
        server = TrafficServer(handler, observe=relay.note, emit=relay.emit)
        runner = web.ServerRunner(server)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return handler, runner.addresses[0][1]

    return begin


async def ask(port, request):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    reply = await read_reply(reader)
    writer.close()
    return reply


GET = b"GET /v1/accounts/balance HTTP/1.1\r\nHost: x\r\nX-Request-Id: %b\r\nCookie: MARKED-SECRET\r\n\r\n"


async def refuse_the_first(head, body, writer):
    """An upstream that wants the second token."""
    status = b"200 OK" if f"{MARK}-2".encode() in head else b"401 Unauthorized"
    writer.write(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\nok" % status)
    await writer.drain()


async def test_two_workers_feed_one_inspector(joined, room, worker, upstream):
    upstream.answer = refuse_the_first
    ports = [(await worker(joined()))[1] for _ in range(2)]
    replies = await asyncio.gather(
        *(ask(ports[at % 2], GET % b"caller-%d" % at) for at in range(10)),
        ask(ports[0], b"GET / HTTP/1.1\r\nHost: x\r\nbad\r\n\r\n"),
    )
    assert sorted(reply.status for reply in replies) == [200] * 10 + [400]
    await until(lambda: len([one for one in room.ring if one.done]) == 11)
    assert [one.number for one in room.ring] == list(range(1, 12))
    every = room.show()
    assert {f"caller-{at}" for at in range(10)} < {one["row"]["request_id"] for one in every}
    replayed = [one for one in every if len(one["attempts"]) == 2]
    assert len(replayed) >= 2  # each worker found out once
    for one in replayed:
        assert [sent["reply"]["start"][9:12] for sent in one["attempts"]] == ["401", "200"]
        assert "renewal" in {span["name"] for span in one["timeline"]}
        assert one["row"]["outcome"] == "answered"
    assert MARK not in json.dumps(every)


async def test_a_replay_is_linked_whichever_worker_answers_it(joined, room, worker, stack):
    handler, port = await worker(joined())
    _, other = await worker(joined())
    await ask(port, GET % b"original")
    (original,) = await until(lambda: [one for one in room.ring if one.done])
    dialler = Dialler(parse_origin(f"http://127.0.0.1:{other}"), timeouts=Timeouts())
    stack.callback(dialler.close)

    async def send(head, body, head_only):
        reply = await dialler.send(head, body=(), head_only=head_only, fresh=True)
        async for _ in reply.parts():
            pass
        reply.close()

    def preview(method, target):
        return Preview(*handler.preview(method, target), simulated=True)

    door = Door(f"127.0.0.1:{other}", preview=preview, send=send, ticket=lambda *_: "")
    found = await Replayer(room.ring, door).replay(original, {})
    assert found.done
    assert (found.number, found.replay_of) == (2, original.number)
