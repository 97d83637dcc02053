import asyncio
import json as jsons
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from harness import read_reply
from multidict import CIMultiDict

from proxy.simulator.simulator import Simulator

NOON = 1_783_465_848.290123  # 2026-07-07T23:10:48.290123Z


@dataclass(slots=True)
class Clock:
    now: float = NOON

    def __call__(self):
        return self.now


@dataclass(slots=True)
class Caller:
    """Speaks to the simulator over raw sockets, a fresh one for each request.

    Answers have .status, .headers, .json and .body.
    """

    sim: Simulator
    token: str = ""
    refresh_token: str = ""

    async def send(self, method, path, *, json=None, data=None, token=None, headers=None):
        token = self.token if token is None else token
        body = data if json is None else jsons.dumps(json).encode()
        usual = {"Host": "nomba", "accountId": self.sim.switches.account_id}
        if body is not None:
            usual |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        if token:
            usual["Authorization"] = f"Bearer {token}"
        usual |= headers or {}
        lines = [f"{method} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in usual.items() if value is not None]
        reader, writer = await asyncio.open_connection(*address(self.sim))
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
            reply = await read_reply(reader, head_only=method == "HEAD")
        finally:
            writer.close()
        got = CIMultiDict(reply.headers)
        is_json = reply.body and got.get("Content-Type") == "application/json"
        return SimpleNamespace(
            status=reply.status,
            headers=got,
            body=reply.body,
            json=reply.json if is_json else None,
        )

    async def issue(self, *, headers=None, **changes):
        form = {
            "grant_type": "client_credentials",
            "client_id": self.sim.switches.client_id,
            "client_secret": self.sim.switches.client_secret,
        } | changes
        reply = await self.send(
            "POST", "/v1/auth/token/issue", json=form, token="", headers=headers
        )
        return self._keep(reply)

    async def refresh(self, *, token=None, **changes):
        form = {"grant_type": "refresh_token", "refresh_token": self.refresh_token} | changes
        return self._keep(await self.send("POST", "/v1/auth/token/refresh", json=form, token=token))

    def _keep(self, reply):
        data = (reply.json or {}).get("data") or {}
        self.token = data.get("access_token", self.token)
        self.refresh_token = data.get("refresh_token", self.refresh_token)
        return reply

    async def balance(self, **options):
        return await self.send("GET", "/v1/accounts/balance", **options)

    async def transfer(self, ref="ref-1", *, path="/v2/transfers/bank", token=None, **changes):
        form = {
            "amount": 250.5,
            "accountNumber": "0123456789",
            "bankCode": "000001",
            "merchantTxRef": ref,
        } | changes
        return await self.send("POST", path, json=form, token=token)


def address(sim):
    host, port = sim.origin.removeprefix("http://").rsplit(":", 1)
    return host, int(port)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def waits():
    """The delays asked for; nobody really waits."""
    return []


@pytest.fixture
async def sim(clock, waits):
    async def sleep(seconds):
        waits.append(seconds)

    async with Simulator(clock=clock, sleep=sleep) as simulator:
        yield simulator


@pytest.fixture
def make_caller():
    return Caller


@pytest.fixture
async def caller(sim):
    return Caller(sim)


@pytest.fixture
async def logged_in(caller):
    await caller.issue()
    return caller


@pytest.fixture
async def wire(sim):
    """Opens bare connections: `reader, writer = await wire()`."""
    writers = []

    async def connect():
        reader, writer = await asyncio.open_connection(*address(sim))
        writers.append(writer)
        return reader, writer

    yield connect
    for writer in writers:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
