"""What comes in goes out, byte for byte; what is ours is ours alone."""

import asyncio
import contextlib
import gzip
import re

import pytest

# Every method that llhttp knows for HTTP, but CONNECT and TRACE.
METHODS = [
    "DELETE",
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "OPTIONS",
    "COPY",
    "LOCK",
    "MKCOL",
    "MOVE",
    "PROPFIND",
    "PROPPATCH",
    "SEARCH",
    "UNLOCK",
    "BIND",
    "REBIND",
    "UNBIND",
    "ACL",
    "REPORT",
    "MKACTIVITY",
    "CHECKOUT",
    "MERGE",
    "M-SEARCH",
    "NOTIFY",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "PATCH",
    "PURGE",
    "MKCALENDAR",
    "LINK",
    "UNLINK",
    "SOURCE",
    "QUERY",
]


@pytest.fixture
async def through(start_proxy, upstream):
    return await start_proxy(base_url=upstream.origin, headers__via_upstream=False)


def lines(head: bytes) -> list[bytes]:
    return head.split(b"\r\n")


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_passes(through, upstream, method):
    reply = await through.send(method, "/v1/x")
    assert reply.status == 200
    assert lines(upstream.requests[0][0])[0] == f"{method} /v1/x HTTP/1.1".encode()


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/v1/accounts/balance?",
        "/v1//double///slashes/",
        "/v1/a%2Fb%ff%C3%A9/%7e~",
        "/v1/x;a=1;b/y?c=d;e&f=%00&g=+&h=%2B&i=/../x",
        "/v1/x?a=1&a=2&&=?&?",
        "/v1/sandbox/x",
        "/v1/:@!$&'()*,=",
        '/v1/"<>^`{|}',
    ],
)
async def test_targets_pass_byte_for_byte(through, upstream, target):
    await through.get(target)
    assert lines(upstream.requests[0][0])[0] == f"GET {target} HTTP/1.1".encode()


@pytest.mark.parametrize(
    "target",
    ["/a/../b", "/a/%2e%2E/b", "/a/.", "/a/%252e%252e/b", "/a\\b", "/a#b", "/..;/x", "/a%2f../b"],
)
async def test_targets_that_can_be_read_two_ways_are_refused(through, upstream, target):
    reply = await through.get(target)
    assert (reply.status, reply.json["proxy"]["error"]) == (400, "target_ambiguous")
    assert reply.outcome == "not_sent"
    assert upstream.requests == []


