"""What wire tests are made of: replies as bytes, a running proxy, a scripted upstream."""

import asyncio
import io
import json
import os
import socket
import ssl
import struct
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from proxy.app.running import Running
from proxy.telemetry import Telemetry

_STATE = tempfile.TemporaryDirectory(prefix="nomba-proxy-tests-")


def environ(**more: str | None) -> dict[str, str]:
    """The environment of a process that is tested: little, and nothing of Nomba's.

    What is None is left out.
    """
    kept = ("PATH", "HOME", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG", "LANG")
    inherited = {key: os.environ[key] for key in kept if key in os.environ}
    # Nobody sends callers to a proxy of a test, so its end need not be announced.
    every = inherited | {"XDG_STATE_HOME": _STATE.name, "NOMBA_PROXY_DRAIN_DELAY": "0"} | more
    return {name: value for name, value in every.items() if value is not None}


async def run(*arguments: str, **env: str) -> tuple[int, str, str]:
    """Run the command line to its end: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "proxy",
        *arguments,
        env=environ(**env),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def spawned(*arguments: str, stdout: int = asyncio.subprocess.PIPE, **env: str):
    """A process of `nomba-proxy` once it has printed its banner, which ends with a curl line."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", *arguments),
        env=environ(**env),
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        lines = []
        while not lines or "curl" not in lines[-1]:
            line = await asyncio.wait_for(process.stderr.readline(), 30)
            assert line, "".join(lines)
            lines.append(line.decode())
        yield process, "".join(lines)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.communicate(), 30)


class Served:
    """A proxy in a process of its own, and what its banner said."""

    def __init__(self, process: asyncio.subprocess.Process, banner: str) -> None:
        self.process = process
        self.banner = banner
        self.curl = next(line.strip() for line in banner.splitlines() if "curl" in line)
        self.address = self.curl.rpartition("http://")[2].partition("/")[0]
        self.admin = banner.partition("(admin http://")[2].partition(")")[0]


@asynccontextmanager
async def served(*arguments: str, **options):
    """`nomba-proxy serve` on ports of its own."""
    ports = ("--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0")
    async with spawned("serve", *ports, *arguments, **options) as (process, banner):
        yield Served(process, banner)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset instead of a FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


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


def transfer_body(reference: str = "ref-1") -> bytes:
    """The body of a bank transfer."""
    return json.dumps(
        {
            "amount": 250,
            "accountNumber": "0123456789",
            "accountName": "Ada Obi",
            "bankCode": "058",
            "merchantTxRef": reference,
            "senderName": "Sender",
        }
    ).encode()


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
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.read()
    return WireReply(head + body, int(status), reason, headers, body)


LOST = (ConnectionError, asyncio.IncompleteReadError)


class Line:
    """A caller's connection, made again when it was closed or lost."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.writer = None

    async def ask(self, *parts: bytes, pause: float = 0.0, head_only: bool = False) -> WireReply:
        """Send a request, part by part with pauses, and read its reply."""
        if self.writer is None or self.writer.is_closing():
            self.reader, self.writer = await asyncio.open_connection(*self.address)
        try:
            for part in parts:
                self.writer.write(part)
                if pause:
                    await asyncio.sleep(pause)
            reply = await read_reply(self.reader, head_only=head_only)
        except LOST:
            self.close()
            raise
        if reply.get("Connection") == "close":
            self.close()
        return reply

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


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
        return self.running.admin_listener.url

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
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        return await self.raw(head + (body or b""), head_only=method == "HEAD")

    async def get(self, target: str, *headers: str) -> WireReply:
        return await self.send("GET", target, *headers)

    async def transfer(self, reference: str = "ref-1") -> WireReply:
        """A bank transfer of 250 naira."""
        return await self.send(
            "POST",
            "/v2/transfers/bank",
            "Content-Type: application/json",
            body=transfer_body(reference),
        )

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


class ScriptedUpstream:
    """An upstream that issues tokens and answers everything else with bytes of the test's.

    `answer(head, body, writer)` writes what it likes; the connection is closed after it.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.issued = 0
        self.gone_after_issue: int | None = None
        self.answer = self.reply_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        self._server: asyncio.Server | None = None

    @staticmethod
    def reply_with(data: bytes):
        async def answer(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(data)
            await writer.drain()

        return answer

    @property
    def origin(self) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://localhost:{self._server.sockets[0].getsockname()[1]}"

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line[15:])
            body = await reader.readexactly(length)
            if head.startswith(b"POST /v1/auth/token/"):
                self.issued += 1
                await self._grant(writer)
            else:
                self.requests.append((head, body))
                await self.answer(head, body, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _grant(self, writer: asyncio.StreamWriter) -> None:
        if self.issued == self.gone_after_issue:
            self._server.close()
        data = {"access_token": f"token-{self.issued}", "refresh_token": "r", "expires_in": 1800}
        body = json.dumps({"code": "00", "data": data}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
