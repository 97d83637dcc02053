"""Bodies are held whole before a byte goes out; replies stream, and a cut is seen as a cut."""

import asyncio
import hashlib
import os

import pytest
from harness import read_reply

MIB = 1024 * 1024


@pytest.fixture
async def through(start_proxy, upstream):
    return await start_proxy(base_url=upstream.origin, body__limit="1MiB", body__memory="64KiB")


async def test_a_body_of_exactly_the_limit_passes(through, upstream):
    body = os.urandom(MIB)
    assert (await through.send("POST", "/v1/x", body=body)).status == 200
    assert hashlib.sha256(upstream.requests[0][1]).digest() == hashlib.sha256(body).digest()


async def test_a_declared_body_above_the_limit_is_refused_unread(through, upstream):
    reply = await through.raw(
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (MIB + 1)
    )
    assert (reply.status, reply.json["proxy"]["error"]) == (413, "body_too_large")
    assert reply.get("Connection") == "close"
    assert upstream.requests == []


async def test_a_chunked_body_above_the_limit_is_refused(through, upstream):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    reply = await through.raw(
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk * 17
        + b"0\r\n\r\n"
    )
    assert (reply.status, reply.outcome) == (413, "not_sent")
    assert upstream.requests == []


async def test_the_limit_is_a_setting(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, body__limit="10B")
    assert (await proxy.send("POST", "/v1/x", body=b"x" * 10)).status == 200
    assert (await proxy.send("POST", "/v1/x", body=b"x" * 11)).status == 413


async def test_a_half_received_request_is_never_sent(through, upstream):
    _, writer = await asyncio.open_connection(*through.address)
    writer.write(
        b"POST /v2/transfers/bank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc"
    )
    await writer.drain()
    writer.close()
    line = (await through.exchanges())[0]
    assert (line["status"], line["outcome"], line["attempts"]) == (499, "not_sent", 0)
    assert upstream.requests == []


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
async def test_a_caller_that_stops_sending_gets_408(start_proxy, upstream, framing):
    proxy = await start_proxy(base_url=upstream.origin, body__stall_timeout="0.3")
    head = f"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode()
    reply = await proxy.raw(head + b"3\r\nabc\r\n"[: 4 if "Length" in framing else 99])
    assert (reply.status, reply.json["proxy"]["error"]) == (408, "body_timeout")
    assert upstream.requests == []


async def test_a_broken_chunk_is_answered_and_not_sent(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, body__stall_timeout="0.5")
    reader, writer = await asyncio.open_connection(*proxy.address)
    writer.write(
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab"
    )
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.write(b"cXXXXX\r\n\r\n")
    reply = await read_reply(reader)
    assert (reply.status, reply.json["proxy"]["error"]) == (400, "head_invalid")
    writer.close()
    assert upstream.requests == []


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("framing", ["", "Transfer-Encoding: chunked\r\n"])
async def test_trailers_of_a_request_are_no_fields_of_the_next(
    through, upstream, together, framing
):
    first = (
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nhi\r\n0\r\nX-A: 1\r\nX-B: 0\r\n\r\n"
    )
    second = f"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n".encode()
    second += b"0\r\n\r\n" if framing else b""  # as chunks end without trailers
    reader, writer = await asyncio.open_connection(*through.address)
    writer.write(first + second if together else first)
    reply = await read_reply(reader)
    assert (reply.status, reply.get("Connection")) == (200, "close")
    if not together:
        writer.write(second)
    assert await reader.read() == b""
    assert [body for _, body in upstream.requests] == [b"hi"]
    writer.close()


@pytest.mark.parametrize("end", [(b"0\r\n\r\n",), (b"0", b"\r\n\r", b"\n")])
async def test_behind_chunks_without_trailers_the_connection_goes_on(through, upstream, end):
    reader, writer = await asyncio.open_connection(*through.address)
    for _ in range(2):
        head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        for part in (head + b"2\r\nhi\r\n", *end):
            writer.write(part)
            await asyncio.sleep(0.01)
        assert (await read_reply(reader)).get("Connection") is None
    assert [body for _, body in upstream.requests] == [b"hi"] * 2
    writer.close()


