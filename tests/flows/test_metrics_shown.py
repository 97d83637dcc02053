"""What `/metrics` says of a running proxy, and of several processes."""

import asyncio
import os
import re
import signal
from contextlib import asynccontextmanager

import aiohttp
import pytest
from exposed import families, happen
from harness import read_reply
from processes import until

from proxy.metrics import Metrics

GET = b"GET /v1/accounts/balance HTTP/1.1\r\nHost: localhost\r\n\r\n"
JSON = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


async def shown(proxy):
    address = proxy.admin if "//" in proxy.admin else f"http://{proxy.admin}"
    async with aiohttp.request("GET", f"{address}/metrics") as reply:
        return await reply.text()


async def value(proxy, line):
    """The value of a sample; None if it is not shown."""
    found = re.search(rf"(?m)^nomba_proxy_{re.escape(line)} (\S+)$", await shown(proxy))
    return None if found is None else float(found[1])


async def come(proxy, line, expected):
    """Wait until a sample has a value."""
    for _ in range(500):
        if await value(proxy, line) == expected:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{line} is {await value(proxy, line)}")


@asynccontextmanager
async def asking(address, count):
    """Connections that have sent a request each."""
    pairs = [await asyncio.open_connection(*address) for _ in range(count)]
    try:
        for _, writer in pairs:
            writer.write(GET)
        yield [reader for reader, _ in pairs]
    finally:
        for _, writer in pairs:
            writer.close()


@pytest.fixture
def held(upstream):
    """An upstream that answers once it is told to."""
    release = asyncio.Event()

    async def answer(head, body, writer):
        await release.wait()
        writer.write(JSON % (200, 13, b'{"code":"00"}'))

    upstream.answer = answer
    return release


async def test_requests_in_flight_and_connections_are_those_of_now(start_proxy, upstream, held):
    proxy = await start_proxy(base_url=upstream.origin)
    async with asking(proxy.address, 3) as readers:
        await come(proxy, "requests_in_flight", 3)
        assert await value(proxy, "caller_connections") == 3
        assert await value(proxy, "caller_connections_limit") == 10_000
        held.set()
        for reader in readers:
            assert (await read_reply(reader)).status == 200
        await come(proxy, "requests_in_flight", 0)
        assert await value(proxy, "caller_connections") == 3
    await come(proxy, "caller_connections", 0)


async def test_what_the_limit_of_connections_did_is_counted(start_proxy, upstream, held):
    proxy = await start_proxy(base_url=upstream.origin, callers__connections="2")
    name = 'caller_connections_crowded_total{{result="{}"}}'.format
    async with asking(proxy.address, 2) as readers:
        await come(proxy, "requests_in_flight", 2)
        for _ in range(2):
            async with asking(proxy.address, 1) as [third]:
                assert (await read_reply(third)).status == 503
        held.set()
        for reader in readers:
            assert (await read_reply(reader)).status == 200
        assert [await value(proxy, name(one)) for one in ("refused", "made_room")] == [2, 0]
        await come(proxy, "requests_in_flight", 0)
        async with asking(proxy.address, 1) as [third]:
            assert (await read_reply(third)).status == 200
    assert [await value(proxy, name(one)) for one in ("refused", "made_room")] == [2, 1]
    assert await value(proxy, 'errors_total{error="overloaded"}') == 2


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (200, b'{"code":"00"}', "00"),
        (200, b'{"code":"200"}', "200"),
        (200, b'{"code":"400"}', "400"),  # a failure that HTTP does not tell
        (400, b'{"code":"400"}', "400"),
        (200, b'{"code":"77"}', "other"),
        (200, b'{"code":null}', None),
        (200, b"[]", None),
        (404, b'{"code":"404"}', None),  # not looked into
    ],
)
async def test_replies_are_counted_by_the_code_of_their_envelope(
    start_proxy, upstream, status, body, code
):
    upstream.answer = upstream.reply_with(JSON % (status, len(body), body))
    proxy = await start_proxy(base_url=upstream.origin)
    assert (await proxy.get("/v1/accounts/balance")).status == status
    await proxy.exchanges()
    counted = re.findall(r"(?m)^nomba_proxy_envelope_total\{(.*)\} (\S+)$", await shown(proxy))
    labels = f'code="{code}",route="/v1/accounts/balance",upstream="nomba"'
    assert counted == ([] if code is None else [(labels, "1.0")])


async def test_a_resend_is_counted_as_one_and_as_no_replay(start_proxy, upstream):
    """The connection ends without a word once; what is a read is sent again."""
    proxy = await start_proxy(base_url=upstream.origin)
    kept = []

    async def keep(head, body, writer):
        kept.append(writer)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        if len(kept) == 1:  # this connection lives until it has been asked again
            asked = writer.transport.get_protocol()._stream_reader._buffer
            await until(lambda: asked)

    upstream.answer = keep
    await proxy.get("/v1/accounts/balance")
    await proxy.get("/v1/accounts/balance")
    lines = await proxy.exchanges(2)
    assert [line["attempts"] for line in lines] == [1, 2]
    assert await value(proxy, 'resends_total{upstream="nomba"}') == 1
    assert await value(proxy, 'auth_replays_total{result="answered",upstream="nomba"}') == 0
    assert len(upstream.requests) == 2


async def test_of_several_workers_what_they_do_is_added_up_and_what_one_did_that_died_is_not(
    workers, simulator
):
    async with workers(count=2) as proxy:
        await proxy.serving()
        assert await value(proxy, "workers") == 2
        assert await value(proxy, "workers_configured") == 2
        assert await value(proxy, 'processes_restarted_total{process="worker 1"}') == 0
        with simulator.hold("/v1/accounts/balance") as hold:
            async with asking(("127.0.0.1", proxy.port), 8):
                await hold.caught(8)
                await come(proxy, "requests_in_flight", 8)
                await come(proxy, "caller_connections", 8)
                for pid in proxy.pids:
                    os.kill(pid, signal.SIGKILL)
                await come(proxy, "requests_in_flight", 0)
        await come(proxy, "workers", 2)
        await until(lambda: len(proxy.pids) == 2)
        assert await value(proxy, "caller_connections_limit") == 10_000


async def test_envelopes_are_counted_by_every_worker_also_by_one_that_ends(workers):
    async with workers(count=2) as proxy:
        await proxy.serving()
        os.kill(proxy.pids[0], signal.SIGTERM)
        line = 'envelope_total{code="00",route="/v1/accounts/balance",upstream="nomba"}'
        await come(proxy, line, 30)


async def test_several_workers_show_the_metrics_that_one_process_does(workers):
    async with workers(count=2) as proxy:
        await proxy.serving()
        here = families(await shown(proxy))
    alone = Metrics(version="x")
    happen(alone)
    every = families(alone.render().decode())
    late = ("store_up", "certificate_expiry", "spans", "reload_success_timestamp")
    missing = {name for name in set(every) - set(here) if not any(one in name for one in late)}
    assert missing == set()
    assert {name: kind for name, kind in every.items() if name in here} == here