@pytest.mark.parametrize("raw", [b"/a\xff", b"/a\x01b", b"/a\x7f"])
async def test_raw_bytes_in_a_target_are_refused(through, upstream, raw):
    reply = await through.raw(b"GET " + raw + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert reply.status == 400
    assert upstream.requests == []


async def test_headers_keep_order_case_duplicates_and_bytes(through, upstream):
    sent = [
        b"x-Zulu: 1",
        b"X-alpha: a, b",
        b"x-zulu: 2",
        b"Accept-Encoding: br;q=0.1, gzip",
        b"X-Latin: caf\xe9 \xff",
        b"X-Empty: ",
        b"Cookie: a=b; c=d",
        b"User-Agent: Old-Shop-Plugin/1.0",
        b"X-Idempotent-key: keep-me",
    ]
    head = b"\r\n".join([b"GET /v1/x HTTP/1.1", b"Host: localhost", *sent])
    await through.raw(head + b"\r\n\r\n")
    received = lines(upstream.requests[0][0])
    host = upstream.origin.removeprefix("http://").encode()
    assert received[1] == b"Host: " + host
    assert received[2 : 2 + len(sent)] == sent
    account = b"accountId: 00000000-0000-4000-8000-acc000000001"
    assert received[2 + len(sent) :] == [b"Authorization: Bearer token-1", account, b"", b""]


async def test_no_header_is_invented_for_the_caller(through, upstream):
    await through.raw(b"POST /v1/x HTTP/1.1\r\nhost: localhost\r\n\r\n")
    names = [line.partition(b":")[0] for line in lines(upstream.requests[0][0])[1:-2]]
    assert names == [b"host", b"Authorization", b"accountId"]


async def test_every_spelling_of_our_headers_is_replaced_by_ours(through, upstream):
    account = "00000000-0000-4000-8000-acc000000001"
    await through.get(
        "/v1/x",
        "authorization: Bearer mine",
        "AUTHORIZATION: Basic eA==",
        "Authori_zation: x",
        "Authorization_: x",
        "Authorization.: x",
        f"account.Id: {account}",
        f"ACCOUNTID: {account}",
        f"account_id: {account}",
        f"Account-Id: {account}",
        "X_Nomba_Proxy_Key: x",
        "Connection: authorization, accountId, close",
    )
    received = lines(upstream.requests[0][0])
    assert received[1].startswith(b"Host: ")
    expected = [b"Authorization: Bearer token-1", b"accountId: " + account.encode(), b"", b""]
    assert received[2:] == expected


async def test_hop_by_hop_and_rewriting_headers_stay_here(through, upstream):
    await through.get(
        "/v1/x",
        "Connection: keep-alive, X-Private",
        "X-Private: 1",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Upgrade: h2c",
        "Forwarded: for=10.0.0.1",
        "X-Forwarded-For: 10.0.0.1",
        "X-HTTP-Method-Override: DELETE",
        "X-Original-URL: /v1/auth/token/issue",
        "X-Rewrite-URL: /v1/auth/token/issue",
        "X_Forwarded_Host: evil",
        "X-Kept: 1",
    )
    names = [line.partition(b":")[0] for line in lines(upstream.requests[0][0])[1:-2]]
    assert names == [b"Host", b"X-Kept", b"Authorization", b"accountId"]


async def test_a_delete_with_a_json_body_passes_whole(through, upstream):
    body = b'{"tokenKey":"abc", "n": 1.10 }'
    await through.send("DELETE", "/v1/checkout/tokenized-card-data", body=body)
    head, received = upstream.requests[0]
    assert received == body
    assert b"Content-Length: %d" % len(body) in lines(head)


async def test_a_chunked_body_goes_out_with_its_length(through, upstream):
    await through.raw(
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nTrailer: x\r\n\r\n"
    )
    head, body = upstream.requests[0]
    assert body == b"abcde"
    assert b"Content-Length: 5" in lines(head)
    assert b"chunked" not in head


async def test_an_encoded_request_body_stays_encoded(through, upstream):
    body = gzip.compress(b'{"a":1}')
    await through.send("POST", "/v1/x", "Content-Encoding: gzip", body=body)
    assert upstream.requests[0][1] == body


async def test_a_reply_comes_back_as_it_was(through, upstream):
    packed = gzip.compress(b"hello")
    head = (
        b"HTTP/1.1 404 Nothing Here At All\r\nx-b: 1\r\nX-A: \xe9\r\nX-b: 2\r\n"
        b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Encoding: gzip\r\n"
        b"Location: https://elsewhere.example/x\r\n"
        b"Content-Length: %d\r\n" % len(packed)
    )
    hop = b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nNomba-Proxy-Outcome: faked\r\n"
    upstream.answer = upstream.reply_with(head + hop + b"\r\n" + packed)
    reply = await through.get("/v1/x")
    assert reply.raw.startswith(head)
    assert reply.body == packed
    own = reply.raw[len(head) :].partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert [line.partition(b":")[0] for line in own] == [
        b"X-Request-Id",
        b"Nomba-Proxy-Outcome",
        b"Via",
    ]
    assert reply.outcome == "answered"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_passed_not_followed(through, upstream, status):
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 %d Moved\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0\r\n\r\n" % status
    )
    reply = await through.send("POST", "/v1/x", body=b"{}")
    assert (reply.status, reply.get("Location")) == (status, "http://127.0.0.1:1/x")
    assert len(upstream.requests) == 1


