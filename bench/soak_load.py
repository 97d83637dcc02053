"""Callers at a constant rate: they ask when it is time, whatever comes back, and forget nothing.

Every request has a way (a connection that is kept, or one of its own), a door (TCP or TLS) and a
kind: a read, a transfer with a reference of its own, or an upload that comes bit by bit.
"""

import asyncio
import json
import random
import socket
import ssl
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

from harness import WireReply, read_reply, transfer_body
from soak_report import ANSWERED, LOST, RIVALLED, TOKENLESS, WITH_WORKER

KINDS = {"GET": 60, "transfer": 25, "upload": 15}  # how many of a hundred
_FRESH = 0.25  # share of requests that have a connection of their own
_DOORS = (3, 2)  # of five requests over the first door and over the second
_KEPT = 10  # connections to a door that are kept
# A worker that ends closes an idle connection after a second, as a request may be on its way. Whoever
# uses one that has been idle for as long takes a chance that is no proxy's to give.
_IDLE = 0.8
PATIENCE = 30.0  # seconds for an answer
_PIECE, _PIECES = 16 * 1024, 8


@dataclass(frozen=True)
class Door:
    """Where callers connect.

    Attributes:
        name: for people.
        port: of 127.0.0.1.
        tls: what to speak TLS with, or None.
    """

    name: str
    port: int
    tls: ssl.SSLContext | None = None


