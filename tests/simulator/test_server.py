import asyncio
import json

import aiohttp
import pytest

from proxy.simulator.simulator import Simulator

LOST = "/v1/nowhere"
GET = b"GET /v1/nowhere HTTP/1.1\r\nHost: x\r\n\r\n"


async def read_reply(reader, *, head_only=False):
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Len")
    )
    return head, b"" if head_only else await reader.readexactly(length)


async def test_the_head_is_kept_byte_for_byte(sim, wire):
    head = (
        b"GET /v1/nowhere?a=%2f&&a=b;c HTTP/1.1\r\n"
        b"HOST: x\r\naccountid:  one \r\nAccountId:two\r\nX-Old: \xff\r\n\r\n"
    )
    reader, writer = await wire()
    writer.write(head)
    await read_reply(reader)
    [request] = sim.received
    assert request.raw_head == head
    assert request.target == b"/v1/nowhere?a=%2f&&a=b;c"
    assert request.path == LOST
    assert (request.method, request.connection, request.status) == ("GET", 1, 404)


async def test_the_head_and_the_body_are_the_same_when_every_byte_comes_alone(sim, wire):
    head = b"POST /v1/nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n"
    reader, writer = await wire()
    for byte in head + b"a\nb\r\n\r\n":
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    await read_reply(reader)
    assert (sim.received[0].raw_head, sim.received[0].body) == (head, b"a\nb\r\n\r\n")


async def test_a_chunked_body_is_joined_and_the_next_request_starts_cleanly(sim, wire):
    head = b"POST /v1/nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    reader, writer = await wire()
    writer.write(head + b"5;ext=1\r\nGET \n\r\n3\r\n\r\n!\r\n0\r\nTrailer: t\r\n\r\n" + GET)
    await read_reply(reader)
    await read_reply(reader)
    first, second = sim.received
    assert (first.raw_head, first.body) == (head, b"GET \n\r\n!")
    assert first.header("Trailer") is None
    assert second.raw_head == GET


async def test_an_empty_line_before_a_request_is_not_part_of_it(sim, wire):
    reader, writer = await wire()
    writer.write(b"\r\n" + GET)
    await read_reply(reader)
    assert sim.received[0].raw_head == GET


async def test_pipelined_requests_are_answered_in_order(sim, wire):
    sim.fail("/slow", status=200, body=b"first")
    reader, writer = await wire()
    with sim.hold("/slow") as hold:
        writer.write(GET.replace(LOST.encode(), b"/slow") + GET)
        await sim.wait_for(LOST)
        await hold.caught()
        assert [request.status for request in sim.received] == [None, None]
    assert (await read_reply(reader))[1] == b"first"
    assert (await read_reply(reader))[0].startswith(b"HTTP/1.1 404 ")


async def test_a_connection_is_kept_and_numbered(sim, wire):
    one_reader, one = await wire()
    two_reader, two = await wire()
    for reader, writer in ((one_reader, one), (two_reader, two), (one_reader, one)):
        writer.write(GET)
        await read_reply(reader)
    assert [request.connection for request in sim.received] == [1, 2, 1]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/nowhere HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ],
)
async def test_a_connection_is_closed_when_asked_or_for_http_1_0(sim, wire, head):
    reader, writer = await wire()
    writer.write(head)
    head, _ = await read_reply(reader)
    assert b"\r\nConnection: close\r\n" in head
    assert await reader.read() == b""


async def test_a_sender_that_closes_its_half_is_still_answered(sim, wire):
    reader, writer = await wire()
    writer.write(GET)
    writer.write_eof()
    assert (await reader.read()).startswith(b"HTTP/1.1 404 ")