async def test_cookies_of_one_caller_do_not_reach_another(through, upstream):
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=1\r\nContent-Length: 0\r\n\r\n"
    )
    assert (await through.get("/v1/x")).get("Set-Cookie") == "sid=1"
    await through.get("/v1/x")
    assert b"sid" not in upstream.requests[1][0]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://127.0.0.1:{port}/v1/x?a", 200),
        ("http://localhost:{port}/v1/x?a", 200),
        ("http://api.nomba.com/v1/x?a", 403),
        ("http://127.0.0.1:1/v1/x?a", 403),
        ("http://evil@127.0.0.1:{port}/v1/x?a", 403),
        ("//evil.example/v1/x?a", 200),
    ],
)
async def test_no_target_chooses_an_origin(through, upstream, target, status):
    target = target.format(port=through.address[1])
    reply = await through.get(target)
    assert reply.status == status
    if status == 200:
        sent = "//evil.example/v1/x?a" if "evil" in target else "/v1/x?a"
        assert lines(upstream.requests[0][0])[0] == f"GET {sent} HTTP/1.1".encode()
    else:
        assert upstream.requests == []


async def test_connect_and_trace_are_refused_and_options_star_is_ours(through, upstream):
    for method, target, hint in (
        ("CONNECT", "api.nomba.com:443", "base URL"),
        ("TRACE", "/v1/x", "the token"),
    ):
        reply = await through.send(method, target)
        assert (reply.status, reply.json["proxy"]["error"]) == (405, "method_not_allowed")
        assert hint in reply.json["proxy"]["hint"]
        assert reply.get("Allow") == "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    assert (await through.send("OPTIONS", "*")).status == 200
    assert upstream.requests == []


async def test_upgrades_are_refused_and_h2c_is_ignored(through, upstream):
    reply = await through.get("/v1/x", "Connection: Upgrade", "Upgrade: websocket")
    assert (reply.status, reply.json["proxy"]["error"]) == (501, "upgrade_unsupported")
    assert reply.get("Connection") == "close"
    both = ("Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket")
    assert (await through.get("/v1/x", *both)).status == 501
    ignored = await through.get("/v1/x", "Connection: Upgrade", "Upgrade: h2c")
    assert (ignored.status, ignored.get("Connection")) == (200, "close")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("first", ["GET /v1/a", "GET /a/../b", "OPTIONS *"])
async def test_nothing_behind_an_ignored_upgrade_is_read_as_a_request(through, upstream, first):
    """aiohttp's parser takes what follows in the same segment for the other protocol."""
    hidden = b"POST /v1/SMUGGLED HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    reader, writer = await asyncio.open_connection(*through.address)
    writer.write(
        f"{first} HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
        f"POST /v1/second HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(hidden)}\r\n\r\n".encode()
    )
    await asyncio.sleep(0.1)
    writer.write(hidden)
    with contextlib.suppress(ConnectionError):
        while await asyncio.wait_for(reader.read(65536), 30):
            pass
    writer.close()
    assert b"SMUGGLED" not in b"".join(head for head, _ in upstream.requests)


@pytest.mark.parametrize("line", ["GET /v1/x HTTP/2.0", "GET /v1/x HTTP/0.9", "GET /v1/x"])
async def test_other_versions_of_http_are_refused(through, upstream, line):
    reply = await through.raw(f"{line}\r\nHost: localhost\r\n\r\n".encode())
    assert (reply.status, reply.json["proxy"]["error"]) == (400, "head_invalid")
    assert upstream.requests == []


@pytest.mark.parametrize(
    "framing",
    [
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content_Length: 3",
        "Transfer_Encoding: chunked",
    ],
)
async def test_bodies_framed_two_ways_are_refused(through, upstream, framing):
    head = f"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode()
    reply = await through.raw(head + b"0\r\n\r\n")
    assert (reply.status, reply.json["proxy"]["error"]) == (400, "head_invalid")
    assert upstream.requests == []


