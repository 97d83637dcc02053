"""What operators see and can do: the canonical line, metrics, health, the token verbs."""

import asyncio
import contextlib
import json
import re

import aiohttp
import pytest
from processes import until

from proxy.app.listeners import CannotStart

BALANCE = "/v1/accounts/balance"
ISSUE = "/v1/auth/token/issue"
REVOKE = "/v1/auth/token/revoke"

LINE = {
    "event",
    "level",
    "timestamp",
    "request_id",
    "caller",
    "upstream",
    "method",
    "route",
    "kind",
    "status",
    "attempts",
    "outcome",
    "generation",
    "body_bytes",
    "reply_bytes",
    "token_wait_seconds",
    "upstream_seconds",
    "duration_seconds",
}


async def fetch(url: str, method: str = "GET", **options) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.request(method, url, **options) as reply:
        return reply.status, await reply.text()


async def test_one_line_per_exchange_with_everything_but_data(proxy, simulator):
    await proxy.send(
        "POST",
        "/v1/accounts/virtual/marked-id?secret=marked-query",
        "X-Request-Id: shop-42",
        "X-Api-Key: marked-header",
        body=b"marked-body",
    )
    (line,) = await proxy.exchanges()
    assert set(line) == LINE | {"envelope"}
    assert line["request_id"] == "shop-42"
    assert line["route"] == "/v1/accounts/virtual/{subAccountId}"
    assert (line["kind"], line["caller"], line["upstream"]) == ("write", "anonymous", "nomba")
    assert (line["status"], line["attempts"], line["outcome"]) == (400, 1, "answered")
    assert line["body_bytes"] == 11
    assert line["generation"] == 1
    assert "marked" not in proxy.log.text


async def test_a_password_in_a_url_is_not_repeated(proxy):
    reply = await proxy.get("http://marked-user:marked-secret@api.nomba.com/v1/x")
    assert reply.json["proxy"]["error"] == "host_refused"
    await proxy.exchanges()
    assert "marked" not in reply.raw.decode() + proxy.log.text


async def test_every_reply_carries_a_request_id_and_an_outcome(proxy):
    for method, target, outcome in (
        ("GET", BALANCE, "answered"),
        ("GET", "/a/../b", "not_sent"),
        ("POST", ISSUE, "not_sent"),
        ("TRACE", "/", "not_sent"),
        ("OPTIONS", "*", "not_sent"),
        ("GET", "/v1/nothing", "answered"),
    ):
        reply = await proxy.send(method, target, body=b"{}")
        assert re.fullmatch(r"[0-9a-f]{32}", reply.get("X-Request-Id"))
        assert reply.outcome == outcome, target


async def test_a_sane_request_id_is_kept_and_an_odd_one_replaced(proxy):
    kept = await proxy.get(BALANCE, "X-Request-Id: 4f9c_a.b:c-d")
    assert kept.get("X-Request-Id") == "4f9c_a.b:c-d"
    for odd in ("x" * 200, 'a"b', "a b", "<script>"):
        reply = await proxy.get(BALANCE, f"X-Request-Id: {odd}")
        assert re.fullmatch(r"[0-9a-f]{32}", reply.get("X-Request-Id"))


async def test_metrics_count_requests_renewals_and_unknown_outcomes(proxy, simulator):
    await proxy.get(BALANCE)
    simulator.revoke()
    await proxy.get(BALANCE)
    simulator.fail("/v2/transfers/bank", drop=True)
    await proxy.send("POST", "/v2/transfers/bank", body=b"{}")
    await proxy.get("/v1/some/random/path/that/is/no/label")
    await proxy.exchanges(4)
    status, text = await fetch(f"{proxy.admin}/metrics")
    assert status == 200
    samples = set(text.splitlines())
    base = 'caller="anonymous",code_class="{}",method="{}",route="{}",upstream="nomba"'
    expected = [
        "nomba_proxy_requests_total{" + base.format("2xx", "GET", BALANCE) + "} 2.0",
        "nomba_proxy_requests_total{" + base.format("4xx", "GET", "other") + "} 1.0",
        'nomba_proxy_unknown_outcomes_total{route="/v2/transfers/bank",upstream="nomba"} 1.0',
        'nomba_proxy_auth_replays_total{result="answered",upstream="nomba"} 1.0',
        'nomba_proxy_token_renewals_total{grant="issue",result="success",upstream="nomba"} 2.0',
        'nomba_proxy_token_generation{upstream="nomba"} 2.0',
        'nomba_proxy_request_duration_seconds_count{upstream="nomba"} 4.0',
    ]
    for sample in expected:
        assert sample in samples
    assert "nomba_proxy_token_expiry_timestamp_seconds" in text
    assert "random" not in text


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/-/healthy"])
async def test_liveness_does_not_depend_on_nomba(start_proxy, simulator, path):
    simulator.fail(ISSUE, times=100, drop=True)
    proxy = await start_proxy()
    assert await fetch(proxy.admin + path) == (200, "ok\n")


