"""Many callers that take their time: heads and bodies that come byte by byte, and idle connections.

    python attackers.py '{"address": ["127.0.0.1", 8080], "heads": 100, "pause": 1, "spread": 2}'

Opens `heads`, `bodies` and `idle` connections within `spread` seconds and says `ready`; those that
are slow send a byte every `pause` seconds. Once its input ends it says what became of each kind:
how many got which status and when, in seconds since each began. `due` are those kinds that are to be
answered by then: what has not come yet is waited for.
"""

import asyncio
import json
import os
import random
import resource
import sys

PATIENCE = 20  # seconds
HEAD = b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
BODY = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
WHOLE = b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n"
BEGINNINGS = {"heads": HEAD, "bodies": BODY, "idle": WHOLE}


class Attacker(asyncio.Protocol):
    """One connection.

    Attributes:
        got: the beginning of the last reply.
        lasted: seconds until it was answered, or ended; for an idle one, until it ended.
    """

    def __init__(self, kind, pause):
        self.kind, self.pause = kind, pause
        self.loop = asyncio.get_running_loop()
        self.got, self.lasted, self.timer = b"", None, None

    def connection_made(self, transport):
        self.transport = transport
        self.began = self.loop.time()
        transport.write(BEGINNINGS[self.kind])
        if self.kind != "idle":
            self.timer = self.loop.call_later(self.pause * random.random(), self.drip)

    def drip(self):
        self.transport.write(b"x")
        self.timer = self.loop.call_later(self.pause, self.drip)

    def data_received(self, data):
        self.got = self.got or data[:12]
        if self.kind != "idle":
            self.end()

    def connection_lost(self, exc):
        self.end()

    def end(self):
        if self.lasted is None:
            self.lasted = self.loop.time() - self.began
        if self.timer is not None:
            self.timer.cancel()

    @property
    def status(self):
        return self.got[9:].decode() or ("open" if self.lasted is None else "closed")


def told(every):
    """What became of one kind."""
    statuses, times = {}, sorted(one.lasted for one in every if one.lasted is not None)
    for one in every:
        statuses[one.status] = statuses.get(one.status, 0) + 1
    return {"statuses": statuses, "ended": len(times), "times": [*times[:1], *times[-1:]]}


async def main(address, *, pause=1.0, spread=1.0, due=(), **counts):
    os.nice(10)  # they would be on other machines
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop, every = asyncio.get_running_loop(), {kind: [] for kind in counts}
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    random.shuffle(kinds)
    began = loop.time()
    for number, kind in enumerate(kinds):
        _, one = await loop.create_connection(lambda kind=kind: Attacker(kind, pause), *address)
        every[kind].append(one)
        await asyncio.sleep(began + spread * number / len(kinds) - loop.time())
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    until = loop.time() + PATIENCE
    while loop.time() < until and not all(one.got for kind in due for one in every[kind]):
        await asyncio.sleep(0.05)
    print(json.dumps({kind: told(some) for kind, some in every.items()}), flush=True)


asyncio.run(main(**json.loads(sys.argv[1])))
