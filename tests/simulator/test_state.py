"""What the simulator remembers beyond its end, and that all is the same for the same seed."""

import asyncio
import json
import stat
from contextlib import asynccontextmanager

import pytest

from proxy.simulator import Simulator, StateUnusable


@pytest.fixture
def file(tmp_path):
    return tmp_path / "nomba.json"


@pytest.fixture
def begin(clock, file, make_caller):
    """A simulator that keeps its state, as a context: `async with begin() as caller`."""

    @asynccontextmanager
    async def running(**options):
        async with Simulator(clock=clock, state_file=file, **options) as sim:
            yield make_caller(sim)

    return running


async def test_money_records_and_the_session_go_on_after_a_restart(begin):
    async with begin() as first:
        await first.issue()
        await first.transfer()
        await first.send("POST", "/v1/accounts", json={"accountName": "Third"})
        before = first.sim.show_ledger()
        accounts = (await first.send("GET", "/v1/accounts")).body
    async with begin() as second:
        second.token, second.refresh_token = first.token, first.refresh_token
        assert second.sim.show_ledger() == before
        assert (await second.send("GET", "/v1/accounts")).body == accounts
        assert (await second.transfer()).json["description"] == "Duplicate merchantTxRef"
        new = await second.send("POST", "/v1/accounts", json={"accountName": "Fourth"})
        assert new.json["data"]["accountId"] not in accounts.decode()
        assert (await second.refresh()).status == 200
        assert second.token != first.token


async def test_the_file_is_written_whole_and_for_its_owner_only(begin, file):
    async with begin() as caller:
        await caller.issue()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["version"] == 1
    assert list(file.parent.iterdir()) == [file]


async def test_a_change_is_kept_while_it_runs(begin, file, monkeypatch):
    monkeypatch.setattr("proxy.simulator._SAVE_AFTER", 0.01)
    async with begin() as caller:
        await caller.issue()
        await caller.transfer()
        while not file.exists() or "ref-1" not in file.read_text():
            await asyncio.sleep(0.01)


async def test_reading_alone_writes_nothing(begin, file):
    async with begin() as caller:
        await caller.issue()
    written = file.stat().st_mtime_ns
    async with begin() as second:
        second.token = caller.token
        assert (await second.balance()).status == 200
    assert file.stat().st_mtime_ns == written


async def test_reset_is_kept_too(begin):
    async with begin() as caller:
        await caller.issue()
        await caller.transfer()
        caller.sim.reset()
    async with begin() as caller:
        assert caller.sim.ledger == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"version": 2}',
        b'{"version": 1}',
        b'{"version": 1, "book": {}, "sessions": {}}',
        b'{"version": 1, "book": 7, "sessions": {}}',
        b'{"version": 1, "book": {"ids": 1, "balances": {"parent": "x"}, "ledger": [], "tables": {}}}',
        b'{"version": 1, "book": {"ids": 1, "balances": {}, "ledger": [{}], "tables": {}}}',
        b"[" * 100_000,
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(file, content):
    file.write_bytes(content)
    with pytest.raises(StateUnusable, match="move it away"):
        Simulator(state_file=file)
    assert file.read_bytes() == content


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(StateUnusable, match="cannot be read: Is a directory"):
        Simulator(state_file=tmp_path)


async def replies(make_caller, clock, *, seed):
    async with Simulator(clock=clock, seed=seed) as sim:
        caller = make_caller(sim)
        got = [await caller.issue(), await caller.transfer()]
        got.append(await caller.send("POST", "/v1/accounts", json={"accountName": "x"}))
        got.append(await caller.send("GET", "/v1/transactions/accounts"))
        return [reply.body for reply in got]


async def test_the_same_seed_and_calls_give_the_same_replies(make_caller, clock):
    first = await replies(make_caller, clock, seed=7)
    assert await replies(make_caller, clock, seed=7) == first
    others = await replies(make_caller, clock, seed=8)
    assert not set(first) & set(others)


async def test_after_a_reset_the_business_begins_anew_but_old_tokens_stay_dead(sim, caller):
    bodies = []
    for _ in range(2):
        await caller.issue()
        bodies.append((await caller.transfer()).body)
        token = caller.token
        sim.reset()
        assert (await caller.balance(token=token)).status == 401
    assert bodies[0] == bodies[1]
    await caller.issue()
    assert caller.token != token