async def test_two_requests_on_one_connection_are_both_answered(through, upstream):
    import asyncio

    from harness import read_reply

    reader, writer = await asyncio.open_connection(*through.address)
    request = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    writer.write(request + request)
    for _ in range(2):
        assert (await read_reply(reader)).status == 200
    writer.close()
    assert len(upstream.requests) == 2


async def test_a_mounted_upstream_gets_the_path_below_its_mount(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, upstream__mount="/nomba")
    for target, sent in (
        ("/nomba/v1/x?a", b"/v1/x?a"),
        ("/nomba", b"/"),
        ("/nomba?a", b"/?a"),
    ):
        upstream.requests.clear()
        await proxy.get(target)
        assert lines(upstream.requests[0][0])[0] == b"GET " + sent + b" HTTP/1.1"
    upstream.requests.clear()
    for target in ("/v1/x", "/nombax/v1/x", "/Nomba/v1/x"):
        reply = await proxy.get(target)
        assert (reply.status, reply.json["proxy"]["error"]) == (404, "mount_unknown")
    assert upstream.requests == []
    login = await proxy.send("POST", "/nomba/v1/auth/token/issue", body=b"{}")
    assert login.json["proxy"]["error"] == "login_invalid"
    assert upstream.requests == []


# -- Via, loops, Location, Forwarded ------------------------------------------------------


async def test_via_is_added_behind_what_was_there_in_both_directions(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin)
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nVia: 1.1 edge\r\nContent-Length: 0\r\n\r\n"
    )
    reply = await proxy.get("/v1/x", "Via: 1.0 fred, 1.1 p.example")
    sent = [one for one in lines(upstream.requests[0][0]) if one.startswith(b"Via: ")]
    assert sent[0] == b"Via: 1.0 fred, 1.1 p.example"
    (own,) = sent[1:]
    assert re.fullmatch(rb"Via: 1\.1 nomba-proxy-[0-9a-f]{8}", own)
    got = [value for name, value in reply.headers if name == "Via"]
    assert got == ["1.1 edge", own.removeprefix(b"Via: ").decode()]


@pytest.mark.parametrize("path", ["/v1/accounts/balance", "/v1/auth/token/issue", "/elsewhere"])
@pytest.mark.parametrize("form", ["{}", "1.0 fred, {}", "{} , 1.1 other"])
async def test_a_request_that_comes_back_is_refused_before_anything(
    start_proxy, upstream, path, form
):
    proxy = await start_proxy(base_url=upstream.origin, upstream__mount="/")
    via = (await proxy.get("/v1/x")).get("Via")
    reply = await proxy.send("POST", path, f"via: {form.format(via)}", body=b"{}")
    assert (reply.status, reply.outcome) == (508, "not_sent")
    assert reply.json["proxy"]["error"] == "loop_detected"
    assert len(upstream.requests) == 1
    other = await proxy.get("/v1/x", f"Via: {via}0, 1.1 {via}")
    assert other.status == 200


async def test_a_proxy_that_is_its_own_upstream_finds_out_at_its_first_login(start_proxy):
    """As a hosts entry would have it: the name leads here."""
    relay_to = []

    async def relay(reader, writer):
        there, out = await asyncio.open_connection(*relay_to)
        out.write(await reader.readuntil(b"\r\n\r\n"))
        out.write(await reader.read(65536))
        writer.write(await there.read(65536))
        writer.close()
        out.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy = await start_proxy(base_url=f"http://localhost:{port}", token__wait_limit=0.5)
    relay_to[:] = proxy.address
    reply = await proxy.get("/v1/accounts/balance")
    assert (reply.status, reply.outcome) == (503, "not_sent")
    assert "loop_detected" in proxy.log.text
    assert proxy.log.lines("exchange")[0]["error"] == "loop_detected"
    server.close()


