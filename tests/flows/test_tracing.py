"""Spans, as a collector gets them; and that nobody waits for it."""

import asyncio
import json
import re

import pytest
from collector import CLIENT, SERVER, collecting

BALANCE = "/v1/accounts/balance"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = (f"traceparent: 00-{TRACE}-{PARENT}-0{flag}" for flag in (1, 0))
EXCHANGE = {
    *("http.request.method", "http.route", "http.response.status_code"),
    *("http.request.body.size", "http.response.body.size"),
    *("nomba_proxy.request_id", "nomba_proxy.caller", "nomba_proxy.upstream"),
    *("nomba_proxy.kind", "nomba_proxy.outcome", "nomba_proxy.attempts"),
}
SOMETIMES = {"nomba_proxy.token_wait_seconds", "nomba_proxy.envelope", "error.type"}
ATTEMPT = {
    *("http.request.method", "url.template", "server.address", "server.port"),
    *("nomba_proxy.reason", "nomba_proxy.generation"),
}
ANSWERED = {"http.response.status_code"}


@pytest.fixture
async def collector(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    async with collecting() as collector:
        yield collector


@pytest.fixture
def traced(start_proxy, collector):
    async def begin(**settings):
        return await start_proxy(tracing__otlp_endpoint=collector.url, **settings)

    return begin


def sent(upstream, at=-1):
    """The fields of a request as the upstream got it, by name."""
    fields = {}
    for line in upstream.requests[at][0].decode().split("\r\n")[1:]:
        name, _, value = line.partition(": ")
        fields.setdefault(name.lower(), []).append(value)
    return fields


def others(spans):
    return [one for one in spans if one.name != "renewal"]


async def test_an_exchange_and_its_attempt_are_spans_of_one_trace(traced, collector, upstream):
    proxy = await traced(base_url=upstream.origin)
    await proxy.get(f"{BALANCE}?account=marked-query", SAMPLED, "tracestate: a=b,c=d")
    attempt, exchange = sorted(others(await collector.come(3)), key=lambda one: -one.kind)
    assert (attempt.name, exchange.name) == (f"GET {BALANCE}", f"GET {BALANCE}")
    assert (attempt.kind, exchange.kind) == (CLIENT, SERVER)
    assert (exchange.trace, exchange.parent) == (TRACE, PARENT)
    assert (attempt.trace, attempt.parent) == (TRACE, exchange.id)
    assert exchange.start <= attempt.start <= attempt.end <= exchange.end
    assert not exchange.failed
    assert sent(upstream)["traceparent"] == [f"00-{TRACE}-{attempt.id}-01"]
    assert sent(upstream)["tracestate"] == ["a=b,c=d"]
    (line,) = await proxy.exchanges()
    assert line["trace_id"] == TRACE
    assert exchange.attributes["nomba_proxy.request_id"] == line["request_id"]
    assert exchange.attributes["http.response.status_code"] == 200
    assert attempt.attributes["server.address"] == "localhost"
    assert f":{attempt.attributes['server.port']}" in upstream.origin
    assert collector.resource["service.name"] == "nomba-proxy"


async def test_a_span_says_nothing_that_is_not_on_the_list(traced, collector, simulator):
    proxy = await traced()
    target = "/v1/accounts/virtual/marked-id?secret=marked-query"
    await proxy.send(
        "POST", target, "X-Api-Key: marked-header", "tracestate: marked=x", body=b"marked-body"
    )
    await proxy.send("GET", "/v1/marked-path")
    await proxy.send("REPORT", "/v1/marked-path")
    spans = await collector.come(5)
    for one in others(spans):
        if one.kind == SERVER:
            assert set(one.attributes) - SOMETIMES == EXCHANGE
        else:
            assert set(one.attributes) - {"error.type"} == ATTEMPT | ANSWERED
    [renewal] = [one for one in spans if one.name == "renewal"]
    assert set(renewal.attributes) == {
        *("nomba_proxy.upstream", "nomba_proxy.grant", "nomba_proxy.reason"),
        "nomba_proxy.generation",
    }
    everything = b"".join(collector.bodies + collector.heads)
    assert b"marked" not in everything
    assert simulator.switches.client_secret.encode() not in everything
    assert not re.search(rb"eyJhbGciO|Bearer", everything)


async def test_a_trace_that_its_caller_does_not_record_is_passed_on_and_not_recorded(
    traced, collector, upstream
):
    proxy = await traced(base_url=upstream.origin)
    await proxy.get(BALANCE, UNSAMPLED)
    [told] = sent(upstream)["traceparent"]
    assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-00", told)
    assert PARENT not in told
    await proxy.get(BALANCE)  # this one is recorded, so the other would have come by then
    spans = others(await collector.come(3))
    assert {one.trace for one in spans} != {TRACE}
    assert len(spans) == 2
    assert (await proxy.exchanges(2))[0]["trace_id"] == TRACE


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("tracestate: a=b",),
        ("traceparent: 00-0-0-01", "tracestate: a=b"),
        (SAMPLED, SAMPLED, "tracestate: a=b"),
    ],
)
async def test_without_a_trace_that_can_be_read_another_begins(
    traced, collector, upstream, headers
):
    proxy = await traced(base_url=upstream.origin)
    await proxy.get(BALANCE, *headers)
    spans = others(await collector.come(3))
    [trace] = {one.trace for one in spans}
    assert trace != TRACE
    [exchange] = [one for one in spans if one.kind == SERVER]
    assert exchange.parent == ""
    fields = sent(upstream)
    [attempt] = [one for one in spans if one.kind == CLIENT]
    assert fields["traceparent"] == [f"00-{trace}-{attempt.id}-01"]
    assert "tracestate" not in fields


