"""R5: whatever a caller sends, the upstream gets requests, those that were sent, each once."""

import asyncio
import contextlib
import os
from collections import Counter
from pathlib import Path

import h11
import pytest
from harness import LOST, reset
from judging import Court, reply, requests
from mutators import stream
from processes import until

SEED = int(os.environ.get("TORTURE_SEED", "5"))
PATIENCE = 20  # seconds for what is due
MOMENT = 0.02  # and for a refusal that nobody has to send


class Wrong(Exception):
    """What a caller should not have got."""


class Witness:
    """Sends the streams of a round, and sees what comes of each.

    Attributes:
        statuses: of all replies.
        sent: what the upstream may be asked, and how often, as h11 reads what was sent.
        wrong: what should not have been, with its stream.
    """

    def __init__(self, address):
        self.address = address
        self.statuses = Counter()
        self.sent = Counter()
        self.wrong = []

    async def see(self, stream):
        found, state = requests(stream.data)
        self.sent.update(one.told for one in found)
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            await _send(stream, writer)
            if stream.ending in {"wait", "patient"}:
                await self._replies(stream, found, state, reader)
            elif stream.ending == "half":
                await _rest(reader)
        except (Wrong, h11.RemoteProtocolError, TimeoutError) as error:
            self.wrong.append((repr(error), stream))
        except LOST:
            self.statuses["lost"] += 1
        finally:
            if stream.ending == "reset" and not writer.is_closing():
                reset(writer)
            writer.close()

    async def _replies(self, stream, found, state, reader):
        """Each request gets its own reply, up to the one that is refused."""
        came, last = b"", False
        untouched = sum(end - begin for begin, end in stream.plain) == len(stream.data)
        for asked in found:
            plain = (asked.begin, asked.end) in stream.plain
            answer, came = reply(came, method=asked.method)
            while answer is None:
                async with asyncio.timeout(PATIENCE):
                    more = await reader.read(65536)
                if not more:
                    self.statuses["closed"] += 1
                    _hold(not plain, f"no reply to {asked.told}")
                    return
                answer, came = reply(came + more, method=asked.method)
            self.statuses[answer.status] += 1
            if answer.status == 200:
                right = b"" if asked.method == b"HEAD" else asked.told
                _hold(answer.body == right, f"{answer.body} in reply to {asked.told}")
            else:
                self._refused(asked, answer, plain=plain, untouched=untouched)
            if last := answer.last:
                break
        if last:  # for a while the proxy reads on
            pass
        elif stream.ending == "patient":
            came = await _rest(reader, came)
            _hold(not came or state != "whole", f"unasked: {came}")
        elif state != "whole":  # what cannot be read is refused, now or later
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MOMENT):
                    came += await reader.read(65536)
        _hold(not (last and came.startswith(b"HTTP/")), "a reply behind the last one")

    def _refused(self, asked, answer, *, plain, untouched):
        """What is refused is not done, and what is as it should be only because of its neighbours.

        aiohttp's parser forgets the requests before one that it cannot read, if all came in one
        segment: there the refusal is of all, and the connection ends.
        """
        _hold(answer.status in range(400, 500) or answer.status == 501, f"{answer} to {asked.told}")
        _hold(not untouched and (answer.last or not plain), f"{answer} to {asked.told}")
        _hold(answer.outcome == b"not_sent", f"{answer.outcome} for {asked.told}")
        self.sent[asked.told] -= 1


def _hold(condition, what):
    if not condition:
        raise Wrong(what)


async def _send(stream, writer):
    before = 0
    for cut in (*stream.cuts, len(stream.data)):
        writer.write(stream.data[before:cut])
        await asyncio.sleep(0)
        before = cut
    if stream.ending == "half":
        with contextlib.suppress(OSError):  # it has been closed meanwhile
            writer.write_eof()


async def _rest(reader, came=b""):
    """What comes until the proxy ends the connection by itself, or says that it will."""
    async with asyncio.timeout(PATIENCE):
        while b"\r\nConnection: close\r\n" not in came and (more := await reader.read(65536)):
            came += more
    return came


def sockets(port):
    """Connections to a port that somebody holds open still."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    local, open_or_left = f":{port:04X}", {"01", "08"}
    return sum(line[1].endswith(local) and line[3] in open_or_left for line in lines)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.timeout(1800)
async def test_r5_mutated_streams_reach_the_upstream_as_what_was_sent_or_not_at_all(
    start_proxy, size, figure
):
    total, each = size((2_500, 500), (100_000, 2_000))
    court, statuses, forwarded = Court(), Counter(), 0
    before = len(asyncio.all_tasks()), descriptors()
    await court.start()
    settings = {"callers__idle_timeout": 1, "callers__head_timeout": 1}
    settings |= {"body__stall_timeout": 1, "timeouts__first_byte": 5}
    proxy = await start_proxy(base_url=court.origin, **settings)
    assert (await proxy.get("/v1/x")).status == 200
    await until(lambda: not sockets(proxy.address[1]))
    tasks = len(asyncio.all_tasks())

    for first in range(0, total, each):
        court.heard.clear()
        witness, numbers = Witness(proxy.address), iter(range(first, first + each))

        async def caller(numbers=numbers, witness=witness):
            for number in numbers:
                await witness.see(stream(number, seed=SEED))

        await asyncio.gather(*(caller() for _ in range(64)))
        await until(lambda: not sockets(proxy.address[1]))
        await until(lambda: len(asyncio.all_tasks()) == tasks)
        what = f"TORTURE_SEED={SEED}, streams {first} to {first + each - 1}"
        assert not witness.wrong, (what, witness.wrong)
        assert not court.wrong, (what, court.wrong)
        assert not (unsent := Counter(court.heard) - witness.sent), (what, unsent)
        assert court.cut == 0, what
        lines = proxy.log.lines()
        faults = [line for line in lines if line["event"] in {"internal_fault", "server_fault"}]
        assert not faults, (what, faults)
        assert len(court.heard) <= sum(line.get("attempts", 0) for line in lines), what
        statuses += witness.statuses
        forwarded += len(court.heard)
        proxy.log.buffer.seek(0)
        proxy.log.buffer.truncate()

    assert (await proxy.get("/v1/x")).status == 200
    assert court.logins == 1
    await proxy.stack.aclose()
    court.stop()
    await until(lambda: (len(asyncio.all_tasks()), descriptors()) == before)
    figure(
        "R5",
        f"{total} streams, {forwarded} requests forwarded: each one of those that were sent, "
        f"once; no fault, no task or socket left; {dict(statuses.most_common(6))}",
    )
    assert forwarded > total / 4  # uvloop hears of more callers' ends before it answers
    assert statuses[400] > total / 10
