"""R12 and R13: nothing a caller sends chooses an origin; what it sends arrives as it was, or not."""

import asyncio
import random
import re
from collections import Counter

import pytest
from harness import read_reply

LOST = (ConnectionError, asyncio.IncompleteReadError)
ACCOUNT = b"00000000-0000-4000-8000-acc000000001"
GRANT = b'{"code":"00","data":{"access_token":"the-token","expires_in":3600}}'


class Witness:
    """An upstream that remembers the heads it got and answers everything."""

    def __init__(self):
        self.connections = 0
        self.heads = []
        self._tasks = set()

    async def start(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self.connections += 1
        self._tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
                await reader.readexactly(int(length[1]) if length else 0)
                body = GRANT if head.startswith(b"POST /v1/auth/token/") else b"ok"
                if body == b"ok":
                    self.heads.append(head)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        except (*LOST, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def witness():
    running = await Witness().start()
    yield running
    await running.stop()


@pytest.fixture
async def elsewhere():
    running = await Witness().start()
    yield running
    await running.stop()


async def each(address, requests, told):
    """Send requests one after the other, each answer told; a lost connection is made again."""
    reader = writer = None
    for request in requests:
        if writer is None:
            reader, writer = await asyncio.open_connection(*address)
        writer.write(request)
        try:
            reply = await asyncio.wait_for(read_reply(reader), 30)
        except LOST:
            told(request, None)
            reply = None
        else:
            told(request, reply)
        if reply is None or reply.get("Connection") == "close":
            writer.close()
            writer = None
    if writer is not None:
        writer.close()


# -- R12 --------------------------------------------------------------------------------


def hostile(rng, *, evil):
    """A request that tries to be sent elsewhere."""
    authority = b"127.0.0.1:%d" % evil
    targets = [
        b"http://%b/v1/x",
        b"HTTP://%b",
        b"https://%b/",
        b"//%b/v1/x",
        b"///%b/v1/x",
        b"/\\%b/x",
        b"\\\\%b/x",
        b"@%b/x",
        b"/@%b/x",
        b"/v1/x?url=http://%b/",
        b"/v1/..//%b/x",
        b"/%%2f%%2f%b/x",
        b"http:/%b/x",
        b"http:%b/x",
        b"http://nomba@%b/x",
        b"http://127.0.0.1#@%b/x",
        b"/x HTTP/1.1\r\nHost: %b\r\n\r\nGET /x",
        b"ftp://%b/x",
        b"%b",
        b"*",
    ]
    target = rng.choice(targets)
    target = target % authority if b"%b" in target else target
    for _ in range(rng.randrange(3)):  # and some damage on top
        at = rng.randrange(len(target) + 1)
        target = target[:at] + bytes([rng.randrange(33, 127)]) + target[at:]
    method = rng.choice([b"GET", b"POST", b"CONNECT", b"OPTIONS", b"PUT"])
    names = [b"X-Forwarded-Host", b"Forwarded", b"X-Original-URL", b"Host", b"X-Host", b"Location"]
    headers = b"".join(
        b"%b: %b\r\n" % (rng.choice(names), rng.choice([authority, b"http://" + authority]))
        for _ in range(rng.randrange(3))
    )
    host = rng.choice([b"Host: %b\r\n" % authority, b"Host: localhost\r\n"])
    return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method, target, host, headers)


@pytest.mark.timeout(1800)
async def test_r12_nothing_a_caller_sends_chooses_where_it_goes(
    start_proxy, witness, elsewhere, size, figure
):
    total, rng = size(10_000, 1_000_000), random.Random(12)
    proxy = await start_proxy(base_url=f"http://127.0.0.1:{witness.port}")
    statuses = Counter()

    def told(_, reply):
        statuses[reply.status if reply else "closed"] += 1

    async def caller():
        requests = (hostile(rng, evil=elsewhere.port) for _ in range(total // 8))
        await each(proxy.address, requests, told)

    await asyncio.gather(*(caller() for _ in range(8)))
    figure(
        "R12",
        f"{total} hostile requests: {elsewhere.connections} connections elsewhere, "
        f"{len(witness.heads)} forwarded, {dict(statuses.most_common(4))}",
    )
    assert elsewhere.connections == 0
    host = b"127.0.0.1:%d" % witness.port
    for head in witness.heads:
        assert re.findall(rb"(?im)^host: (.*)\r$", head) == [host]
        assert b"\r\nAuthorization: Bearer the-token\r\n" in head
    assert len(witness.heads) > total / 20
    assert sum(statuses[one] for one in (400, 403, 405)) > total / 4
    assert not any(one >= 500 for one in statuses if isinstance(one, int))


# -- R13 --------------------------------------------------------------------------------

SEGMENT = b"abcXYZ019-._~!$&'()*+,;=:@"
GONE = {
    *(b"connection", b"keep-alive", b"te", b"proxy-authorization", b"x-forwarded-for"),
    *(b"forwarded", b"x-real-ip", b"x-http-method-override", b"authorization", b"accountid"),
    *(b"account_id", b"expect"),
}
NAMES = [
    *(
        b"X-One",
        b"x-one",
        b"X-ONE",
        b"Accept",
        b"accept-encoding",
        b"Cookie",
        b"X_Under",
        b"If-Match",
    ),
    *(b"Content-Type", b"X-Idempotent-key", b"Keep-Alive", b"TE", b"Proxy-Authorization"),
    *(b"X-Forwarded-For", b"Forwarded", b"X-Real-IP", b"X-HTTP-Method-Override"),
    *(b"Authorization", b"accountId", b"ACCOUNTID", b"account_id"),
]
ONCE = {b"content-type", b"authorization", b"if-match", b"accept-encoding"}


def faithful(rng):
    """A request as strange as it may be: its target, its headers, its bytes."""
    path = b"".join(
        rng.choice([bytes([rng.choice(SEGMENT)]), b"/", b"//", b"%%%02x" % rng.randrange(256)])
        for _ in range(rng.randrange(12))
    )
    query = b"".join(
        rng.choice([bytes([rng.choice(SEGMENT)]), b"?", b"/", b"%2F", b"%zz", b"%", b"+"])
        for _ in range(rng.randrange(8))
    )
    target = b"/v1/" + path + rng.choice([b"", b"?", b"?" + query])
    headers, seen = [], set()
    for _ in range(rng.randrange(12)):
        name = rng.choice(NAMES)
        if name.lower() in ONCE & seen:
            continue
        seen.add(name.lower())
        value = bytes(
            rng.choice(b"abc ,;=\xe9\xff\"'%09") for _ in range(rng.randrange(12))
        ).strip()
        if name.lower() in {b"accountid", b"account_id"}:
            value = ACCOUNT
        headers.append((name, value))
    head = b"GET %b HTTP/1.1\r\nHost: localhost\r\n" % target
    head += b"".join(b"%b: %b\r\n" % pair for pair in headers)
    return target, headers, head + b"\r\n"


@pytest.mark.timeout(1800)
async def test_r13_what_is_forwarded_is_identical_and_our_pair_is_there_once(
    start_proxy, witness, size, figure
):
    total, rng = size(10_000, 1_000_000), random.Random(13)
    proxy = await start_proxy(
        base_url=f"http://127.0.0.1:{witness.port}", headers__via_upstream=False
    )
    statuses, wrong = Counter(), []
    host = b"127.0.0.1:%d" % witness.port
    for _ in range(total // 100):
        batch = [faithful(rng) for _ in range(100)]
        sent = iter(batch)

        def told(_, reply, sent=sent):
            target, headers, _ = next(sent)
            statuses[reply.status] += 1
            if reply.status != 200:
                return
            got = witness.heads.pop()
            kept = [pair for pair in headers if pair[0].lower() not in GONE]
            lines = [b"GET %b HTTP/1.1" % target, b"Host: " + host]
            lines += [b"%b: %b" % pair for pair in kept]
            lines += [b"Authorization: Bearer the-token", b"accountId: " + ACCOUNT]
            if got != b"\r\n".join([*lines, b"", b""]):
                wrong.append((lines, got))

        await each(proxy.address, [request for _, _, request in batch], told)
    figure("R13", f"{total} requests: {len(wrong)} not identical, {dict(statuses)}")
    assert wrong == []
    assert set(statuses) <= {200, 400, 401}
    assert statuses[200] > total / 2
    assert statuses[400] > total / 100