async def test_so_much_is_recorded_as_is_set(traced, collector, upstream):
    proxy = await traced(base_url=upstream.origin, tracing__sample="0")
    await proxy.get(BALANCE)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", sent(upstream)["traceparent"][0])
    await proxy.get(BALANCE, SAMPLED)
    assert {one.trace for one in await collector.come(2)} == {TRACE}


async def test_every_attempt_is_a_span_and_tells_the_upstream_its_own(traced, collector, upstream):
    async def answer(head, body, writer):
        status = b"401 No" if b"token-1" in head else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\nok" % status)

    upstream.answer = answer
    proxy = await traced(base_url=upstream.origin)
    assert (await proxy.get(BALANCE)).status == 200
    spans = await collector.come(5)
    first, second = sorted(
        (one for one in spans if one.kind == CLIENT and one.name != "renewal"),
        key=lambda one: one.start,
    )
    told = [sent(upstream, at)["traceparent"][0].split("-")[2] for at in (0, 1)]
    assert told == [first.id, second.id]
    assert (first.attributes["http.response.status_code"], first.failed) == (401, True)
    assert (second.attributes["http.response.status_code"], second.failed) == (200, False)
    assert second.attributes["http.request.resend_count"] == 1
    assert second.attributes["nomba_proxy.reason"] == "replay with a new token"
    assert first.end <= second.start
    [exchange] = [one for one in spans if one.kind == SERVER]
    assert exchange.attributes["nomba_proxy.attempts"] == 2
    assert exchange.attributes["nomba_proxy.token_wait_seconds"] > 0
    renewals = [one for one in spans if one.name == "renewal"]
    assert {one.attributes["nomba_proxy.reason"] for one in renewals} == {"start", "refused"}
    assert len({one.trace for one in renewals} | {exchange.trace}) == 3
    assert all(one.start < one.end for one in renewals)


async def test_what_went_wrong_is_said_by_its_code(traced, collector, upstream):
    async def answer(head, body, writer):
        writer.close()

    upstream.answer = answer
    proxy = await traced(base_url=upstream.origin)
    assert (await proxy.transfer()).status == 502
    attempt, exchange = sorted(others(await collector.come(3)), key=lambda one: -one.kind)
    assert (
        attempt.attributes["error.type"] == exchange.attributes["error.type"] == "upstream_broken"
    )
    assert exchange.attributes["nomba_proxy.outcome"] == "unknown"
    assert attempt.failed
    assert exchange.failed


async def test_a_renewal_that_fails_is_a_span_too(traced, collector, simulator):
    simulator.fail("/v1/auth/token/issue", times=1, status=500)
    await traced()
    failed, good = sorted(await collector.come(2), key=lambda one: one.start)
    assert failed.failed
    assert not good.failed
    assert failed.attributes["error.type"] == "reply"
    assert failed.attributes["nomba_proxy.grant"] == "issue"


async def test_a_renewal_of_upstreams_that_share_a_session_is_one_span(
    start_proxy, collector, simulator, tmp_path
):
    switches = simulator.switches
    secret = tmp_path / "secret"
    secret.write_text(switches.client_secret)
    secret.chmod(0o600)
    entries = "".join(
        f'[[upstream]]\nname = "{name}"\nbase_url = "{simulator.origin}"\nmount = "/{name}"\n'
        f'client_id = "{switches.client_id}"\nclient_secret_file = "{secret}"\n'
        f'account_id = "{switches.account_id}"\n'
        for name in ("one", "two")
    )
    config = tmp_path / "proxy.toml"
    config.write_text(entries)
    none = ("NOMBA_CLIENT_ID", "NOMBA_CLIENT_SECRET", "NOMBA_ACCOUNT_ID", "NOMBA_BASE_URL")
    env = dict.fromkeys(none) | {"NOMBA_PROXY_CONFIG": str(config)}
    proxy = await start_proxy(env=env, tracing__otlp_endpoint=collector.url)
    await proxy.get(f"/two{BALANCE}")
    spans = await collector.come(3)
    assert sorted(one.name for one in spans) == [f"GET {BALANCE}"] * 2 + ["renewal"]