async def test_expect_100_continue_is_answered_before_the_body(sim, wire):
    reader, writer = await wire()
    writer.write(
        b"POST /v1/nowhere HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (sim.count(LOST), sim.received[0].whole) == (1, False)
    writer.write(b"ok")
    head, _ = await read_reply(reader)
    assert head.startswith(b"HTTP/1.1 404 ")
    assert sim.received[0].body == b"ok"


async def test_100_continue_waits_for_the_replies_before_it(sim, wire):
    reader, writer = await wire()
    with sim.hold(LOST) as hold:
        writer.write(GET)
        await hold.caught()
        writer.write(
            b"POST /v2 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        while not sim.count("/v2"):
            await asyncio.sleep(0)
    await read_reply(reader)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_a_head_request_gets_the_length_but_no_body(sim, wire):
    reader, writer = await wire()
    writer.write(GET.replace(b"GET", b"HEAD") + GET)
    head, _ = await read_reply(reader, head_only=True)
    assert b"Content-Length: 0" not in head
    assert (await read_reply(reader))[0].startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_the_body_of_a_request_that_offers_an_upgrade_is_its_own(sim, wire, framing):
    inner = b"POST /v2/transfers/bank HTTP/1.1\r\nHost: x\r\n\r\n"
    body = b"Content-Length: %d\r\n\r\n%b" % (len(inner), inner)
    if framing == "chunked":
        body = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    head = b"POST /v1/nowhere HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    reader, writer = await wire()
    writer.write(head + body + GET)
    await read_reply(reader)
    await read_reply(reader)
    assert [(one.method, one.path, one.body) for one in sim.received] == [
        ("POST", LOST, inner),
        ("GET", LOST, b""),
    ]
    assert sim.received[0].raw_head.startswith(head)
    assert sim.received[0].header("Upgrade") == "h2c"


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 50_000, b"GET /" + b"a" * 300_000]
)
async def test_a_head_without_end_gets_400(sim, wire, head):
    reader, writer = await wire()
    writer.write(head)
    assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")


