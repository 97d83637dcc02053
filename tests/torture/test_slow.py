"""R9, R10: who reads or writes slowly, or not at all, costs little, is cut, and harms nobody."""

import asyncio
import contextlib
import fcntl
import json
import select
import socket
import sys
import termios
from pathlib import Path

import pytest
from harness import environ, read_reply
from measured import KIB, MIB, allowed, at, measured
from processes import until

HERE = Path(__file__).parent


# -- R9 ---------------------------------------------------------------------------------


async def stalled_reader(address, _):
    """Ask for much and read nothing: seconds from the last byte that came until a reset."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * KIB)
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, b"GET /v1/big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        poll, waiting, since = select.poll(), b"", loop.time()
        poll.register(sock, 0)  # errors only: nothing is read
        while not poll.poll(0):
            before, waiting = waiting, fcntl.ioctl(sock, termios.FIONREAD, bytes(4))
            since = since if waiting == before else loop.time()
            await asyncio.sleep(0.1)
        return loop.time() - since


async def stalled_writer(address, stall):
    """Announce a body and send most of it: seconds from its last byte until 408."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
    writer.write(bytes(900_000))
    await writer.drain()
    await asyncio.sleep(stall * 0.6)  # by now the proxy has read all of it
    writer.write(b"x")
    began = loop.time()
    reply = await read_reply(reader)
    assert (reply.status, reply.json["proxy"]["error"]) == (408, "body_timeout")
    writer.close()
    return loop.time() - began


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [stalled_reader, stalled_writer])
async def test_r9_who_stalls_costs_little_and_is_cut(size, figure, kind):
    count, stall = size((50, 2), (250, 5))
    settings = {"callers_write_stall": stall, "body_stall_timeout": stall, "pool_size": 1000}
    async with measured(**settings) as proxy:
        before, stalled = proxy.resident(), []
        proxy.forget_peak()
        for _ in range(count):
            stalled.append(asyncio.create_task(kind(proxy.address, stall)))
            await asyncio.sleep(0.01)  # so that what is measured is not how fast they are here
        await proxy.calls(50, pause=stall / 50)
        async with asyncio.timeout(60):
            times = await asyncio.gather(*stalled)
        each = (proxy.resident(peak=True) - before) / count
        await proxy.calls(10)
    figure(
        "R9",
        f"{count} times {kind.__name__}: {each / MIB:.2f} MiB each; timeout {stall} s: "
        f"cut after {min(times):.1f} to {max(times):.1f} s",
    )
    assert each < 2 * MIB
    if size(small=False, full=True):
        assert all(abs(one - stall) < 1 for one in times)


# -- R10, and connections that do nothing ------------------------------------------------


@contextlib.asynccontextmanager
async def attacked(proxy, **what):
    """While connections are slow; what became of them is in the list once they have ended."""
    told = []
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            str(HERE / "attackers.py"),
            json.dumps({"address": proxy.address} | what),
        ),
        env=environ(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert await process.stdout.readline() == b"ready\n"
    try:
        yield told
    finally:
        process.stdin.close()
        told.append(json.loads((await asyncio.wait_for(process.communicate(), 60))[0]))


async def paced(proxy, seconds):
    """The seconds that each of some calls took, 200 a second over four connections."""
    lines = [proxy.calls(int(50 * seconds), pause=0.02) for _ in range(4)]
    return [one for took in await asyncio.gather(*lines) for one in took]


@pytest.mark.timeout(900)
async def test_r10_slow_heads_cost_little_and_are_cut(size, figure):
    (count, limit, rounds), tolerance = size((300, 2, 1), (2000, 10, 4)), size(None, 1.0)
    count, alone, beside, each, ended = allowed(count), [], [], [], []
    async with measured(callers_head_timeout=limit, callers_connections=count + 100) as proxy:
        for _ in range(rounds):
            alone += await paced(proxy, limit / 2)
            before = proxy.resident()
            what = {"heads": count, "due": ["heads"]}
            async with attacked(proxy, **what, pause=limit / 4, spread=limit * 0.8) as told:
                each.append((proxy.resident() - before) / count)
                beside += await paced(proxy, limit)
            ended += [one["heads"] for one in told]
        await until(lambda: proxy.open_files < 100)
    slowest = at(beside, 0.99) / at(alone, 0.99)
    times = [time for one in ended for time in one["times"]]
    figure(
        "R10",
        f"{count} slow heads, {rounds} times: {max(each) / KIB:.1f} KiB each; timeout {limit} s: "
        f"cut after {min(times):.1f} to {max(times):.1f} s; p99 of others {slowest:.2f} times what it is alone",
    )
    assert all(one["statuses"] == {"408": count} for one in ended)
    assert max(each) < 8 * KIB
    if tolerance is not None:
        assert all(abs(one - limit) < tolerance for one in times)
        assert slowest < 2


@pytest.mark.timeout(900)
async def test_idle_and_slow_connections_leave_other_calls_unharmed(size, figure):
    idle, slow, seconds, rounds = size((300, 40, 1, 1), (2000, 200, 4, 4))
    count, alone, beside = allowed(idle + slow), [], []
    async with measured() as proxy:
        for _ in range(rounds):
            alone += await paced(proxy, seconds)
            what = {"idle": count - slow, "heads": slow // 2, "bodies": slow // 2, "due": ["idle"]}
            async with attacked(proxy, **what, pause=1, spread=seconds / 2) as told:
                beside += await paced(proxy, seconds)
            assert told == [
                {
                    "idle": {"statuses": {"200": count - slow}, "ended": 0, "times": []},
                    "heads": {"statuses": {"open": slow // 2}, "ended": 0, "times": []},
                    "bodies": {"statuses": {"open": slow // 2}, "ended": 0, "times": []},
                }
            ]
    median, slowest = (at(beside, share) / at(alone, share) for share in (0.5, 0.99))
    figure(
        "IDLE",
        f"{count - slow} idle and {slow} slow connections: median of other calls {median:.2f}, "
        f"p99 {slowest:.2f} times what it is without",
    )
    assert len(beside) == len(alone) == rounds * seconds * 200
    if size(small=False, full=True):
        assert median < 1.25
        assert slowest < 2
