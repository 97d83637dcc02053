"""Every named fault, over raw sockets: what is on the wire, and what was done."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from harness import read_reply, reset

from proxy.simulator import KINDS, Fault, parse_fault
from proxy.simulator.faults import fits, make_fault
from proxy.simulator.simulator import Simulator

BALANCE = "/v1/accounts/balance"
TRANSFER = "/v2/transfers/bank"
FORM = {"amount": 100, "accountNumber": "0123456789", "bankCode": "1", "merchantTxRef": "ref-1"}


@pytest.fixture
async def talk(sim, logged_in, wire):
    """Send a request on a connection; `reader, writer = await talk(...)`."""

    async def say(method="POST", path=TRANSFER, *, on=None, more="", body=None):
        if body is None:
            body = json.dumps(FORM).encode() if method == "POST" else b""
        reader, writer = on or await wire()
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: nomba\r\nAuthorization: Bearer {logged_in.token}\r\n"
            f"accountId: {sim.switches.account_id}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode()
            + body
        )
        return reader, writer

    return say


async def ends(reader):
    """All that comes, and whether the end was a reset."""
    data = b""
    try:
        while chunk := await asyncio.wait_for(reader.read(65536), 10):
            data += chunk
    except ConnectionResetError:
        return data, "reset"
    return data, "closed"


# -- faults of the session ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["expire", "revoke"])
async def test_the_session_can_end_as_a_request_comes(sim, logged_in, name):
    sim.inject(parse_fault(f"{name} path={TRANSFER}"))
    assert (await logged_in.balance()).status == 200
    assert (await logged_in.transfer()).status == 401
    assert sim.ledger == []
    refresh = await logged_in.refresh()
    assert refresh.status == {"expire": 400, "revoke": 401}[name]
    await logged_in.issue()
    assert (await logged_in.transfer()).status == 200


# -- faults of the answer ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status", "body", "moved"),
    [
        ("unauthorized", 401, {"code": "401", "description": "Unauthorized"}, 0),
        ("too-many-requests", 429, {"code": "429", "description": "Too many requests"}, 0),
        ("reply status=503", 503, {"code": "503", "description": "Service Unavailable"}, 0),
        (
            "reply status=503 work=true",
            503,
            {"code": "503", "description": "Service Unavailable"},
            1,
        ),
        ('reply body={"code":"01"}', 200, {"code": "01"}, 0),
    ],
)
async def test_an_answer_can_be_another(sim, logged_in, text, status, body, moved):
    name, _, rest = text.partition(" ")
    sim.inject(make_fault(name, dict(pair.split("=", 1) for pair in rest.split())))
    reply = await logged_in.transfer()
    assert (reply.status, reply.json, len(sim.ledger)) == (status, body, moved)
    assert (await logged_in.balance()).status == 200


async def test_money_can_move_and_the_reply_say_that_the_token_expired(sim, logged_in):
    sim.inject(parse_fault("debit-then-expired"))
    reply = await logged_in.transfer()
    assert reply.status == 500
    assert reply.json["detail"].startswith("Internal Server Error: INTERNAL: JWT expired at ")
    assert [one.ref for one in sim.ledger] == ["ref-1"]


async def test_an_edge_can_refuse_with_a_page(sim, logged_in):
    sim.inject(parse_fault("forbidden"))
    reply = await logged_in.transfer()
    assert (reply.status, reply.headers["Content-Type"]) == (403, "text/html")
    assert reply.body.startswith(b"<!DOCTYPE html>")
    assert sim.ledger == []


async def test_a_reply_can_have_another_type(sim, logged_in):
    sim.inject(parse_fault("reply body='<p>no</p>' content_type=text/html"))
    reply = await logged_in.balance()
    assert (reply.headers["Content-Type"], reply.body) == ("text/html", b"<p>no</p>")


@pytest.mark.parametrize("work", ["true", "false"])
async def test_an_answer_can_be_slow(sim, logged_in, waits, work):
    sim.inject(parse_fault(f"delay seconds=7.5 work={work}"))
    assert (await logged_in.transfer()).status == 200
    assert waits == [7.5]
    assert len(sim.ledger) == 1


@pytest.mark.parametrize(("work", "moved"), [("true", 1), ("false", 0)])
async def test_an_answer_can_never_come(sim, talk, work, moved):
    sim.inject(parse_fault(f"stall work={work}"))
    reader, writer = await talk()
    await sim.wait_for(TRANSFER)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.05)
    assert len(sim.ledger) == moved
    writer.write_eof()  # it ends with its sender
    assert await ends(reader) == (b"", "closed")
    assert len(sim.ledger) == moved


# -- faults of the connection ---------------------------------------------------------------


async def test_a_reply_can_be_lost_after_the_work(sim, talk):
    sim.inject(parse_fault("lose-reply"))
    reader, _ = await talk()
    assert await ends(reader) == (b"", "reset")
    assert [one.ref for one in sim.ledger] == ["ref-1"]


async def test_a_connection_can_be_reset_as_it_is_opened(sim, talk, wire):
    sim.inject(parse_fault("drop-connection"))
    reader, _ = await wire()
    assert await ends(reader) == (b"", "reset")
    reader, _ = await talk("GET", BALANCE)
    assert (await read_reply(reader)).status == 200
    assert len(sim.received) == 2  # the login and the last one


async def test_a_request_can_be_dropped_before_its_body_is_read(sim, talk):
    sim.inject(parse_fault("drop-before"))
    reader, _ = await talk()
    assert await ends(reader) == (b"", "reset")
    [request] = sim.calls(TRANSFER)
    assert (request.whole, request.body, sim.ledger) == (False, b"", [])


@pytest.mark.parametrize("length", ["", "Content-Length: 0\r\n", "Content-Length: 00\r\n"])
async def test_a_request_whose_body_is_empty_is_dropped_at_its_end(sim, wire, length):
    sim.inject(parse_fault("drop-during"))
    reader, writer = await wire()
    writer.write(f"POST /x HTTP/1.1\r\nHost: x\r\n{length}\r\n".encode())
    assert await ends(reader) == (b"", "reset")


async def test_slow_bytes_end_with_their_reader(sim, talk):
    started, go = asyncio.Event(), asyncio.Event()

    async def sleep(_):
        started.set()
        await go.wait()

    object.__setattr__(sim._server._site, "sleep", sleep)
    sim.inject(parse_fault("slow-bytes"))
    _, writer = await talk("GET", BALANCE)
    await started.wait()
    [connection] = [one for one in sim._server._connections if one._reader._connection > 1]
    reset(writer)
    await asyncio.wait_for(connection._lost.wait(), 5)
    go.set()
    await asyncio.wait_for(connection._task, 5)


async def test_a_fault_of_the_simulator_is_an_answer_and_a_line(sim, logged_in):
    said = []
    object.__setattr__(sim._server._site, "trouble", said.append)
    sim._api._router = None  # as if something were broken
    reply = await logged_in.balance()
    assert (reply.status, reply.json["code"]) == (500, "500")
    assert said == [
        "GET /v1/accounts/balance: AttributeError(\"'NoneType' object has no attribute 'find'\")"
    ]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
async def test_a_request_can_be_dropped_in_the_middle_of_its_body(
    sim, logged_in, wire, together, expect
):
    sim.inject(parse_fault(f"drop-during path={TRANSFER}"))
    reader, writer = await wire()
    head = f"POST {TRANSFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n{expect}\r\n".encode()
    writer.write(head + (b"12345678" if together else b""))
    while not sim.count(TRANSFER):
        await asyncio.sleep(0)
    first = b""
    if not together:
        if expect:
            first = await reader.readuntil(b"\r\n\r\n")
            assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"123")
    assert (await ends(reader))[1] == "reset"
    [request] = sim.calls(TRANSFER)
    assert (request.whole, request.status, sim.ledger) == (False, None, [])


async def test_a_request_without_a_body_is_dropped_at_its_end(sim, talk):
    sim.inject(parse_fault("drop-during"))
    reader, _ = await talk("GET", BALANCE)
    assert await ends(reader) == (b"", "reset")


async def test_a_request_can_be_dropped_once_it_is_read(sim, talk):
    sim.inject(parse_fault("drop-after"))
    reader, _ = await talk()
    assert await ends(reader) == (b"", "reset")
    [request] = sim.calls(TRANSFER)
    assert (request.whole, sim.ledger) == (True, [])


async def whole_reply(talk):
    reader, _ = await talk("GET", BALANCE)
    return (await read_reply(reader)).raw


@pytest.mark.parametrize("cut", [0, 1, 120])
@pytest.mark.parametrize("then", ["close", "reset", "stall"])
async def test_a_reply_can_be_cut_short(sim, talk, cut, then):
    sim.inject(parse_fault(f"cut bytes={cut} then={then}"))
    reader, writer = await talk()
    got = await asyncio.wait_for(reader.readexactly(cut), 10) if then != "reset" else b""
    if then == "stall":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.05)
        writer.write_eof()
    rest, how = await ends(reader)
    assert how == ("reset" if then == "reset" else "closed")
    assert rest == b"" or then == "reset"
    assert (b"HTTP/1.1 200 OK\r\n" + b" " * cut).startswith(got[:17])
    assert len(sim.ledger) == 1


async def test_a_pipelined_request_behind_a_cut_reply_is_not_worked(sim, talk):
    sim.inject(parse_fault(f"cut path={BALANCE}"))
    with sim.hold(BALANCE) as hold:
        connection = await talk("GET", BALANCE)
        await hold.caught()
        await talk(on=connection)
        await sim.wait_for(TRANSFER)
    assert len((await ends(connection[0]))[0]) == 120
    assert sim.ledger == []


async def test_an_answer_can_be_no_http(sim, talk):
    sim.inject(parse_fault("garbage"))
    reader, _ = await talk()
    data, how = await ends(reader)
    assert (data[:3], how) == (b"\x16\x03\x01", "closed")
    assert len(sim.ledger) == 1


async def test_a_stray_byte_can_follow_a_reply_and_the_connection_goes_on(sim, talk):
    sim.inject(parse_fault("stray-byte"))
    connection = await talk("GET", BALANCE)
    assert (await read_reply(connection[0])).status == 200
    assert await connection[0].readexactly(1) == b"x"
    await talk("GET", BALANCE, on=connection)
    assert (await read_reply(connection[0])).status == 200


async def test_a_reply_can_come_again_on_the_idle_connection(sim, talk, waits):
    sim.inject(parse_fault("unsolicited seconds=0.25"))
    connection = await talk("GET", BALANCE)
    first = await read_reply(connection[0])
    second = await read_reply(connection[0])
    assert first.raw == second.raw
    assert waits == [0.25]
    assert len(sim.calls(BALANCE)) == 1
    await talk("GET", BALANCE, on=connection)
    assert (await read_reply(connection[0])).status == 200


async def test_a_reply_can_come_byte_by_byte(sim, talk, waits):
    expected = await whole_reply(talk)
    sim.inject(parse_fault("slow-bytes seconds=0.5"))
    reader, _ = await talk("GET", BALANCE)
    reply = await read_reply(reader)
    assert len(reply.raw) == len(expected)
    assert waits == [0.5] * (len(expected) - 1)


# -- which requests, and how often -------------------------------------------------------


async def test_a_fault_is_for_a_pattern_and_a_method(sim, logged_in):
    sim.inject(parse_fault("reply status=500 path=/v./transfers/* times=always"))  # no such path
    sim.inject(parse_fault("reply status=501 path=/v2/*/bank method=post times=2"))
    assert (await logged_in.send("GET", "/v1/transfers/banks")).status == 200
    assert (await logged_in.send("PUT", TRANSFER)).status == 405
    assert [(await logged_in.transfer()).status for _ in range(3)] == [501, 501, 200]
    assert [one.fault.name for one in sim.faults] == ["reply"]


async def test_a_pattern_is_literal_but_for_its_stars(sim, logged_in):
    for path in (
        "/v1/accounts.balance",
        "/v1/[a]ccounts/balance",
        BALANCE + "/",
        "*/account/balance",
        "/v1*v1/accounts/balance",
    ):
        sim.inject(parse_fault(f"unauthorized path={path} times=always"))
    assert (await logged_in.balance()).status == 200
    sim.inject(parse_fault("unauthorized path=*balance"))
    assert (await logged_in.balance()).status == 401


async def throws(seed, count=30, *, again=False):
    async with Simulator(seed=seed) as sim:
        if again:
            sim.inject(parse_fault("unauthorized probability=0.5"))
            for _ in range(7):
                sim._script.take("GET", "/x")
            sim.reset()
        sim.inject(parse_fault("unauthorized probability=0.5"))
        taken = [sim._script.take("GET", "/x") is not None for _ in range(count)]
        assert sim.faults[0].left is None
        return taken


async def test_chance_is_the_same_for_the_same_seed():
    first = await throws(1)
    assert first == await throws(1) != await throws(2)
    assert first == await throws(1, again=True)
    assert 5 < sum(first) < 25


@pytest.mark.parametrize(("probability", "status"), [("0", 200), ("1", 401)])
async def test_chance_can_be_certainty(sim, logged_in, probability, status):
    sim.inject(parse_fault(f"unauthorized probability={probability} times=always"))
    assert {(await logged_in.balance()).status for _ in range(9)} == {status}


async def test_the_oldest_fault_that_matches_is_taken(sim, logged_in):
    sim.inject(parse_fault("reply status=500"))
    sim.inject(parse_fault("reply status=501"))
    assert [(await logged_in.balance()).status for _ in range(3)] == [500, 501, 200]


async def test_every_kind_is_tested_here():
    source = Path(__file__).read_text()
    for name in KINDS:
        assert f'"{name}' in source, name


# -- asking for them ---------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_can_be_asked_for_as_it_is(name):
    fault = parse_fault(name)
    assert isinstance(fault, Fault)
    assert (fault.name, fault.path, fault.method, fault.times) == (name, "*", "*", 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no fault; there are: expire, revoke"),
        ("losereply", "'losereply' is no fault"),
        ("lose-reply path", "'path' is no key=value"),
        ("lose-reply seconds=1", "has no option 'seconds'; it has: path, method"),
        ("lose-reply times=0", "times must be always or a whole number from 1 to"),
        ("lose-reply times=-1", "times must be"),
        ("lose-reply times=1.5", "times must be"),
        ("lose-reply times=9999999999", "times must be"),
        ("lose-reply probability=1.1", "probability must be a number from 0 to 1"),
        ("lose-reply probability=nan", "probability must be a number from 0 to 1"),
        ("lose-reply path=v1/x", "path must begin with / or *"),
        ("lose-reply path=", "path must begin with / or *"),
        ("lose-reply path=/x?y", "has no query"),
        ("lose-reply method=/", "method must be an HTTP method or *"),
        ("reply content_type=тип", "content_type must be visible ASCII"),
        ("reply 'content_type=a\r\nX-B: c'", "content_type must be visible ASCII"),
        ('reply body={"code":"77"}', "body begins like JSON and is none; quote it"),
        ("delay seconds=3601", "seconds must be a number of seconds from 0 to 3600"),
        ("lose-reply 'path=x", "No closing quotation"),
        ("delay seconds=x", "seconds must be a number of seconds"),
        ("delay seconds=-1", "seconds must be"),
        ("delay work=maybe", "work must be true or false"),
        ("cut then=explode", "then must be one of close, reset, stall"),
        ("cut bytes=-1", "bytes must be a whole number"),
        ("reply status=199", "status must be a final HTTP status, from 200 to 999"),
        ("reply status=1000", "status must be a final HTTP status, from 200 to 999"),
        ("drop-connection path=/x", "nothing is read yet"),
    ],
)
def test_what_does_not_fit_is_said(text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_fault(text)


@pytest.mark.parametrize(
    "options",
    [
        {"times": True},
        {"times": None},
        {"times": [1]},
        {"path": 7},
        {"work": [True]},
        {"body": 7},
        {"body": "\ud800"},
        {"status": 200.5},
        {"times": 2.5},
        {"status": "x"},
        {"probability": {}},
    ],
)
def test_what_does_not_fit_is_said_to_objects_too(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_fault("reply", options)


def test_a_body_can_be_an_object_and_options_can_have_their_types():
    fault = make_fault("reply", {"body": {"code": "00"}, "status": 201, "times": 3, "work": True})
    assert (fault.reply.status, fault.reply.body) == (201, b'{"code":"00"}')
    assert (fault.times, fault.work) == (3, True)
    assert make_fault("delay", {"seconds": 2}).delay == 2.0
    assert make_fault("reply", {"body": [1, {"a": "ü"}]}).reply.body == b'[1,{"a":"\\u00fc"}]'


@pytest.mark.parametrize(
    ("pattern", "path", "fit"),
    [
        ("*", "", True),
        ("/a", "/a", True),
        ("/a", "/ab", False),
        ("/a*", "/a", True),
        ("*a", "/ba", True),
        ("/a*a", "/a", False),
        ("/a*a", "/aa", True),
        ("/a*b*c", "/axbxc", True),
        ("/a*b*c", "/axc", False),
        ("/a*b*bc", "/abc", False),
        ("/**/x", "/a/x", True),
        ("/a.c", "/abc", False),
        ("*" + "a*" * 30 + "b", "/" + "a" * 200, False),  # and at once
    ],
)
def test_stars_stand_for_any_characters(pattern, path, fit):
    assert fits(path, pattern=pattern) is fit
