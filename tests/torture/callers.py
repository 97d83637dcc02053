"""Callers in a process of their own, each with a connection that it keeps.

    python callers.py HOST PORT COUNT

Connects them all, says `ready`, and takes orders, one a line:

    ask NAME        each of them sends one request at once, `?n=NAME-0` and so on; says `asked`,
                    and when all are answered what they got, as JSON: how many for each answer
    leave 3 17 ...  these hang up, whether they are answered or not; says `left`

Ends with its input. Whoever has no connection any more makes one when it is next asked.
"""

import asyncio
import json
import re
import resource
import sys
from collections import Counter

DIALLING = 64  # at a time: the queue of a listening socket is short
EVERY = 8  # one in so many moves money
LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")
OUTCOME = re.compile(rb"\r\nNomba-Proxy-Outcome: (\w+)\r\n")


class Caller(asyncio.Protocol):
    def __init__(self, told):
        self.told = told
        self.transport = None
        self.waits = False
        self.data = b""

    def connection_made(self, transport):
        self.transport = transport

    def ask(self, request):
        self.waits, self.data = True, b""
        self.transport.write(request)

    def leave(self):
        self._answered("left")
        self.transport.abort()

    def data_received(self, data):
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        if not end or not self.waits:
            return
        length = LENGTH.search(head + b"\r\n")
        if length is None or len(body) > int(length[1]):
            self._answered(f"odd: {self.data[:200]!r}")
        elif len(body) == int(length[1]):
            outcome = OUTCOME.search(head + b"\r\n")
            self._answered(f"{head[9:12].decode()} {outcome[1].decode() if outcome else '-'}")

    def connection_lost(self, exc):
        self.transport = None
        self._answered("lost")

    def _answered(self, what):
        if self.waits:
            self.waits = False
            self.told(what)


class Crowd:
    def __init__(self, host, port, count):
        self.address = host, port
        self.callers = [Caller(self._told) for _ in range(count)]
        self.left = 0
        self.answers = Counter()

    async def connect(self):
        """A connection for everybody that has none."""
        loop, dialling = asyncio.get_running_loop(), asyncio.Semaphore(DIALLING)

        async def dial(caller):
            async with dialling:
                await loop.create_connection(lambda: caller, *self.address)

        await asyncio.gather(*(dial(one) for one in self.callers if one.transport is None))

    def ask(self, name):
        self.answers.clear()
        self.left = len(self.callers)
        for number, caller in enumerate(self.callers):
            caller.ask(request(f"{name}-{number}", money=number % EVERY == 0))

    def _told(self, what):
        self.answers[what] += 1
        self.left -= 1
        if not self.left:
            print(json.dumps(self.answers), flush=True)


def request(name, *, money):
    if not money:
        return f"GET /v1/accounts/balance?n={name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    body = json.dumps({"amount": 250, "merchantTxRef": name})
    return (
        f"POST /v2/transfers/bank?n={name} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def main(host, port, count):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    crowd = Crowd(host, int(port), int(count))
    await crowd.connect()
    print("ready", flush=True)
    while order := (await orders.readline()).decode().split():
        if order[0] == "ask":
            await crowd.connect()
            crowd.ask(order[1])
            print("asked", flush=True)
        else:
            for number in order[1:]:
                crowd.callers[int(number)].leave()
            print("left", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