async def value(proxy, line):
    text = proxy.telemetry.metrics.render().decode()
    found = re.search(rf"(?m)^nomba_proxy_{re.escape(line)} (\S+)$", text)
    return found and float(found[1])


async def test_a_collector_that_is_not_there_is_told_of_once_and_harms_nobody(traced, collector):
    collector.status = 400  # is not tried again
    proxy = await traced()
    for number in range(1, 4):  # a batch each
        assert (await proxy.get(BALANCE)).status == 200
        await dropped(proxy, 2 * number + 1)
    [event] = proxy.log.lines("spans_not_exported")
    assert event["level"] == "warning"
    collector.status = 200
    assert (await proxy.get(BALANCE)).status == 200
    await collector.come(2)
    for _ in range(100):
        if proxy.log.lines("spans_exported"):
            break
        await asyncio.sleep(0.02)
    assert len(proxy.log.lines("spans_exported")) == 1
    assert await value(proxy, 'spans_total{result="exported"}') >= 2


async def dropped(proxy, count):
    """Wait until so many spans have been dropped: they are sent by a thread."""
    for _ in range(1000):
        if (await value(proxy, 'spans_total{result="dropped"}') or 0) >= count:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"not {count} spans were dropped")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_collector_that_sends_us_elsewhere_is_not_followed(
    traced, collector, monkeypatch, status
):
    """Headers for the collector hold its keys, whatever they are called."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=marked-key,authorization=marked")
    async with collecting() as elsewhere:
        collector.status, collector.location = status, f"{elsewhere.url}/v1/traces"
        proxy = await traced()
        assert (await proxy.get(BALANCE)).status == 200
        for _ in range(250):
            if collector.heads:
                break
            await asyncio.sleep(0.02)
        assert b"marked-key" in collector.heads[0]
        collector.status, collector.location = 200, ""
        await proxy.get(BALANCE)
        await collector.come(1)  # one batch after the other: the first one is over
        assert elsewhere.heads == []


async def test_the_end_brings_what_is_left(start_proxy, upstream):
    """With OpenTelemetry's own delay of five seconds."""
    async with collecting() as collector:
        proxy = await start_proxy(
            base_url=upstream.origin, tracing__otlp_endpoint=collector.url, drain__delay="0"
        )
        await proxy.get(BALANCE)
        assert collector.spans == []
        await proxy.stack.aclose()
        assert len(collector.spans) == 3


async def test_a_collector_that_says_nothing_holds_neither_requests_nor_the_end_up(
    traced, collector
):
    collector.status = None
    proxy = await traced(drain__delay="0")
    for _ in range(20):
        assert (await proxy.get(BALANCE)).status == 200
    await proxy.exchanges(20)
    async with asyncio.timeout(8):  # it would wait for ten seconds and more
        await proxy.stack.aclose()
    assert collector.spans == []
    assert await value(proxy, 'spans_total{result="dropped"}') == 41


async def test_what_there_is_no_room_for_is_dropped_and_counted(traced, collector):
    collector.status = None
    proxy = await traced(drain__delay="0")
    reader, writer = await asyncio.open_connection(*proxy.address)
    request = b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(24):
        writer.write(request * 100)
        for _ in range(100):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", head)[1]))
    writer.close()
    await proxy.exchanges(2400)
    dropped = await value(proxy, 'spans_total{result="dropped"}')
    assert dropped == 2400 + 1 - 2048  # a renewal came before them


async def test_who_watches_sees_the_head_as_it_is_sent(inspect, collector, upstream):
    inspector = await inspect(base_url=upstream.origin, tracing__otlp_endpoint=collector.url)
    await inspector.proxy.get(BALANCE)
    [told] = sent(upstream)["traceparent"]
    [row] = await inspector.rows(1)
    detail = await inspector.get(f"/api/exchanges/{row['id']}")
    assert told in json.dumps(detail)
    await collector.come(3)


async def test_workers_make_spans_too(workers, simulator):
    async with collecting() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "shop"}
        async with workers(count=2, **env) as proxy:
            await proxy.serving()
        spans = await collector.come(61)
    assert len(others(spans)) == 60
    assert len(collector.named("renewal")) == 1
    assert collector.resource["service.name"] == "shop"


async def test_a_caller_that_goes_ends_its_spans(traced, collector, simulator):
    proxy = await traced()
    with simulator.hold(BALANCE) as hold:
        _, writer = await asyncio.open_connection(*proxy.address)
        writer.write(f"GET {BALANCE} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await hold.caught(1)
        writer.transport.abort()
        await proxy.exchanges()
    attempt, exchange = sorted(others(await collector.come(3)), key=lambda one: -one.kind)
    assert exchange.attributes["http.response.status_code"] == 499
    assert "http.response.status_code" not in attempt.attributes
