"""Replicas: proxies in processes of their own that share a store, are killed and come again."""

import os
import signal
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp
from harness import Served, spawned
from valkeys import free_port


class Replica:
    """One of them, always on the same port.

    Args:
        folder: for its state and its log.
        env: its settings.
    """

    def __init__(self, folder, **env):
        folder.mkdir()
        self.port = free_port()
        self.log = folder / "log"
        self._env = {
            "NOMBA_PROXY_LISTEN": f"127.0.0.1:{self.port}",
            "NOMBA_PROXY_ADMIN_LISTEN": "127.0.0.1:0",
            "NOMBA_PROXY_STATE_DIR": str(folder / "state"),
            "NOMBA_PROXY_LOG_FORMAT": "json",
            **env,
        }
        self._stack = AsyncExitStack()
        self._served = None

    @property
    def pid(self):
        return self._served.process.pid

    async def start(self):
        with self.log.open("ab") as log:
            begun = spawned("serve", stdout=log, **self._env)
            self._served = Served(*await self._stack.enter_async_context(begun))

    async def stop(self):
        if self._served is not None and self._served.process.returncode is None:
            # Should it be stopped, it would not hear that it is to end; should it have ended, the
            # loop may not know it yet.
            with suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
        await self._stack.aclose()

    async def kill(self):
        """As a crash."""
        self.signal(signal.SIGKILL)
        await self.gone()

    async def gone(self):
        """Wait for the end of one that was killed: its process may not be signalled any more."""
        await self._stack.aclose()

    def signal(self, number):
        os.kill(self.pid, number)

    async def token(self):
        """What it tells of the session."""
        async with aiohttp.request("GET", f"http://{self._served.admin}/token") as reply:
            return (await reply.json())["nomba"]

    async def alive(self):
        """Have it say that it lives."""
        async with aiohttp.request("GET", f"http://{self._served.admin}/livez") as reply:
            assert reply.status == 200

    async def renew(self):
        """Have it get a new token."""
        async with aiohttp.request("POST", f"http://{self._served.admin}/token/renew") as reply:
            assert reply.status == 200

    def has_socket(self, port):
        """Whether a connection from this port is its own."""
        wanted = f":{port:04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        found = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(wanted)}
        try:
            mine = list(Path(f"/proc/{self.pid}/fd").iterdir())
        except OSError:  # it has ended
            return False
        for one in mine:
            with suppress(OSError):  # closed meanwhile
                if str(one.readlink()) in found:
                    return True
        return False
