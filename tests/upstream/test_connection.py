"""What a reply may look like, and what is said of one that does not."""

import asyncio
import hashlib

import pytest

from proxy.errors import UpstreamBroken, UpstreamTimeout
from proxy.upstream.connection import Connection

REQUEST = b"GET /v1/x HTTP/1.1\r\nHost: upstream.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


# -- bodies -----------------------------------------------------------------------------


# The script's parts, its end, and the body there should be.
BODIES = {
    "content-length": ((OK + b"Content-Length: 5\r\n\r\nhello",), "stay", b"hello"),
    "content-length, closed": ((OK + b"Content-Length: 5\r\n\r\nhello",), "close", b"hello"),
    "content-length, reset": ((OK + b"Content-Length: 5\r\n\r\nhello",), "reset", b"hello"),
    "content-length 0": ((OK + b"Content-Length: 0\r\n\r\n",), "stay", b""),
    "content-length in parts": ((OK + b"Content-Length: 5\r\n\r\n", b"he", b"llo"), "stay", b"hello"),
    "chunked": ((CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",), "stay", b"hello"),
    "chunked in parts": ((CHUNKED, b"2\r\nh", b"e\r\n3\r\nllo\r\n0", b"\r\n\r\n"), "stay", b"hello"),
    "chunked, reset": ((CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",), "reset", b"hello"),
    "chunked, nothing": ((CHUNKED + b"0\r\n\r\n",), "stay", b""),
    "chunk extension": ((CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n",), "stay", b"hello"),
    "chunk size in upper case": ((CHUNKED + b"00A\r\n0123456789\r\n0\r\n\r\n",), "stay", b"0123456789"),
    "Chunked in another case": (
        (OK + b"transfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",),
        "stay",
        b"hello",
    ),
    "until close": ((OK + b"\r\nhello",), "close", b"hello"),
    "until close in parts": ((OK + b"\r\n", b"he", b"llo"), "close", b"hello"),
    "until close, nothing": ((OK + b"\r\n",), "close", b""),
    "HTTP/1.0 until close": ((b"HTTP/1.0 200 OK\r\n\r\nhello",), "close", b"hello"),
    "HTTP/1.0 content-length": (
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",),
        "stay",
        b"hello",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", BODIES)
async def test_a_body_ends_where_its_framing_says(serve, say, fetch, form):
    parts, end, body = BODIES[form]
    peer = await serve(say(*parts, end=end))
    got = await fetch(peer.dialler())
    assert (got.status, got.reason, got.body) == (200, b"OK", body)
    assert (peer.received, peer.connections) == (REQUEST, 1)


@pytest.mark.parametrize(
    ("head_only", "reply"),
    [
        (True, OK + b"Content-Length: 5\r\n\r\n"),
        (True, CHUNKED),
        (True, OK + b"\r\n"),
        (False, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (False, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        (False, b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
async def test_head_204_and_304_have_no_body_and_are_not_waited_for(
    serve, say, fetch, head_only, reply
):
    peer = await serve(say(reply))
    got = await fetch(peer.dialler(), head_only=head_only)
    assert (got.bodyless, got.body) == (True, b"")
    assert got.length == (5 if b"Content-Length" in reply else None)


@pytest.mark.parametrize("status", [200, 201, 302, 401, 404, 429, 500, 503, 599])
async def test_status_and_reason_pass(serve, say, fetch, status):
    peer = await serve(say(b"HTTP/1.1 %d What Ever\r\nContent-Length: 0\r\n\r\n" % status))
    got = await fetch(peer.dialler())
    assert (got.status, got.reason) == (status, b"What Ever")


@pytest.mark.parametrize("line", [b"HTTP/1.1 200\r\n", b"HTTP/1.1 200 \r\n"])
async def test_a_missing_reason_is_none(serve, say, fetch, line):
    peer = await serve(say(line + b"Content-Length: 0\r\n\r\n"))
    assert (await fetch(peer.dialler())).reason == b""


async def test_headers_pass_in_order_with_case_duplicates_and_bytes(serve, say, fetch):
    lines = b"X-b: 1\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-Odd:\t\xff\xfe \t\r\nX-Empty:\r\n"
    peer = await serve(say(OK + lines + b"Content-Length: 0\r\n\r\n"))
    assert (await fetch(peer.dialler())).headers == [
        (b"X-b", b"1"),
        (b"Set-Cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"X-Odd", b"\xff\xfe"),
        (b"X-Empty", b""),
        (b"Content-Length", b"0"),
    ]


async def test_nothing_is_decompressed_or_followed(serve, say, fetch):
    head = b"HTTP/1.1 307 Go\r\nLocation: /y\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n"
    peer = await serve(say(head + b"\x1f\x8b\x08\x00"))
    got = await fetch(peer.dialler())
    assert (got.status, got.body, peer.connections) == (307, b"\x1f\x8b\x08\x00", 1)


async def test_trailers_are_not_taken_for_headers(serve, say, fetch):
    peer = await serve(say(CHUNKED, b"5\r\nhello\r\n0\r\nX-Late: 1\r\n\r\n"))
    got = await fetch(peer.dialler())
    assert (got.headers, got.body) == ([(b"Transfer-Encoding", b"chunked")], b"hello")


@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
async def test_interim_replies_are_passed_over(serve, say, fetch, interim):
    early = b"HTTP/1.1 " + interim + b"\r\nLink: </x>\r\n\r\n"
    peer = await serve(say(early + early, early + OK + b"Content-Length: 2\r\n\r\nhi"))
    told = []
    got = await fetch(peer.dialler(), interim=lambda *one: told.append(one))
    assert (got.status, got.reason, got.body) == (200, b"OK", b"hi")
    assert got.headers == [(b"Content-Length", b"2")]
    number, _, reason = interim.partition(b" ")
    said = (int(number), reason, [(b"Link", b"</x>")])
    assert told == ([] if number == b"100" else [said] * 3)


@pytest.mark.parametrize(
    "endless", [b"0\r\nX: ", b"0\r\n" + b"X: y\r\n" * 20_000, b"5;", b"5;a=b" * 20_000]
)
async def test_endless_trailers_and_extensions_are_cut(serve, fetch, endless):
    async def script(peer, reader, writer):
        await peer.head(reader)
        writer.write(CHUNKED + b"3\r\nabc\r\n" + endless)
        while True:
            writer.write(b"a" * 10_000)
            peer.sent = getattr(peer, "sent", 0) + 10_000
            await writer.drain()

    peer = await serve(script)
    with pytest.raises(UpstreamBroken, match=r"too large|no valid HTTP"):
        await fetch(peer.dialler())
    assert peer.sent < 20_000_000


# -- wherever the segments end ----------------------------------------------------------


class FakeTransport(asyncio.Transport):
    """Takes the place of a socket; counts what it was told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def abort(self):
        pass

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def pause_reading(self):
        self.told.append("pause")

    def resume_reading(self):
        self.told.append("resume")


async def verdict(pieces, *, end=None, head_only=False):
    """What is made of a reply that comes in these pieces: its parts, or the failure."""
    connection = Connection()
    connection.connection_made(FakeTransport())
    connection.begin(head_only=head_only)
    for piece in pieces:
        connection.data_received(piece)
    if end == "close":
        connection.eof_received()
    connection.connection_lost(ConnectionResetError() if end == "reset" else None)
    try:
        await connection.wait_head()
        body = b""
        while await connection.more():
            body += connection.take()
    except UpstreamBroken as error:
        return error.outcome, error.description
    head = connection.head
    told = head.status, head.reason, tuple(head.headers), head.length
    return *told, connection.bodyless, body


REPLIES = {
    "content-length": OK + b"X-A: 1\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": CHUNKED + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nX-Late: 1\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi",
    "until close": OK + b"X-A: 1\r\n\r\nhello",
    "HTTP/1.0": b"HTTP/1.0 404 Not here\r\n\r\nhello",
    "204": b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
    "bad: status 600": b"HTTP/1.1 600 Odd\r\nContent-Length: 2\r\n\r\nhi",
    "bad: doubled coding": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "bad: both framings": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad: chunk": CHUNKED + b"zz\r\n",
}


@pytest.mark.parametrize("form", REPLIES)
async def test_the_verdict_does_not_depend_on_where_segments_end(form):
    reply = REPLIES[form]
    whole = await verdict([reply], end="close")
    for at in range(1, len(reply)):
        assert await verdict([reply[:at], reply[at:]], end="close") == whole, at
    assert await verdict([bytes([byte]) for byte in reply], end="close") == whole


@pytest.mark.parametrize("form", [name for name in REPLIES if not name.startswith("bad")])
@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_reply_that_is_cut_anywhere_is_never_a_clean_one(form, end):
    reply = REPLIES[form]
    body_at = reply.rindex(b"\r\n\r\n") + 4
    unframed = form in {"until close", "HTTP/1.0"}
    for at in range(len(reply)):
        if unframed and end == "close" and at >= body_at:
            continue  # here the close is the end
        outcome, _ = await verdict([reply[:at]], end=end)
        assert outcome == "unknown", at


@pytest.mark.parametrize("form", ["until close", "HTTP/1.0"])
async def test_a_reset_never_ends_an_unframed_body(form):
    assert await verdict([REPLIES[form]], end="reset") == (
        "unknown",
        "The upstream cut its reply short.",
    )


async def test_split_over_a_real_socket_it_is_the_same(serve, fetch):
    reply = REPLIES["chunked"]

    async def byte_by_byte(peer, reader, writer):
        await peer.head(reader)
        for byte in reply:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    peer = await serve(byte_by_byte)
    assert (await fetch(peer.dialler())).body == b"hello"


# -- what comes after the reply ---------------------------------------------------------

SECOND = b"HTTP/1.1 500 Evil\r\nX-Evil: 1\r\nContent-Length: 4\r\n\r\nevil"
STRAY = [b"\r\n", b"X", b"H", b"HTTP/1.1 5", b"\0", SECOND, b"HTTP/1.1 100 Continue\r\n\r\n"]


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize("form", ["content-length", "chunked", "interim", "204"])
async def test_what_follows_a_reply_changes_nothing_of_it(form, stray):
    reply = REPLIES[form]
    alone = await verdict([reply])
    assert await verdict([reply + stray]) == alone
    assert await verdict([reply, stray]) == alone
    assert await verdict([reply[:-1], reply[-1:] + stray]) == alone


@pytest.mark.parametrize("body", [b"hello", b"hello" + SECOND])
async def test_a_body_sent_where_none_may_be_changes_nothing(body):
    head = OK + b"Content-Length: 5\r\n\r\n"
    alone = await verdict([head], head_only=True)
    assert await verdict([head + body], head_only=True) == alone
    not_modified = head.replace(b"200 OK", b"304 Not Modified")
    alone = await verdict([not_modified])
    assert await verdict([not_modified + body]) == alone


@pytest.mark.parametrize("stray", STRAY)
async def test_a_stray_byte_after_the_reply_is_harmless_on_a_socket(serve, say, fetch, stray):
    peer = await serve(say(OK + b"X-A: 1\r\nContent-Length: 2\r\n\r\nhi" + stray))
    got = await fetch(peer.dialler())
    assert (got.status, got.reason, got.body) == (200, b"OK", b"hi")
    assert got.headers == [(b"X-A", b"1"), (b"Content-Length", b"2")]


UNWANTED = {
    "status 600": b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "doubled coding": OK
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "101": b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("first", UNWANTED)
async def test_a_good_reply_behind_a_bad_one_is_not_taken(first):
    good = OK + b"Content-Length: 2\r\n\r\nhi"
    assert (await verdict([UNWANTED[first] + good]))[0] == "unknown"
    assert (await verdict([UNWANTED[first], good]))[0] == "unknown"


# -- failures ---------------------------------------------------------------------------


async def broken(serve, fetch, script, **timeouts):
    """The failure of one exchange; it was sent once, and once only."""
    peer = await serve(script)
    with pytest.raises((UpstreamBroken, UpstreamTimeout)) as caught:
        await fetch(peer.dialler(**timeouts))
    await asyncio.sleep(0.02)  # time enough for a second try
    assert (peer.connections, peer.received) == (1, REQUEST)
    return caught.value


CUTS = {
    "before a byte": (),
    "in the status line": (b"HTTP/1.1 2",),
    "in the head": (OK + b"Content-Len",),
    "after an interim reply": (b"HTTP/1.1 100 Continue\r\n\r\n",),
    "before a content-length body": (OK + b"Content-Length: 5\r\n\r\n",),
    "in a content-length body": (OK + b"Content-Length: 5\r\n\r\nhel",),
    "before the first chunk": (CHUNKED,),
    "in a chunk": (CHUNKED + b"5\r\nhel",),
    "between chunks": (CHUNKED + b"5\r\nhello\r\n",),
    "before the last line of chunks": (CHUNKED + b"5\r\nhello\r\n0\r\n",),
}


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("place", CUTS)
async def test_a_cut_reply_is_broken_and_its_outcome_unknown(serve, say, fetch, place, end):
    error = await broken(serve, fetch, say(*CUTS[place], end=end))
    assert (type(error), error.outcome) == (UpstreamBroken, "unknown")
    assert "merchantTxRef" in error.hint


async def test_an_unframed_reply_that_is_reset_is_broken(serve, say, fetch):
    error = await broken(serve, fetch, say(OK + b"\r\nhello", end="reset"))
    assert (type(error), error.outcome) == (UpstreamBroken, "unknown")


async def test_what_came_before_the_cut_is_delivered_first(serve, say):
    peer = await serve(say(OK + b"Content-Length: 10\r\n\r\nhello", end="reset"))
    reply = await peer.dialler().send(REQUEST, body=(), head_only=False)
    parts = reply.parts()
    assert await anext(parts) == b"hello"
    with pytest.raises(UpstreamBroken):
        await anext(parts)
    reply.close()


@pytest.mark.parametrize("read_head", [True, False])
async def test_a_peer_that_resets_at_once_is_never_a_fault_of_ours(serve, say, fetch, read_head):
    peer = await serve(say(end="reset", read_head=read_head))
    for _ in range(20):
        with pytest.raises(UpstreamBroken) as caught:
            await fetch(peer.dialler())
        assert caught.value.outcome == "unknown"


INVALID = {
    "garbage": b"\0\x01\x02garbage",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "a page without a head": b"<html>hello</html>",
    "a request": REQUEST,
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n",
    "status 999": b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",
    "status 20": b"HTTP/1.1 20 Odd\r\nContent-Length: 0\r\n\r\n",
    "unasked 101": b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "unasked 101 without upgrade": b"HTTP/1.1 101 Go\r\n\r\n",
    "doubled coding": OK
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "doubled coding in one": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": OK + b"Transfer-Encoding: gzip\r\n\r\nxx",
    "unknown coding before chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity coding": OK + b"Transfer-Encoding: identity\r\n\r\nxx",
    "empty coding": OK + b"Transfer-Encoding:\r\n\r\nxx",
    "length then coding": OK
    + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding then length": OK
    + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
    "two equal lengths": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "a list of lengths": OK + b"Content-Length: 2, 2\r\n\r\nhi",
    "a negative length": OK + b"Content-Length: -2\r\n\r\nhi",
    "a signed length": OK + b"Content-Length: +2\r\n\r\nhi",
    "a length in hex": OK + b"Content-Length: 0x2\r\n\r\nhi",
    "a length too large": OK + b"Content-Length: 99999999999999999999999\r\n\r\nhi",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    "one bare LF": OK + b"X-A: 1\nContent-Length: 2\r\n\r\nhi",
    "bare CR": OK + b"X-A: 1\rContent-Length: 2\r\n\r\nhi",
    "obs-fold": OK + b"X-A: 1\r\n 2\r\nContent-Length: 2\r\n\r\nhi",
    "obs-fold by tab": OK + b"X-A: 1\r\n\t2\r\nContent-Length: 2\r\n\r\nhi",
    "space before the colon": OK + b"X-A : 1\r\nContent-Length: 2\r\n\r\nhi",
    "a name with a space": OK + b"X A: 1\r\nContent-Length: 2\r\n\r\nhi",
    "a line without a colon": OK + b"X-A\r\nContent-Length: 2\r\n\r\nhi",
    "NUL in a value": OK + b"X-A: \0\r\nContent-Length: 2\r\n\r\nhi",
    "a bad chunk size": CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than said": CHUNKED + b"2\r\nhello\r\n0\r\n\r\n",
    "a bare LF in chunks": CHUNKED + b"5\nhello\n0\n\n",
    "a chunk size too large": CHUNKED + b"fffffffffffffffffffff\r\n",
}  # fmt: skip


@pytest.mark.parametrize("form", INVALID)
async def test_what_is_no_valid_reply_is_broken_and_its_outcome_unknown(serve, say, fetch, form):
    error = await broken(serve, fetch, say(INVALID[form]))
    assert (type(error), error.outcome) == (UpstreamBroken, "unknown")


# Over a peer that closes, so that a head without end is not taken for a slow one.
FLOODS = {
    "a header without end": OK + b"X: " + b"a" * 400_000,
    "headers without end": OK + b"X: a\r\n" * 100_000,
    "a reason without end": b"HTTP/1.1 200 " + b"a" * 400_000,
    "interim replies without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    "empty lines without end": b"\r\n" * 200_000,
}


@pytest.mark.parametrize("form", FLOODS)
async def test_a_head_without_end_is_refused_early(serve, fetch, form):
    async def script(peer, reader, writer):
        await peer.head(reader)
        while True:
            writer.write(FLOODS[form])
            await writer.drain()

    error = await broken(serve, fetch, script)
    assert (type(error), error.outcome) == (UpstreamBroken, "unknown")
    assert "too large" in error.description


async def test_a_head_just_within_the_limit_passes(serve, say, fetch):
    value = b"a" * 60_000
    peer = await serve(say(OK + b"X: " + value + b"\r\nContent-Length: 2\r\n\r\nhi"))
    assert (b"X", value) in (await fetch(peer.dialler())).headers


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_head_beyond_the_limit_is_refused_however_it_comes(parts):
    head = OK + b"X: " + b"a" * 70_000 + b"\r\nContent-Length: 2\r\n\r\n"
    pieces = [head + b"hi"] if parts == 1 else [head[:-2], head[-2:] + b"hi"]
    assert (await verdict(pieces))[0] == "unknown"


# -- timeouts ---------------------------------------------------------------------------


async def test_no_answer_is_a_timeout_of_unknown_outcome(serve, say, fetch):
    error = await broken(serve, fetch, say(), first_byte=0.05)
    assert (type(error), error.outcome) == (UpstreamTimeout, "unknown")
    assert "merchantTxRef" in error.hint


@pytest.mark.parametrize(
    "part", [b"HTTP/1.1 2", OK + b"X-A: 1\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
async def test_half_a_head_is_no_answer(serve, say, fetch, part):
    error = await broken(serve, fetch, say(part), first_byte=0.05)
    assert (type(error), error.outcome) == (UpstreamTimeout, "unknown")


@pytest.mark.parametrize(
    "part", [OK + b"Content-Length: 5\r\n\r\nhel", CHUNKED + b"5\r\nhel", OK + b"\r\nhello"]
)
async def test_a_stall_in_the_body_is_a_timeout_of_unknown_outcome(serve, say, fetch, part):
    error = await broken(serve, fetch, say(part), between_bytes=0.05)
    assert (type(error), error.outcome) == (UpstreamTimeout, "unknown")


def drip(first, part):
    async def script(peer, reader, writer):
        await peer.head(reader)
        writer.write(first)
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.005)

    return script


@pytest.mark.parametrize(
    ("first", "part"), [(OK + b"\r\n", b"x"), (OK, b"X: y\r\n"), (CHUNKED, b"1\r\nx\r\n")]
)
async def test_a_drip_without_end_is_ended_by_the_total(serve, fetch, first, part):
    error = await broken(serve, fetch, drip(first, part), total=1)
    assert (type(error), error.outcome) == (UpstreamTimeout, "unknown")


async def test_the_total_holds_for_a_slow_consumer_too(serve):
    peer = await serve(drip(OK + b"\r\n", b"x" * 1000))
    reply = await peer.dialler(total=1).send(REQUEST, body=(), head_only=False)

    async def consume():
        async for _ in reply.parts():
            await asyncio.sleep(0.02)  # there is always more by now

    with pytest.raises(UpstreamTimeout) as caught:
        await asyncio.wait_for(consume(), 20)
    reply.close()
    assert caught.value.outcome == "unknown"


async def test_a_body_that_keeps_coming_is_not_cut_between_bytes(serve, fetch):
    async def script(peer, reader, writer):
        await peer.head(reader)
        writer.write(CHUNKED)
        for _ in range(15):  # longer, together, than nothing may come
            await asyncio.sleep(0.3)
            writer.write(b"1\r\nx\r\n")
        writer.write(b"0\r\n\r\n")

    peer = await serve(script)
    assert (await fetch(peer.dialler(between_bytes=4))).body == b"x" * 15


# -- uploads ----------------------------------------------------------------------------


async def test_the_request_arrives_byte_for_byte_and_once(serve, fetch):
    body = bytes(range(256)) * 4096  # 1 MiB

    async def script(peer, reader, writer):
        await peer.head(reader)
        peer.received += await reader.readexactly(len(body))
        writer.write(OK + b"Content-Length: 0\r\n\r\n")

    peer = await serve(script)
    head = b"POST /v1/x HTTP/1.1\r\nHost: u\r\nContent-Length: %d\r\n\r\n" % len(body)
    await fetch(peer.dialler(), head, body=body)
    assert (peer.received == head + body, peer.connections) == (True, 1)


async def test_a_reply_before_the_body_was_read_is_delivered(serve, fetch):
    body = b"x" * (8 * 1024 * 1024)

    async def script(peer, reader, writer):
        await peer.head(reader)
        writer.write(b"HTTP/1.1 413 Too much\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.Event().wait()  # the body is never read

    peer = await serve(script)
    head = b"POST /v1/x HTTP/1.1\r\nHost: u\r\nContent-Length: %d\r\n\r\n" % len(body)
    got = await fetch(peer.dialler(), head, body=body)
    assert (got.status, got.body) == (413, b"no")
    assert peer.received == head


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 413 Too ", b"much\r\nContent-", b"Length: 2\r\n\r\nno"),
        (b"HTTP/1.1 102 Processing\r\n\r\n",) * 3
        + (b"HTTP/1.1 413 Too much\r\nContent-Length: 2\r\n\r\nno",),
    ],
)
async def test_an_answer_that_comes_in_parts_is_no_stall_of_the_upload(serve, say, fetch, parts):
    body = b"x" * (16 * 1024 * 1024)
    gaps = [one for part in parts for one in (part, b"")]  # so that each arrives by itself

    async def script(peer, reader, writer):
        await peer.head(reader)
        await asyncio.sleep(0.1)  # the upload has come to a stop: nothing more fits
        for part in gaps:
            writer.write(part)
            await asyncio.sleep(0.02)
        await asyncio.Event().wait()

    peer = await serve(script)
    head = b"POST /v1/x HTTP/1.1\r\nHost: u\r\nContent-Length: %d\r\n\r\n" % len(body)
    dialler = peer.dialler()
    reply = await dialler.send(
        head, body=[body[at : at + 2**18] for at in range(0, len(body), 2**18)], head_only=False
    )
    assert reply.head.status == 413
    reply.close()


@pytest.mark.parametrize("size", [10, 70_000, 1024 * 1024])
async def test_a_connection_lost_in_the_upload_is_broken_and_not_sent_again(
    serve, say, fetch, size
):
    peer = await serve(say(end="reset"))
    head = b"POST /v1/x HTTP/1.1\r\nHost: u\r\nContent-Length: %d\r\n\r\n" % size
    with pytest.raises(UpstreamBroken) as caught:
        await fetch(peer.dialler(), head, body=b"x" * size)
    await asyncio.sleep(0.02)
    assert (caught.value.outcome, peer.connections) == ("unknown", 1)


# -- backpressure -----------------------------------------------------------------------


async def test_a_consumer_that_does_not_read_holds_the_upstream_back(serve):
    size, part = 20 * 1024 * 1024, b"0123456789abcdef" * 4096
    written = 0

    async def script(peer, reader, writer):
        nonlocal written
        await peer.head(reader)
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % size)
        while written < size:
            writer.write(part)
            await writer.drain()
            written += len(part)

    peer = await serve(script)
    reply = await peer.dialler().send(REQUEST, body=(), head_only=False)
    before, still = -1, 0
    while still < 20:  # until the server has written nothing for a while
        still = still + 1 if written == before else 0
        before = written
        await asyncio.sleep(0.01)
    assert written < size * 3 // 4  # what the two kernels hold, and our high-water mark
    digest = hashlib.sha256()
    async for piece in reply.parts():
        assert len(piece) <= 1024 * 1024
        digest.update(piece)
    reply.close()
    assert digest.digest() == hashlib.sha256(part * (size // len(part))).digest()


async def test_reading_is_paused_above_the_mark_and_resumed_by_taking():
    transport, connection = FakeTransport(), Connection()
    connection.connection_made(transport)
    connection.begin(head_only=False)
    connection.data_received(OK + b"Content-Length: 10000000\r\n\r\n")
    for _ in range(4):
        connection.data_received(b"x" * 65536)
    assert transport.told == []
    connection.data_received(b"x")
    assert transport.told == ["pause"]
    assert len(connection.take()) == 4 * 65536 + 1
    assert transport.told == ["pause", "resume"]


async def test_peeked_bytes_are_delivered_again(serve, say):
    peer = await serve(say(OK + b"Content-Length: 10\r\n\r\n01234", b"56789"))
    reply = await peer.dialler().send(REQUEST, body=(), head_only=False)
    assert await reply.peek(4) == (b"01234", False)
    assert await reply.peek(10) == (b"0123456789", True)
    assert b"".join([part async for part in reply.parts()]) == b"0123456789"
    reply.close()


async def test_the_rest_of_a_reply_is_ready_once_it_is_all_here(serve, say):
    peer = await serve(say(OK + b"Content-Length: 10\r\n\r\n01234", b"56789"))
    reply = await peer.dialler().send(REQUEST, body=(), head_only=False)
    assert reply.ready() is None
    await reply.peek(10)
    assert reply.ready() == b"0123456789"
    reply.close()


async def test_closing_half_way_lets_the_upstream_see_it(serve):
    seen = asyncio.Event()

    async def script(peer, reader, writer):
        await peer.head(reader)
        writer.write(OK + b"Content-Length: 10\r\n\r\n01234")
        assert await reader.read() == b""
        seen.set()

    peer = await serve(script)
    reply = await peer.dialler().send(REQUEST, body=(), head_only=False)
    reply.close()
    reply.close()
    await asyncio.wait_for(seen.wait(), 5)
