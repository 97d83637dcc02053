"""Connecting, TLS, and the whole call the tokens use: what was surely not sent, and what may have been."""

import asyncio
import os
import socket
import ssl
import warnings

import pytest

from proxy.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from proxy.settings import parse_origin
from proxy.upstream.dialler import Dialler, Timeouts
from proxy.upstream.way import Way

REQUEST = b"GET /v1/x HTTP/1.1\r\nHost: upstream.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
HI = OK + b"Content-Length: 2\r\n\r\nhi"


# -- connecting -------------------------------------------------------------------------


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        yield taken.getsockname()[1]


async def test_a_refused_connection_is_unreachable_and_not_sent(fetch, closed_port):
    dialler = Dialler(parse_origin(f"http://127.0.0.1:{closed_port}"), timeouts=Timeouts())
    with pytest.raises(UpstreamUnreachable, match="nothing was sent") as caught:
        await fetch(dialler)
    assert (caught.value.outcome, caught.value.status) == ("not_sent", 502)


async def test_a_name_that_does_not_exist_is_unreachable_and_not_sent(fetch):
    dialler = Dialler(parse_origin("https://does-not-exist.invalid"), timeouts=Timeouts())
    with pytest.raises((UpstreamUnreachable, UpstreamTimeout)) as caught:
        await fetch(dialler)
    assert caught.value.outcome == "not_sent"


async def test_a_connection_that_is_never_taken_is_a_timeout_and_not_sent(fetch):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]  # fill its queue
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        dialler = Dialler(
            parse_origin(f"http://127.0.0.1:{full.getsockname()[1]}"),
            timeouts=Timeouts(connect=0.1),
        )
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(dialler)
        for one in waiting:
            one.close()
    assert (caught.value.outcome, caught.value.status) == ("not_sent", 504)


async def test_many_requests_at_once_get_each_its_own_reply(serve, fetch):
    async def echo(peer, reader, writer):
        target = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        await asyncio.sleep(0.01)
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % len(target) + target)

    dialler = (await serve(echo)).dialler()
    targets = [b"/%d" % number for number in range(50)]
    got = await asyncio.gather(
        *(fetch(dialler, REQUEST.replace(b"/v1/x", target)) for target in targets)
    )
    assert [one.body for one in got] == targets


async def test_a_caller_that_leaves_ends_its_own_connection(serve, fetch):
    arrived, left = asyncio.Event(), asyncio.Event()

    async def script(peer, reader, writer):
        await peer.head(reader)
        arrived.set()
        assert await reader.read() == b""
        left.set()

    sending = asyncio.create_task(fetch((await serve(script)).dialler()))
    await arrived.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await asyncio.wait_for(left.wait(), 5)


# -- TLS --------------------------------------------------------------------------------


async def test_a_certificate_of_a_trusted_authority_is_taken(serve, say, fetch, certificates):
    peer = await serve(say(HI), tls=certificates.server(certificates.good))
    assert (await fetch(peer.dialler(ca_file=certificates.ca))).body == b"hi"
    assert peer.received == REQUEST


@pytest.mark.parametrize("end", ["stay", "close"])
async def test_a_large_body_comes_whole_through_tls(serve, say, fetch, certificates, end):
    body = b"0123456789abcdef" * 65536
    reply = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    peer = await serve(say(reply, end=end), tls=certificates.server(certificates.good))
    assert (await fetch(peer.dialler(ca_file=certificates.ca))).body == body


async def test_only_http_1_1_is_offered_in_tls(serve, say, fetch, certificates):
    context, chosen = certificates.server(certificates.good), []
    context.set_alpn_protocols(["h2", "http/1.1"])

    async def script(peer, reader, writer):
        chosen.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await say(HI)(peer, reader, writer)

    peer = await serve(script, tls=context)
    await fetch(peer.dialler(ca_file=certificates.ca))
    assert chosen == ["http/1.1"]


async def test_an_authority_nobody_knows_is_refused_before_the_request(
    serve, say, fetch, certificates
):
    await refused(await serve(say(HI), tls=certificates.server(certificates.good)), None, fetch)


async def test_another_hosts_certificate_is_refused_before_the_request(
    serve, say, fetch, certificates
):
    peer = await serve(say(HI), tls=certificates.server(certificates.elsewhere))
    error = await refused(peer, certificates.ca, fetch)
    assert "certificate" in error.description


async def refused(peer, ca_file, fetch):
    """The failure of a handshake, after which nothing of the request was received."""
    with pytest.raises(UpstreamUnreachable, match="nothing was sent") as caught:
        await fetch(peer.dialler(ca_file=ca_file))
    await asyncio.sleep(0.02)
    assert caught.value.outcome == "not_sent"
    assert peer.received == b""
    return caught.value


