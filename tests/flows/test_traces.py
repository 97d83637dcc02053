"""What becomes of a caller's trace without [tracing], and what replies say of the time they took."""

import json
import re

import pytest
from harness import Line

from proxy.core.trace import read_trace

BALANCE = "/v1/accounts/balance"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
VALID = f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01"
STATE = "tracestate: rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
INVALID = "traceparent: 00-not-a-trace-01"


def lines(upstream, at=-1):
    """The lines of a request that speak of traces, as the upstream got them."""
    head = upstream.requests[at][0].decode().split("\r\n")
    return [one for one in head if one.lower().startswith("trace")]


@pytest.mark.parametrize(
    ("headers", "logged"),
    [
        ((), None),
        ((VALID,), TRACE),
        ((VALID, STATE), TRACE),
        ((VALID.replace("traceparent", "TraceParent"), STATE), TRACE),
        ((VALID.replace(" 00-", " cc-") + "-more",), TRACE),
        ((INVALID, STATE), None),
        ((VALID, VALID), None),
        ((STATE,), None),
    ],
)
async def test_it_is_passed_on_as_it_is_whatever_it_is(start_proxy, upstream, headers, logged):
    """A proxy that takes no part in tracing changes nothing of it."""
    proxy = await start_proxy(base_url=upstream.origin)
    await proxy.get(BALANCE, *headers)
    assert lines(upstream) == list(headers)
    (line,) = await proxy.exchanges()
    assert line.get("trace_id") == logged


async def test_the_same_head_again_is_the_same_trace_again(start_proxy, simulator):
    proxy = await start_proxy()
    request = f"GET {BALANCE} HTTP/1.1\r\nHost: localhost\r\n{VALID}\r\n\r\n".encode()
    caller = Line(proxy.address)
    for _ in range(3):
        assert (await caller.ask(request)).status == 200
    caller.close()
    assert [line["trace_id"] for line in await proxy.exchanges(3)] == [TRACE] * 3


@pytest.mark.parametrize("headers", [(VALID,), (VALID, STATE)])
async def test_a_trace_that_there_is_is_not_started_again(start_proxy, upstream, headers):
    proxy = await start_proxy(base_url=upstream.origin, headers__trace="start")
    await proxy.get(BALANCE, *headers)
    assert lines(upstream) == list(headers)
    assert (await proxy.exchanges())[0]["trace_id"] == TRACE


@pytest.mark.parametrize("headers", [(), (STATE,), (INVALID, STATE), (VALID, VALID, STATE)])
async def test_where_there_is_none_one_can_be_started(start_proxy, upstream, headers):
    proxy = await start_proxy(base_url=upstream.origin, headers__trace="start")
    for at in range(2):
        await proxy.get(BALANCE, *headers)
        [line] = lines(upstream, at)
        found = read_trace([line.removeprefix("traceparent: ").encode()])
        assert not found.sampled
        assert (await proxy.exchanges(at + 1))[at]["trace_id"] == found.id
    assert lines(upstream, 0) != lines(upstream, 1)


async def test_a_started_trace_is_that_of_every_attempt_and_of_chunks_too(start_proxy, upstream):
    async def answer(head, body, writer):
        status = b"401 No" if b"token-1" in head else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\nok" % status)

    upstream.answer = answer
    proxy = await start_proxy(base_url=upstream.origin, headers__trace="start")
    head = f"POST {BALANCE} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    reply = await proxy.raw(head.encode() + b"2\r\nhi\r\n0\r\n\r\n")
    assert reply.status == 200
    assert len(upstream.requests) == 2
    assert lines(upstream, 0) == lines(upstream, 1)
    assert [body for _, body in upstream.requests] == [b"hi", b"hi"]


# -- Server-Timing -------------------------------------------------------------------------------

# RFC 9110 tokens, and `dur` as W3C Server Timing has it.
TIMING = re.compile(r"total;dur=(\d+\.\d{3}), token;dur=(\d+\.\d{3}), upstream;dur=(\d+\.\d{3})")


def timings(reply):
    return [value for name, value in reply.headers if name.lower() == "server-timing"]


async def test_a_reply_says_where_the_time_went_if_that_is_set(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, headers__server_timing="true")
    [value] = timings(await proxy.get(BALANCE))
    total, token, at_upstream = map(float, TIMING.fullmatch(value).groups())
    assert 0 < at_upstream <= total
    assert token <= total


async def test_no_reply_does_otherwise(proxy):
    assert timings(await proxy.get(BALANCE)) == []
    assert timings(await proxy.get("/v1/auth/token/../x")) == []


async def test_what_the_upstream_says_of_its_time_stays(start_proxy, upstream):
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nServer-Timing: db;dur=53\r\nContent-Length: 2\r\n\r\nok"
    )
    proxy = await start_proxy(base_url=upstream.origin, headers__server_timing="true")
    theirs, ours = timings(await proxy.get(BALANCE))
    assert theirs == "db;dur=53"
    assert TIMING.fullmatch(ours)


async def test_a_refusal_says_it_too(start_proxy, upstream):
    async def answer(head, body, writer):
        writer.close()

    upstream.answer = answer
    proxy = await start_proxy(base_url=upstream.origin, headers__server_timing="true")
    reply = await proxy.transfer()
    assert reply.status == 502
    [value] = timings(reply)
    total, token, at_upstream = map(float, TIMING.fullmatch(value).groups())
    assert total > 0
    assert (token, at_upstream) == (0, 0) or token <= total
    assert json.loads(reply.body)["proxy"]["error"] == "upstream_broken"
