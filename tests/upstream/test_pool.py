"""Who gets which connection, and when one is not used again. Counted at the upstream."""

import asyncio

import pytest
from harness import reset

from proxy.errors import Overloaded, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable

OK = b"HTTP/1.1 200 OK\r\n"
HI = OK + b"Content-Length: 2\r\n\r\nhi"
REQUEST = b"GET /v1/x HTTP/1.1\r\nHost: upstream.test\r\n\r\n"


def talk(*replies, gate=None):
    """A script: one reply for each request of a connection, the last one for all that follow.

    A reply is bytes, or an async function of the writer.
    """

    async def script(peer, reader, writer):
        number = 0
        while True:
            try:
                peer.received += await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            if gate is not None:
                await gate.wait()
            reply = replies[min(number, len(replies) - 1)]
            number += 1
            if callable(reply):
                await reply(writer)
            else:
                writer.write(reply)

    return script


async def settle():
    """Let what is in the sockets arrive."""
    for _ in range(20):
        await asyncio.sleep(0.001)


# -- used again, or not -----------------------------------------------------------------


async def test_a_connection_is_used_again(serve, fetch):
    peer = await serve(talk(HI))
    dialler = peer.dialler()
    for _ in range(5):
        assert (await fetch(dialler)).body == b"hi"
    assert (peer.connections, bytes(peer.received)) == (1, REQUEST * 5)