def only_old(context):
    """A context that speaks nothing newer than TLS 1.1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


async def test_a_server_of_tls_1_1_is_refused_before_the_request(serve, say, fetch, certificates):
    peer = await serve(say(HI), tls=only_old(certificates.server(certificates.good)))
    old = only_old(ssl.create_default_context(cafile=certificates.ca))
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", peer.port, ssl=old)
    except ssl.SSLError:
        pytest.skip("this OpenSSL cannot speak TLS 1.1 at all")
    writer.close()
    await writer.wait_closed()
    await refused(peer, certificates.ca, fetch)


async def test_tls_1_2_is_enough(serve, say, fetch, certificates):
    context = certificates.server(certificates.good)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    peer = await serve(say(HI), tls=context)
    assert (await fetch(peer.dialler(ca_file=certificates.ca))).body == b"hi"


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Plain\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x28"]
)
async def test_a_port_that_does_not_speak_tls_receives_nothing_of_the_request(
    serve, fetch, certificates, answer
):
    async def plain(peer, reader, writer):
        if answer:
            writer.write(answer)

    peer = await serve(plain)
    origin = parse_origin(f"https://127.0.0.1:{peer.port}")
    dialler = Dialler(
        origin, timeouts=Timeouts(tls=0.1, connect=0.1), way=Way(ca_file=certificates.ca)
    )
    with pytest.raises((UpstreamUnreachable, UpstreamTimeout)) as caught:
        await fetch(dialler)
    assert caught.value.outcome == "not_sent"
    assert b"/v1/x" not in peer.received


async def test_a_cut_in_tls_is_broken_and_its_outcome_unknown(serve, say, fetch, certificates):
    for parts in ((), (OK + b"Content-Length: 5\r\n\r\nhel",)):
        for end in ("close", "reset"):
            peer = await serve(say(*parts, end=end), tls=certificates.server(certificates.good))
            with pytest.raises(UpstreamBroken) as caught:
                await fetch(peer.dialler(ca_file=certificates.ca))
            assert (caught.value.outcome, peer.connections) == ("unknown", 1)


async def test_an_unframed_body_in_tls_ends_with_a_proper_close(serve, say, fetch, certificates):
    peer = await serve(
        say(OK + b"\r\nhello", end="close"), tls=certificates.server(certificates.good)
    )
    assert (await fetch(peer.dialler(ca_file=certificates.ca))).body == b"hello"


async def test_an_unframed_body_in_tls_that_ends_without_a_close_alert_was_cut(
    serve, fetch, certificates
):
    """RFC 9112 section 9.8: anybody on the way can send a FIN, only the peer an alert."""

    async def script(peer, reader, writer):
        await peer.head(reader)
        writer.write(OK + b"\r\nhello")
        await asyncio.sleep(0.02)
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as under:
            under.shutdown(socket.SHUT_WR)

    peer = await serve(script, tls=certificates.server(certificates.good))
    with pytest.raises(UpstreamBroken):
        await fetch(peer.dialler(ca_file=certificates.ca))


# -- the whole call ---------------------------------------------------------------------


async def test_a_call_sends_a_post_with_host_and_length_and_reads_all(serve, fetch):
    async def script(peer, reader, writer):
        await peer.head(reader)
        peer.received += await reader.readexactly(2)
        writer.write(OK + b"X-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
        await asyncio.sleep(0.01)
        writer.write(b"3\r\n all\r\n0\r\n\r\n".replace(b"3", b"4"))

    peer = await serve(script)
    got = await peer.dialler().call(b"/t?x=1", headers=[(b"A", b"b")], body=b"{}", within=5)
    assert (got.status, got.body) == (200, b"hi all")
    assert (b"X-A", b"1") in got.headers
    assert peer.received == (
        b"POST /t?x=1 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nA: b\r\nContent-Length: 2\r\n\r\n{}"
        % peer.port
    )


@pytest.mark.parametrize("parts", [(), (b"HTTP/1.1 2",), (OK + b"Content-Length: 5\r\n\r\nhel",)])
async def test_a_call_that_takes_too_long_is_a_timeout(serve, say, parts):
    peer = await serve(say(*parts))
    with pytest.raises(UpstreamTimeout, match=r"0\.5 seconds") as caught:
        await peer.dialler().call(b"/t", headers=(), body=b"", within=0.5)
    assert (caught.value.outcome, peer.connections) == ("unknown", 1)


@pytest.mark.parametrize(("size", "fits"), [(1024 * 1024, True), (1024 * 1024 + 1, False)])
async def test_a_call_reads_a_mebibyte_and_no_more(serve, say, size, fits):
    peer = await serve(say(OK + b"Content-Length: %d\r\n\r\n" % size + b"x" * size))
    calling = peer.dialler().call(b"/t", headers=(), body=b"", within=20)
    if fits:
        assert len((await calling).body) == size
        return
    with pytest.raises(UpstreamBroken, match="too large"):
        await calling


async def test_a_call_reads_no_endless_body(serve):
    written = 0

    async def script(peer, reader, writer):
        nonlocal written
        await peer.head(reader)
        writer.write(OK + b"\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            written += 65536

    peer = await serve(script)
    with pytest.raises(UpstreamBroken, match="too large"):
        await peer.dialler().call(b"/t", headers=(), body=b"", within=20)
    assert written < 64 * 1024 * 1024
