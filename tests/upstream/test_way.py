"""How an upstream is reached: addresses, families, an HTTP proxy, TLS sessions, a slow reader."""

import asyncio
import ssl
from pathlib import Path

import pytest

from proxy.errors import UpstreamTimeout, UpstreamUnreachable
from proxy.settings import parse_origin
from proxy.upstream.dialler import Dialler, Timeouts
from proxy.upstream.way import Way, certificate_shown

HI = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
REQUEST = b"POST /v1/x HTTP/1.1\r\nHost: upstream.test\r\nContent-Length: %d\r\n\r\n"


# -- addresses --------------------------------------------------------------------------


async def test_a_fixed_address_is_dialled_instead_of_the_name(serve, say, fetch, certificates):
    """So a hosts entry that points the name at this proxy makes no loop."""
    peer = await serve(say(HI), tls=certificates.server(certificates.elsewhere))
    origin = parse_origin(f"https://elsewhere.test:{peer.port}")
    way = Way(ca_file=certificates.ca, addresses=("127.0.0.1",))
    dialler = Dialler(origin, timeouts=Timeouts(), way=way)
    assert (await fetch(dialler)).body == b"hi"
    dialler.close()


async def test_the_next_address_is_tried_when_one_fails(serve, say, fetch):
    peer = await serve(say(HI))
    dialler = peer.dialler(way={"addresses": ("127.0.0.3", "127.0.0.2", "127.0.0.1")})
    assert (await fetch(dialler)).body == b"hi"
    dialler = peer.dialler(way={"addresses": ("127.0.0.3", "127.0.0.2")})
    with pytest.raises(UpstreamUnreachable) as caught:
        await fetch(dialler)
    assert caught.value.outcome == "not_sent"


async def test_the_certificate_is_that_of_the_name_whatever_is_dialled(
    serve, say, fetch, certificates
):
    peer = await serve(say(HI), tls=certificates.server(certificates.good))
    origin = parse_origin(f"https://elsewhere.test:{peer.port}")
    way = Way(ca_file=certificates.ca, addresses=("127.0.0.1",))
    with pytest.raises(UpstreamUnreachable, match="certificate"):
        await fetch(Dialler(origin, timeouts=Timeouts(), way=way))


@pytest.mark.parametrize("ipv4_only", [True, False])
async def test_ipv6_is_left_alone_if_that_is_wanted(fetch, ipv4_only):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HI)
        writer.close()

    server = await asyncio.start_server(serve, "::1", 0)
    origin = parse_origin(f"http://[::1]:{server.sockets[0].getsockname()[1]}")
    dialler = Dialler(origin, timeouts=Timeouts(), way=Way(ipv4_only=ipv4_only))
    if ipv4_only:
        with pytest.raises(UpstreamUnreachable) as caught:
            await fetch(dialler)
        assert caught.value.outcome == "not_sent"
    else:
        assert (await fetch(dialler)).body == b"hi"
    dialler.close()
    server.close()


# -- a step at a time -------------------------------------------------------------------


async def test_what_is_refused_can_be_looked_at_and_nothing_is_sent_to_it(serve, say, certificates):
    peer = await serve(say(HI), tls=certificates.server(certificates.elsewhere))
    dialler = peer.dialler(ca_file=certificates.ca)
    found = await dialler.find()
    assert [one[4] for one in found] == [("127.0.0.1", peer.port)]
    with pytest.raises(ssl.SSLCertVerificationError):
        await dialler.greet(await dialler.reach(found))
    sock = await dialler.reach(found)
    shown = await certificate_shown(dialler.origin, way=Way(), sock=sock, patience=5)
    pem = Path(certificates.elsewhere[0]).read_text()
    assert ssl.DER_cert_to_PEM_cert(shown).strip() == pem.strip()
    assert peer.received == b""


# -- through a proxy --------------------------------------------------------------------


OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"
BARE = b"HTTP/1.1 200\r\n\r\n"


class ConnectProxy:
    """An HTTP proxy that answers CONNECT with `answer`; if it is `OPEN`, it passes bytes on."""

    def __init__(self, answer=OPEN):
        self.answer = answer
        self.heads = []

    async def __aenter__(self):
        self._tasks, self._writers = [], []
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()[:2]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    async def _serve(self, reader, writer):
        self._tasks.append(asyncio.current_task())
        self._writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        writer.write(self.answer)
        if b" 200" in self.answer[:13] and self.answer.count(b"HTTP") == 1:
            port = int(head.split()[1].rpartition(b":")[2])
            there, out = await asyncio.open_connection("127.0.0.1", port)
            self._writers.append(out)
            await asyncio.gather(
                self._pass(reader, out), self._pass(there, writer), return_exceptions=True
            )
        writer.close()

    async def _pass(self, reader, writer):
        while part := await reader.read(65536):
            writer.write(part)


