"""The inspector: what it keeps stays within its budget, whatever passes and whoever looks."""

import asyncio
import contextlib
import json
from pathlib import Path

import aiohttp
import pytest
from harness import read_reply, served

from proxy.simulator import Switches
from proxy.simulator.simulator import Simulator

MIB = 1 << 20
BALANCE, TRANSFER = "/v1/accounts/balance", "/v1/transfers/bank/lookup"


async def call(address, count, number):
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for at in range(count):
        if at % 4:
            writer.write(
                f"GET {BALANCE}?n={number}-{at} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
        else:
            body = json.dumps({"a": "x" * (at * 37 % 30_000)}).encode()
            head = f"POST {TRANSFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
        await read_reply(reader)
    writer.close()


@pytest.mark.timeout(1200)
async def test_memory_stays_within_the_budget(size, figure):
    exchanges, budget = size(6_000, 100_000), size(6, 64)
    switches = Switches(rate_limit=0)
    async with Simulator(switches) as simulator:
        env = {
            "NOMBA_CLIENT_ID": switches.client_id,
            "NOMBA_CLIENT_SECRET": switches.client_secret,
            "NOMBA_ACCOUNT_ID": switches.account_id,
            "NOMBA_BASE_URL": simulator.origin,
            "NOMBA_PROXY_INSPECT": "true",
            "NOMBA_PROXY_INSPECT_LISTEN": "127.0.0.1:0",
            "NOMBA_PROXY_INSPECTOR_MEMORY": f"{budget}MiB",
        }
        async with (
            served(stdout=asyncio.subprocess.DEVNULL, **env) as proxy,
            _looking(proxy) as ask,
        ):
            await asyncio.gather(*(call(proxy.address, 40, number) for number in range(16)))
            await ask("POST", "/api/clear")
            before = _resident(proxy.process.pid)
            for _ in range(10):
                simulator.forget_received()
                each = exchanges // 160
                await asyncio.gather(*(call(proxy.address, each, number) for number in range(16)))
            grown = _resident(proxy.process.pid) - before
            kept = len((await ask("GET", "/api/exchanges"))["exchanges"])
    assert 100 < kept < exchanges
    figure(
        "INSP",
        f"{exchanges} exchanges, budget {budget} MiB: memory grew by {grown / MIB:.1f} MiB, {kept} kept",
    )
    # What the allocator holds beside it, and what a page that reads along is sent meanwhile.
    assert grown < budget * MIB * 1.1 + 8 * MIB


def _resident(pid):
    """Bytes that a process has resident now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@contextlib.asynccontextmanager
async def _looking(proxy):
    """Somebody looks at the list as it changes."""
    url = next(line.split()[1] for line in proxy.banner.splitlines() if "?token=" in line)
    base, _, token = url.partition("/?token=")
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(base, headers=headers) as http:

        async def read():
            async with http.get("/api/events") as stream:
                async for _ in stream.content.iter_any():
                    pass

        async def ask(method, path):
            async with http.request(method, path, json={} if method == "POST" else None) as reply:
                return await reply.json() if reply.status == 200 else None

        reader = asyncio.create_task(read())
        yield ask
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader
