"""The inspector over real sockets: who may look, what is seen, what can be done with it."""

import asyncio
import base64
import contextlib
import gzip
import json
import os
import stat
import time
import zlib
from pathlib import Path
from urllib.parse import unquote_to_bytes

import aiohttp
import brotli
import jsonschema
import pytest
import zstandard
from harness import reset, run, transfer_body

from proxy.inspector.looks import MASK
from proxy.settings import SettingsError
from proxy.simulator import parse_fault

BALANCE, TRANSFER = "/v1/accounts/balance", "/v2/transfers/bank"
HAR = json.loads((Path(__file__).parent / "har.schema.json").read_text())


# -- who may look -------------------------------------------------------------------------------


async def raw(inspector, request):
    host, _, port = inspector.base.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.encode())
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
    writer.close()
    return int(head.split(" ")[1]), head


async def test_the_key_opens_it_once_and_the_cookie_from_then_on(inspect):
    inspector = await inspect()
    assert inspector.base.startswith("http://127.0.0.1:")
    assert len(inspector.token) >= 32
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as browser:
        for path in ("/", "/?token=wrong", "/api/exchanges", "/api/events", "/main.js"):
            async with browser.get(inspector.base + path) as reply:
                assert reply.status == 401
                assert "Set-Cookie" not in reply.headers
        async with browser.get(inspector.proxy.running.inspector) as reply:
            assert reply.status == 200
            (cookie,) = reply.headers.getall("Set-Cookie")
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
            assert cookie.startswith(f"nomba_proxy_inspector_{inspector.base.rpartition(':')[2]}=")
            assert inspector.token not in cookie
        for path in ("/", "/api/exchanges", "/main.js", "/style.css"):
            async with browser.get(inspector.base + path) as reply:
                assert reply.status == 200
                policy = reply.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert "Access-Control-Allow-Origin" not in reply.headers
                assert reply.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("Host: {host}", 200),
        ("Host: localhost:{port}", 200),
        ("Host: evil.example:{port}", 403),
        ("Host: 192.168.1.5", 403),
        ("Host: {host}\r\nOrigin: http://{host}\r\nSec-Fetch-Site: same-origin", 200),
        ("Host: {host}\r\nOrigin: http://localhost:{port}", 403),
        ("Host: {host}\r\nOrigin: https://evil.example", 403),
        ("Host: {host}\r\nOrigin: null", 403),
        ("Host: {host}\r\nSec-Fetch-Site: cross-site", 403),
        # a page of another port of this machine is another site's to no browser
        ("Host: {host}\r\nSec-Fetch-Site: same-site", 403),
    ],
)
async def test_a_page_of_somebody_else_gets_nothing(inspect, lines, status):
    inspector = await inspect()
    host = inspector.base.removeprefix("http://")
    lines = lines.format(host=host, port=host.rpartition(":")[2])
    key = f"Authorization: Bearer {inspector.token}"
    got, head = await raw(inspector, f"GET /api/exchanges HTTP/1.1\r\n{lines}\r\n{key}\r\n\r\n")
    assert got == status
    assert "Access-Control" not in head