@pytest.mark.parametrize("answer", [OPEN, BARE, OPEN[:-2] + b"X-Via: us\r\n\r\n"])
async def test_the_upstream_is_reached_through_a_proxy_with_tls_inside(
    serve, say, fetch, certificates, answer
):
    peer = await serve(say(HI), tls=certificates.server(certificates.good))
    async with ConnectProxy(answer) as proxy:
        dialler = peer.dialler(ca_file=certificates.ca, way={"proxy": proxy.address})
        assert (await fetch(dialler)).body == b"hi"
        dialler.close()
    authority = b"127.0.0.1:%d" % peer.port
    assert proxy.heads == [b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (authority, authority)]
    assert peer.received.startswith(b"GET ")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Who are you\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20",
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",  # speaks for the upstream
        b"nonsense\r\n\r\n",
        b"x" * 20_000,
        b"",
    ],
)
async def test_a_proxy_that_refuses_is_unreachable_and_nothing_was_sent(
    serve, say, fetch, certificates, answer
):
    peer = await serve(say(HI), tls=certificates.server(certificates.good))
    async with ConnectProxy(answer) as proxy:
        dialler = peer.dialler(way={"proxy": proxy.address}, connect=5)
        with pytest.raises(UpstreamUnreachable, match="connect proxy") as caught:
            await fetch(dialler)
    assert caught.value.outcome == "not_sent"
    assert bytes(peer.received) == b""


async def test_a_proxy_that_does_not_answer_is_a_timeout_and_nothing_was_sent(
    serve, say, fetch, certificates
):
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    peer = await serve(say(HI), tls=certificates.server(certificates.good))
    dialler = peer.dialler(way={"proxy": server.sockets[0].getsockname()[:2]}, connect=0.1)
    with pytest.raises(UpstreamTimeout) as caught:
        await fetch(dialler)
    assert (caught.value.outcome, bytes(peer.received)) == ("not_sent", b"")
    server.close()


# -- TLS sessions -----------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_tls_session_is_resumed(serve, say, fetch, certificates, version):
    context = certificates.server(certificates.good)
    context.minimum_version = context.maximum_version = version
    peer = await serve(say(HI), tls=context)
    dialler = peer.dialler(ca_file=certificates.ca)
    for _ in range(3):
        assert (await fetch(dialler, fresh=True)).body == b"hi"
    assert peer.connections == 3
    assert context.session_stats()["hits"] == 2


async def test_another_dialler_resumes_nothing(serve, say, fetch, certificates):
    context = certificates.server(certificates.good)
    peer = await serve(say(HI), tls=context)
    for _ in range(2):
        await fetch(peer.dialler(ca_file=certificates.ca))
    assert context.session_stats()["hits"] == 0


# -- a large body -----------------------------------------------------------------------


async def test_a_body_in_parts_arrives_whole_and_in_order(serve, fetch):
    parts = [bytes([65 + n % 26]) * (n * 1000 + 1) for n in range(60)]
    size = sum(map(len, parts))

    async def script(peer, reader, writer):
        await peer.head(reader)
        peer.received += await reader.readexactly(size)
        writer.write(HI)

    peer = await serve(script)
    dialler = peer.dialler()
    reply = await dialler.send(REQUEST % size, body=parts, head_only=False)
    reply.close()
    assert bytes(peer.received) == REQUEST % size + b"".join(parts)


async def test_a_body_is_held_back_while_the_upstream_reads_nothing(serve):
    taken = 0

    def parts():
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b"x" * 100_000

    async def script(peer, reader, writer):
        await asyncio.sleep(3600)

    peer = await serve(script)
    dialler = peer.dialler(write_stall=0.2)
    with pytest.raises(UpstreamTimeout, match=r"took nothing of the request for 0\.2") as caught:
        await dialler.send(REQUEST % 100_000_000, body=parts(), head_only=False)
    assert caught.value.outcome == "unknown"
    assert taken < 500  # what the kernels hold, and our high-water mark


async def test_an_upstream_that_reads_slowly_is_not_cut(serve):
    size = 8_000_000

    async def script(peer, reader, writer):
        await peer.head(reader)
        got = 0
        while got < size:
            got += len(await reader.read(400_000))
            await asyncio.sleep(0.22)
        writer.write(HI)

    peer = await serve(script)
    dialler = peer.dialler(write_stall=4)  # less than it takes as a whole
    body = (b"x" * 100_000 for _ in range(size // 100_000))
    reply = await dialler.send(REQUEST % size, body=body, head_only=False)
    assert reply.head.status == 200
    reply.close()


async def test_a_reply_in_the_middle_of_a_large_body_is_delivered(serve):
    async def script(peer, reader, writer):
        await peer.head(reader)
        await reader.readexactly(1000)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.sleep(3600)

    peer = await serve(script)
    dialler = peer.dialler()
    body = (b"x" * 100_000 for _ in range(1000))
    reply = await dialler.send(REQUEST % 100_000_000, body=body, head_only=False)
    assert (reply.head.status, reply.ready()) == (413, b"no")
    reply.close()
