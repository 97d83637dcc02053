"""The fault matrix: what the upstream was sent, counted there, and what the caller was told.

Every method, every fault, over a new and over a used connection.
"""

import asyncio
import itertools
import json
import re
import socket
import ssl
from contextlib import suppress

import pytest
import trustme
from harness import ScriptedUpstream, reset, transfer_body
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.simulator import parse_fault

METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"]
READS = {"GET", "HEAD"}
PATH = "/v1/somewhere"
TRANSFER = "/v2/transfers/bank"
LOST = (502, "unknown")
ANSWERED = (404, "answered")  # the simulator's word on that path

# By fault: (times sent, what the caller is told) over a new connection, over a used one, and
# over a used one for GET and HEAD where that differs.
MATRIX = {
    "nothing": ((1, ANSWERED), (1, ANSWERED)),
    "refused": ((0, (502, "not_sent")), (0, (502, "not_sent"))),
    "drop-connection": ((0, LOST), (1, ANSWERED)),
    "drop-before": ((1, LOST), (1, LOST), (2, ANSWERED)),
    "drop-during": ((1, LOST), (1, LOST), (2, ANSWERED)),
    "drop-after": ((1, LOST), (1, LOST), (2, ANSWERED)),
    "drop-after times=always": ((1, LOST), (1, LOST), (2, LOST)),
    "lose-reply": ((1, LOST), (1, LOST), (2, ANSWERED)),
    "cut bytes=0": ((1, LOST), (1, LOST), (2, ANSWERED)),
    "cut bytes=1": ((1, LOST), (1, LOST)),
    "cut bytes=40": ((1, LOST), (1, LOST)),
    "cut bytes=40 then=reset": ((1, LOST), (1, LOST)),
    "cut bytes=40 then=stall": ((1, (504, "unknown")), (1, (504, "unknown"))),
    "stall": ((1, (504, "unknown")), (1, (504, "unknown"))),
    "garbage": ((1, LOST), (1, LOST)),
    "stray-byte": ((1, ANSWERED), (1, ANSWERED)),
    "unsolicited seconds=0": ((1, ANSWERED), (1, ANSWERED)),
    "oversized head": ((1, LOST), (1, LOST)),
}


def expected(fault, method, *, used):
    row = MATRIX[fault]
    return row[min(len(row) - 1, 2)] if used and method in READS else row[1 if used else 0]


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", MATRIX)
async def test_the_matrix(start_proxy, simulator, fault, method, used):
    # Only who waits in vain is not to wait for long.
    proxy = await start_proxy(timeouts__first_byte=1 if "stall" in fault else 20)
    assert (await proxy.get(PATH)).status == 404  # now there is a token, and a connection
    port = int(simulator.origin.rpartition(":")[2])
    if not used:
        await simulator.stop()
        await simulator.start(port=port)
    if fault == "oversized head":
        simulator.inject(parse_fault(f"reply path={PATH} content_type={'x' * 70_000}"))
    elif fault == "refused":
        await simulator.stop()
    elif fault != "nothing":
        where = "" if fault == "drop-connection" else f" path={PATH}"
        simulator.inject(parse_fault(fault + where))
    before = simulator.count(PATH)

    body = None if method in READS else b'{"a": 1}'
    reply = await proxy.send(method, PATH, body=body)
    sends, told = expected(fault, method, used=used)
    if fault == "drop-connection" and not used:
        assert (reply.status, reply.outcome in {"unknown", "not_sent"}) == (502, True)
    else:
        assert (reply.status, reply.outcome) == told
    assert simulator.count(PATH) - before == sends

    # Whatever it was, the next one is served, by its own reply.
    simulator.faults.clear()
    if fault == "refused":
        await simulator.start(port=port)
    after = await proxy.get("/v1/accounts/balance")
    assert (after.status, after.json["data"]["currency"]) == (200, "NGN")
    assert simulator.count("/v1/auth/token/issue") == 1


