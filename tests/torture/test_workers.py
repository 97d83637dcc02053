"""R2, R11 and chaos: workers that are killed and restarted, under load."""

import asyncio
import os
import random
import re
import signal
from collections import Counter
from contextlib import suppress

import pytest
from harness import LOST, Line, ScriptedUpstream
from processes import GET, until

ISSUE, REFRESH = "/v1/auth/token/issue", "/v1/auth/token/refresh"


# -- chaos ------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
async def test_chaos_no_caller_sees_a_401_and_no_login_is_wasted(
    workers, simulator, size, figure, chaos_seed
):
    """Workers are killed at random while tokens come and go under the single-session rule."""
    rng = random.Random(chaos_seed)
    life, wanted = 2.0, size(8, 60)
    simulator.switches.lifetime = life
    assert simulator.switches.refresh_kills_old
    statuses, lost, kills = Counter(), 0, 0
    done = asyncio.Event()

    def renewals():
        return sum(one.status == 200 and one.path in {ISSUE, REFRESH} for one in simulator.received)

    async def caller(port, number):
        nonlocal lost
        line, dice = Line(("127.0.0.1", port)), random.Random(number)
        while not done.is_set():
            try:
                statuses[(await asyncio.wait_for(line.ask(GET), 60)).status] += 1
            except LOST:
                lost += 1
            await asyncio.sleep(dice.uniform(0.1, 0.5))
        line.close()

    async def killer(proxy):
        nonlocal kills
        while not done.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), rng.uniform(0.3, 2.5))
            if done.is_set() or len(proxy.pids) < 4:
                continue
            os.kill(rng.choice(proxy.pids), signal.SIGKILL)
            kills += 1

    loop = asyncio.get_running_loop()
    async with workers(count=4) as proxy:
        began = loop.time()
        callers = [asyncio.create_task(caller(proxy.port, number)) for number in range(200)]
        killing = asyncio.create_task(killer(proxy))
        await until(lambda: renewals() >= wanted, seconds=600)
        done.set()
        await asyncio.gather(killing, *callers)
        # Renewed at three quarters of its life, of which the first is there at the beginning.
        lifetimes = int((loop.time() - began) / (life * 0.75)) + 1
        made = renewals()
    for name, what in (
        ("seed", chaos_seed),
        ("callers, workers", "200, 4"),
        ("replies", f"{sum(statuses.values())}, of them 401: {statuses[401]}"),
        ("other statuses", {one: n for one, n in statuses.items() if one not in {200, 401}}),
        ("connections lost", f"{lost}, by {kills} kills"),
        ("renewals", f"{made}; at most {lifetimes} lifetimes + {kills} kills"),
    ):
        figure("chaos", f"{name:<18} {what}")
    assert set(statuses) == {200}
    assert made >= wanted
    assert kills >= wanted / 4
    assert made <= lifetimes + kills


# -- R2 ---------------------------------------------------------------------------------------------


@pytest.fixture
async def ledger():
    """An upstream that writes down what it does before it answers, sooner or later."""
    done = []
    upstream = ScriptedUpstream()
    await upstream.start()

    async def answer(_, body, writer):
        done.append(body.decode())
        if len(done) % 2:
            await asyncio.sleep(0.005)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()

    upstream.answer = answer
    upstream.done = done
    yield upstream
    await upstream.stop()


@pytest.mark.timeout(900)
async def test_r2_nothing_is_done_twice_while_proxy_workers_are_killed(
    workers, ledger, size, figure
):
    wanted, kills, outcomes = size(60, 500), 0, {}
    finished = asyncio.Event()

    async def caller(port, number):
        line, count = Line(("127.0.0.1", port)), 0
        while not finished.is_set():
            count += 1
            ref = f"{number}-{count}"
            method = ("POST", "PUT", "PATCH", "DELETE")[count % 4]
            path = "/v2/transfers/bank" if count % 8 == 0 else "/v1/checkout/order"
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(ref)}\r\n\r\n"
            )
            try:
                reply = await asyncio.wait_for(line.ask((head + ref).encode()), 60)
                outcomes[ref] = (reply.status, reply.outcome)
            except LOST:
                outcomes[ref] = (0, "lost")
                await asyncio.sleep(0.01)
        line.close()

    async with workers(count=4, NOMBA_BASE_URL=ledger.origin) as proxy:
        callers = [asyncio.create_task(caller(proxy.port, number)) for number in range(16)]
        while kills < wanted:
            await asyncio.sleep(0.3)  # the one that is killed next has lived for more than a second
            victim = proxy.pids[0]
            os.kill(victim, signal.SIGKILL)
            kills += 1
            await until(lambda gone=victim: gone not in proxy.pids and len(proxy.pids) == 4)
        finished.set()
        await asyncio.gather(*callers)
    worked = Counter(ledger.done)
    twice = [ref for ref, times in worked.items() if times > 1]
    acknowledged = {ref for ref, told in outcomes.items() if told == (200, "answered")}
    unsent = {ref for ref, (_, outcome) in outcomes.items() if outcome == "not_sent"}
    lost = sum(told == (0, "lost") for told in outcomes.values())
    figure(
        "R2",
        f"{kills} kills of a proxy worker, {len(outcomes)} writes: {len(twice)} done twice, "
        f"{len(acknowledged - set(worked))} acknowledged but missing, "
        f"{len(unsent & set(worked))} told not_sent but done, {lost} connections lost",
    )
    assert twice == []
    assert acknowledged <= set(worked)
    assert not unsent & set(worked)
    assert len(acknowledged) > kills


# -- R11 --------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
async def test_r11_rolling_restarts_lose_no_request(workers, simulator, size, figure, tmp_path):
    wanted, statuses, failed = size(20, 500), Counter(), []
    finished = asyncio.Event()
    upload = b"POST /v1/checkout/order HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n"

    async def asker(port, number):
        line, dice = Line(("127.0.0.1", port)), random.Random(number)
        while not finished.is_set():
            try:
                statuses[(await asyncio.wait_for(line.ask(GET), 60)).status] += 1
            except LOST as error:
                failed.append(("get", repr(error)))
            await asyncio.sleep(dice.uniform(0, 0.1))
        line.close()

    async def uploader(port):
        line = Line(("127.0.0.1", port))
        while not finished.is_set():
            try:
                parts = (upload, *[b"x" * 500] * 8)
                reply = await asyncio.wait_for(line.ask(*parts, pause=0.03), 60)
                statuses[reply.outcome] += 1
            except LOST as error:
                failed.append(("upload", repr(error)))
        line.close()

    async with workers(count=2) as proxy:
        callers = [asyncio.create_task(asker(proxy.port, number)) for number in range(16)]
        callers += [asyncio.create_task(uploader(proxy.port)) for _ in range(6)]
        for _ in range(wanted):
            old = set(proxy.pids)
            proxy.process.send_signal(signal.SIGHUP)
            await until(lambda gone=old: not gone & set(proxy.pids) and len(proxy.pids) == 2)
        finished.set()
        await asyncio.gather(*callers)
        text = await proxy.asked("/metrics")
    answered = sum(
        map(float, re.findall(r"^nomba_proxy_requests_total\{.*\} (.*)$", text, re.MULTILINE))
    )
    logins = simulator.count(ISSUE)
    figure(
        "R11",
        f"{wanted} rolling restarts of 2 workers, {sum(statuses.values())} requests "
        f"{dict(statuses)}: {len(failed)} failed, {logins} login",
    )
    assert failed == []
    assert set(statuses) == {200, "answered"}
    assert statuses["answered"] > wanted
    assert answered >= sum(statuses.values())
    assert logins == 1
