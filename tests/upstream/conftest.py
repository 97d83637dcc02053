"""Scripted raw servers: they say what the test wrote, and keep what they received."""

import asyncio
import ssl
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import pytest
import trustme
from harness import reset

from proxy.settings import parse_origin
from proxy.upstream.dialler import Dialler, Timeouts
from proxy.upstream.pool import PoolLimits
from proxy.upstream.way import Way

REQUEST = b"GET /v1/x HTTP/1.1\r\nHost: upstream.test\r\n\r\n"


@dataclass
class Fetched:
    """A reply read to its end."""

    status: int
    reason: bytes
    headers: list
    length: int | None
    bodyless: bool
    body: bytes


async def fetch(dialler, request=REQUEST, *, body=(), head_only=False, **options):
    """One exchange, the way the handler does it."""
    reply = await dialler.send(
        request, body=(body,) if body else (), head_only=head_only, **options
    )
    try:
        content = b"".join([part async for part in reply.parts()])
    finally:
        reply.close()
    head = reply.head
    return Fetched(head.status, head.reason, head.headers, head.length, reply.bodyless, content)


class Peer:
    """A server that reads one request head and then follows a script.

    A script is an async function of (peer, reader, writer). What it leaves unread is
    read until the other side closes, so that `received` is all that ever came.
    """

    def __init__(self, script, *, tls=None):
        self._script = script
        self._tls = tls
        self._writers = []
        self._diallers = []
        self._tasks = set()
        self.received = bytearray()
        self.connections = 0
        self.port = 0

    async def start(self):
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self._tls, limit=2**20
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self):
        for dialler in self._diallers:
            dialler.close()
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            with suppress(OSError):
                await writer.wait_closed()

    def dialler(self, *, host="127.0.0.1", ca_file=None, pool=None, way=None, **timeouts):
        scheme = "https" if self._tls else "http"
        origin = parse_origin(f"{scheme}://{host}:{self.port}")
        way = Way(ca_file=ca_file, **(way or {}))
        limits = PoolLimits(**(pool or {}))
        dialler = Dialler(origin, timeouts=Timeouts(**timeouts), way=way, limits=limits)
        self._diallers.append(dialler)
        return dialler

    async def head(self, reader):
        with suppress(asyncio.IncompleteReadError):
            self.received += await reader.readuntil(b"\r\n\r\n")

    async def _serve(self, reader, writer):
        self.connections += 1
        self._writers.append(writer)
        self._tasks.add(asyncio.current_task())
        # What a victim does to a hostile server is not the test's concern.
        with suppress(OSError, asyncio.CancelledError):
            await self._script(self, reader, writer)
            while part := await reader.read(65536):
                self.received += part
        writer.close()
        self._tasks.discard(asyncio.current_task())


def say(*parts, end="stay", read_head=True):
    """A script: read the head, write the parts one segment each, then end.

    `end` is `close` (FIN), `reset` (RST) or `stay` (wait for the other side).
    """

    async def script(peer, reader, writer):
        if read_head:
            await peer.head(reader)
        for number, part in enumerate(parts):
            if number or end == "reset":
                await asyncio.sleep(0.01)  # let the part before arrive by itself
            writer.write(part)
            await writer.drain()
        if end == "close":
            writer.close()
        elif end == "reset":
            await asyncio.sleep(0.01)
            reset(writer)

    return script


@pytest.fixture
async def serve():
    """Start a Peer: `await serve(say(b"HTTP/1.1 …"))`."""
    async with AsyncExitStack() as stack:

        async def start(script, *, tls=None):
            peer = Peer(script, tls=tls)
            await peer.start()
            stack.push_async_callback(peer.stop)
            return peer

        yield start


@pytest.fixture(name="fetch")
def _fetch():
    return fetch


@pytest.fixture(name="say")
def _say():
    return say


# -- throw-away certificates ------------------------------------------------------------


@dataclass
class Certificates:
    """A certificate authority of the test's own, and contexts of servers it vouches for."""

    ca: str
    good: tuple[str, str]
    elsewhere: tuple[str, str]

    def server(self, pair):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair)
        return context


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ca")
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(folder / "ca.pem")

    def issue(name, *identities):
        leaf = authority.issue_cert(*identities, key_type=trustme.KeyType.ECDSA)
        leaf.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        leaf.private_key_pem.write_to_path(folder / f"{name}.key")
        return str(folder / f"{name}.pem"), str(folder / f"{name}.key")

    return Certificates(
        ca=str(folder / "ca.pem"),
        good=issue("good", "127.0.0.1", "localhost"),
        elsewhere=issue("elsewhere", "elsewhere.test"),
    )
