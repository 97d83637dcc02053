"""A running proxy in front of a running simulator, over real sockets."""

import asyncio
import io
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from proxy.app import Running, start
from proxy.settings import load
from proxy.simulator import Simulator
from proxy.telemetry import Telemetry


class Log(io.TextIOWrapper):
    """A text stream whose JSON lines can be looked at."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), write_through=True)

    def lines(self, event: str | None = None) -> list[dict]:
        every = [json.loads(line) for line in self.buffer.getvalue().splitlines()]
        return [line for line in every if event in {None, line["event"]}]

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode()


@dataclass(frozen=True)
class WireReply:
    """A reply as it came over the socket."""

    raw: bytes
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def outcome(self) -> str | None:
        return self.get("Nomba-Proxy-Outcome")


async def read_reply(reader: asyncio.StreamReader, *, head_only: bool = False) -> WireReply:
    """One reply, read by its own framing; chunks are joined."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    _, status, reason = (*lines[0].split(" ", 2), "")[:3]
    headers = [tuple(line.split(": ", 1)) for line in lines[1:] if line]
    names = {key.lower(): value for key, value in headers}
    body = b""
    if head_only or status in {"204", "304"}:
        pass
    elif "content-length" in names:
        body = await reader.readexactly(int(names["content-length"]))
    elif names.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.read()
    return WireReply(head + body, int(status), reason, headers, body)


@dataclass
class Proxy:
    """A running proxy, as a caller sees it."""

    running: Running
    log: Log
    telemetry: Telemetry
    stack: AsyncExitStack = field(repr=False)

    @property
    def address(self) -> tuple[str, int]:
        return self.running.listen.host, self.running.listen.port

    @property
    def url(self) -> str:
        return f"http://{self.running.listen}"

    @property
    def admin(self) -> str:
        return f"http://{self.running.admin_listen}"

    async def raw(self, request: bytes, *, head_only: bool = False) -> WireReply:
        """Send bytes over a fresh connection and read one reply."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(request)
            return await asyncio.wait_for(read_reply(reader, head_only=head_only), 30)
        finally:
            writer.close()
            await writer.wait_closed()

    async def send(
        self,
        method: str,
        target: str,
        *headers: str,
        body: bytes | None = None,
    ) -> WireReply:
        """A plain request."""
        lines = [f"{method} {target} HTTP/1.1", "Host: proxy.test", *headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        return await self.raw(head + (body or b""), head_only=method == "HEAD")

    async def get(self, target: str, *headers: str) -> WireReply:
        return await self.send("GET", target, *headers)

    async def exchanges(self, count: int = 1) -> list[dict]:
        """The canonical lines so far; waits until there are `count`.

        The line is written after the reply, so a caller can be ahead of it.
        """
        for _ in range(500):
            lines = self.log.lines("exchange")
            if len(lines) >= count:
                return lines
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(lines)} of {count} lines after 5 s")


@pytest.fixture
async def simulator():
    async with Simulator() as running:
        yield running


@pytest.fixture
async def start_proxy(simulator):
    """Start proxies in front of the simulator; keyword arguments are settings.

    `base_url` sends it elsewhere. `env` adds variables.
    """
    async with AsyncExitStack() as stack:

        async def begin(
            *, base_url: str | None = None, env: Mapping[str, str] | None = None, **settings: object
        ) -> Proxy:
            switches = simulator.switches
            environ = {
                "NOMBA_CLIENT_ID": switches.client_id,
                "NOMBA_CLIENT_SECRET": switches.client_secret,
                "NOMBA_ACCOUNT_ID": switches.account_id,
                "NOMBA_BASE_URL": base_url or simulator.origin,
                "NOMBA_PROXY_LISTEN": "127.0.0.1:0",
                "NOMBA_PROXY_ADMIN_LISTEN": "127.0.0.1:0",
                **(env or {}),
            }
            flags = {key.replace("__", "."): str(value) for key, value in settings.items()}
            flags = {
                key.replace("upstream.", "upstream.0."): value for key, value in flags.items()
            }
            log = Log()
            telemetry = Telemetry("json", level="debug", version="test", stream=log)
            loaded = load(environ=environ, flags=flags)
            running = await start(loaded, stack=stack, telemetry=telemetry)
            return Proxy(running, log, telemetry, stack)

        yield begin


@pytest.fixture
async def proxy(start_proxy):
    return await start_proxy()