async def test_a_link_may_lead_to_the_page_and_to_nothing_else(inspect):
    inspector = await inspect()
    host = inspector.base.removeprefix("http://")
    led = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate"
    for path, status in (
        (f"/?token={inspector.token}", 200),
        (f"/api/exchanges?token={inspector.token}", 403),
    ):
        got, _ = await raw(inspector, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{led}\r\n\r\n")
        assert got == status


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
async def test_what_a_form_can_send_does_nothing(inspect, kind):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    async with inspector.http.post(
        f"{inspector.base}/api/clear", data="{}", headers={"Content-Type": kind}
    ) as reply:
        assert reply.status == 415
    assert len(await inspector.rows()) == 1


async def test_its_cookie_goes_no_further_than_here(inspect, simulator):
    inspector = await inspect()
    cookie = "Cookie: a=1; nomba_proxy_inspector_4040=SECRET; b=2; "
    await inspector.proxy.get(BALANCE, cookie)
    await inspector.proxy.get(BALANCE, "Cookie: nomba_proxy_inspector_4041 =SECRET")
    first, second = simulator.calls(BALANCE)
    assert first.header("Cookie") == "a=1; b=2"
    assert second.header("Cookie") is None


@pytest.mark.parametrize(
    ("env", "key"),
    [
        ({"NOMBA_PROXY_INSPECT_LISTEN": "0.0.0.0:4040"}, "inspect_listen"),
        ({"NOMBA_PROXY_INSPECT_LISTEN": "nonsense"}, "inspect_listen"),
        ({"NOMBA_PROXY_INSPECT": "perhaps"}, "inspect"),
        ({"NOMBA_PROXY_INSPECTOR_PATTERNS": "("}, "inspector.patterns"),
        ({"NOMBA_PROXY_INSPECTOR_SECRET_NAMES": "-"}, "inspector.secret_names"),
        ({"NOMBA_PROXY_INSPECTOR_MEMORY": "0"}, "inspector.memory"),
        (
            {
                "NOMBA_BASE_URL": None,
                "NOMBA_ENVIRONMENT": "production",
                "NOMBA_PROXY_INSPECTOR_REVEAL": "true",
            },
            "inspector.reveal",
        ),
    ],
)
async def test_what_would_open_it_too_far_is_refused(start_proxy, env, key):
    with pytest.raises(SettingsError) as refused:
        await start_proxy(env=env)
    assert [one.key for one in refused.value.problems] == [key]


async def test_it_is_closed_unless_it_is_asked_for(start_proxy):
    proxy = await start_proxy()
    assert proxy.running.inspector == ""


# -- what is seen -------------------------------------------------------------------------------


async def test_a_row_says_what_became_of_a_request(inspect, simulator):
    inspector = await inspect()
    proxy = inspector.proxy
    await proxy.get(BALANCE)
    await proxy.transfer("ref-1")
    await proxy.transfer("ref-1")  # a duplicate
    simulator.inject(parse_fault(f"drop-after path={TRANSFER}"))
    await proxy.transfer("ref-2")
    simulator.inject(parse_fault("""reply status=201 body='{"code":"201","data":{}}'"""))
    await proxy.transfer("ref-3")
    simulator.inject(parse_fault("""reply status=200 body='{"code":"400","description":"No."}'"""))
    await proxy.get("/v1/transfers/banks")
    await proxy.raw(b"NONSENSE\r\n\r\n")
    rows = await inspector.rows(7)
    shown = [(row["state"], row["status"], row["code"], row["kind"]) for row in rows]
    assert shown == [
        ("ok", 200, "00", "read"),
        ("ok", 200, "200", "money"),
        ("failed", 400, "400", "money"),
        ("unknown", 502, "502", "money"),
        ("in_flight", 201, "201", "money"),
        ("failed", 200, "400", "read"),
        ("failed", 400, "", "-"),
    ]
    assert [row["reference"] for row in rows[1:5]] == ["ref-1", "ref-1", "ref-2", "ref-3"]
    assert rows[1]["family"] == "transfers"
    assert rows[1]["route"] == TRANSFER
    assert rows[3]["error"] == "upstream_broken"
    assert rows[5]["description"] == "No."
    for row in rows[:6]:
        shown = await inspector.get(f"/api/exchanges/{row['id']}")
        assert shown["row"] == row


async def test_the_same_filters_everywhere(inspect):
    inspector = await inspect()
    proxy = inspector.proxy
    await proxy.get(BALANCE)
    await proxy.transfer("ref-1")
    await proxy.get("/v1/no/such/thing")
    await inspector.rows(3)
    for query, ids in (
        ({}, [1, 2, 3]),
        ({"method": "post"}, [2]),
        ({"status": "4xx"}, [3]),
        ({"status": "404"}, [3]),
        ({"status": "2xx", "method": "GET"}, [1]),
        ({"family": "transfers"}, [2]),
        ({"caller": "anonymous"}, [1, 2, 3]),
        ({"caller": "nobody"}, []),
        ({"money": "1"}, [2]),
        ({"errors": "1"}, [3]),
        ({"q": "REF-1"}, [2]),
        ({"q": "balance 200"}, [1]),
        ({"limit": "2"}, [2, 3]),
    ):
        assert [row["id"] for row in await inspector.rows(**query)] == ids, query
        if "limit" in query:
            continue
        har = await inspector.get("/api/har", **query)
        assert [entry["_id"] for entry in har["log"]["entries"]] == ids, query
        async with inspector.events(**query) as events:
            if ids:
                found = await events.rows(lambda found, ids=ids: len(found) == len(ids))
                assert sorted(found) == ids, query
    for path in ("/api/exchanges?limit=x", "/api/har?status=teapot", "/api/events?last=-1"):
        async with inspector.http.get(inspector.base + path) as reply:
            assert reply.status == 400
            assert (await reply.json())["error"]


async def test_a_refused_token_is_seen_with_all_that_followed(inspect, simulator):
    inspector = await inspect()
    proxy = inspector.proxy
    await proxy.get(BALANCE)
    simulator.revoke()
    assert (await proxy.transfer("ref-1")).status == 200
    rows = await inspector.rows(2)
    assert rows[1]["attempts"] == 2
    shown = await inspector.get("/api/exchanges/2")
    first, second = shown["attempts"]
    assert first["reply"]["start"] == "HTTP/1.1 401 Unauthorized"
    assert "401" in first["reply"]["body"]["text"]
    assert second["reply"]["start"] == "HTTP/1.1 200 OK"
    assert (first["why"], second["why"]) == ("first try", "replay with a new token")
    assert (first["generation"], second["generation"]) == (1, 2)
    names = [(span["attempt"], span["name"]) for span in shown["timeline"]]
    for expected in ((1, "first byte"), (0, "renewal"), (2, "first byte"), (2, "body")):
        assert expected in names
    assert names.index((1, "first byte")) < names.index((0, "renewal"))
    assert names.index((0, "renewal")) < names.index((2, "first byte"))
    for span in shown["timeline"]:
        assert span["start"] >= 0
        assert span["start"] + span["seconds"] <= shown["seconds"] + 0.001
    assert any("refused the first token" in hint for hint in shown["hints"])
    assert shown["reply"]["start"] == "HTTP/1.1 200 OK"


async def test_the_two_sides_stand_beside_each_other_with_the_difference_marked(inspect, simulator):
    inspector = await inspect(upstream__account_policy="override")
    headers = ("accountId: wrong-one", "X-Forwarded-For: 10.0.0.1", "X-Mine: 1", "TE: trailers")
    await inspector.proxy.get(BALANCE, *headers, "Authorization: Bearer old")
    await inspector.rows(1)
    shown = await inspector.get("/api/exchanges/1")
    caller = {name: (value, mark) for name, value, mark in shown["request"]["headers"]}
    assert caller["X-Mine"] == ("1", "")
    assert caller["X-Forwarded-For"] == ("10.0.0.1", "removed")
    assert caller["TE"][1] == "removed"
    assert caller["accountId"] == ("wrong-one", "changed")
    assert caller["Authorization"][0] == MASK
    (attempt,) = shown["attempts"]
    sent = {name: (value, mark) for name, value, mark in attempt["headers"]}
    assert sent["accountId"] == (simulator.switches.account_id, "changed")
    assert sent["Via"][1] == "added"
    assert sent["X-Mine"] == ("1", "")
    assert "X-Forwarded-For" not in sent
    names = {name: mark for name, _, mark in shown["reply"]["headers"]}
    assert names["X-Request-Id"] == "added"
    assert names["X-Rate-Limit-Limit"] == ""
    assert any("accountId was replaced" in hint for hint in shown["hints"])


HINTS = {
    "status=403 content_type=text/html body=<html>blocked</html>": "allowlist",
    """status=403 body='{"code":"403"}'""": "never about the token",
    """status=429 body='{"code":"429"}'""": "40 a second",
    """status=200 body='{"code":"02","description":"x"}'""": "this failed",
    """status=201 body='{"code":"201","data":{}}'""": "on its way",
    """status=200 body='{"code":"00","status":false}'""": "only “code” is dependable",
    """status=500 body='{"detail":"INTERNAL: JWT expired at x"}' times=2""": "in disguise",
    """status=401 body='{"code":"401"}' times=2""": "different environments",
}


@pytest.mark.parametrize("fault", HINTS)
async def test_hints_say_in_plain_words_what_the_facts_know(inspect, simulator, fault):
    inspector = await inspect()
    simulator.inject(parse_fault(f"reply path={BALANCE} {fault}"))
    await inspector.proxy.get(BALANCE)
    await inspector.rows(1)
    shown = await inspector.get("/api/exchanges/1")
    assert any(HINTS[fault] in hint for hint in shown["hints"]), shown["hints"]


async def test_of_a_large_body_the_beginning_is_kept_and_the_rest_counted(inspect, upstream):
    inspector = await inspect(base_url=upstream.origin, inspector__body_limit="1KiB")
    body = b'{"a":"' + b"x" * 100_000 + b'"}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    upstream.answer = upstream.reply_with(head % len(body) + body)
    reply = await inspector.proxy.send("POST", "/v1/x", body=body)
    assert reply.body == body
    await inspector.rows(1)
    shown = await inspector.get("/api/exchanges/1")
    for side in (shown["request"]["body"], shown["reply"]["body"]):
        assert (side["size"], side["kept"]) == (len(body), 1024)
        assert len(side["text"]) < 1100
        assert side["note"] == f"only the first 1024 of {len(body)} bytes were kept"
    assert not shown["replay"]["possible"]
    assert "bytes of the body were kept" in shown["replay"]["why"]


DEEP = "%" + "25" * 1500 + "41"


async def test_one_that_cannot_be_shown_hides_no_other(inspect):
    inspector = await inspect()
    proxy = inspector.proxy
    await proxy.get(f"{BALANCE}?a={DEEP}")
    await proxy.get(f"/v1/{DEEP}")
    await proxy.send("POST", "/v1/x", f"X-Deep: {DEEP}", body=DEEP.encode())
    half = b'{"note":"Thanks \\ud83d 08031234567","\\ud83dpin=1":1}'  # half an emoji
    await proxy.send("POST", "/v1/x", "Content-Type: application/json", body=half)
    await proxy.get(BALANCE)
    rows = await inspector.rows(5)
    assert [row["id"] for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        await inspector.get(f"/api/exchanges/{row['id']}")
        await inspector.get(f"/api/exchanges/{row['id']}/copy")
    assert len((await inspector.get("/api/har"))["log"]["entries"]) == 5
    async with inspector.events() as events:
        assert len(await events.rows(lambda found: len(found) == 5)) == 5


async def test_our_own_token_is_shown_nowhere_even_if_the_upstream_repeats_it(inspect, upstream):
    inspector = await inspect(base_url=upstream.origin)
    body = b'{"code":"00","description":"token-1 it is","data":"x token-1 y"}'
    head = b"HTTP/1.1 200 OK token-1\r\nX-Echo: token-1\r\nContent-Type: application/json\r\n"
    upstream.answer = upstream.reply_with(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await inspector.proxy.get(BALANCE)
    rows = await inspector.rows(1)
    shown = await inspector.get("/api/exchanges/1")
    har = await inspector.get("/api/har")
    assert shown["reply"]["body"]["text"]
    assert "token-1" not in json.dumps([rows, shown, har])


async def test_what_the_proxy_answers_itself_is_shown_as_that(inspect, simulator):
    inspector = await inspect()
    proxy = inspector.proxy
    await proxy.raw(b"POST /v1/x HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 3\r\n\r\nabc")
    await proxy.raw(b"BAD\r\n\r\n")
    simulator.inject(parse_fault(f"cut path={BALANCE} bytes=60"))
    await proxy.get(BALANCE)
    rows = await inspector.rows(3)
    refused = await inspector.get("/api/exchanges/1")
    assert refused["request"]["body"]["note"] == "the body had not been read"
    assert not refused["replay"]["possible"]
    assert refused["row"]["reply_bytes"] == len(refused["reply"]["body"]["text"])
    assert rows[1]["detail"].startswith("The request is not valid HTTP/1.1")
    cut = await inspector.get("/api/exchanges/3")
    assert not [hint for hint in cut["hints"] if "this failed" in hint]


async def test_a_caller_that_left_got_nothing_and_the_page_says_so(inspect, simulator):
    inspector = await inspect()
    with simulator.hold(TRANSFER) as hold:
        _, writer = await asyncio.open_connection(*inspector.proxy.address)
        body = transfer_body("ref-1")
        head = f"POST {TRANSFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await hold.caught(1)
        reset(writer)
        await asyncio.sleep(0.1)
    (row,) = await inspector.rows(1)
    assert (row["status"], row["code"], row["description"]) == (499, "", "")
    assert row["error"] == "caller_left"
    shown = await inspector.get("/api/exchanges/1")
    assert any("hung up" in hint and "200" in hint for hint in shown["hints"])
    assert shown["timeline"]


async def test_what_is_under_way_is_shown_and_outlives_a_clear(inspect, simulator):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    with simulator.hold(BALANCE) as hold:
        call = asyncio.create_task(inspector.proxy.get(BALANCE))
        await hold.caught(1)
        shown = await inspector.get("/api/exchanges/2")
        assert shown["timeline"][-1]["name"] == "under way"
        assert shown["replay"]["why"] == "It is still under way."
        await inspector.post("/api/clear", status=204)
        assert [row["id"] for row in await inspector.rows()] == [2]
    await call
    (row,) = await inspector.rows(1)
    assert (row["id"], row["state"]) == (2, "ok")


async def test_where_nobody_answers_nothing_was_sent(inspect, upstream):
    inspector = await inspect(base_url=upstream.origin)
    await inspector.proxy.get(BALANCE)
    await upstream.stop()
    await inspector.proxy.get(BALANCE)
    await inspector.rows(2)
    shown = await inspector.get("/api/exchanges/2")
    assert [one["sent"] for one in shown["attempts"]] == [False] * len(shown["attempts"])
    assert {span["name"] for span in shown["timeline"] if span["attempt"]} == {"no connection"}


# -- events -------------------------------------------------------------------------------------


async def test_rows_come_live_and_a_reader_that_comes_back_misses_none_and_gets_none_twice(
    inspect, simulator
):
    inspector = await inspect()
    proxy = inspector.proxy
    async with inspector.events() as events:
        assert await events.next() == ("reset", {})
        with simulator.hold(BALANCE) as hold:
            call = asyncio.create_task(proxy.get(BALANCE))
            await hold.caught(1)
            pending = await events.rows(lambda found: found)
            assert pending[1]["state"] == "pending"
        await call
        done = await events.rows(lambda found: found)
        assert done[1]["state"] == "ok"
        mark = events.mark
    for number in range(30):
        await proxy.get(f"/v1/transfers/banks?n={number}")
    async with inspector.events(mark) as events:
        found = await events.rows(lambda found: 31 in found and found[31]["state"] == "ok")
        assert sorted(found) == list(range(2, 32))
        mark = events.mark
    await proxy.get(BALANCE)
    async with inspector.events(mark) as events:
        found = await events.rows(lambda found: 32 in found and found[32]["state"] == "ok")
        assert sorted(found) == [32]
    other = f"00000000.{mark.partition('.')[2]}"  # of another start
    async with inspector.events(other) as events:
        assert await events.next() == ("reset", {})
        assert len(await events.rows(lambda found: len(found) == 32)) == 32


async def test_no_row_comes_twice_under_load(inspect):
    inspector = await inspect()

    async def caller(number):
        for at in range(20):
            await inspector.proxy.get(f"/v1/transfers/banks?n={number}-{at}")

    async with inspector.events() as events:
        reading = asyncio.create_task(
            events.rows(
                lambda found: sum(row["state"] != "pending" for row in found.values()) == 400
            )
        )
        await asyncio.gather(*map(caller, range(20)))
        assert len(await reading) == 400


async def test_a_row_that_no_longer_fits_is_taken_back(inspect, simulator):
    inspector = await inspect()
    async with inspector.events(status="pending") as events:
        with simulator.hold(BALANCE) as hold:
            call = asyncio.create_task(inspector.proxy.get(BALANCE))
            await hold.caught(1)
            await events.rows(lambda found: 1 in found)
        await call
        while True:
            name, data = await events.next()
            if name == "rows" and 1 in data["drop"]:
                break


async def test_clear_forgets_everything_everywhere(inspect):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    async with inspector.events() as events:
        await events.rows(lambda found: found)
        await inspector.post("/api/clear", status=204)
        while (await events.next())[0] != "reset":
            pass
    assert await inspector.rows() == []
    await inspector.get("/api/exchanges/1", expect=404)


# -- what can be done ---------------------------------------------------------------------------


async def paste(inspector, way):
    """Run the copy of the first exchange as a user would: output and errors."""
    text = await inspector.get("/api/exchanges/1/copy", **{"as": way})
    program = {"curl": ("bash", "-c"), "python": ("python3", "-c"), "fetch": ("node", "--eval")}
    if way == "fetch":
        text = f"(async () => {{ {text} }})()"
    process = await asyncio.create_subprocess_exec(
        *program[way],
        text,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": "/elsewhere"},
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return out, err


@pytest.mark.parametrize("way", ["curl", "python", "fetch"])
async def test_a_copied_request_runs_against_the_proxy(inspect, simulator, way):
    inspector = await inspect()
    body = json.dumps({"note": 'it\'s "quoted" $HOME `x` é\n', "amount": 250.00}).encode()
    await inspector.proxy.send(
        "POST", "/v1/x?a=b%20c", "X-Mine: 'v'", "Content-Type: application/json", body=body
    )
    await inspector.rows(1)
    out, err = await paste(inspector, way)
    rows = await inspector.rows(2)
    assert rows[1]["path"] == "/v1/x?a=b%20c", (out, err)
    first, second = simulator.calls("/v1/x")
    assert second.body == first.body == body
    assert second.header("X-Mine") == "'v'"


async def test_a_copy_of_a_known_callers_request_holds_a_place_for_its_key(inspect, tmp_path):
    state = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    code, key, _ = await run("caller", "add", "app", "--keep-anonymous", **state)
    assert code == 0
    inspector = await inspect()
    body = b'{"pin":"MARKED-pin","a":1}'  # no number: the copy has a port in it
    await inspector.proxy.send(
        "POST", "/v1/x?token=abc", f"X-Nomba-Proxy-Key: {key.strip()}", body=body
    )
    await inspector.rows(1)
    for way, place in (
        ("curl", '-H "X-Nomba-Proxy-Key: $NOMBA_PROXY_KEY"'),
        ("python", "os.environ['NOMBA_PROXY_KEY']"),
        ("fetch", "process.env.NOMBA_PROXY_KEY"),
    ):
        text = await inspector.get("/api/exchanges/1/copy", **{"as": way})
        assert place in text
        assert key.strip() not in text
        assert "MARKED" not in text
        assert "token=MASKED" in text
        assert MASK not in text


async def test_exports_are_valid_archives(inspect, simulator, upstream):
    inspector = await inspect()
    proxy = inspector.proxy
    await proxy.get(f"{BALANCE}?a=1&b=&accountNumber=0123456789")
    simulator.revoke()
    await proxy.transfer("ref-1")
    await proxy.send("POST", "/v1/x", body=bytes(range(256)))
    simulator.inject(parse_fault(f"drop-after path={BALANCE} times=2"))
    await proxy.get(BALANCE)
    await proxy.send("HEAD", BALANCE)
    await proxy.raw(b"NONSENSE\r\n\r\n")
    await inspector.rows(6)
    har = await inspector.get("/api/har")
    jsonschema.validate(har, HAR)
    entries = har["log"]["entries"]
    assert [entry["_id"] for entry in entries] == [1, 2, 3, 4, 5]
    for entry in entries:
        spent = [value for name, value in entry["timings"].items() if name != "ssl" and value > 0]
        assert entry["time"] == pytest.approx(sum(spent))
    assert entries[0]["request"]["queryString"][2]["value"] == f"{MASK}6789"
    assert entries[1]["_attempts"] == 2
    assert entries[3]["response"]["status"] == 502
    one = await inspector.get("/api/exchanges/2/har")
    assert one["log"]["entries"] == [entries[1]]


async def test_a_replay_sends_the_raw_bytes_through_the_front_door(inspect, simulator):
    inspector = await inspect()
    body = b'{"pin":"1234",  "amount":250.00}'
    await inspector.proxy.send("POST", "/v1/transfers/bank/lookup", "X-Mine: 1", body=body)
    await inspector.rows(1)
    made = await inspector.post("/api/exchanges/1/replay")
    assert made == {"id": 2, "left_out": []}
    first, second = simulator.calls("/v1/transfers/bank/lookup")
    assert second.body == first.body == body
    assert second.header("X-Mine") == "1"
    rows = await inspector.rows(2)
    assert rows[1]["replay_of"] == 1
    compared = await inspector.get("/api/exchanges/1/diff/2")
    request, reply = compared["parts"]
    changed = [line for sign, line in request["lines"] if sign != " "]
    assert all(line.startswith(("X-Request-Id: ", "Host: ")) for line in changed)
    assert [line for sign, line in reply["lines"] if sign == " " and '"code"' in line]


async def test_an_edited_replay_sends_what_was_typed(inspect, simulator):
    inspector = await inspect()
    await inspector.proxy.send("POST", "/v1/transfers/bank/lookup", "X-Mine: 1", body=b"{}")
    await inspector.rows(1)
    edits = {"method": "PUT", "target": "/v1/other?x=1", "headers": [["X-Mine", "2"]], "body": "é"}
    with_confirm = edits | {"confirm": (await inspector.rows())[0]["request_id"]}
    await inspector.post("/api/exchanges/1/replay", with_confirm)
    (call,) = simulator.calls("/v1/other")
    assert (call.method, call.body, call.header("X-Mine")) == ("PUT", "é".encode(), "2")


@pytest.mark.parametrize(
    "edits",
    [
        {"body": f'{{"pin":"{MASK}"}}'},
        {"body": '{"pin":"\\u2022\\u2022\\u2022"}'},
        {"body": "pin=%E2%80%A2%E2%80%A2%E2%80%A2"},
        {"target": "/v1/x?a=%e2%80%a2%e2%80%a2%e2%80%a2"},
        {"headers": [["X-Key", MASK]]},
    ],
)
async def test_what_still_holds_a_mask_is_not_sent(inspect, simulator, edits):
    inspector = await inspect()
    await inspector.proxy.send("POST", "/v1/transfers/bank/lookup", body=b"{}")
    await inspector.rows(1)
    refused = await inspector.post("/api/exchanges/1/replay", edits, status=422)
    assert "mask" in refused["error"]
    assert refused["hint"]
    assert len(simulator.calls("/v1/transfers/bank/lookup")) == 1
    assert len(await inspector.rows()) == 1


@pytest.mark.parametrize(
    "edits",
    [
        {"headers": [["X-Bad", "a\r\nX: y"]]},
        {"headers": [["bad name", "x"]]},
        {"headers": "x"},
        {"headers": [["a"]]},
        {"target": "/v1/a b"},
        {"target": "/v1/\r\nX: y"},
        {"target": "/v1/%2e%2e/x"},
        {"target": "http://evil.example/"},
        {"method": "GET /x HTTP/1.1\r\n"},
        {"method": 5},
        {"body": {}},
        {"unknown": "x"},
    ],
)
async def test_what_cannot_be_sent_as_it_was_typed_is_refused(inspect, simulator, edits):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    await inspector.rows(1)
    refused = await inspector.post("/api/exchanges/1/replay", edits, status=422)
    assert refused["error"]
    assert len(simulator.calls(BALANCE)) == 1
    assert len(await inspector.rows()) == 1


async def test_money_is_replayed_only_once_its_reference_has_been_typed(inspect, simulator):
    inspector = await inspect()
    await inspector.proxy.transfer("ref-1")
    await inspector.rows(1)
    assert (await inspector.get("/api/exchanges/1"))["replay"] == {
        "possible": True,
        "why": "",
        "confirm": "merchantTxRef",
    }
    edited = transfer_body("ref-2").decode()
    for edits in (
        {},
        {"confirm": ""},
        {"confirm": "ref-2"},
        {"body": edited},
        {"body": edited, "confirm": "ref-1"},
        # an edit does not get round it
        {"target": "/v2//transfers/bank", "confirm": ""},
        {"target": "/V2/transfers/bank/"},
        {"target": "/v2/transfers/b%61nk"},
        {"target": "/v1/transfers/wallet"},
        {"target": "/v9/nobody/knows"},
    ):
        refused = await inspector.post("/api/exchanges/1/replay", edits, status=409)
        assert refused["confirm"] == "merchantTxRef", edits
    assert len(simulator.calls(TRANSFER)) == 1
    assert len(await inspector.rows()) == 1
    await inspector.post("/api/exchanges/1/replay", {"body": edited, "confirm": "ref-2"})
    assert [json.loads(one.body)["merchantTxRef"] for one in simulator.calls(TRANSFER)] == [
        "ref-1",
        "ref-2",
    ]


async def test_a_read_turned_into_money_asks_too(inspect, simulator):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    await inspector.rows(1)
    edits = {"method": "POST", "target": TRANSFER, "body": transfer_body("ref-5").decode()}
    await inspector.post("/api/exchanges/1/replay", edits, status=409)
    assert simulator.calls(TRANSFER) == []


async def test_a_replay_calls_as_the_original_caller_and_may_no_more_than_it(inspect, tmp_path):
    state = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    rule = "--rule=allow GET /v1/accounts/**"
    _, key, _ = await run("caller", "add", "app", "--close-anonymous", rule, **state)
    inspector = await inspect()
    await inspector.proxy.get(BALANCE, f"X-Nomba-Proxy-Key: {key.strip()}")
    await inspector.rows(1)
    await inspector.post("/api/exchanges/1/replay")
    await inspector.post("/api/exchanges/1/replay", {"target": "/v1/transfers/banks"})
    rows = await inspector.rows(3)
    assert [(row["caller"], row["status"]) for row in rows] == [
        ("app", 200),
        ("app", 200),
        ("app", 403),
    ]


@pytest.mark.parametrize("way", ["curl", "python", "fetch"])
async def test_a_copy_reads_no_file_and_is_sent_once(inspect, simulator, way, tmp_path):
    inspector = await inspect()
    (tmp_path / "secret").write_text("the file")
    body = f"@{tmp_path}/secret".encode()
    target = "/v1/x{a,b}/../y?ids[]=1&r=[1-3]".replace("/../", "/")
    await inspector.proxy.send("POST", target, "X-Empty:", "X-Two: 1", "X-Two: 2", body=body)
    await inspector.rows(1)
    await paste(inspector, way)
    await inspector.rows(2)
    first, second = (one for one in simulator.received if one.path.startswith("/v1/x"))
    assert second.body == first.body == body
    # By the URL standard, fetch encodes what is no URL's.
    assert unquote_to_bytes(second.target) == first.target
    assert way == "fetch" or second.target == first.target
    twice = [value for name, value in second.headers if name.lower() == "x-two"]
    assert twice in ([["1", "2"], ["1, 2"]] if way == "fetch" else [["1", "2"]])
    assert second.header("X-Empty") == ""
    assert second.header("Content-Type") is None


async def test_a_body_too_long_for_a_command_line_is_told(inspect):
    inspector = await inspect()
    await inspector.proxy.send("POST", "/v1/x", body=b'{"a":"%b"}' % (b"x" * 150_000))
    await inspector.rows(1)
    text = await inspector.get("/api/exchanges/1/copy")
    assert text.startswith("# the body is too long")
    text = await inspector.get("/api/exchanges/1/copy", **{"as": "python"})
    assert "x" * 150_000 in text


async def test_a_compressed_body_is_copied_and_edited_as_the_text_it_is(inspect, simulator):
    inspector = await inspect()
    headers = ("Content-Encoding: gzip", "Content-Type: text/plain; charset=iso-8859-1")
    body = gzip.compress("caf\xe9 pin=1234".encode("latin-1"))
    await inspector.proxy.send("POST", "/v1/transfers/bank/lookup", *headers, body=body)
    await inspector.rows(1)
    text = await inspector.get("/api/exchanges/1/copy")
    assert "gzip" not in text
    assert "charset=utf-8" in text
    edits = {"headers": [one.split(": ") for one in headers], "body": "caf\xe9"}
    await inspector.post("/api/exchanges/1/replay", edits)
    _, call = simulator.calls("/v1/transfers/bank/lookup")
    assert call.header("Content-Encoding") is None
    assert call.header("Content-Type") == "text/plain; charset=utf-8"
    assert call.body == "caf\xe9".encode()


async def test_who_called_has_to_be_known_for_a_replay(inspect, tmp_path):
    state = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    _, key, _ = await run("caller", "add", "app", "--keep-anonymous", **state)
    inspector = await inspect()
    await inspector.proxy.get(BALANCE, f"X-Nomba-Proxy-Key: {key.strip()}x")
    await inspector.proxy.get(BALANCE, f"X-Nomba-Proxy-Key: {key.strip()}")
    await inspector.rows(2)
    refused = await inspector.post("/api/exchanges/1/replay", status=409)
    assert "who called" in refused["error"]
    await run("caller", "remove", "app", **state)
    for _ in range(100):
        if "Caller app" in (await _try(inspector, 2)).get("error", ""):
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError("the caller is still there")


async def _try(inspector, number):
    async with inspector.http.post(
        f"{inspector.base}/api/exchanges/{number}/replay", json={}
    ) as reply:
        return await reply.json()


@pytest.mark.parametrize(
    "body",
    [
        "•%E2%80%A2•",
        "\\u2022•\\u2022",
        "&bull;&bull;&bull;",
        "&#8226;&#8226;",
        "%25E2%2580%25A2•",
        "• • •",
    ],
)
async def test_a_mask_in_another_spelling_is_one(inspect, body):
    inspector = await inspect()
    await inspector.proxy.send("POST", "/v1/transfers/bank/lookup", body=b"{}")
    await inspector.rows(1)
    refused = await inspector.post("/api/exchanges/1/replay", {"body": body}, status=422)
    assert "mask" in refused["error"]


# -- sessions -----------------------------------------------------------------------------------


async def test_sessions_show_their_tokens_and_can_be_renewed(inspect, simulator):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    await inspector.rows(1)
    (session,) = (await inspector.get("/api/sessions"))["sessions"]
    assert (session["name"], session["state"], session["generation"]) == ("nomba", "living", 1)
    assert 0 <= session["age"] < 60
    assert session["age"] + session["expires_in"] == pytest.approx(session["life"], abs=1)
    assert 0 < session["renews_in"] < session["expires_in"]
    assert abs(session["skew"]) < 5
    (renewal,) = session["renewals"]
    assert (renewal["grant"], renewal["reason"], renewal["result"]) == ("issue", "start", "success")
    renewed = await inspector.post("/api/sessions/nomba/renew")
    assert renewed["generation"] == 2
    assert renewed["renewals"][0]["reason"] == "operator"
    simulator.revoke()
    await inspector.proxy.get(BALANCE)
    (session,) = (await inspector.get("/api/sessions"))["sessions"]
    assert [one["reason"] for one in session["renewals"]] == ["refused", "operator", "start"]
    simulator.inject(parse_fault("reply path=/v1/auth/token/* status=500 body={} times=always"))
    failed = await inspector.post("/api/sessions/nomba/renew", status=502)
    assert failed["error"]
    (session,) = (await inspector.get("/api/sessions"))["sessions"]
    assert session["renewals"][0]["result"] == "failure"
    await inspector.post("/api/sessions/other/renew", status=404)


# -- the terminal -------------------------------------------------------------------------------


async def test_tail_and_export_find_the_running_inspector(inspect, tmp_path):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    await inspector.proxy.transfer("ref-1")
    await inspector.rows(2)
    state = tmp_path / "state"
    (kept,) = state.glob("inspector-*.url")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    env = {"NOMBA_PROXY_STATE_DIR": str(state)}
    code, out, err = await run("tail", "--no-follow", **env)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert "✓ 200·00" in first
    assert BALANCE in first
    assert all(text in second for text in ("POST", TRANSFER, "money", "ref-1"))
    assert "\x1b" not in out  # nobody's terminal
    code, out, _ = await run("tail", "--no-follow", "--json", "--money", **env)
    assert [json.loads(line)["id"] for line in out.splitlines()] == [2]
    har = tmp_path / "out.har"
    har.write_text("old")
    har.chmod(0o644)
    code, _, err = await run("export", "--har", str(har), "--method=GET", **env)
    assert code == 0
    assert "1 exchange in" in err
    assert stat.S_IMODE(har.stat().st_mode) == 0o600
    found = json.loads(har.read_text())
    jsonschema.validate(found, HAR)
    assert [entry["_id"] for entry in found["log"]["entries"]] == [1]
    code, out, _ = await run("export", "--har", "-", "--id=2", **env)
    assert json.loads(out)["log"]["entries"][0]["_id"] == 2
    url = f"--url={inspector.proxy.running.inspector}"
    code, out, _ = await run("tail", "--no-follow", "--last=1", url)
    assert len(out.splitlines()) == 1
    for arguments, text in (
        (("tail", "--url=http://127.0.0.1:1/?token=x"), "does not answer"),
        (("tail", f"--url={inspector.base}/?token=x"), "not open"),
        (("tail", "--url=nonsense"), "?token="),
        (("export", "--har", "/no/such/folder/x"), "No such file"),
    ):
        code, _, err = await run(*arguments, **env)
        assert code == 1
        assert text in err
    code, _, err = await run("tail", NOMBA_PROXY_STATE_DIR=str(tmp_path / "empty"))
    assert code == 1
    assert "--inspect" in err


async def test_tail_follows_and_takes_up_where_it_was(inspect, tmp_path):
    import sys

    from harness import environ

    inspector = await inspect()
    await inspector.proxy.get("/v1/before")
    await inspector.rows(1)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "tail", "--json", "--last=0"),
        env=environ(NOMBA_PROXY_STATE_DIR=str(tmp_path / "state")),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        await asyncio.sleep(0)
        seen = []
        deadline = time.monotonic() + 20
        number = 0
        while len(seen) < 3:
            assert time.monotonic() < deadline
            number += 1
            await inspector.proxy.get(f"/v1/after/{number}")
            with contextlib.suppress(TimeoutError):
                while True:
                    line = await asyncio.wait_for(process.stdout.readline(), 0.5)
                    seen.append(json.loads(line)["path"])
        assert "/v1/before" not in seen
        first = int(seen[0].rpartition("/")[2])
        assert seen == [f"/v1/after/{first + at}" for at in range(len(seen))]
    finally:
        process.terminate()
        await process.wait()


async def test_nothing_that_others_send_speaks_to_the_terminal(inspect, upstream, tmp_path):
    inspector = await inspect(base_url=upstream.origin)
    evil = "\\u001b]0;x\\u0007\\u001b[2J\\nFORGED\\u009b"
    body = f'{{"code":"9{evil}","description":"{evil}","merchantTxRef":"r{evil}"}}'.encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    upstream.answer = upstream.reply_with(head % len(body) + body)
    await inspector.proxy.send("POST", "/v1/%1b[2J", body=body)
    await inspector.rows(1)
    env = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    for arguments in (("tail", "--no-follow"), ("export", "--har=-")):
        code, out, _ = await run(*arguments, **env)
        assert code == 0
        assert not [one for one in out if not one.isprintable() and one != "\n"]
    code, out, _ = await run("tail", "--no-follow", **env)
    assert len(out.splitlines()) == 1
    assert r"\u001b]0;x\u0007" in out  # it is told, not left out


async def test_a_file_that_is_none_is_written_through(inspect, tmp_path):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    await inspector.rows(1)
    env = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    code, _, _ = await run("export", "--har", str(tmp_path / "link"), **env)
    assert code == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "real").read_text())["log"]
    os.mkfifo(tmp_path / "pipe")
    reading = asyncio.create_task(asyncio.to_thread((tmp_path / "pipe").read_text))
    code, _, _ = await run("export", "--har", str(tmp_path / "pipe"), **env)
    assert code == 0
    assert json.loads(await reading)["log"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    code, _, err = await run("export", "--har=-", "--id=1", "--money", **env)
    assert code == 2
    assert "--id" in err


async def test_of_several_inspectors_the_living_one_is_found(inspect, tmp_path):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    await inspector.rows(1)
    env = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    (tmp_path / "state" / "inspector-1.url").write_text("http://127.0.0.1:1/?token=x\n")
    code, out, _ = await run("tail", "--no-follow", **env)
    assert (code, len(out.splitlines())) == (0, 1)
    other = await inspect()
    code, _, err = await run("tail", "--no-follow", **env)
    assert code == 1
    assert other.base.removeprefix("http://") in err


# -- nothing secret leaves ----------------------------------------------------------------------

SECRETS = {
    "client_secret": "MARKED-client-secret-1",
    "access_token": "MARKED-access-token-2",
    "refresh_token": "MARKED-refresh-token-3",
    "tokenKey": "MARKED-token-key-4",
    "cardNumber": "4111111111111111",
    "cvv": "735197351973",  # so long that no id and no time holds it by chance
    "pin": "MARKED-pin-5",
    "otp": "MARKED-otp-6",
    "bvn": "22345678901",
    "nin": "98765432109",
    "password": "MARKED-password-7",
    "signature": "MARKED-signature-8",
    "accountNumber": "9182736450",
    "phoneNumber": "08091827364",
}


def leaks(text):
    data = text if isinstance(text, bytes) else text.encode()
    for name, secret in SECRETS.items():
        forms = {
            secret.encode(),
            base64.b64encode(secret.encode())[:-4],
            secret.encode().hex().encode(),
        }
        if any(form in data for form in forms):
            yield name, data[max(0, data.find(secret.encode()) - 60) :][:160]


CODED = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}


async def test_no_marked_secret_leaves_the_inspector_by_any_way(inspect, upstream, tmp_path):
    inspector = await inspect(base_url=upstream.origin)
    proxy = inspector.proxy
    document = json.dumps(SECRETS)
    nested = json.dumps({"data": [{"card": SECRETS, "note": f"pin={SECRETS['pin']}"}]})
    escaped = "".join(f"\\u{ord(one):04x}" for one in SECRETS["pin"])
    form = "&".join(f"{name}={value}" for name, value in SECRETS.items())
    every = "&".join(
        f"{''.join(f'%{ord(c):02X}' for c in name)}={''.join(f'%{ord(c):02X}' for c in value)}"
        for name, value in SECRETS.items()
    )
    multipart = "".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in SECRETS.items()
    )
    xml = "".join(f"<{name}>{value}</{name}>" for name, value in SECRETS.items())
    bodies = [
        ("application/json", document.encode()),
        ("application/json", nested.encode()),
        ("application/json", f'{{"p\\u0069n":"{escaped}"}}'.encode()),
        ("application/json", json.dumps({"raw": document, "q": form}).encode()),
        (
            "application/json",
            json.dumps({"b": base64.b64encode(document.encode()).decode()}).encode(),
        ),
        ("application/json", document[:-20].encode()),
        ("application/json", document.encode("utf-16")),
        ("application/json; charset=utf-16-le", document.encode("utf-16-le")),
        ("application/x-www-form-urlencoded", form.encode()),
        ("application/x-www-form-urlencoded", every.encode()),
        ("application/x-www-form-urlencoded", document.encode()),
        ("multipart/form-data; boundary=b", multipart.encode()),
        ("text/xml", xml.encode()),
        ("text/html", f"<p>{form}</p>".encode()),
        ("text/plain", form.replace("=", ": ").replace("&", "\n").encode()),
        ("application/octet-stream", b"\0\1\2" + document.encode()),
        ("", document.encode()),
    ]
    headers = [f"X-{name}: {value}" for name, value in SECRETS.items()]
    headers += [f"Cookie: a={SECRETS['pin']}", f"Authorization: Bearer {SECRETS['access_token']}"]
    headers += [f"Referer: http://x/?{form}", f"X-Odd: {document}"]
    sent = 0
    for media, body in bodies:
        for coding, encode in CODED.items():
            data = encode(body)
            lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(data)]
            lines += [b"Content-Type: " + media.encode(), b"Content-Encoding: " + coding.encode()]
            lines += [one.encode() for one in headers] + [
                b"Set-Cookie: a=" + SECRETS["pin"].encode()
            ]
            upstream.answer = upstream.reply_with(b"\r\n".join(lines) + b"\r\n\r\n" + data)
            more = (*headers, f"Content-Type: {media}", f"Content-Encoding: {coding}")
            reply = await proxy.send(
                "POST", f"/v1/x/{SECRETS['accountNumber']}?{form}", *more, body=data
            )
            assert reply.body == data
            sent += 1
    await proxy.send("GET", f"/v1/y?{every}")
    await proxy.send("POST", "/v1/auth/token/issue", body=document.encode())
    rows = await inspector.rows(sent + 2)
    found = [json.dumps(rows, ensure_ascii=False), json.dumps(rows)]
    for row in rows:
        for path in ("", "/har", "/copy?as=curl", "/copy?as=python", "/copy?as=fetch", "/diff/1"):
            text = await inspector.get(f"/api/exchanges/{row['id']}{path}")
            found.append(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False))
            if not isinstance(text, str) and not path:
                for side in ("request", "reply"):
                    if data := ((text[side] or {}).get("body") or {}).get("base64"):
                        found.append(base64.b64decode(data))
    async with inspector.events() as events:
        found.append(json.dumps(await events.rows(lambda seen: len(seen) == len(rows))))
    state = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    for arguments in (
        ("tail", "--no-follow", "--last=1000"),
        ("tail", "--no-follow", "--last=1000", "--json"),
        ("export", "--har", "-"),
    ):
        code, out, _ = await run(*arguments, **state)
        assert code == 0
        found.append(out)
    found.append(proxy.log.text)
    leaked = [one for text in found for one in leaks(text)]
    assert leaked == []
    assert sum(len(one) for one in found) > 1_000_000