LOCATIONS = [
    ("{origin}/v1/x?a=b#c", "/v1/x?a=b#c"),
    ("{origin}", "/"),
    ("{origin}?a", "/?a"),
    ("{ORIGIN}/v1", "/v1"),
    ("/v1/x", "/v1/x"),
    ("//{authority}/v1/x", "/v1/x"),
    ("//{authority}", "/"),
    ("//{authority}//evil.example", "//{authority}//evil.example"),
    ("https://{authority}/v1", "https://{authority}/v1"),
    ("http://localhost/v1", "http://localhost/v1"),
    ("http://localhost:x/v1", "http://localhost:x/v1"),
    ("v1/x", "v1/x"),
    ("?a=b", "?a=b"),
    ("/v1/x\xe9", "/v1/x\xe9"),
    ("{origin}1/v1", "{origin}1/v1"),
    ("{origin}.evil.example/v1", "{origin}.evil.example/v1"),
    ("{origin}@evil.example/v1", "{origin}@evil.example/v1"),
    ("{origin}//evil.example/v1", "{origin}//evil.example/v1"),
    ("{origin}/\\evil.example/v1", "{origin}/\\evil.example/v1"),
    ("{origin}/\t/evil.example", "{origin}/\t/evil.example"),
    ("//evil.example/v1", "//evil.example/v1"),
    ("https://checkout.example/1", "https://checkout.example/1"),
    ("", ""),
]


@pytest.mark.parametrize(("sent", "got"), LOCATIONS)
@pytest.mark.parametrize("rewrite", [True, False])
async def test_a_location_on_the_upstream_becomes_ours(start_proxy, upstream, sent, got, rewrite):
    proxy = await start_proxy(base_url=upstream.origin, headers__rewrite_location=rewrite)
    names = {"origin": upstream.origin, "ORIGIN": upstream.origin.upper()}
    names["authority"] = upstream.origin.removeprefix("http://")
    sent, got = sent.format(**names), got.format(**names)
    upstream.answer = upstream.reply_with(
        f"HTTP/1.1 302 Found\r\nlocation: {sent}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
    )
    reply = await proxy.get("/v1/x")
    assert reply.get("location") == (got if rewrite else sent)


async def test_a_location_is_found_under_the_mount(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, upstream__mount="/nomba")
    upstream.answer = upstream.reply_with(
        f"HTTP/1.1 201 Created\r\nLocation: {upstream.origin}/v1/x\r\nContent-Length: 0\r\n\r\n".encode()
    )
    reply = await proxy.get("/nomba/v1/y")
    assert reply.get("Location") == "/nomba/v1/x"


async def test_a_path_is_found_under_the_mount_too(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin, upstream__mount="/nomba")
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 302 Found\r\nLocation: /v1/x\r\nContent-Length: 0\r\n\r\n"
    )
    assert (await proxy.get("/nomba/v1/y")).get("Location") == "/nomba/v1/x"


@pytest.mark.parametrize("choice", ["remove", "pass"])
async def test_forwarded_headers_pass_only_if_that_is_wanted(start_proxy, upstream, choice):
    proxy = await start_proxy(base_url=upstream.origin, headers__forwarded=choice)
    sent = ["Forwarded: for=10.0.0.1", "X-Forwarded-For: 10.0.0.1", "X-Real-IP: 10.0.0.1"]
    await proxy.get("/v1/x", *sent, "X-HTTP-Method-Override: DELETE")
    received = [one.decode() for one in lines(upstream.requests[0][0])]
    assert [one for one in received if "10.0.0.1" in one] == (sent if choice == "pass" else [])
    assert "Override" not in str(received)


async def test_chunks_in_http_1_0_are_refused(through, upstream):
    """RFC 9112 section 6.1: faulty framing."""
    head = b"POST /v1/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
    reply = await through.raw(head + b"1\r\nx\r\n0\r\n\r\n")
    assert (reply.status, reply.json["proxy"]["error"]) == (400, "head_invalid")
    assert upstream.requests == []