async def test_trailers_of_a_refused_request_are_no_fields_of_the_next(through, upstream):
    reader, writer = await asyncio.open_connection(*through.address)
    writer.write(
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nX-Nomba-Proxy-Key: wrong\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
        b"7\r\n\r\n0\r\n\r\n"  # not the end of the body, which only looks like it
    )
    reply = await read_reply(reader)
    assert (reply.status, reply.get("Connection")) == (401, "close")
    writer.write(b"\r\n0\r\nX-A: 1\r\n\r\nGET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert await reader.read() == b""
    assert upstream.requests == []
    writer.close()


async def test_expect_100_continue_is_answered_by_us(through, upstream):
    reader, writer = await asyncio.open_connection(*through.address)
    writer.write(
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert upstream.requests == []
    writer.write(b"abc")
    assert (await read_reply(reader)).status == 200
    writer.close()
    assert b"xpect" not in upstream.requests[0][0]


async def test_a_refused_expectation_never_asks_for_the_body(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, callers__anonymous="false")
    reply = await proxy.raw(
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    )
    # Who was not asked for a body may send none, and its next request is not to be taken for it.
    assert (reply.status, reply.get("Connection")) == (401, "close")


async def test_a_reply_streams_before_it_is_complete(through, upstream):
    release = asyncio.Event()

    async def answer(head, body, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await writer.drain()
        await release.wait()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")
        await writer.drain()

    upstream.answer = answer
    reader, writer = await asyncio.open_connection(*through.address)
    writer.write(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert await reader.readexactly(10) == b"5\r\nfirst\r\n"
    release.set()
    assert await reader.readexactly(14) == b"4\r\nlast\r\n0\r\n\r\n"
    writer.close()


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 3000000\r\n", b"", b"Transfer-Encoding: chunked\r\n"]
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_large_reply_is_identical(through, upstream, framing, version):
    data = os.urandom(3_000_000)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if b"chunked" in framing else data
    upstream.answer = upstream.reply_with(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n" + sent)
    reply = await through.raw(b"GET /v1/x HTTP/" + version + b"\r\nHost: localhost\r\n\r\n")
    assert reply.body == data
    assert (reply.get("Transfer-Encoding") is None) or version == b"1.1"


@pytest.mark.parametrize(
    ("request_head", "reply"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 500\r\n\r\n'),
    ],
)
async def test_replies_without_a_body_keep_the_connection(through, upstream, request_head, reply):
    upstream.answer = upstream.reply_with(reply)
    reader, writer = await asyncio.open_connection(*through.address)
    request = request_head + b" /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(2):
        writer.write(request)
        got = await read_reply(reader, head_only=True)
        assert got.get("Content-Length") == ("500" if b"500" in reply else None)
    writer.close()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_interim_replies_pass_as_they_are_but_not_to_an_old_caller(
    through, upstream, version
):
    """RFC 9110 section 15.2; the 100 is between the upstream and us: nobody asked for it."""
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 102 Go on\r\nContent-Length: 5\r\nConnection: x-a\r\nX-A: 1\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )
    reader, writer = await asyncio.open_connection(*through.address)
    writer.write(b"GET /v1/x HTTP/" + version + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    got = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 Go on\r\n\r\n"
    assert got.startswith((interim if version == b"1.1" else b"") + b"HTTP/1.1 200 OK\r\n")
    assert got.endswith(b"\r\n\r\nok")


async def test_a_json_stream_is_not_held_back(through, upstream):
    go = asyncio.Event()

    async def answer(_, __, writer):
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"a":1}\n')
        await go.wait()
        writer.write(b'{"b":2}\n')

    upstream.answer = answer
    reader, writer = await asyncio.open_connection(*through.address)
    writer.write(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b'{"a":1}\n'), 30)  # while the rest is to come
    go.set()
    await asyncio.wait_for(reader.readuntil(b'{"b":2}\n'), 30)
    writer.close()


async def test_a_refusal_that_takes_its_time_is_still_judged(through, upstream):
    async def answer(head, _, writer):
        old = b"token-1" in head
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        await asyncio.sleep(0.4)
        writer.write(b'{"code":"401",' if old else b'{"code":"00",')
        await asyncio.sleep(0.2)
        writer.write(b'"description":"re-authenticate"}')

    upstream.answer = answer
    reply = await through.get("/v1/x")
    assert (reply.json["code"], reply.outcome, len(upstream.requests)) == ("00", "answered", 2)


@pytest.mark.parametrize("expect", ["100-continue, foo", "foo\r\nExpect: 100-Continue"])
async def test_an_expectation_among_others_is_answered(through, upstream, expect):
    reader, writer = await asyncio.open_connection(*through.address)
    head = (
        f"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nExpect: {expect}\r\nContent-Length: 2\r\n\r\n"
    )
    writer.write(head.encode())
    await asyncio.wait_for(reader.readuntil(b"100 Continue\r\n\r\n"), 30)
    writer.write(b"{}")
    assert (await read_reply(reader)).status == 200
    writer.close()


CUT = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
}


@pytest.mark.parametrize("how", CUT)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_reply_cut_short_is_seen_as_cut_short(through, upstream, how, version):
    upstream.answer = upstream.reply_with(CUT[how])
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await through.raw(b"GET /v1/x HTTP/" + version + b"\r\nHost: localhost\r\n\r\n")
    line = (await through.exchanges())[0]
    assert (line["error"], line["outcome"]) == ("upstream_broken", "unknown")


async def test_a_json_reply_cut_before_it_was_judged_is_a_502(through, upstream):
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\nabc"
    )
    reply = await through.send("POST", "/v2/transfers/bank", body=b"{}")
    assert (reply.status, reply.outcome) == (502, "unknown")
    assert "merchantTxRef" in reply.json["proxy"]["hint"]


async def test_a_slow_upstream_is_a_504_and_unknown(start_proxy, upstream):
    async def answer(head, body, writer):
        await asyncio.sleep(5)

    upstream.answer = answer
    proxy = await start_proxy(base_url=upstream.origin, timeouts__first_byte="0.2")
    reply = await proxy.send("POST", "/v2/transfers/bank", body=b"{}")
    assert (reply.status, reply.outcome) == (504, "unknown")
    assert reply.json["proxy"]["error"] == "upstream_timeout"
    assert len(upstream.requests) == 1


async def test_an_upstream_that_is_gone_is_a_502_and_not_sent(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin)
    assert (await proxy.get("/v1/x")).status == 200
    await upstream.stop()
    reply = await proxy.send("POST", "/v2/transfers/bank", body=b"{}")
    assert (reply.status, reply.outcome) == (502, "not_sent")
    assert reply.json["proxy"]["error"] == "upstream_unreachable"


async def test_a_caller_that_hangs_up_does_not_stop_a_payment(through, upstream):
    reached, release = asyncio.Event(), asyncio.Event()

    async def answer(head, body, writer):
        reached.set()
        await release.wait()
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    upstream.answer = answer
    _, writer = await asyncio.open_connection(*through.address)
    writer.write(
        b"POST /v2/transfers/bank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    )
    await asyncio.wait_for(reached.wait(), 5)
    writer.close()
    await asyncio.sleep(0.05)
    release.set()
    line = (await through.exchanges())[0]
    assert (line["status"], line["outcome"], line["attempts"]) == (499, "answered", 1)
    assert len(upstream.requests) == 1


async def test_an_oversized_head_is_refused(through, upstream):
    many = [f"X-{n}: {'y' * 8000}" for n in range(9)]
    reply = await through.get("/v1/x", *many)
    assert (reply.status, reply.json["proxy"]["error"]) == (431, "head_too_large")
    one = await through.get("/v1/x", "X-Big: " + "y" * 70_000)
    assert (one.status, one.json["proxy"]["error"]) == (431, "head_too_large")
    crowd = await through.get("/v1/x", *(f"X-{n}: y" for n in range(200)))
    assert crowd.status == 431
    assert upstream.requests == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/x HTTP/1.1\r\nAuthorization: Bearer marked-secret\r\n\x00bad\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nHost: a\r\nHost: b\r\nX-Card: marked-secret\r\n\r\n",
        b"NOSUCH /marked-secret HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nAuthorization: Bearer marked-secret\r\n\r\n",
    ],
)
async def test_malformed_requests_are_answered_without_repeating_them(
    through, upstream, caplog, capfd, request_bytes
):
    reply = await through.raw(request_bytes)
    assert (reply.status, reply.json["proxy"]["error"]) == (400, "head_invalid")
    assert reply.outcome == "not_sent"
    line = (await through.exchanges())[0]
    assert line["status"] == 400
    seen = reply.raw.decode() + through.log.text + caplog.text + "".join(capfd.readouterr())
    assert "marked-secret" not in seen
    assert upstream.requests == []