class Excuses:
    """What had to be: connections of a worker that was killed; no token; and two dead ones."""

    def __init__(self) -> None:
        self._kills: list[tuple[float, set[int]]] = []
        self._spans: list[tuple[str, float, float]] = []

    def killed(self, ports: set[int]) -> None:
        """A worker that has accepted connections from these ports is killed now."""
        self._kills.append((time.monotonic(), ports))

    def had(self, port: int, *, made: float) -> bool:
        """Whether a connection from a port that was made then was one of them."""
        return any(made < at and port in ports for at, ports in self._kills)

    def away(self, begin: float, end: float) -> None:
        """From when to when there was no store, while a token call was under way."""
        self._spans.append((TOKENLESS, begin, end))

    def rivalled(self, begin: float, end: float) -> None:
        """From when to when a rival logged in, and so ended the session."""
        self._spans.append((RIVALLED, begin, end))

    def holds(self, excuse: str, *, since: float, at: float) -> bool:
        """Whether that was so at some moment between the two."""
        return any(
            name == excuse and begin <= at and since <= end for name, begin, end in self._spans
        )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A request that was not answered as it should.

    Attributes:
        since, at: when it was due, and when it was lost.
        reference: of a transfer, or "".
        excuse: what would excuse it, by what it was told, or "".
        why: what came instead, in words.
    """

    since: float
    at: float
    kind: str
    door: str
    reference: str
    excuse: str
    why: str


class Gone(Exception):
    """No answer came; the text says what did."""


@dataclass
class Connection:
    """One that is ours; `made` before anybody could have accepted it."""

    door: Door
    made: float = field(default_factory=time.monotonic)
    port: int = 0
    used: float = 0.0

    async def open(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.door.port))
            self.port = sock.getsockname()[1]
            named = "localhost" if self.door.tls else None
            self.reader, self.writer = await asyncio.open_connection(
                sock=sock, ssl=self.door.tls, server_hostname=named
            )
        except BaseException:
            sock.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether a careful caller would send a request over it."""
        ended = self.reader.at_eof() or self.reader.exception() or self.writer.is_closing()
        return not ended and time.monotonic() - self.used < _IDLE

    async def ask(self, parts: tuple[bytes, ...]) -> WireReply:
        for number, part in enumerate(parts):
            if number:
                await asyncio.sleep(0.02)
            self.writer.write(part)
            await self.writer.drain()
        return await read_reply(self.reader)

    def close(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()


class Callers:
    """All of them.

    Args:
        doors: where they connect.
        rate: requests a second.
        seed: of what they ask.
        excuses: what had to be.

    Attributes:
        counts: requests by (kind, door, result).
        taken: seconds from when an answer was due until it was there, by (kind, door).
        fresh: requests with a connection of their own, by (kind, door).
        losses: what became of those that are lost.
        references: what became of each transfer, by its reference.
        open: connections at this moment.
        latest: seconds that one of them was late to ask, at most.
    """

    def __init__(
        self, doors: tuple[Door, Door], *, rate: float, seed: int, excuses: Excuses
    ) -> None:
        self._doors, self._rate, self._excuses = doors, rate, excuses
        self._dice = random.Random(seed)
        self._kept: dict[Door, deque[Connection]] = {one: deque() for one in doors}
        self._under_way: set[asyncio.Task] = set()
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.fresh: Counter[tuple[str, str]] = Counter()
        self.taken: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.losses: list[Loss] = []
        self.references: dict[str, str] = {}
        self.open = 0
        self.latest = 0.0

    async def run(self, done: asyncio.Event) -> None:
        """Ask until `done`, and wait for all answers."""
        began, number = time.monotonic(), 0
        while not done.is_set():
            due = began + number / self._rate
            number += 1
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            self.latest = max(self.latest, -pause)
            task = asyncio.create_task(self._call(number, due))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
        while self._under_way:
            await asyncio.wait(self._under_way)
        for kept in self._kept.values():
            while kept:
                self._close(kept.pop())

    def _ended(self, task: asyncio.Task) -> None:
        self._under_way.discard(task)
        task.result()  # what goes wrong in here itself is told by the loop

    async def _call(self, number: int, due: float) -> None:
        dice = self._dice
        (door,) = dice.choices(self._doors, _DOORS)
        (kind,) = dice.choices(list(KINDS), list(KINDS.values()))
        fresh = dice.random() < _FRESH
        self.fresh[kind, door.name] += fresh
        reference, excuse = f"soak-{number}" if kind == "transfer" else "", ""
        connection = None if fresh else self._waiting(door)
        if connection is None:
            connection = Connection(door)
            self.open += 1
        try:
            async with asyncio.timeout(PATIENCE):
                reply = await self._ask(connection, request(kind, reference))
        except Gone as error:
            self._close(connection)
            result, why = self._lost(connection), str(error)
        except TimeoutError:
            self._close(connection)
            result, why = self._lost(connection), f"no answer within {PATIENCE:.0f} s"
        else:
            if fresh or reply.get("Connection") == "close" or len(self._kept[door]) >= _KEPT:
                self._close(connection)
            else:
                connection.used = time.monotonic()
                self._kept[door].append(connection)
            good, excuse = reply.status in {200, 201}, _excuse(reply)
            result, why = ANSWERED if good else LOST, _words(reply)
            if good:
                self.taken[kind, door.name].append(time.monotonic() - due)
        if result == LOST:
            way = "fresh" if fresh else "kept"
            at = time.monotonic()
            why = f"{way}, due at {due:.2f}, {at:.2f}: {why}"
            names = {"kind": kind, "door": door.name, "reference": reference}
            self.losses.append(Loss(since=due, at=at, **names, excuse=excuse, why=why))
        self.counts[kind, door.name, result] += 1
        if reference:
            self.references[reference] = result

    def settle(self) -> None:
        """Excuse what turned out to be excused."""
        left = []
        for one in self.losses:
            if not self._excuses.holds(one.excuse, since=one.since, at=one.at):
                left.append(one)
                continue
            self.counts[one.kind, one.door, LOST] -= 1
            self.counts[one.kind, one.door, one.excuse] += 1
            if one.reference:
                self.references[one.reference] = one.excuse
        self.losses = left

    def _waiting(self, door: Door) -> Connection | None:
        """The one that has waited longest; those that have ended are closed."""
        while self._kept[door]:
            one = self._kept[door].popleft()
            if one.usable:
                return one
            self._close(one)
        return None

    async def _ask(self, connection: Connection, parts: tuple[bytes, ...]) -> WireReply:
        where = "connecting"
        try:
            if not connection.port:
                await connection.open()
            where = "before the end of its answer"
            return await connection.ask(parts)
        except TimeoutError:
            raise
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Gone(f"{where}: {error!r}") from None

    def _lost(self, connection: Connection) -> str:
        had = self._excuses.had(connection.port, made=connection.made)
        return WITH_WORKER if had else LOST

    def _close(self, connection: Connection) -> None:
        self.open -= 1
        connection.close()


def request(kind: str, reference: str) -> tuple[bytes, ...]:
    """The bytes of a request; an upload in pieces."""
    if kind == "GET":
        return (b"GET /v1/accounts/balance HTTP/1.1\r\nHost: localhost\r\n\r\n",)
    if kind == "transfer":
        # A naira each: the account has a million.
        asked = json.loads(transfer_body(reference)) | {"amount": 1}
        return (_post("/v2/transfers/bank", json.dumps(asked).encode()),)
    asked = {"accountNumber": "0123456789", "bankCode": "058", "padding": "x" * _PIECE * _PIECES}
    whole = _post("/v1/transfers/bank/lookup", json.dumps(asked).encode())
    return tuple(whole[at : at + _PIECE] for at in range(0, len(whole), _PIECE))


def _post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _excuse(reply: WireReply) -> str:
    """What would excuse a reply.

    One that there is no token, that nothing was done, and when to come again; and Nomba's 401 to
    what was sent again: its second token was dead too.
    """
    error, outcome = reply.get("Nomba-Proxy-Error"), reply.outcome
    if (reply.status, error) == (503, "token_unavailable") and outcome in {"not_sent", "refused"}:
        return TOKENLESS if reply.get("Retry-After") else ""
    return RIVALLED if (reply.status, error, outcome) == (401, None, "answered") else ""


def _words(reply: WireReply) -> str:
    told = {name: reply.get(f"Nomba-Proxy-{name}") for name in ("Error", "Outcome", "Hint")}
    return f"{reply.status} {told} {reply.body[:300]!r}"
