"""The edges of a caller's connection: heads, limits and times, and what is no HTTP."""

import asyncio
import gc
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial

import pytest
from harness import read_reply

from proxy.calls import RawReply
from proxy.sending import unsent
from proxy.server import CallerLimits, TrafficServer

GET = b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def through(start_proxy, upstream):
    return await start_proxy(base_url=upstream.origin)


class Caller:
    """One connection, over which bytes are sent as a test likes."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def say(self, *parts):
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0.02)

    async def hear(self):
        return await asyncio.wait_for(read_reply(self.reader), 20)

    async def closed(self):
        """Whether the connection ends, with nothing more before that."""
        return await asyncio.wait_for(self.reader.read(), 20) == b""


@asynccontextmanager
async def calling(proxy):
    reader, writer = await asyncio.open_connection(*proxy.address)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


def said(reply):
    return reply.status, reply.json["proxy"]["error"]


# -- heads -------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [b"", GET, b"\r\n\r\n"])
async def test_a_head_that_does_not_end_in_time_gets_408(start_proxy, upstream, before):
    proxy = await start_proxy(base_url=upstream.origin, callers__head_timeout="1")
    async with calling(proxy) as caller:
        if before == GET:
            await caller.say(GET)
            assert (await caller.hear()).status == 200
        else:
            await caller.say(before)
        await caller.say(b"GET /v1/x HT", b"TP/1.1\r\nHo", b"st: local")
        reply = await caller.hear()
        assert said(reply) == (408, "head_timeout")
        assert (reply.outcome, reply.get("Connection")) == ("not_sent", "close")
        assert await caller.closed()
    assert len(upstream.requests) == (before == GET)
    assert (await proxy.exchanges(1))[-1]["error"] == "head_timeout"


async def test_a_head_that_comes_byte_by_byte_in_time_is_answered(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, callers__head_timeout="20")
    async with calling(proxy) as caller:
        for at in range(len(GET)):
            caller.writer.write(GET[at : at + 1])
            await asyncio.sleep(0.002)
        assert (await caller.hear()).status == 200


async def test_a_head_that_began_behind_a_request_has_its_time_from_the_reply_on(
    start_proxy, upstream
):
    release = asyncio.Event()

    async def answer(head, body, writer):
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    upstream.answer = answer
    proxy = await start_proxy(base_url=upstream.origin, callers__head_timeout="0.3")
    async with calling(proxy) as caller:
        await caller.say(GET, b"GET /v1/", b"x HTTP")
        await asyncio.sleep(
            0.6
        )  # its request is being answered: nobody is cut off for what follows
        release.set()
        assert (await caller.hear()).status == 200
        assert said(await caller.hear()) == (408, "head_timeout")
        assert await caller.closed()


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 2", (b"{}",)),
        (b"Content-Length: 2", (b"{", b"}")),
        (b"Transfer-Encoding: chunked", (b"2\r\n{}\r\n0\r\n\r\n",)),
        (b"Transfer-Encoding: chunked", (b"2\r\n{}\r\n0\r\n", b"\r", b"\n")),
    ],
)
async def test_the_end_of_a_body_is_not_the_beginning_of_a_head(start_proxy, upstream, head, body):
    limits = {"callers__head_timeout": "0.2", "callers__idle_timeout": "0.6"}
    proxy = await start_proxy(base_url=upstream.origin, **limits)
    async with calling(proxy) as caller:
        await caller.say(b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n" % head, *body)
        assert (await caller.hear()).status == 200
        assert await caller.closed()


async def test_a_head_that_begins_with_the_end_of_a_body_has_its_time(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, callers__head_timeout="0.3")
    async with calling(proxy) as caller:
        head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
        await caller.say(head, b"{}GET /v1/x HT")
        assert (await caller.hear()).status == 200
        assert said(await caller.hear()) == (408, "head_timeout")


@pytest.mark.parametrize(
    "before",
    [
        GET,
        GET * 3,
        CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\n{\r\n\r\n}",
    ],
)
async def test_a_head_that_begins_in_the_segment_of_a_request_has_its_time(
    start_proxy, upstream, before
):
    limits = {"callers__head_timeout": "0.3", "callers__idle_timeout": "20"}
    proxy = await start_proxy(base_url=upstream.origin, **limits)
    async with calling(proxy) as caller:
        await caller.say(before + b"GET /v1/x HT")
        for _ in range(3 if before == GET * 3 else 1):
            reply = await caller.hear()
            assert reply.status == 200
        if reply.get("Connection") is None:  # behind chunks, nothing more is taken
            assert said(await caller.hear()) == (408, "head_timeout")
        assert await caller.closed()


@pytest.mark.parametrize("body", [b"{\r\n\r\n}", b"{}\r\n\r\n", b"\r\n\r\n\r\n"])
@pytest.mark.parametrize("more", [b"", b"\r\n"])  # some send an empty line behind a body
async def test_a_body_is_not_the_beginning_of_a_head(start_proxy, upstream, body, more):
    limits = {"callers__head_timeout": "0.2", "callers__idle_timeout": "0.6"}
    proxy = await start_proxy(base_url=upstream.origin, **limits)
    async with calling(proxy) as caller:
        head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\n"
        await caller.say(head + body + more)
        assert (await caller.hear()).status == 200
        assert await caller.closed()


async def test_what_waits_to_be_read_is_no_head_that_is_too_large(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, callers__head_limit="1024")
    async with calling(proxy) as caller:
        body = b"x" * 4000
        head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n"
        await caller.say(GET * 40 + head + body)
        for _ in range(41):
            assert (await caller.hear()).status == 200
    assert upstream.requests[-1][1] == body


async def test_a_large_body_leaves_room_for_the_next_head(through, upstream):
    async with calling(through) as caller:
        await caller.say(
            b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        )
        for request in (b"x" * 1_000_000, GET):
            await caller.say(request)
            assert (await caller.hear()).status == 200


async def test_a_head_that_comes_while_the_idle_time_ends_is_waited_for(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, callers__idle_timeout="1")
    async with calling(proxy) as caller:
        await caller.say(GET[:20])
        await asyncio.sleep(1.2)
        await caller.say(GET[20:])
        assert (await caller.hear()).status == 200


async def test_a_request_that_comes_in_the_moment_its_connection_is_to_be_closed_is_answered(
    start_proxy, upstream
):
    idle = 1.5
    proxy = await start_proxy(base_url=upstream.origin, callers__idle_timeout=idle)
    loop = asyncio.get_running_loop()
    async with calling(proxy) as caller:
        await caller.say(GET)
        assert (await caller.hear()).status == 200  # the idle time begins
        sock = caller.writer.get_extra_info("socket").dup()
        # The loop is late: the request comes, and the idle time ends, before it looks at sockets.
        loop.call_later(0.1, time.sleep, idle + 0.2)
        loop.call_later(0.2, sock.send, GET)
        assert (await caller.hear()).status == 200
        sock.close()
        assert await caller.closed()  # and the idle time begins anew


async def test_a_connection_with_something_unread_is_not_idle():
    async def answer(call):
        return RawReply(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", keep_alive=True)

    server = TrafficServer(answer, observe=list, emit=list)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    sock = socket.create_connection(listening.sockets[0].getsockname())
    reader, writer = await asyncio.open_connection(sock=sock)
    while not server.unfinished:
        await asyncio.sleep(0.01)
    [connection] = server.unfinished
    writer.write(GET)
    assert (await read_reply(reader)).status == 200
    assert connection.idle
    writer.write(GET)  # is in the kernel at once, and the loop has not looked yet
    assert not connection.idle
    assert (await read_reply(reader)).status == 200
    writer.close()
    listening.close()


@asynccontextmanager
async def owed(size, *, keep_alive, stall, idle=75.0):
    """A server, and a caller that has asked it for more than the kernel's buffers take."""

    async def answer(call):
        data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
        return RawReply(data, keep_alive=keep_alive, stall=stall)

    loop = asyncio.get_running_loop()
    limits = CallerLimits(idle=idle)
    server = TrafficServer(answer, observe=list, emit=list, limits=limits)
    ours, theirs = socket.socket(), socket.socket()
    ours.bind(("127.0.0.1", 0))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # each it accepts has it too
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    theirs.setblocking(False)
    listening = await loop.create_server(server, sock=ours)
    try:
        await loop.sock_connect(theirs, ours.getsockname())
        await loop.sock_sendall(theirs, GET)
        yield server, partial(loop.sock_recv, theirs)
    finally:
        theirs.close()
        listening.close()