async def test_a_length_of_five_thousand_digits_is_a_bad_head(through, upstream):
    length = "0" * 5000 + "2"
    reply = await through.raw(
        f"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{{}}".encode()
    )
    assert (reply.status, reply.json["proxy"]["error"]) == (400, "head_invalid")
    assert upstream.requests == []


async def test_a_caller_on_http_1_0_gets_no_interim_reply(through):
    reader, writer = await asyncio.open_connection(*through.address)
    writer.write(b"POST /v1/x HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    await asyncio.sleep(0.1)
    writer.write(b"{}")
    assert (await read_reply(reader)).status == 200
    writer.close()


async def test_a_reason_with_control_characters_is_no_reply(through, upstream):
    upstream.answer = upstream.reply_with(b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n")
    reply = await through.get("/v1/x")
    assert (reply.status, reply.outcome) == (502, "unknown")


# -- large ones --------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_spooled_body_arrives_whole_with_a_length_and_again_at_a_replay(
    start_proxy, upstream, framing
):
    proxy = await start_proxy(base_url=upstream.origin, body__limit="64MiB", body__memory="64KiB")
    body = os.urandom(5 * MIB + 7)
    refusal = upstream.reply_with(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
    answers = [refusal, upstream.answer]

    async def answer(*args):
        await answers[len(upstream.requests) - 1](*args)

    upstream.answer = answer
    if framing == "length":
        reply = await proxy.send("POST", "/v1/x", body=body)
    else:
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(body[at : at + MIB]), body[at : at + MIB])
            for at in range(0, len(body), MIB)
        )
        head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        reply = await proxy.raw(head + chunks + b"0\r\n\r\n")
    assert (reply.status, reply.body) == (200, b"ok")
    digest = hashlib.sha256(body).hexdigest()
    assert [hashlib.sha256(got).hexdigest() for _, got in upstream.requests] == [digest] * 2
    for head, _ in upstream.requests:
        assert b"content-length: %d\r\n" % len(body) in head.lower()
        assert b"transfer-encoding" not in head.lower()


