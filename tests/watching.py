"""A proxy with its inspector, as a program that has the key sees it."""

import asyncio
import contextlib
import json

import aiohttp


class Inspector:
    """A proxy with its inspector, as a program with the key sees it."""

    def __init__(self, proxy):
        self.proxy = proxy
        self.base, _, self.token = proxy.running.inspector.partition("/?token=")
        self.key = {"Authorization": f"Bearer {self.token}"}
        self.http = aiohttp.ClientSession(headers=self.key)

    async def get(self, path, *, expect=200, **query):
        async with self.http.get(f"{self.base}{path}", params=query) as reply:
            text = await reply.text()
            assert reply.status == expect, text
            return json.loads(text) if reply.content_type == "application/json" else text

    async def post(self, path, body=None, status=200):
        async with self.http.post(f"{self.base}{path}", json=body or {}) as reply:
            assert reply.status == status, await reply.text()
            return await reply.json() if reply.status != 204 else None

    async def rows(self, count=None, **query):
        """The rows; waits until `count` are over."""
        for _ in range(300):
            rows = (await self.get("/api/exchanges", **query))["exchanges"]
            done = [row for row in rows if row["state"] != "pending"]
            if count is None or len(done) >= count:
                return rows
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(done)} of {count}: {rows}")

    @contextlib.asynccontextmanager
    async def events(self, mark="", **query):
        headers = {"Last-Event-ID": mark} if mark else {}
        async with self.http.get(f"{self.base}/api/events", params=query, headers=headers) as reply:
            assert reply.content_type == "text/event-stream"
            yield Events(reply.content)


class Events:
    def __init__(self, content):
        self._content = content
        self.mark = ""

    async def next(self):
        fields = {}
        while True:
            line = (await asyncio.wait_for(self._content.readline(), 20)).decode().rstrip("\n")
            assert line or fields or not self._content.at_eof()
            if not line and "event" in fields:
                self.mark = fields.get("id", self.mark)
                return fields["event"], json.loads(fields["data"])
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value

    async def rows(self, enough):
        """Rows by id until `enough` says so; no row may come with less than it had before."""
        found = {}
        while not enough(found):
            name, data = await self.next()
            if name == "reset":
                found.clear()
            if name == "rows":
                for row in data["rows"]:
                    before = found.get(row["id"])
                    assert before is None or before["state"] == "pending", "a row came twice"
                    found[row["id"]] = row
        return found
