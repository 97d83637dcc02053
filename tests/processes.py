"""A proxy of several processes, as callers and operators meet it."""

import asyncio
from pathlib import Path

import aiohttp
from harness import Served, read_reply

GET = b"GET /v1/accounts/balance HTTP/1.1\r\nHost: localhost\r\n\r\n"


def _told(pid):
    """What the kernel tells of a process behind its name (proc(5), `stat`); nothing once it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()
    return [] if fields[0] == "Z" else fields


def parent(pid):
    """The parent of a process; 0 once it has ended."""
    fields = _told(pid)
    return int(fields[1]) if fields else 0


def children(pid):
    """Processes below a process, the oldest first.

    By when they began and not by their numbers alone: these start anew once the highest was given.
    """
    every = {
        int(one.name): _told(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()
    }
    found = [(int(told[19]), one) for one, told in every.items() if told and int(told[1]) == pid]
    return [one for _, one in sorted(found)]


async def until(condition, *, seconds=20):
    """Wait for a condition."""
    for _ in range(int(seconds / 0.02)):
        if found := condition():
            return found
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come")


class Workers(Served):
    """A proxy of several processes."""

    @property
    def pids(self):
        """The workers: a simulator and an inspector come before them."""
        return children(self.process.pid)

    @property
    def port(self):
        return int(self.address.rpartition(":")[2])

    async def get(self, request=GET):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            return await asyncio.wait_for(read_reply(reader), 30)
        finally:
            writer.close()

    async def asked(self, path):
        async with aiohttp.request("GET", f"http://{self.admin}{path}") as reply:
            return await reply.text()

    async def replaced(self, *pids, count):
        """Wait until processes have gone and there are so many others."""
        await until(lambda: not set(pids) & set(self.pids) and len(self.pids) == count)

    async def serving(self):
        """Wait until every worker has a token: this many connections meet each of them."""
        for _ in range(30):
            assert (await self.get()).status == 200