async def read_on(read, *, pause=0.0):
    got = b""
    while part := await read(1000):
        got += part
        await asyncio.sleep(pause)
    return got


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_who_does_not_read_the_end_of_its_last_reply_is_cut_off(keep_alive):
    """Of the end, less than is waited for between two replies: the close would wait for ever."""
    async with owed(60_000, keep_alive=keep_alive, stall=0.2, idle=0.2) as (server, read):
        assert await read(1) == b"H"
        async with asyncio.timeout(20):
            while server.unfinished:
                await asyncio.sleep(0.05)
        with pytest.raises(ConnectionResetError):  # it can see that something is missing
            await read_on(read)


async def test_who_reads_the_end_of_its_last_reply_slowly_gets_it_all():
    async with owed(60_000, keep_alive=False, stall=4) as (_, read):
        got = await read_on(read, pause=0.1)  # for longer than a stall may last
    assert len(got.partition(b"\r\n\r\n")[2]) == 60_000


async def test_nothing_is_on_its_way_over_a_connection_that_has_ended(through):
    _, writer = await asyncio.open_connection(*through.address)
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0)  # its socket is closed after whoever waits has been told
    sock = writer.get_extra_info("socket")
    assert sock is None or sock.fileno() == -1
    assert unsent(writer.transport) == 0


