"""A proxy in a process of its own, what it costs, and an upstream that costs little."""

import asyncio
import re
import resource
import time
from contextlib import asynccontextmanager
from pathlib import Path

from harness import LOST, Line, served

KIB, MIB = 1024, 1024 * 1024
GET = b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n"
GRANT = b'{"code":"00","data":{"access_token":"the-token","expires_in":86400}}'
BIG = 1024 * MIB  # bytes of the reply to `/v1/big`


class Upstream:
    """Answers everything with `ok`, and `/v1/big` without end.

    Attributes:
        heads: how many requests it got.
    """

    def __init__(self):
        self.heads = 0
        self._tasks = set()

    @asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=MIB, backlog=1024)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads += 1
                length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
                await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith(b"GET /v1/big"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG)
                    for _ in range(BIG // MIB):
                        writer.write(bytes(MIB))
                        await writer.drain()
                else:
                    body = GRANT if head.startswith(b"POST /v1/auth/token/") else b"ok"
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                    )
        except (*LOST, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()


class Measured:
    """A proxy process.

    Attributes:
        address: of its traffic listener.
        upstream: behind it.
    """

    def __init__(self, proxy, upstream):
        host, _, port = proxy.address.rpartition(":")
        self.address = (host, int(port))
        self.upstream = upstream
        self._proc = Path(f"/proc/{proxy.process.pid}")

    def resident(self, *, peak=False):
        """Bytes it has resident now, or has had at most since `forget_peak`."""
        name = "VmHWM" if peak else "VmRSS"
        status = (self._proc / "status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1]) * KIB

    def forget_peak(self):
        (self._proc / "clear_refs").write_text("5")

    def processor(self):
        """Seconds of processor time that it has used."""
        tasks = (self._proc / "task").iterdir()
        return sum(int((one / "schedstat").read_text().split()[0]) for one in tasks) / 1e9

    @property
    def open_files(self):
        return len(list((self._proc / "fd").iterdir()))

    async def calls(self, count, *, pause=0.0):
        """Plain calls one after the other: the seconds that each took."""
        line, took = Line(self.address), []
        for _ in range(count):
            began = time.perf_counter()
            reply = await line.ask(GET)
            took.append(time.perf_counter() - began)
            assert (reply.status, reply.body) == (200, b"ok")
            await asyncio.sleep(pause)
        line.close()
        return took


@asynccontextmanager
async def measured(**env):
    """A proxy in front of an upstream; `env` are settings of it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    upstream = Upstream()
    async with upstream.running() as origin:
        env = {"NOMBA_CLIENT_ID": "c", "NOMBA_CLIENT_SECRET": "s", "NOMBA_BASE_URL": origin} | {
            "NOMBA_ACCOUNT_ID": "a",
            "NOMBA_PROXY_LOG_LEVEL": "warning",
            # What counts its lines would be measured too.
            "COVERAGE_PROCESS_START": None,
            "COVERAGE_PROCESS_CONFIG": None,
            **{f"NOMBA_PROXY_{name.upper()}": str(value) for name, value in env.items()},
        }
        async with served(stdout=asyncio.subprocess.DEVNULL, **env) as proxy:
            one = Measured(proxy, upstream)
            await one.calls(50)
            yield one


def allowed(wanted):
    """How many connections of each side a process may have here."""
    return min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 500)


def at(times, share):
    """A quantile."""
    ranked = sorted(times)
    return ranked[min(len(ranked) - 1, int(len(ranked) * share))]