async def test_many_chunks_and_many_lines_in_a_chunk_are_one_body(sim, wire):
    lines = b"\n" * 1_000_000
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (n, b"x" * n) for n in range(1, 300))
    reader, writer = await wire()
    writer.write(b"POST /v1/nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(
        b"%x\r\n%b\r\n" % (len(lines), lines) + chunks + b"0\r\nT: 5\r\n5: x\r\n\r\n" + GET
    )
    await read_reply(reader)
    await read_reply(reader)
    assert sim.received[0].body == lines + b"x" * (299 * 300 // 2)
    assert sim.received[1].raw_head == GET


async def test_an_upgrade_is_ignored(sim, wire):
    reader, writer = await wire()
    writer.write(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + GET)
    await read_reply(reader)
    await read_reply(reader)
    assert [request.status for request in sim.received] == [404, 404]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x16\x03\x01\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01 a TLS hello has no line",
        b"\r\n\x16",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"Upgrade: h2c\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: a\0b\r\n\r\n",
        b"GET /v1/nowhere\r\n HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
async def test_a_malformed_head_gets_400_and_a_closed_connection(sim, wire, rubbish):
    reader, writer = await wire()
    writer.write(rubbish)
    head, body = await read_reply(reader)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["code"] == "400"
    assert await reader.read() == b""
    assert sim.received == []


@pytest.mark.parametrize(
    "half", [b"garbage", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\rHost: x\r\r"]
)
async def test_half_a_head_gets_400_at_its_end(sim, wire, half):
    reader, writer = await wire()
    writer.write(GET + half)
    writer.write_eof()
    assert (await read_reply(reader))[0].startswith(b"HTTP/1.1 404 ")
    assert (await read_reply(reader))[0].startswith(b"HTTP/1.1 400 ")
    assert await reader.read() == b""


@pytest.mark.parametrize("size", [b"7", b"0000000000000007", b"0000000000000000000000007"])
async def test_a_chunk_size_may_have_any_number_of_zeros(sim, wire, size):
    reader, writer = await wire()
    writer.write(b"POST /one HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(size + b"\r\nff\nbbbb\r\n0\r\n\r\n" + GET)
    await read_reply(reader)
    await read_reply(reader)
    assert [(one.path, one.body) for one in sim.received] == [("/one", b"ff\nbbbb"), (LOST, b"")]


async def test_a_malformed_body_gets_400_after_the_answers_before_it(sim, wire):
    reader, writer = await wire()
    writer.write(
        GET + b"POST /bad HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot-hex\r\n"
    )
    assert (await read_reply(reader))[0].startswith(b"HTTP/1.1 404 ")
    assert (await read_reply(reader))[0].startswith(b"HTTP/1.1 400 ")
    assert [(request.whole, request.status) for request in sim.received] == [
        (True, 404),
        (False, 400),
    ]


async def test_a_request_that_breaks_off_is_seen_but_never_worked(sim, logged_in, wire):
    _, writer = await wire()
    writer.write(b"POST /v2/transfers/bank HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
    writer.write_eof()
    while not sim.count("/v2/transfers/bank"):
        await asyncio.sleep(0)
    [request] = sim.calls("/v2/transfers/bank")
    assert (request.whole, request.status) == (False, None)


async def test_work_is_finished_when_the_caller_has_left(sim, logged_in):
    with sim.hold("/v2/transfers/bank") as hold:
        task = asyncio.create_task(logged_in.transfer())
        await hold.caught()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    while not sim.ledger:
        await asyncio.sleep(0)
    assert sim.ledger[0].ref == "ref-1"


async def test_every_reply_has_the_usual_headers(sim, caller, clock):
    sim.switches.clock_skew = 3600
    replies = [await caller.send("GET", LOST) for _ in range(42)]
    assert replies[0].headers["Content-Type"] == "application/json"
    assert replies[0].headers["Date"] == "Wed, 08 Jul 2026 00:10:48 GMT"
    assert replies[0].headers["X-Rate-Limit-Limit"] == "40"
    assert replies[0].headers["X-Rate-Limit-Window"] == "1s"
    remaining = [int(reply.headers["X-Rate-Limit-Remaining"]) for reply in replies]
    assert remaining == [*range(39, -1, -1), 0, 0]


async def test_stopping_cuts_held_requests_and_it_can_start_again_on_the_same_port(sim, caller):
    port = int(sim.origin.rsplit(":", 1)[1])
    hold = sim.hold(LOST)
    task = asyncio.create_task(caller.send("POST", LOST))
    await hold.caught()
    await sim.stop()
    await sim.stop()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await task
    hold.release()
    await sim.start(port=port)
    assert (await caller.send("POST", LOST)).status == 404


async def test_the_same_seed_gives_the_same_tokens(clock):
    first, second, third = (Simulator(clock=clock, seed=seed) for seed in (1, 1, 2))
    tokens = []
    for one in (first, second, third):
        async with one, aiohttp.ClientSession() as http:
            form = {
                "grant_type": "client_credentials",
                "client_id": one.switches.client_id,
                "client_secret": one.switches.client_secret,
            }
            async with http.post(
                one.origin + "/v1/auth/token/issue",
                json=form,
                headers={"accountId": one.switches.account_id},
            ) as reply:
                tokens.append((await reply.json())["data"]["access_token"])
    assert tokens[0] == tokens[1] != tokens[2]


async def test_a_request_right_behind_a_body_of_known_length_is_the_next_one(sim, wire):
    head = b"POST /v1/nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
    reader, writer = await wire()
    writer.write(head + b"abc" + GET)
    await read_reply(reader)
    await read_reply(reader)
    assert [(one.raw_head, one.body) for one in sim.received] == [(head, b"abc"), (GET, b"")]


async def test_a_head_ends_at_its_blank_line_wherever_the_length_stood(simulator):
    heads = [
        b"POST /v1/x HTTP/1.1\r\nContent-Length: 7\r\nHost: x\r\nX-Last: y\r\n\r\n",
        b"POST /v1/y HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-Last: yyyyyyyyyy\r\n\r\n",
    ]
    host, port = simulator.origin.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, port)
    writer.write(heads[0] + b"abcdefg" + heads[1] + b"xyz")
    await asyncio.wait_for(simulator.wait_for("/v1/y"), 5)
    writer.close()
    assert [one.raw_head for one in simulator.received] == heads
    assert [one.body for one in simulator.received] == [b"abcdefg", b"xyz"]
