"""R1, R6, R7 and R8: nothing twice, no reply to the wrong request, every cut seen, memory flat."""

import asyncio
import hashlib
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from harness import LOST, Line, environ, read_reply, reset
from valkeys import free_port

HERE = Path(__file__).parent


# -- R1 ---------------------------------------------------------------------------------


@pytest.mark.timeout(900)
async def test_r1_nothing_is_done_twice_while_upstream_workers_are_killed(
    start_proxy, tmp_path, size, figure
):
    kills, port, ledger = size(200, 2000), free_port(), tmp_path / "ledger"
    workers = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "workers.py"), str(port), str(ledger), str(kills), "0.02"),
        env=environ(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert await workers.stdout.readline() == b"ready\n"
    proxy = await start_proxy(base_url=f"http://127.0.0.1:{port}")
    outcomes = {}
    done = asyncio.create_task(workers.stdout.readline())

    async def caller(number):
        line, count = Line(proxy.address), 0
        while not done.done():
            count += 1
            ref = f"{number}-{count}"
            method = ("POST", "PUT", "PATCH", "DELETE")[count % 4]
            path = "/v2/transfers/bank" if count % 8 == 0 else "/v1/checkout/order"
            reply = await line.ask(
                f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(ref)}\r\n\r\n{ref}".encode()
            )
            outcomes[ref] = (reply.status, reply.outcome)
        line.close()

    await asyncio.gather(*(caller(number) for number in range(16)))
    assert done.result() == b"done\n"
    workers.stdin.close()
    await asyncio.wait_for(workers.communicate(), 30)

    worked = Counter(ledger.read_text().split())
    twice = [ref for ref, times in worked.items() if times > 1]
    acknowledged = {ref for ref, told in outcomes.items() if told == (200, "answered")}
    unsent = {ref for ref, (_, outcome) in outcomes.items() if outcome == "not_sent"}
    unknown = [ref for ref, (_, outcome) in outcomes.items() if outcome == "unknown"]
    figure(
        "R1",
        f"{kills} kills, {len(outcomes)} writes: {len(twice)} done twice, "
        f"{len(acknowledged - set(worked))} acknowledged but missing, "
        f"{len(unsent & set(worked))} told not_sent but done, {len(unknown)} told unknown",
    )
    assert twice == []
    assert acknowledged <= set(worked)
    assert not unsent & set(worked)
    assert len(acknowledged) > kills
    assert len(acknowledged) + len(unsent) + len(unknown) == len(outcomes)


# -- R6 ---------------------------------------------------------------------------------

EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
MORE = [
    EVIL,
    EVIL[:20],
    b"x",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"\r\n",
    EVIL * 3,
    b"HTTP/1.1 204 No\r\n\r\n",
]


class Talkative:
    """An upstream that says more than it was asked, at once or while the connection is idle."""

    def __init__(self, rng):
        self.rng = rng
        self.said = 0

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                ref = re.search(rb"[?]ref=(\S+)", head)
                if ref is None:
                    await reader.readuntil(b"}")
                    body = b'{"code":"00","data":{"access_token":"t","expires_in":3600}}'
                else:
                    body = ref[1]
                reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                more = self.rng.choice(MORE) if ref and self.rng.random() < 0.5 else b""
                if more and self.rng.random() < 0.5:
                    writer.write(reply + more)
                    self.said += 1
                    continue
                writer.write(reply)
                if more:
                    for _ in range(self.rng.randrange(4)):
                        await asyncio.sleep(0)
                    sock = writer.get_extra_info("socket")
                    waiting = sock.fileno() >= 0 and _has_input(sock.fileno())
                    if not reader._buffer and not waiting:  # idle, as far as anybody can know
                        writer.write(more)
                        self.said += 1
        except LOST:
            writer.close()


def _has_input(descriptor):
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