async def test_beyond_the_budget_a_caller_is_told_to_come_again(start_proxy, upstream):
    proxy = await start_proxy(
        base_url=upstream.origin, body__memory="1KiB", body__spool_budget="1MiB"
    )
    reply = await proxy.send("POST", "/v1/x", body=b"x" * (MIB + 1))
    assert (reply.status, reply.outcome) == (503, "not_sent")
    assert reply.json["proxy"]["error"] == "overloaded"
    assert (reply.get("Retry-After"), reply.get("Connection")) == ("1", "close")
    assert upstream.requests == []
    for _ in range(3):  # nothing is lost of the budget
        assert (await proxy.send("POST", "/v1/x", body=b"x" * MIB)).status == 200


async def test_what_a_caller_leaves_behind_is_let_go_of(start_proxy, upstream):
    proxy = await start_proxy(
        base_url=upstream.origin, body__memory="1KiB", body__spool_budget="1MiB"
    )
    for number in range(3):
        _, writer = await asyncio.open_connection(*proxy.address)
        writer.write(b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % MIB)
        writer.write(b"x" * (MIB - 1))
        await writer.drain()
        writer.close()
        await proxy.exchanges(number + 1)
    assert (await proxy.send("POST", "/v1/x", body=b"x" * MIB)).status == 200