@pytest.mark.parametrize("asked", [True, False])
async def test_an_idle_connection_is_closed_without_a_word(start_proxy, upstream, asked):
    proxy = await start_proxy(base_url=upstream.origin, callers__idle_timeout="1")
    async with calling(proxy) as caller:
        if asked:
            await caller.say(GET)
            assert (await caller.hear()).status == 200
        assert await caller.closed()


@pytest.mark.parametrize("field", [b"X-A: %b\r\n" % (b"y" * 500), b"X-A: y\r\n"])
async def test_a_head_that_goes_on_and_on_is_refused_before_it_ends(start_proxy, upstream, field):
    settings = {"callers__head_limit": "8KiB", "callers__head_fields": "10000"}
    proxy = await start_proxy(base_url=upstream.origin, **settings)
    async with calling(proxy) as caller:
        await caller.say(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n")
        for _ in range(9 * 1024 // len(field)):
            caller.writer.write(field)
            await asyncio.sleep(0)
        assert said(await caller.hear()) == (431, "head_too_large")
        assert await caller.closed()
    assert upstream.requests == []


async def test_a_reply_to_a_head_that_is_too_large_is_not_lost_to_a_reset(through, upstream):
    async with calling(through) as caller:
        caller.writer.write(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\nCookie: ")
        for _ in range(40):  # far more than is read at once, and more when it has been refused
            caller.writer.write(b"y" * 65536)
        assert said(await caller.hear()) == (431, "head_too_large")


async def test_the_number_of_fields_is_a_setting(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, callers__head_fields="20")
    assert (await proxy.get("/v1/x", *(f"X-{n}: y" for n in range(15)))).status == 200
    reply = await proxy.get("/v1/x", *(f"X-{n}: y" for n in range(30)))
    assert said(reply) == (431, "head_too_large")
    assert "20" in reply.json["description"]


async def test_who_leaves_before_its_refusal_is_no_fault_of_ours(through):
    for _ in range(3):
        with socket.create_connection(through.address) as caller:
            caller.sendall(b"GET /v1/x HTTP/1.1\r\nBad Name: x\r\n\r\n")
    await through.exchanges(3)
    await through.get("/v1/x")
    assert through.log.lines("server_fault") == []


# -- bodies ------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [b"XX\r\n", b"c\r\nabc", b"-1\r\n", b"ffffffffffffffff1\r\n"])
async def test_a_chunk_that_is_broken_after_the_head_was_read_is_answered_at_once(
    start_proxy, upstream, broken
):
    proxy = await start_proxy(base_url=upstream.origin, body__stall_timeout="3600")
    async with calling(proxy) as caller:
        await caller.say(CHUNKED + b"3\r\nabc\r\n", broken + b"zz\r\n\r\n" * 3)
        reply = await caller.hear()
        assert said(reply) == (400, "head_invalid")
        assert "zz" not in reply.raw.decode()
        assert await caller.closed()
    assert upstream.requests == []
    assert [one["status"] for one in await proxy.exchanges(1)] == [400]


async def test_chunks_that_are_nothing_but_extensions_are_refused(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, body__stall_timeout="3600")
    async with calling(proxy) as caller:
        await caller.say(CHUNKED)
        for _ in range(10):
            caller.writer.write(b"1;" + b"x" * 16_000 + b"\r\nz\r\n")
            await asyncio.sleep(0.01)
        assert said(await caller.hear()) == (400, "head_invalid")
    assert upstream.requests == []


async def test_chunks_of_one_byte_are_a_body(through, upstream):
    async with calling(through) as caller:
        await caller.say(CHUNKED)
        for _ in range(20):
            await caller.say(b"1\r\nz\r\n" * 2000)
        await caller.say(b"0\r\n\r\n")
        assert (await caller.hear()).status == 200
    assert upstream.requests[0][1] == b"z" * 40_000


# -- connections -------------------------------------------------------------------------


async def test_an_idle_connection_makes_room_for_a_new_one(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, callers__connections="2")
    async with calling(proxy) as first, calling(proxy) as second:
        for caller in (first, second):
            await caller.say(GET)
            assert (await caller.hear()).status == 200
        async with calling(proxy) as third:
            await third.say(GET)
            assert (await third.hear()).status == 200
            assert await first.closed()  # the oldest
            await second.say(GET)
            assert (await second.hear()).status == 200


async def test_who_comes_when_all_connections_are_busy_is_told_to_come_again(start_proxy, upstream):
    release = asyncio.Event()

    async def answer(head, body, writer):
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    upstream.answer = answer
    proxy = await start_proxy(base_url=upstream.origin, callers__connections="2")
    async with calling(proxy) as first, calling(proxy) as second:
        for caller in (first, second):
            await caller.say(GET)
        while len(upstream.requests) < 2:
            await asyncio.sleep(0.01)
        async with calling(proxy) as third:
            await third.say(GET)
            reply = await third.hear()
            assert said(reply) == (503, "overloaded")
            assert (reply.get("Retry-After"), reply.outcome) == ("1", "not_sent")
            assert await third.closed()
        release.set()
        for caller in (first, second):
            assert (await caller.hear()).status == 200
    assert len(upstream.requests) == 2


async def test_whose_time_is_over_does_not_end_the_connections_of_others(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, callers__head_timeout="2")
    async with calling(proxy) as slow, calling(proxy) as gone, calling(proxy) as other:
        await slow.say(b"GET /v1")
        await gone.say(b"GET /v1")
        gone.writer.close()
        await other.say(GET[:10])
        await other.say(GET[10:])
        assert (await other.hear()).status == 200
        assert said(await slow.hear()) == (408, "head_timeout")
        await other.say(GET)
        assert (await other.hear()).status == 200


# -- what is no HTTP/1.1 -----------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [b"GET /v1/x\r\n\r\n", b"GET /v1/x HTTP/0.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
)
async def test_older_and_newer_versions_are_refused_and_the_connection_ends(
    through, upstream, line
):
    async with calling(through) as caller:
        await caller.say(line)
        assert said(await caller.hear()) == (400, "head_invalid")
        assert await caller.closed()
    assert upstream.requests == []


async def test_a_tls_handshake_on_a_plain_listener_is_answered_and_not_repeated(
    through, caplog, capfd
):
    async with calling(through) as caller:
        await caller.say(bytes.fromhex("16030100c5010000c10303") + b"marked-secret" * 9)
        assert said(await caller.hear()) == (400, "head_invalid")
    assert "marked-secret" not in through.log.text + caplog.text + "".join(capfd.readouterr())


async def test_requests_behind_a_declined_upgrade_are_not_left_unanswered(through, upstream):
    async with calling(through) as caller:
        offer = (
            b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: %b\r\n\r\n"
        )
        await caller.say(offer % b"h2c" + GET + GET)
        reply = await caller.hear()
        assert (reply.status, reply.get("Connection")) == (200, "close")
        assert await caller.closed()
    assert len(upstream.requests) == 1


async def test_nothing_is_added_to_a_reply_that_says_nothing_of_itself(through, upstream):
    upstream.answer = upstream.reply_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    reply = await through.get("/v1/x")
    ours = {"X-Request-Id", "Nomba-Proxy-Outcome", "Via"}
    assert {name for name, _ in reply.headers} == {"Content-Length"} | ours


@pytest.mark.parametrize("listener", ["admin", "traffic"])
async def test_no_version_of_what_the_proxy_is_made_of_is_told(proxy, listener):
    where = proxy.admin if listener == "admin" else proxy.url
    reader, writer = await asyncio.open_connection(*where.removeprefix("http://").split(":"))
    writer.write(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    reply = await reader.read()
    writer.close()
    assert b"aiohttp" not in reply
    assert b"Python" not in reply


async def test_nothing_of_a_connection_that_has_ended_waits_for_the_collector(through):
    async def once():
        async with calling(through) as caller:
            await caller.say(GET)
            assert (await caller.hear()).status == 200

    await once()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(10):
            await once()
        await through.exchanges(11)
        await asyncio.sleep(0.1)
        gc.collect()
        left = Counter(type(one).__name__ for one in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left.keys() & {"CallerConnection", "Call", "Decision", "Task"}