@pytest.mark.timeout(900)
async def test_r6_nothing_unasked_is_delivered_to_another_request(start_proxy, size, figure):
    total, rng = size(5000, 100_000), random.Random(6)
    talkative = Talkative(rng)
    server = await asyncio.start_server(talkative.serve, "127.0.0.1", 0)
    proxy = await start_proxy(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    wrong, statuses = [], Counter()

    async def caller(number):
        line = Line(proxy.address)
        for count in range(total // 8):
            ref = f"{number}-{count}"
            reply = await line.ask(
                f"GET /v1/x?ref={ref} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            statuses[reply.status] += 1
            if reply.status == 200 and reply.body.decode() != ref:
                wrong.append((ref, reply.body))
        line.close()

    await asyncio.gather(*(caller(number) for number in range(8)))
    server.close()
    figure(
        "R6",
        f"{sum(statuses.values())} requests, {talkative.said} times something unasked: "
        f"{len(wrong)} delivered to another request, {statuses[502]} times 502",
    )
    assert wrong == []
    assert talkative.said > total / 10
    assert statuses[200] > total * 0.9
    assert set(statuses) <= {200, 502}


# -- R7 ---------------------------------------------------------------------------------


def cut_reply(rng):
    """A reply, cut somewhere: its framing, and the bytes that are sent."""
    framing = rng.choice(["length", "chunked", "unframed"])
    body = b"%x" % rng.getrandbits(8 * rng.choice([10, 1000, 50_000]))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % rng.choice(
        [b"text/plain", b"application/json"]
    )
    if framing == "length":
        whole = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    elif framing == "chunked":
        at = rng.randrange(len(body))
        chunks = [part for part in (body[:at], body[at:]) if part]
        whole = head + b"Transfer-Encoding: chunked\r\n\r\n"
        whole += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in chunks) + b"0\r\n\r\n"
    else:
        return framing, (head + b"\r\n" + body)[: rng.randrange(len(head) + len(body) + 3)]
    return framing, whole[: rng.randrange(len(whole))]


@pytest.mark.timeout(900)
async def test_r7_a_reply_that_is_cut_anywhere_is_seen_as_cut(start_proxy, upstream, size, figure):
    total, rng = size(5000, 100_000), random.Random(7)
    proxy = await start_proxy(base_url=upstream.origin)
    await proxy.get("/v1/x")
    seen = Counter()
    clean = []

    async def answer(head, _, writer):
        framing, data = cut_reply(rng)
        writer.write(data)
        await writer.drain()
        if framing == "unframed" or rng.random() < 0.5:
            await asyncio.sleep(0.001)  # so that what was sent is not lost with the reset
            reset(writer)

    upstream.answer = answer

    async def caller(number):
        for _ in range(total // 8):
            version = rng.choice(["1.0", "1.1"])
            reader, writer = await asyncio.open_connection(*proxy.address)
            writer.write(f"GET /v1/x HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
            try:
                reply = await read_reply(reader)
            except LOST:
                seen["cut"] += 1
            else:
                if reply.status == 502 and reply.outcome == "unknown":
                    seen["502"] += 1
                else:
                    clean.append((version, reply.raw[:200]))
            writer.close()

    await asyncio.gather(*(caller(number) for number in range(8)))
    figure("R7", f"{sum(seen.values())} cuts: {len(clean)} looked whole ({dict(seen)})")
    assert clean == []
    assert seen["cut"] > total / 8
    assert seen["502"] > total / 8


# -- R8 ---------------------------------------------------------------------------------

MIB = 1024 * 1024
SERVE = """
import asyncio, sys
from proxy.cli import main
main(["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", *sys.argv[1:]])
"""


def memory(pid):
    """Bytes that a process has at most had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024


class Sink:
    """An upstream that takes any body and gives one back, hashing both."""

    def __init__(self, size):
        self.size = size
        self.got = self.gave = ""

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int((re.search(rb"(?i)content-length: (\d+)", head) or [0, b"0"])[1])
                taken = hashlib.sha256()
                while length:
                    part = await reader.read(min(length, 65536))
                    taken.update(part)
                    length -= len(part)
                if b"/auth/token/" in head:
                    body = b'{"code":"00","data":{"access_token":"t","expires_in":3600}}'
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                    )
                elif head.startswith(b"GET "):
                    await self.give(writer)
                else:
                    self.got = taken.hexdigest()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except LOST:
            writer.close()

    async def give(self, writer):
        given = hashlib.sha256()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.size)
        part = os.urandom(MIB)
        for _ in range(self.size // MIB):
            given.update(part)
            writer.write(part)
            await writer.drain()
        self.gave = given.hexdigest()


@pytest.mark.timeout(900)
async def test_r8_a_large_body_passes_both_ways_with_flat_memory(tmp_path, size, figure):
    total = size(64 * MIB, 1024 * MIB)
    sink = Sink(total)
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0)
    env = {
        "NOMBA_CLIENT_ID": "c",
        "NOMBA_CLIENT_SECRET": "s",
        "NOMBA_ACCOUNT_ID": "a",
        "NOMBA_BASE_URL": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        "NOMBA_PROXY_BODY_LIMIT": f"{total}B",
        "NOMBA_PROXY_BODY_SPOOL_DIR": str(tmp_path),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVE),
        env=environ(**env),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    address = None
    while address is None:
        line = await asyncio.wait_for(process.stderr.readline(), 30)
        assert line
        if found := re.search(rb"listening +http://([\d.]+):(\d+)", line):
            address = (found[1].decode(), int(found[2]))
    caller = Line(address)
    assert (
        await caller.ask(b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nok")
    ).status == 200
    before = memory(process.pid)

    part, sent = os.urandom(MIB), hashlib.sha256()
    caller.writer.write(
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % total
    )
    for _ in range(total // MIB):
        sent.update(part)
        caller.writer.write(part)
        await caller.writer.drain()
    reply = await read_reply(caller.reader)
    assert (reply.status, reply.outcome) == (200, "answered")
    up = memory(process.pid) - before

    caller.writer.write(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await caller.reader.readuntil(b"\r\n\r\n")
    received, left = hashlib.sha256(), total
    while left:
        part = await caller.reader.read(min(left, 65536))
        assert part
        received.update(part)
        left -= len(part)
    down = memory(process.pid) - before
    caller.close()
    process.terminate()
    await asyncio.wait_for(process.communicate(), 60)
    server.close()
    figure(
        "R8",
        f"{total // MIB} MiB up and down: identical, peak memory grew by "
        f"{up / MIB:.1f} MiB up, {down / MIB:.1f} MiB in all",
    )
    assert sink.got == sent.hexdigest()
    assert sink.gave == received.hexdigest()
    assert down < 16 * MIB
