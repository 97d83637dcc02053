"""A proxy in a process of its own, between a caller and an upstream that this process plays.

One request after another over one connection, so that a request always takes the same course.
"""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator

import httptools

WARM_UP = 100  # requests: caches are filled, and CPython has specialised what it runs often
PATIENCE = 120  # seconds for anything: a proxy that is counted is fifty times slower
WORKS = ("GET, key", "POST 1 KiB, key", "GET, phantom token")
# `serve` takes uvloop where it can be imported, so asyncio's loop has to be asked for.
WITHOUT_UVLOOP = "sys.modules['uvloop'] = None"
SERVE = "from proxy.cli import main; sys.exit(main())"
TOKEN = {"access_token": "t" * 700, "refresh_token": "r" * 700, "expires_in": 86400}
BODY = json.dumps({"code": "00", "description": "Success", "data": "x" * 970}).encode()


def reply(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


GRANT, ANSWER = reply(json.dumps({"code": "00", "data": TOKEN}).encode()), reply(BODY)


class Upstream(asyncio.Protocol):
    """Issues tokens, and answers everything else with one fixed kilobyte."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_message_complete(self) -> None:
        self.transport.write(GRANT if self.url.startswith(b"/v1/auth/") else ANSWER)


class Caller:
    """One connection that a caller keeps."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> bytes:
        """The body of the reply to one request, which has to be a 200."""
        self.writer.write(request)
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"not answered: {head.decode('latin-1')}")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            return await self.reader.readexactly(int(length[1]))


def request(method: str, target: str, *fields: str, body: bytes = b"") -> bytes:
    """A request with the fields that an HTTP library sends."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "User-Agent: bench/1.0"]
    lines += ["Accept: */*", "Accept-Encoding: gzip, deflate", "Connection: keep-alive", *fields]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def requests(key: str, caller: Caller) -> dict[str, bytes]:
    """A request of each of `WORKS`; the token of the last is logged in for."""
    login = {"grant_type": "client_credentials", "client_id": "bench", "client_secret": key}
    sent = request("POST", "/v1/auth/token/issue", body=json.dumps(login).encode())
    token = json.loads(await caller.ask(sent))["data"]["access_token"]
    balance, mine = "/v1/accounts/balance", f"X-Nomba-Proxy-Key: {key}"
    every = (
        request("GET", balance, mine),
        request("POST", "/v1/transfers/bank/lookup", mine, body=b'"' + b"x" * 1022 + b'"'),
        request("GET", balance, f"Authorization: Bearer {token}"),
    )
    return dict(zip(WORKS, every, strict=True))


# -- the proxy ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[str]:
    """The origin of a played upstream."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"


@contextlib.contextmanager
def settings(origin: str) -> Iterator[dict[str, str]]:
    """The environment of a proxy: next to nothing is inherited, and hashes are always the same."""
    with tempfile.TemporaryDirectory(prefix="nomba-proxy-bench-") as state:
        yield {
            "PATH": os.environ["PATH"],
            "NOMBA_PROXY_DRAIN_DELAY": "0",
            "PYTHONHASHSEED": "0",
            "NOMBA_CLIENT_ID": "client",
            "NOMBA_CLIENT_SECRET": "secret",
            "NOMBA_ACCOUNT_ID": "account",
            "NOMBA_BASE_URL": origin,
            "NOMBA_PROXY_STATE_DIR": state,
            "NOMBA_PROXY_LOG_FORMAT": "json",
        }


def add_caller(env: dict[str, str]) -> str:
    """Let nobody in but `bench`; its key."""
    command = (sys.executable, "-m", "proxy", "caller", "add", "bench", "--close-anonymous")
    return subprocess.run(command, env=env, check=True, capture_output=True).stdout.decode().strip()


@contextlib.asynccontextmanager
async def serving(
    *prefix: str, env: dict[str, str], loop: str, before: str = ""
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Caller]]:
    """A proxy that listens, and a connection to it.

    Args:
        prefix: the command that runs it, if it does not run by itself.
        env: its environment.
        loop: `asyncio` or `uvloop`.
        before: Python that it runs first.
    """
    code = "\n".join(["import sys", before, WITHOUT_UVLOOP * (loop == "asyncio"), SERVE])
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-c", code, "serve"),
        *("--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"),
        env=env,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said = b""
        while not (found := re.search(rb"listening +http://127\.0\.0\.1:(\d+)", said)):
            async with asyncio.timeout(PATIENCE):
                line = await process.stderr.readline()
            said += line
            if not line:
                raise SystemExit(f"the proxy did not start:\n{said.decode()}")
        reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
        yield process, Caller(reader, writer)
        writer.close()
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(PATIENCE):
            await process.communicate()


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":  # an upstream of its own process
    asyncio.run(_serve(int(sys.argv[1])))
