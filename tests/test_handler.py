"""Faults of our own: answered, reported, and without what the caller sent."""

import asyncio
from types import SimpleNamespace

import pytest
from aiohttp import web
from harness import Log, read_reply

from proxy.body import Bodies, BodyLimits
from proxy.callers.registry import Identity
from proxy.core.account import AccountRule
from proxy.core.browser import Pages
from proxy.core.caller import Caller
from proxy.core.capture import Capture, Together
from proxy.core.lifetime import Lifetime
from proxy.core.mounts import Mount
from proxy.core.reply_heads import ReplyHead
from proxy.core.secret import Secret
from proxy.errors import Outcome, UpstreamBroken
from proxy.gate import Callers, Headers, Upstream
from proxy.handler import Handler, Limits
from proxy.server import TrafficServer
from proxy.settings import parse_origin
from proxy.telemetry import Telemetry
from proxy.tokens.manager import Token

ORIGIN = parse_origin("http://127.0.0.1:9")


class Lender:
    """A session that always has a token."""

    def lend(self):
        secret = Secret("a-token", origin=ORIGIN.text)
        return Token(secret, secret, 1, Lifetime(1e9, 1e9, 1e18))

    def accepted(self, generation, *, by):
        pass


class ShortReply:
    """A reply that has come whole."""

    bodyless = False
    head = ReplyHead(200, reason=b"OK", headers=[(b"Content-Length", b"2")])

    def ready(self):
        return b"ok"

    def close(self):
        pass


class FaultyCapture(Capture):
    """Somebody who watches, fails at one thing, and keeps what was begun until its end."""

    def __init__(self, at):
        self.at = at
        self.over = False

        if at not in {"", "begin", "end"}:
            setattr(self, at, self.fail)

    def fail(self, *_, **__):
        raise RuntimeError("marked-secret")

    def end(self):
        if self.at == "end":
            self.fail()
        self.over = True


class FaultyReply:
    """A reply that breaks in a way nobody foresaw."""

    bodyless = False

    def __init__(self, length):
        headers = [(b"Content-Length", b"%d" % length)] if length else []
        self.head = ReplyHead(200, reason=b"OK", headers=headers)

    def ready(self):
        return None

    def peeked(self, limit):
        return None

    def close(self):
        pass

    def at_hand(self):
        return b"abc"

    async def part(self):
        raise RuntimeError("marked-secret")


@pytest.fixture
async def call():
    """Send a request to a handler whose upstream does `send`."""
    runners = []

    async def begin(send, version=b"1.1", watching=None):
        log = Log()
        telemetry = Telemetry("json", level="info", version="x", stream=log)
        dialler = SimpleNamespace(origin=ORIGIN, send=send, deadline=lambda: 0.0)
        upstream = Upstream("faulty", Mount(), dialler, Lender(), AccountRule("a"))
        anybody = SimpleNamespace(
            identify=lambda *_, **__: Identity(Caller("anonymous"), "anonymous"),
            enter=lambda _: None,
        )
        watch = {"observe": telemetry.observe, "emit": telemetry.emit}
        handler = Handler(
            (upstream,),
            limits=Limits(),
            bodies=Bodies(BodyLimits()),
            callers=Callers(anybody, None, Pages(hosts=frozenset({"x"}))),
            headers=Headers(via=b"1.1 test"),
            is_own_authority=lambda _: False,
            watch=watching,
            **watch,
        )
        runner = web.ServerRunner(TrafficServer(handler, **watch))
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(b"GET /marked-secret HTTP/" + version + b"\r\nHost: localhost\r\n\r\n")
        try:
            return await read_reply(reader), log
        except (asyncio.IncompleteReadError, ConnectionError):
            return None, log
        finally:
            writer.close()

    yield begin
    for runner in runners:
        await runner.cleanup()


@pytest.mark.parametrize(("sent", "outcome"), [(True, Outcome.UNKNOWN), (False, Outcome.NOT_SENT)])
async def test_an_unforeseen_fault_is_a_500_that_says_nothing_of_the_request(call, sent, outcome):
    async def send(*_, sending, **__):
        if sent:
            sending(None)
        raise RuntimeError("marked-secret")

    reply, log = await call(send)
    assert (reply.status, reply.outcome) == (500, outcome)
    assert reply.json["proxy"]["error"] == "internal"
    (event,) = log.lines("internal_fault")
    assert event["type"] == "RuntimeError"
    assert event["request_id"] == reply.get("X-Request-Id")
    assert "marked-secret" not in reply.raw.decode() + log.text


@pytest.mark.parametrize(("length", "version"), [(10, b"1.1"), (None, b"1.1"), (None, b"1.0")])
async def test_a_fault_while_delivering_cuts_the_reply_visibly(call, length, version):
    async def send(*_, **__):
        return FaultyReply(length)

    reply, log = await call(send, version)
    assert reply is None
    (line,) = log.lines("exchange")
    assert (line["error"], line["outcome"], line["reply_bytes"]) == ("internal", "unknown", 3)
    assert "marked-secret" not in log.text


@pytest.mark.parametrize("at", ["begin", "attempt", "sending", "answered", "part", "reply", "end"])
@pytest.mark.parametrize("whole", [True, False])
async def test_a_fault_of_whoever_watches_changes_nothing(call, at, whole):
    """Neither what the caller gets nor what is accounted for, and what was begun is ended."""

    async def send(*_, sending, **__):
        sending(None)
        if not whole:
            raise UpstreamBroken("It ended.", outcome=Outcome.UNKNOWN)
        return ShortReply()

    watching = FaultyCapture(at)

    def begin(*_):
        if at == "begin":
            raise RuntimeError("marked-secret")
        return watching

    reply, log = await call(send, watching=begin)
    status, outcome = (200, "answered") if whole else (502, "unknown")
    assert (reply.status, reply.outcome) == (status, outcome)
    for _ in range(100):
        if log.lines("exchange"):
            break
        await asyncio.sleep(0.01)
    (line,) = log.lines("exchange")
    assert (line["status"], line["outcome"]) == (status, outcome)
    assert len(log.lines("internal_fault")) == (whole or at not in {"answered", "part"})
    assert watching.over == (at not in {"begin", "end"})
    assert "marked-secret" not in log.text


async def test_who_watches_beside_another_that_fails_at_the_end_lets_go_as_well(call):
    async def send(*_, sending, **__):
        sending(None)
        return ShortReply()

    other = FaultyCapture("")
    reply, log = await call(send, watching=lambda *_: Together(FaultyCapture("end"), other))
    assert reply.status == 200
    for _ in range(100):
        if log.lines("exchange"):
            break
        await asyncio.sleep(0.01)
    assert other.over
    assert len(log.lines("internal_fault")) == 1
