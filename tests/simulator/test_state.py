"""What the simulator remembers beyond its end, and that all is the same for the same seed."""

import asyncio
import json
import stat
from contextlib import asynccontextmanager

import pytest

from proxy.simulator import parse_fault
from proxy.simulator.simulator import Simulator
from proxy.simulator.state import StateFile, StateUnusable


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
    assert sorted(one.name for one in file.parent.iterdir()) == ["nomba.json", "nomba.json.lock"]


async def test_a_change_is_kept_while_it_runs(begin, file, monkeypatch):
    monkeypatch.setattr("proxy.simulator.simulator._SAVE_AFTER", 0.01)
    async with begin() as caller:
        await caller.issue()
        await caller.transfer()
        while not file.exists() or "ref-1" not in file.read_text():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("change", ["pay", "reset", "expire", "revoke"])
async def test_what_the_control_api_changes_is_kept_too(begin, file, monkeypatch, change):
    monkeypatch.setattr("proxy.simulator.simulator._SAVE_AFTER", 0.01)
    async with begin() as caller:
        await caller.issue()
        order = {"order": {"orderReference": "order-1", "amount": 5}}
        await caller.send("POST", "/v1/checkout/order", json=order)
        while "order-1" not in file.read_text():
            await asyncio.sleep(0.01)
        before = file.read_text()
        if change == "pay":
            caller.sim.pay(b'{"orderReference": "order-1"}')
        else:
            getattr(caller.sim, change)()
        while file.read_text() == before:
            await asyncio.sleep(0.01)


async def test_money_that_moved_before_a_delay_is_kept_during_it(begin, file, monkeypatch):
    monkeypatch.setattr("proxy.simulator.simulator._SAVE_AFTER", 0.01)
    async with begin() as caller:
        await caller.issue()
        caller.sim.inject(parse_fault("delay seconds=3600 work=true path=/v2/*"))
        sending = asyncio.create_task(caller.transfer())
        while "ref-1" not in file.read_text():
            await asyncio.sleep(0.01)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_one_file_is_for_one_simulator(clock, file, make_caller):
    first = Simulator(clock=clock, state_file=file)
    second = Simulator(clock=clock, state_file=file)
    await first.start()
    with pytest.raises(StateUnusable, match="is in use by another simulator"):
        await second.start()
    caller = make_caller(first)
    await caller.issue()
    await caller.transfer()
    await first.stop()
    await second.start()
    assert second.balance == first.balance != 1_000_000  # read once it was claimed
    await second.stop()


async def test_a_link_is_followed_and_stays_one(begin, file, tmp_path):
    real = tmp_path / "real.json"
    file.symlink_to(real)
    async with begin() as caller:
        await caller.issue()
    assert file.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert not real.is_symlink()


async def test_a_file_that_can_no_longer_be_written_is_said_and_tried_again(
    clock, file, monkeypatch, make_caller, tmp_path
):
    monkeypatch.setattr("proxy.simulator.simulator._SAVE_AFTER", 0.01)
    said, home, away = [], tmp_path / "home", tmp_path / "away"
    home.mkdir()
    sim = Simulator(clock=clock, state_file=home / "s.json", trouble=said.append)
    await sim.start()
    caller = make_caller(sim)
    home.rename(away)
    await caller.issue()
    while not said:
        await asyncio.sleep(0.01)
    assert said[0] == f"{home}/s.json cannot be written: No such file or directory"
    away.rename(home)
    await caller.transfer()
    while "ref-1" not in (home / "s.json").read_text():
        await asyncio.sleep(0.01)
    home.rename(away)
    await caller.transfer("ref-2")
    with pytest.raises(StateUnusable, match="cannot be written"):
        await sim.stop()
    assert sorted(one.name for one in away.iterdir()) == ["s.json", "s.json.lock"]


def test_no_draft_is_left_behind(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(StateUnusable, match="cannot be written: Is a directory"):
        StateFile(tmp_path / "x").write({})
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


BOOK = {
    "ids": 1,
    "serial": 0,
    "balances": dict.fromkeys(["parent", "pending", "dollars", "outside:NGN", "outside:USD"], "0"),
    "ledger": [],
    "tables": {"accounts": {}},
}


@pytest.mark.parametrize(
    "damage",
    [
        {"balances": {}},
        {"balances": {**BOOK["balances"], "parent": "NaN"}},
        {"balances": {**BOOK["balances"], "parent": "Infinity"}},
        {"balances": {**BOOK["balances"], "parent": "99"}},
        {"balances": {**BOOK["balances"], "dollars": "1", "parent": "-1"}},
        {"ids": -1},
        {"serial": "x"},
        {"ids": 1.5},
        {"tables": {}},
        {"tables": {"accounts": {}, "transactions": {"a": {"_n": 1}}}},
        {"tables": {"accounts": {}, "references": {"a": {"_n": 1, "transaction": "b"}}}},
        {
            "tables": {
                "accounts": {},
                "mandates": {"a": {"_n": "1", "mandateId": "a", "status": "x"}},
            }
        },
        {"tables": {"accounts": {}, "virtual": {"a": {}}}},
        {"tables": {"accounts": {}, "virtual": {"a": []}}},
        {"tables": {"accounts": {}, "virtual": []}},
        {"balances": {**BOOK["balances"], "a-sub-account": "0"}},
        {"sessions": {"ids": 1, "access": {"t": {"client_id": "c", "expires_at": "x"}}}},
    ],
)
async def test_books_that_cannot_be_true_are_refused(file, damage):
    sessions = {"ids": 0, "access": {}, "refresh": {}} | damage.pop("sessions", {})
    state = {"version": 1, "book": BOOK | damage, "sessions": sessions}
    file.write_text(json.dumps(state))
    with pytest.raises(StateUnusable, match="is damaged"):
        await Simulator(state_file=file).start()


async def test_books_that_can_be_true_are_not(file):
    sessions = {"ids": 0, "access": {}, "refresh": {}}
    file.write_text(json.dumps({"version": 1, "book": BOOK, "sessions": sessions}))
    async with Simulator(state_file=file) as sim:
        assert sim.balance == 0


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
async def test_a_file_of_something_else_is_refused_and_left_alone(file, content):
    file.write_bytes(content)
    with pytest.raises(StateUnusable, match="move it away"):
        await Simulator(state_file=file).start()
    assert file.read_bytes() == content


async def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(StateUnusable, match="cannot be read: Is a directory"):
        await Simulator(state_file=tmp_path).start()


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