@pytest.mark.parametrize("path", ["/readyz", "/-/ready"])
async def test_ready_means_there_has_been_a_token_since_start(start_proxy, simulator, path):
    with simulator.hold(ISSUE) as hold:
        proxy = await start_proxy()
        await hold.caught(1)
        assert (await fetch(proxy.admin + path))[0] == 503
        assert "no  token of nomba" in (await fetch(f"{proxy.admin}{path}?verbose"))[1]
        hold.release()
    await proxy.get(BALANCE)
    assert (await fetch(proxy.admin + path))[0] == 200
    simulator.fail(ISSUE, times=100, drop=True)
    simulator.revoke()
    assert (await proxy.get(BALANCE)).status == 503
    assert (await fetch(proxy.admin + path))[0] == 200  # an outage takes no replica out


async def test_token_status_is_masked(proxy, simulator):
    await proxy.get(BALANCE)
    live = simulator.calls(BALANCE)[0].bearer
    status, text = await fetch(f"{proxy.admin}/token")
    shown = json.loads(text)["nomba"]
    assert (status, shown["state"], shown["generation"]) == (200, "living", 1)
    assert 0 < shown["renews_in"] < shown["expires_in"] <= 1800
    assert live not in text
    assert live[:20] not in text


async def test_renew_brings_a_newer_token(proxy, simulator):
    await proxy.get(BALANCE)
    status, text = await fetch(f"{proxy.admin}/token/renew", "POST")
    assert (status, json.loads(text)["nomba"]["generation"]) == (200, 2)
    assert (await proxy.get(BALANCE)).status == 200
    first, second = simulator.calls(BALANCE)
    assert first.bearer != second.bearer


async def test_revoke_holds_requests_and_goes_on_with_a_new_token(proxy, simulator):
    await proxy.get(BALANCE)
    with simulator.hold(REVOKE) as hold:
        revoke = asyncio.create_task(fetch(f"{proxy.admin}/token/revoke", "POST"))
        await hold.caught(1)
        held = asyncio.create_task(proxy.get(BALANCE))
        await asyncio.sleep(0.1)
        assert simulator.count(BALANCE) == 1  # held, not sent with a dying token
        hold.release()
        assert (await revoke)[0] == 200
        assert (await held).status == 200
    assert {call.status for call in simulator.calls(BALANCE)} == {200}
    assert simulator.count(ISSUE) == 2


async def test_revoke_stop_stays_without_a_token_until_renew(proxy, simulator):
    await proxy.get(BALANCE)
    assert (await fetch(f"{proxy.admin}/token/revoke?stop=1", "POST"))[0] == 200
    metrics = (await fetch(f"{proxy.admin}/metrics"))[1]
    assert 'nomba_proxy_token_expiry_timestamp_seconds{upstream="nomba"} 0.0' in metrics
    reply = await proxy.get(BALANCE)
    assert (reply.status, reply.outcome) == (503, "not_sent")
    assert "token renew" in reply.json["proxy"]["hint"]
    assert (await fetch(f"{proxy.admin}/token/revoke", "POST"))[0] == 200
    assert (await proxy.get(BALANCE)).status == 503  # a plain revoke does not end a stop
    assert simulator.count(ISSUE) == 1
    assert (await fetch(f"{proxy.admin}/token/renew", "POST"))[0] == 200
    assert (await proxy.get(BALANCE)).status == 200


async def test_a_revocation_that_nomba_did_not_confirm_is_reported(proxy, simulator):
    await proxy.get(BALANCE)
    simulator.fail(REVOKE, status=500, body=b"")
    status, text = await fetch(f"{proxy.admin}/token/revoke", "POST")
    assert status == 502
    assert "did not confirm" in json.loads(text)["error"]
    simulator.fail(REVOKE, status=500, body=b"")
    simulator.fail(ISSUE, times=9, status=500, body=b"")
    status, text = await fetch(f"{proxy.admin}/token/revoke", "POST")
    assert (status, "Nor was the revocation confirmed" in text) == (502, True)
    simulator.reset()
    assert (await fetch(f"{proxy.admin}/token/renew", "POST"))[0] == 200
    assert (await proxy.get(BALANCE)).status == 200


async def test_shutdown_revokes_only_where_a_setting_says_so(start_proxy, simulator):
    for setting, count in (("false", 0), ("true", 1)):
        simulator.reset()
        proxy = await start_proxy(token__revoke_at_shutdown=setting)
        await proxy.get(BALANCE)
        await proxy.stack.aclose()
        assert simulator.count(REVOKE) == count