@pytest.fixture
async def picky(tmp_path):
    """A TLS upstream that refuses as many handshakes as it is told."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA).configure_cert(context)
    upstream = ScriptedUpstream()
    upstream.refuse = 0

    def meet(*_):
        if upstream.refuse:
            upstream.refuse -= 1
            return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
        return None

    context.sni_callback = meet
    await upstream.start(tls=context)
    yield upstream
    await upstream.stop()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("refusals", "told", "sends"), [(1, 200, 1), (2, 502, 0)])
async def test_what_was_not_sent_is_sent_once_over_a_fresh_connection(
    start_proxy, picky, tmp_path, method, refusals, told, sends
):
    ca = {"upstream__ca_file": tmp_path / "ca.pem"}
    proxy = await start_proxy(base_url=picky.origin, **ca)
    assert (await proxy.get("/v1/x")).status == 200
    picky.refuse = refusals
    reply = await proxy.send(method, "/v1/y", body=b"all of it")
    assert (reply.status, reply.outcome) == (told, "answered" if sends else "not_sent")
    assert [body for head, body in picky.requests if b"/v1/y" in head] == [b"all of it"] * sends


async def test_a_resend_is_had_once_in_an_exchange_replays_included(proxy, simulator):
    await proxy.get(PATH)
    simulator.inject(parse_fault(f"drop-after path={PATH}"))
    simulator.inject(parse_fault(f"unauthorized path={PATH}"))
    simulator.inject(parse_fault(f"drop-after path={PATH} times=always"))
    before = simulator.count(PATH)
    reply = await proxy.get(PATH)
    assert (reply.status, reply.outcome) == LOST
    assert simulator.count(PATH) - before == 3  # lost, refused, replayed and lost


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_exchange_has_one_deadline(start_proxy, upstream, method):
    total = 4
    proxy = await start_proxy(base_url=upstream.origin, timeouts__total=total)

    async def answer(head, _, writer):
        # Soon enough for a time of its own, too late for what is left of the whole one.
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.5 if b"token-1" in head else total - 0.3)
        if b"token-1" in head:
            writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    upstream.answer = answer
    reply = await proxy.send(method, "/v1/x", body=b"{}")
    assert (reply.status, reply.outcome, len(upstream.requests)) == (504, "unknown", 2)


async def test_a_replay_whose_time_is_over_is_not_sent(start_proxy, upstream):
    total = 4
    proxy = await start_proxy(base_url=upstream.origin, timeouts__total=total)
    await proxy.get("/v1/x")
    grant, refuse = upstream._grant, upstream.reply_with(COURSES["refuse"])

    async def late_grant(writer):  # by then nothing of the time is left
        await asyncio.sleep(total - 0.3)
        await grant(writer)

    async def late_refusal(*arguments):
        await asyncio.sleep(0.5)
        await refuse(*arguments)

    upstream._grant, upstream.answer = late_grant, late_refusal
    reply = await proxy.transfer()
    assert (reply.status, reply.outcome) == (504, "refused")
    assert [b"/v2/transfers" in head for head, _ in upstream.requests] == [False, True]


# -- laws over any course of an exchange -------------------------------------------------

JWT_EXPIRED = b'{"code":"500","description":"JWT expired at 2026-07-07T23:10:48Z."}'
COURSES = {  # what an upstream does with one sending of a request
    "answer": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "refuse": b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno",
    "expired": b"HTTP/1.1 500 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(JWT_EXPIRED), JWT_EXPIRED),
    "forbid": b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n",
    "close": b"",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf",
    "garbage": b"what?\r\n\r\n",
}
UNPROVEN = {"expired", "close", "cut", "garbage"}  # the work may have been done


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from([*METHODS, "OPTIONS"]),
    target=st.sampled_from([TRANSFER, PATH, "/v1/accounts/balance"]),
    course=st.lists(st.sampled_from(sorted(COURSES)), min_size=4, max_size=4),
    used=st.booleans(),
)
async def test_whatever_happens_nothing_is_done_twice(retry_bench, method, target, course, used):
    reply, happened = await retry_bench(method, target, course, used=used)
    reads = {"GET", "HEAD", "OPTIONS"}
    if method not in reads:  # what may have been done is the last thing that is sent
        assert not UNPROVEN & set(happened[:-1])
        assert len(happened) <= 2
    assert len(happened) <= 3  # once, one replay, one resend
    assert happened.count("refuse") <= 2
    last = happened[-1]
    if last in {"close", "cut", "garbage"} and (last != "cut" or method != "HEAD"):
        assert reply is None or reply.outcome == "unknown"
    elif last == "expired" and method not in reads:
        assert reply.outcome == "unknown"
    else:
        assert reply.outcome == "answered"


@pytest.fixture
async def retry_bench(start_proxy):
    """Sends a request to an upstream that takes a given course; tells what it did."""
    plan, happened, tokens = [], [], itertools.count()

    async def serve(reader, writer):
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith(b"POST /v1/auth/token/"):
                    data = {"access_token": f"t{next(tokens)}", "expires_in": 1800}
                    body = json.dumps({"code": "00", "data": data}).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
                    writer.write(body)
                    continue
                step = plan.pop(0) if plan else "answer"
                happened.append(step)
                said = COURSES[step]
                if head.startswith(b"HEAD "):
                    said = said[: said.find(b"\r\n\r\n") + 4]
                writer.write(said)
                if step in {"close", "cut", "garbage"}:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    # Refusals that follow one another so fast and for one path are limited elsewhere.
    unlimited = {"token__budget": 100_000, "token__memory": 0.001}
    proxy = await start_proxy(
        base_url=origin, timeouts__first_byte=20, timeouts__total=20, **unlimited
    )

    async def play(method, target, course, *, used):
        plan.clear()
        # An answer ends every rule about tokens refused in a row.
        assert (await proxy.get("/v1/x")).status == 200
        if not used:
            plan[:] = ["close", "close"]
            await proxy.get("/v1/x")
        happened.clear()
        plan[:] = course
        try:
            reply = await proxy.send(method, target, body=None if method in READS else b"{}")
        except asyncio.IncompleteReadError:
            reply = None  # cut, and seen so
        return reply, list(happened)

    yield play
    server.close()


# -- a caller that leaves ----------------------------------------------------------------


async def leave(proxy, method, path, body=b""):
    """Send a request whole; hang up when told: `await gone()`."""
    _, writer = await asyncio.open_connection(*proxy.address)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)

    async def gone():
        writer.transport.abort()
        await asyncio.sleep(0)

    return gone


@pytest.mark.parametrize("method", METHODS)
async def test_a_caller_that_leaves_before_the_first_byte_cancels_its_request(
    proxy, simulator, method
):
    with simulator.hold("/v1/auth/token/issue") as hold:
        gone = await leave(proxy, method, PATH, b"{}")
        await hold.caught()
        await gone()
        (line,) = await proxy.exchanges()
    assert (line["status"], line["outcome"], line["attempts"]) == (499, "not_sent", 0)
    assert (await proxy.get("/v1/accounts/balance")).status == 200
    assert simulator.count(PATH) == 0


@pytest.mark.parametrize("method", METHODS)
async def test_from_the_first_byte_on_only_reads_are_cancelled(proxy, simulator, method):
    await proxy.get("/v1/accounts/balance")
    with simulator.hold(PATH) as hold:
        gone = await leave(proxy, method, PATH, b"{}")
        await hold.caught()
        await gone()
        if method in READS:
            _, line = await proxy.exchanges(2)
    if method not in READS:
        _, line = await proxy.exchanges(2)
    assert line["status"] == 499
    assert line["outcome"] == ("unknown" if method in READS else "answered")
    assert simulator.count(PATH) == 1


async def test_a_transfer_whose_caller_left_is_replayed_only_if_it_is_still_there(proxy, simulator):
    await proxy.get("/v1/accounts/balance")
    simulator.revoke()
    with simulator.hold("/v1/auth/token/issue") as hold:
        gone = await leave(proxy, "POST", TRANSFER, transfer_body())
        await hold.caught()  # its first try was refused, the renewal is under way
        await gone()
        _, line = await proxy.exchanges(2)
    assert (line["status"], line["outcome"], line["attempts"]) == (499, "refused", 1)
    assert simulator.count(TRANSFER) == 1
    assert simulator.ledger == []


async def test_beyond_the_pool_and_its_queue_a_caller_is_told_to_come_again(start_proxy, simulator):
    proxy = await start_proxy(pool__size=1, pool__queue=1)
    await proxy.get("/v1/accounts/balance")
    with simulator.hold(PATH) as hold:
        first = asyncio.create_task(proxy.get(PATH))
        await hold.caught()
        second = asyncio.create_task(proxy.send("POST", PATH, body=b"{}"))
        for _ in range(100):  # the second has to wait before the third comes
            await asyncio.sleep(0.001)
        third = await proxy.transfer()
        assert (third.status, third.outcome) == (503, "not_sent")
        assert third.json["proxy"]["error"] == "overloaded"
        assert third.get("Retry-After") == "1"
    assert [(await one).status for one in (first, second)] == [404, 404]
    assert simulator.ledger == []


@pytest.mark.parametrize("size", [1, 2])
async def test_a_renewal_needs_no_connection_of_those_that_wait_for_it(
    start_proxy, simulator, size
):
    proxy = await start_proxy(pool__size=size, token__wait_limit=5)
    await proxy.get("/v1/accounts/balance")
    simulator.revoke()
    replies = await asyncio.gather(*(proxy.transfer(f"ref-{n}") for n in range(6)))
    assert {(reply.status, reply.outcome) for reply in replies} == {(200, "answered")}
    assert len(simulator.ledger) == 6
    assert simulator.count("/v1/auth/token/issue") == 2


@pytest.mark.parametrize("size", [100_000, 300_000, 400_000, 600_000])
async def test_after_a_large_refusal_the_replay_is_heard(start_proxy, simulator, size):
    proxy = await start_proxy(timeouts__first_byte=20)
    await proxy.get("/v1/accounts/balance")
    simulator.fail(TRANSFER, status=401, body=b"x" * size)
    reply = await proxy.transfer()
    assert (reply.status, reply.outcome) == (200, "answered")
    assert len(simulator.ledger) == 1


async def test_who_waited_in_vain_for_a_connection_is_not_sent_afterwards(start_proxy, simulator):
    proxy = await start_proxy(pool__size=1, timeouts__total=2)
    await proxy.get("/v1/accounts/balance")
    with simulator.hold(PATH) as hold:
        first = asyncio.create_task(proxy.send("POST", PATH, body=b"{}"))
        await hold.caught()
        replies = await asyncio.gather(*(proxy.transfer(f"ref-{n}") for n in range(3)))
        assert (await first).outcome == "unknown"
    moved = [movement.ref for movement in simulator.ledger]
    for n, reply in enumerate(replies):
        # The first one's connection is free moments before they run out of time: who gets it
        # then is answered, or learns that nobody knows.
        expected = {(504, "not_sent"), (504, "unknown"), (200, "answered")}
        assert (reply.status, reply.outcome) in expected
        assert reply.outcome != "not_sent" or f"ref-{n}" not in moved
    assert len(set(moved)) == len(moved)
    assert {one["attempts"] for one in await proxy.exchanges(5)} == {1}


async def test_a_caller_that_reads_nothing_is_cut_off(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, callers__write_stall=0.2)
    size = 30_000_000
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    )
    _, writer = await asyncio.open_connection(*proxy.address, limit=1024)
    writer.write(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    (line,) = await proxy.exchanges()
    assert (line["status"], line["error"]) == (499, "caller_stalled")
    writer.transport.abort()


async def test_a_caller_that_reads_slowly_is_not_cut_off(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, callers__write_stall=4)
    size = 12_000_000
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    )
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, proxy.address)
    await loop.sock_sendall(sock, b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    got, reads = 0, 0
    while got < size:
        part = await loop.sock_recv(sock, 20_000)
        assert part
        got, reads = got + len(part), reads + 1
        if reads < 100:  # longer than a stall may last
            await asyncio.sleep(0.045)
    sock.close()
    (line,) = await proxy.exchanges()
    assert (line["status"], line["reply_bytes"]) == (200, size)


async def test_a_slow_reader_that_has_ended_its_own_half_has_its_answer(start_proxy, upstream):
    """Its connection is closed in the moment in which the last of the reply is written."""
    proxy = await start_proxy(base_url=upstream.origin)
    size = 400_000
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    )
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # else the kernel takes it all
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, proxy.address)
    await loop.sock_sendall(sock, b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await loop.sock_recv(sock, 1000)
    await asyncio.sleep(0.5)  # the whole reply is here, most often, and waits
    sock.shutdown(socket.SHUT_WR)
    while await loop.sock_recv(sock, 65536):
        pass
    sock.close()
    (line,) = await proxy.exchanges()
    assert (line["outcome"], line.get("error")) == ("answered", None)
    assert not proxy.log.lines("internal_fault")


async def test_a_caller_that_reads_a_little_now_and_then_has_to_end_in_time_too(
    start_proxy, upstream
):
    proxy = await start_proxy(base_url=upstream.origin, timeouts__total=2)
    size = 30_000_000
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    )
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, proxy.address)
    await loop.sock_sendall(sock, b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")

    async def read():
        while await loop.sock_recv(sock, 1000):
            await asyncio.sleep(0.02)

    with pytest.raises(ConnectionResetError):  # it reads on meanwhile
        await asyncio.wait_for(read(), 30)
    sock.close()
    (line,) = await proxy.exchanges()
    assert (line["status"], line["error"]) == (499, "caller_stalled")
    assert line["reply_bytes"] < size


async def test_who_does_not_read_a_reply_that_is_here_keeps_nobody_from_the_upstream(
    start_proxy, upstream
):
    proxy = await start_proxy(base_url=upstream.origin, pool__size=1, timeouts__total=3)
    size = 60_000  # small enough to come at once
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    )
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # else the kernel takes too much
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, proxy.address)
    asked = 60
    await loop.sock_sendall(sock, b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n" * asked)
    answered = -1
    while answered < len(upstream.requests) or not answered:
        answered = len(upstream.requests)
        await asyncio.sleep(0.3)
    assert answered < asked  # so one of the replies waits for it
    reply = await proxy.get("/v1/y")
    sock.close()
    assert (reply.status, reply.outcome) == (200, "answered")


@pytest.mark.parametrize("request_line", ["GET /a/../b", "OPTIONS *", "POST /v1/auth/token/issue"])
async def test_a_caller_that_asks_and_asks_and_reads_nothing_is_cut_off(
    start_proxy, upstream, request_line
):
    proxy = await start_proxy(base_url=upstream.origin, callers__write_stall=0.2)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, proxy.address)
    request = f"{request_line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()

    async def ask():
        for _ in range(2000):
            await loop.sock_sendall(sock, request * 100)

    with pytest.raises(ConnectionError):  # long before all of it was taken
        await asyncio.wait_for(ask(), 30)
    sock.close()


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("whole", [True, False])
async def test_a_caller_that_leaves_during_a_reply_does_not_end_what_is_no_read(
    start_proxy, upstream, method, whole
):
    proxy = await start_proxy(base_url=upstream.origin)
    ended, gone = asyncio.Event(), asyncio.Event()

    async def answer(_, __, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)
        await gone.wait()
        for _ in range(9 if whole else 4):
            writer.write(b"x" * 111_000)
            await writer.drain()
            await asyncio.sleep(0.02)
        ended.set()

    upstream.answer = answer
    reader, writer = await asyncio.open_connection(*proxy.address)
    writer.write(f"{method} /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await reader.readuntil(b"xxx")
    reset(writer)
    gone.set()
    (line,) = await proxy.exchanges()
    assert line["status"] == 499
    if method == "GET":
        assert line["outcome"] == "unknown"
    else:
        await asyncio.wait_for(ended.wait(), 30)
        assert line["outcome"] == ("answered" if whole else "unknown")