NOT_AGAIN = {
    "connection: close": OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi",
    "close among others": OK + b"Connection: x, Close , y\r\nContent-Length: 2\r\n\r\nhi",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
    "a stray byte": HI + b"x",
    "half a reply": HI + b"HTTP/1.1 200",
    "a whole reply": HI + HI,
    "an interim reply": HI + b"HTTP/1.1 100 Continue\r\n\r\n",
    "a body of a 204": b"HTTP/1.1 204 No\r\n\r\nhi",
    "a 204 that announces a body": b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\n",
    "a 204 that announces chunks": b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("form", NOT_AGAIN)
async def test_a_connection_that_said_more_or_less_is_not_used_again(serve, fetch, form):
    peer = await serve(talk(NOT_AGAIN[form]))
    dialler = peer.dialler()
    for _ in range(3):
        assert (await fetch(dialler)).status in {200, 204}
    assert (peer.connections, bytes(peer.received)) == (3, REQUEST * 3)


async def test_a_204_that_announces_no_bytes_leaves_its_connection(serve, fetch):
    peer = await serve(talk(b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n"))
    dialler = peer.dialler()
    for _ in range(3):
        assert (await fetch(dialler)).status == 204
    assert peer.connections == 1


async def test_a_body_that_a_204_sends_late_is_no_part_of_the_next_reply(serve, fetch):
    """RFC 9110 section 15.3.5 has none, but an upstream that announces one may send it."""
    late = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"

    async def script(peer, reader, writer):
        await peer.head(reader)
        if peer.connections > 1:
            writer.write(HI)
            return
        writer.write(b"HTTP/1.1 204 No\r\nContent-Length: %d\r\n\r\n" % len(late))
        await peer.head(reader)  # the next request, which is not to come
        writer.write(late)

    dialler = (peer := await serve(script)).dialler()
    assert (await fetch(dialler)).status == 204
    assert (await fetch(dialler)).body == b"hi"
    assert peer.connections == 2


async def test_what_comes_behind_a_reply_that_waits_for_its_reader_is_not_the_next(
    serve, fetch, certificates
):
    """Over TLS it has left the socket by then, and has not been read yet."""
    size, beginning, all_said = 256 * 1024 + 1, asyncio.Event(), asyncio.Event()

    async def script(peer, reader, writer):
        await peer.head(reader)
        if peer.connections > 1:
            writer.write(HI)
            return
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % size + b"x" * (size - 1))
        await beginning.wait()
        writer.write(b"x")  # one more than is held for a slow reader
        await settle()
        writer.write(OK + b"Content-Length: 5\r\n\r\nstray")
        all_said.set()

    peer = await serve(script, tls=certificates.server(certificates.good))
    dialler = peer.dialler(ca_file=certificates.ca)
    reply = await dialler.send(REQUEST, body=(), head_only=False)
    await settle()
    beginning.set()
    await all_said.wait()
    await settle()
    assert len(b"".join([part async for part in reply.parts()])) == size
    reply.close()
    assert (await fetch(dialler)).body == b"hi"
    assert peer.connections == 2


# The parser takes each for the end of the connection, but only `Connection` in the head says so.
NO_END = {
    "Proxy-Connection": OK + b"Proxy-Connection: close\r\nContent-Length: 2\r\n\r\nhi",
    "a trailer": OK
    + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("form", NO_END)
async def test_what_does_not_end_a_connection_does_not_spoil_the_next_reply(serve, fetch, form):
    peer = await serve(talk(NO_END[form]))
    dialler = peer.dialler()
    for _ in range(3):
        assert (await fetch(dialler)).body == b"hi"
    assert (peer.connections, bytes(peer.received)) == (1, REQUEST * 3)


async def test_after_a_head_request_with_a_body_the_connection_is_not_used_again(serve, fetch):
    peer = await serve(talk(HI))
    dialler = peer.dialler()
    for _ in range(2):
        assert (await fetch(dialler, head_only=True)).status == 200
    assert (await fetch(dialler)).body == b"hi"
    assert peer.connections == 3


async def test_after_a_head_request_without_one_it_is(serve, fetch):
    peer = await serve(talk(OK + b"Content-Length: 2\r\n\r\n", HI))
    dialler = peer.dialler()
    await fetch(dialler, head_only=True)
    assert (await fetch(dialler)).body == b"hi"
    assert peer.connections == 1


async def test_a_reply_that_was_not_read_to_its_end_ends_its_connection(serve):
    peer = await serve(talk(OK + b"Content-Length: 9\r\n\r\nhi", HI))
    dialler = peer.dialler()
    reply = await dialler.send(REQUEST, body=(), head_only=False)
    reply.close()
    reply.close()
    reply = await dialler.send(REQUEST, body=(), head_only=False)
    assert reply.head.status == 200
    reply.close()
    assert peer.connections == 2


async def test_a_reply_that_came_before_the_request_was_written_ends_its_connection(serve):
    async def early(peer, reader, writer):
        await peer.head(reader)
        writer.write(HI)
        await asyncio.sleep(3600)

    peer = await serve(early)
    dialler = peer.dialler()
    big = (b"x" * 1_000_000 for _ in range(100))
    reply = await dialler.send(REQUEST, body=big, head_only=False)
    assert reply.head.status == 200
    reply.close()
    assert len(dialler._pool._idle) == 0


@pytest.mark.parametrize("unasked", [HI, b"x", b"\r\n", b"HTTP/1.1 408 Timeout\r\n\r\n"])
@pytest.mark.parametrize("seen", ["by the loop", "not yet by the loop"])
async def test_what_comes_on_an_idle_connection_is_nobodys_reply(serve, fetch, unasked, seen):
    writers = []

    async def first(writer):
        writer.write(HI.replace(b"hi", b"my"))
        writers.append(writer)

    peer = await serve(talk(first))
    dialler = peer.dialler()
    assert (await fetch(dialler)).body == b"my"
    sock = writers[0].get_extra_info("socket")
    if seen == "by the loop":
        writers[0].write(unasked)
        await settle()
    else:  # past the loop, so that only the socket itself knows
        import socket

        raw = socket.fromfd(sock.fileno(), sock.family, sock.type)
        raw.send(unasked)
        raw.close()
    assert (await fetch(dialler)).body == b"my"
    assert peer.connections == 2


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_connection_that_ended_while_idle_is_not_used_again(serve, fetch, end):
    writers = []

    async def first(writer):
        writer.write(HI)
        writers.append(writer)

    peer = await serve(talk(first))
    dialler = peer.dialler()
    await fetch(dialler)
    writers[0].close() if end == "close" else reset(writers[0])
    await settle()
    assert (await fetch(dialler)).body == b"hi"
    assert peer.connections == 2


async def test_a_used_connection_that_ends_without_a_word_is_stale_and_a_new_one_is_not(
    serve, fetch
):
    async def hang_up(writer):
        writer.close()

    peer = await serve(talk(HI, hang_up))
    dialler = peer.dialler()
    await fetch(dialler)
    with pytest.raises(UpstreamBroken) as caught:
        await fetch(dialler)
    assert (caught.value.stale, caught.value.outcome) == (True, "unknown")
    peer = await serve(talk(hang_up))
    with pytest.raises(UpstreamBroken) as caught:
        await fetch(peer.dialler())
    assert (caught.value.stale, caught.value.outcome) == (False, "unknown")


async def test_a_used_connection_that_ends_after_a_word_is_not_stale(serve, fetch):
    async def half(writer):
        writer.write(b"HTTP/1.1 2")
        writer.close()

    peer = await serve(talk(HI, half))
    dialler = peer.dialler()
    await fetch(dialler)
    with pytest.raises(UpstreamBroken) as caught:
        await fetch(dialler)
    assert not caught.value.stale


# -- age --------------------------------------------------------------------------------


async def test_a_connection_is_closed_when_it_has_been_idle_for_long(serve, fetch):
    peer = await serve(talk(HI))
    dialler = peer.dialler(pool={"idle": 1.0})
    await asyncio.gather(*(fetch(dialler) for _ in range(3)))
    assert len(dialler._pool._idle) == 3
    while dialler._pool._idle:
        await asyncio.sleep(0.01)
    assert dialler._pool._open == 0
    await fetch(dialler)
    assert peer.connections == 4


@pytest.mark.parametrize(("limit", "connections"), [(1, 2), (2, 1), (60, 1)])
async def test_the_upstreams_own_idle_limit_is_kept_with_a_margin(serve, fetch, limit, connections):
    reply = OK + b"Keep-Alive: timeout=%d, max=5\r\nContent-Length: 2\r\n\r\nhi" % limit
    peer = await serve(talk(reply))
    dialler = peer.dialler()
    for _ in range(2):
        await fetch(dialler)
    assert peer.connections == connections


async def test_money_takes_a_new_connection_or_one_that_was_just_used(serve, fetch):
    peer = await serve(talk(HI))
    dialler = peer.dialler(pool={"recent": 3600.0, "idle": 7200.0})
    await fetch(dialler)
    await fetch(dialler, recent=True)
    assert peer.connections == 1
    dialler = peer.dialler(pool={"recent": 0.0})
    await fetch(dialler)
    await asyncio.sleep(0)
    await fetch(dialler, recent=True)
    assert peer.connections == 3
    await fetch(dialler)  # the older one is still good for others
    assert peer.connections == 3


async def test_a_fresh_connection_can_be_asked_for(serve, fetch):
    peer = await serve(talk(HI))
    dialler = peer.dialler()
    for _ in range(3):
        await fetch(dialler, fresh=True)
    assert peer.connections == 3


# -- how many ---------------------------------------------------------------------------


async def test_no_more_than_the_limit_are_open_and_who_waits_is_served_in_order(serve, fetch):
    gate = asyncio.Event()
    peer = await serve(talk(HI, gate=gate))
    dialler = peer.dialler(pool={"size": 2})
    done = []

    async def one(number):
        await fetch(dialler)
        done.append(number)

    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(one(number)))
        await settle()
    assert (peer.connections, done) == (2, [])
    gate.set()
    await asyncio.gather(*tasks)
    assert peer.connections == 2
    assert sorted(done[:2]) == [0, 1]
    assert done[2:] == sorted(done[2:])


async def test_beyond_the_queue_a_request_is_refused_and_not_sent(serve, fetch):
    gate = asyncio.Event()
    peer = await serve(talk(HI, gate=gate))
    dialler = peer.dialler(pool={"size": 1, "queue": 1})
    tasks = []
    for _ in range(2):
        tasks.append(asyncio.create_task(fetch(dialler)))
        await settle()
    with pytest.raises(Overloaded) as caught:
        await fetch(dialler)
    assert (caught.value.status, caught.value.outcome, caught.value.retry_after) == (
        503,
        "not_sent",
        1,
    )
    gate.set()
    await asyncio.gather(*tasks)
    await fetch(dialler)
    assert bytes(peer.received) == REQUEST * 3


async def test_what_comes_after_its_deadline_is_not_sent_over_a_connection_that_is_ready(
    serve, fetch
):
    peer = await serve(talk(HI))
    dialler = peer.dialler()
    await fetch(dialler)
    received = len(peer.received)
    with pytest.raises(UpstreamTimeout, match="no time left") as caught:
        await dialler.send(REQUEST, body=(), head_only=False, deadline=dialler.deadline() - 90)
    assert (caught.value.outcome, len(peer.received)) == ("not_sent", received)


async def test_waiting_ends_with_the_total_time_and_nothing_is_sent(serve, fetch):
    peer = await serve(talk(OK + b"Content-Length: 9\r\n\r\nhi"))
    dialler = peer.dialler(pool={"size": 1}, total=0.1)
    later = dialler.deadline() + 60  # the one that holds the connection is not what is timed
    first = await dialler.send(REQUEST, body=(), head_only=False, deadline=later)
    with pytest.raises(UpstreamTimeout, match="no time left") as caught:
        await fetch(dialler)
    assert caught.value.outcome == "not_sent"
    first.close()
    assert bytes(peer.received) == REQUEST


@pytest.mark.parametrize("rounds", range(3))
async def test_who_leaves_the_queue_takes_nothing_with_it(serve, fetch, rounds):
    gate = asyncio.Event()
    peer = await serve(talk(HI, gate=gate))
    dialler = peer.dialler(pool={"size": 1})
    tasks = []
    for _ in range(4):
        tasks.append(asyncio.create_task(fetch(dialler)))
        await settle()
    tasks[1].cancel()
    gate.set()
    while not tasks[0].done():
        await asyncio.sleep(0)
    tasks[2].cancel()  # as the connection is being handed to it
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert got[3].body == b"hi"
    assert (await fetch(dialler)).body == b"hi"
    assert dialler._pool._open == 1


async def test_a_connection_that_cannot_be_opened_frees_its_place(serve, fetch):
    peer = await serve(talk(HI))
    dialler = peer.dialler(pool={"size": 1})
    peer._server.close()
    await peer._server.wait_closed()
    for _ in range(3):
        with pytest.raises(UpstreamUnreachable):
            await fetch(dialler)
    assert dialler._pool._open == 0


async def test_a_broken_connection_frees_its_place_for_who_waits(serve, fetch):
    async def hang_up(writer):
        writer.close()

    gate = asyncio.Event()
    peer = await serve(talk(hang_up, gate=gate))
    dialler = peer.dialler(pool={"size": 1})
    tasks = []
    for _ in range(3):
        tasks.append(asyncio.create_task(fetch(dialler)))
        await settle()
    gate.set()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in got] == [UpstreamBroken] * 3
    assert (peer.connections, dialler._pool._open) == (3, 0)


async def test_a_fresh_one_takes_the_place_of_an_idle_one(serve, fetch):
    peer = await serve(talk(HI))
    dialler = peer.dialler(pool={"size": 1})
    await fetch(dialler)
    await asyncio.wait_for(fetch(dialler, fresh=True), 5)
    assert (peer.connections, dialler._pool._open) == (2, 1)


async def test_closing_ends_what_is_idle_and_the_rest_as_it_comes_back(serve, fetch):
    gate = asyncio.Event()
    gate.set()
    peer = await serve(talk(HI, gate=gate))
    dialler = peer.dialler()
    await fetch(dialler)
    gate.clear()
    under_way = asyncio.create_task(fetch(dialler, fresh=True))
    await settle()
    dialler.close()
    assert dialler._pool._open == 1
    gate.set()
    assert (await under_way).body == b"hi"
    assert (dialler._pool._open, len(dialler._pool._idle)) == (0, 0)