async def test_shutdown_finishes_what_is_under_way(start_proxy, simulator):
    proxy = await start_proxy()
    await proxy.get(BALANCE)
    with simulator.hold("/v2/transfers/bank") as hold:
        call = asyncio.create_task(proxy.transfer())
        await hold.caught(1)
        stop = asyncio.create_task(proxy.stack.aclose())
        await asyncio.sleep(0.1)
        assert await fetch(f"{proxy.admin}/readyz") == (503, "not ready: draining\n")
        assert (await fetch(f"{proxy.admin}/livez"))[0] == 200
        hold.release()
        assert (await call).status == 200
        await stop
    with pytest.raises(OSError):
        await proxy.get(BALANCE)


async def test_a_proxy_that_cannot_listen_has_not_logged_in(start_proxy, proxy, simulator):
    await proxy.get(BALANCE)
    for key in ("listen", "admin__listen"):
        with pytest.raises(CannotStart):
            await start_proxy(**{key: f"{proxy.address[0]}:{proxy.address[1]}"})
    assert simulator.count(ISSUE) == 1


async def test_what_the_drain_limit_cuts_is_logged_as_unknown(start_proxy, simulator):
    proxy = await start_proxy(drain__limit="0.2")
    await proxy.get(BALANCE)
    with simulator.hold("/v2/transfers/bank") as hold:
        call = asyncio.create_task(proxy.transfer())
        await hold.caught(1)
        await proxy.stack.aclose()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await call
    line = (await proxy.exchanges(2))[-1]
    assert (line["error"], line["outcome"], line["attempts"]) == ("cancelled", "unknown", 1)


async def test_a_replay_that_the_drain_limit_cuts_is_logged_as_unknown(start_proxy, upstream):
    replayed = asyncio.Event()

    async def answer(head, body, writer):
        if len(upstream.requests) == 1:
            writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
        else:
            replayed.set()
            await asyncio.sleep(5)

    upstream.answer = answer
    proxy = await start_proxy(base_url=upstream.origin, drain__limit="0.2")
    call = asyncio.create_task(proxy.transfer())
    await asyncio.wait_for(replayed.wait(), 5)
    await proxy.stack.aclose()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await call
    (line,) = await proxy.exchanges()
    assert (line["error"], line["outcome"], line["attempts"]) == ("cancelled", "unknown", 2)


async def test_a_malformed_request_to_the_admin_listener_is_not_repeated(proxy, caplog, capfd):
    host, port = proxy.running.admin_listener.at.host, proxy.running.admin_listener.at.port
    for request in (
        b"GET /token HTTP/1.1\r\nHost: localhost\r\nAuthorization: marked\x00\r\n\r\n",
        b"GET /token HTTP/1.1\r\nHost: marked:abc\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request)
        reply = await reader.readuntil(b"}")
        writer.close()
        assert reply.split()[1] in {b"400", b"403"}
        assert b"marked" not in reply
    assert "marked" not in proxy.log.text + caplog.text + "".join(capfd.readouterr())


async def test_strangers_cannot_crowd_the_admin_listener(proxy):
    """Heads that do not end take neither descriptors from callers nor the place of a probe."""
    at = proxy.running.admin_listener.at
    begun = []
    for _ in range(100):
        reader, writer = await asyncio.open_connection(at.host, at.port)
        writer.write(b"GET /livez HTTP/1.1\r\nX-Slow:")
        begun.append((reader, writer))
    assert (await fetch(f"{proxy.admin}/livez"))[0] == 200

    async def cut(reader):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""

    ends = [asyncio.create_task(cut(reader)) for reader, _ in begun]
    await until(lambda: sum(one.done() for one in ends) >= 100 - 64)
    for _, writer in begun:
        writer.close()
    await asyncio.gather(*ends)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:9091"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:8080"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_a_web_page_cannot_reach_the_admin_listener(proxy, simulator, headers):
    await proxy.get(BALANCE)
    for path in ("/token/renew", "/token/revoke?stop=1"):
        assert (await fetch(proxy.admin + path, "POST", headers=headers))[0] == 403
    if "Host" in headers:
        assert (await fetch(f"{proxy.admin}/metrics", headers=headers))[0] == 403
    assert simulator.count(ISSUE) == 1


async def test_a_get_changes_nothing_on_the_admin_listener(proxy):
    for path in ("/token/renew", "/token/revoke"):
        assert (await fetch(proxy.admin + path))[0] == 405


async def test_no_secret_is_in_any_reply_log_line_or_metric(proxy, simulator):
    await proxy.get(BALANCE)
    simulator.revoke()
    replies = [await proxy.get(BALANCE), await proxy.send("POST", ISSUE, body=b"{}")]
    simulator.fail(ISSUE, status=500, body=b"")
    simulator.revoke()
    replies.append(await proxy.get(BALANCE))
    texts = [reply.raw.decode("latin-1") for reply in replies] + [proxy.log.text]
    for path in ("/metrics", "/token", "/readyz?verbose"):
        texts.append((await fetch(proxy.admin + path))[1])
    secrets = {call.bearer for call in simulator.received if call.bearer}
    secrets |= {simulator.switches.client_secret}
    assert len(secrets) >= 3
    for text in texts:
        assert not [secret for secret in secrets if secret in text]
