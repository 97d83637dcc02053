"""Tells the inspector's process what happens in a worker's; `hub.py` is the other end.

A socket is asked for, and asked for again after it broke, so an inspector that was started anew is
found again: a socket pair that was inherited could not be followed after its other end had died in
the middle of a frame, and its end is seen only once every process has closed its copy. `connect_to`
makes one to a Unix socket; it belongs into a directory that is nobody else's. The supervisor makes
the listening one (`hub.listen`) before it forks and keeps it: what is told while no inspector runs
waits in it.

A frame is its length in four bytes (big-endian), then a JSON array: `capture`, number, exchange and
calls; `event`, time and event; or `dropped` and a count. Bytes are texts in Latin-1. A call has its
name and its time: the monotonic clock is the same in all processes of a machine. The first calls of
an exchange are sent at once, the others with its end or after a pause. At once means with all that
there is to tell within a hundredth of a second: a write costs as much as all the rest does.

Secret headers are cut here. Of a token its imprint travels, which is enough to mask what an upstream
repeats of it, in whatever coding: the inspector has no use for tokens, so it is given none. Bodies
travel as they came, like everything in the ring.

Nothing here waits for the inspector or fails for it. What does not fit into the budget is dropped:
an exchange whole, never half of one.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import orjson

from proxy.core.capture import Capture, Dialled
from proxy.core.exchange import Emit, Event, Exchange
from proxy.core.heads import Headers, RequestHead
from proxy.core.secret import Secret
from proxy.inspector.cut import Cutter

MOST = 64 * 1024 * 1024  # bytes of a frame
PREFIX = 4  # bytes of its length
_BUDGET = 8 * 1024 * 1024
_PER_CALL = 200  # bytes that a call takes beside what it carries
_SOON = 0.01  # seconds in which beginnings and ends are collected
_PAUSE = 0.25  # seconds after which what is under way is told
_RETRY = 1.0  # seconds between two tries to reach the hub
_TELL = 1.0  # seconds in which drops are counted together
_LAST = 1.0  # seconds that the end of a worker waits for the hub


def connect_to(path: Path) -> Callable[[], socket.socket]:
    """What connects to a hub that listens there; at once, or it raises `OSError`."""

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        return sock

    return connect


class Relay:
    """A worker's end: what a `Handler`, a server and a session tell, it sends on.

    Args:
        connect: a connected stream socket; raises `OSError` while nobody is there.
        is_secret: whether a header of this name is cut.
        body_limit: bytes of each body that travel; the ring's own limit.
        emit: takes the event that captures were dropped.
        budget: bytes that may wait here; a dozen times `body_limit`, since a text of odd bytes is
            several times their size.
        monotonic: seconds, the handler's clock.

    Attributes:
        dropped: how many captures were, so far.
        held: bytes that wait here.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        *,
        is_secret: Callable[[bytes], bool],
        body_limit: int,
        emit: Emit,
        budget: int = _BUDGET,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self.cutter = Cutter(is_secret)
        self.body_limit = body_limit
        self.budget = budget
        self.monotonic = monotonic
        self.dropped = self.held = 0
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._under_way: set[Relayed] = set()
        self._urgent: list[Relayed] = []
        self._blocked = False
        self._next: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._sock: socket.socket | None = None
        self._retry_at = 0.0
        self._out = bytearray()
        self._ended = 0  # captures that end in what has not been written
        self._untold = self._unsent = 0  # drops: that no event told of, and no frame

    def watch(self, exchange: Exchange, start: str, headers: Headers) -> "Relayed":
        """Begin to tell of an exchange (`core.capture.Watch`)."""
        self._count += 1
        told = Relayed(self, self._count, exchange, start=start, headers=headers)
        self._under_way.add(told)
        if self._pause is None:
            self._pause = self._loop.call_later(_PAUSE, self._tick)
        self._soon(told)
        return told

    def note(self, exchange: Exchange) -> None:
        """Take an exchange that ended before its head could be read."""
        self.watch(exchange, "", ()).end()

    def emit(self, event: Event) -> None:
        """Take an event (`core.exchange.Emit`)."""
        try:
            data = orjson.dumps(["event", self.monotonic(), event], default=str)
        except TypeError:  # half a character of UTF-16
            return
        if self.held + len(data) <= self.budget and self._reach():
            self._queue(data)
            self._schedule()

    async def close(self) -> None:
        """Send what is left, if the inspector takes it soon."""
        for timer in (self._next, self._pause):
            if timer is not None:
                timer.cancel()
        if self._urgent or self._sock is not None:
            self._flush()
        if self._sock is None:
            return
        sock, rest = self._sock, bytes(self._out)
        self._disconnect()
        try:
            async with asyncio.timeout(_LAST):
                await self._loop.sock_sendall(sock, rest)
        except OSError:  # a TimeoutError is one
            pass
        finally:
            sock.close()

    # -- what captures ask -------------------------------------------------------------------

    def over(self, told: "Relayed") -> None:
        """A capture will not be told anything any more."""
        self._under_way.discard(told)
        self._soon(told)

    def drop(self) -> None:
        """A capture is not whole any more."""
        self.dropped += 1
        if not self._untold:
            self._loop.call_later(_TELL, self._tell)
        self._untold += 1

    # -- when --------------------------------------------------------------------------------

    def _soon(self, told: "Relayed") -> None:
        self._urgent.append(told)
        self._schedule()

    def _schedule(self) -> None:
        if self._next is None:
            self._next = self._loop.call_later(_SOON, self._flush)

    def _tick(self) -> None:
        self._pause = None
        if self._under_way:
            self._pause = self._loop.call_later(_PAUSE, self._tick)
            self._urgent += self._under_way
            self._schedule()

    def _tell(self) -> None:
        count, self._untold = self._untold, 0
        self._unsent += count
        self._emit(Event("captures_dropped", "warning", fields={"dropped": count}))
        self._schedule()

    # -- the wire ----------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what there is to tell."""
        self._next = None
        urgent, self._urgent = self._urgent, []
        there = self._reach()
        for told in urgent:
            if not there:
                told.lose()
            elif data := told.take():
                self._queue(data)
                self._ended += not told.lost and told not in self._under_way
        if there and self._unsent:
            self._queue(orjson.dumps(["dropped", self._unsent]))
            self._unsent = 0
        if self._out and not self._blocked:
            self._write()

    def _queue(self, data: bytes) -> None:
        self._out += len(data).to_bytes(PREFIX)
        self._out += data
        self.held += PREFIX + len(data)

    def _reach(self) -> bool:
        """Whether there is a hub to write to."""
        if self._sock is None and (now := self.monotonic()) >= self._retry_at:
            try:
                sock = self._connect()
                sock.setblocking(False)
            except OSError:
                self._retry_at = now + _RETRY
            else:
                self._loop.add_reader(sock, self._left)  # a hub says nothing, but goes
                self._sock = sock
        return self._sock is not None

    def _write(self) -> None:
        if self._sock is None:
            return
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._left()
            return
        del self._out[:sent]
        self.held -= sent
        if self._out and not self._blocked:
            self._loop.add_writer(self._sock, self._write)
        elif self._blocked and not self._out:
            self._loop.remove_writer(self._sock)
        self._blocked = bool(self._out)
        if not self._out:
            self._ended = 0

    def _left(self) -> None:
        """The hub has gone: what it knew of is lost."""
        if self._sock is not None:
            sock = self._sock
            for _ in range(self._ended):
                self.drop()
            self._disconnect()
            sock.close()

    def _disconnect(self) -> None:
        assert self._sock is not None  # noqa: S101 - those who call have it
        self._loop.remove_reader(self._sock)
        if self._blocked:
            self._loop.remove_writer(self._sock)
        self._sock, self._blocked = None, False
        self.held -= len(self._out)
        self._out.clear()
        self._ended = 0
        for told in {*self._under_way, *self._urgent}:
            told.unknown()


class Relayed(Capture):
    """What is told of one exchange and not yet sent.

    Args:
        relay: sends it.
        number: counts the relay's exchanges.
        exchange: its record, which goes on changing.
        start: target and version.
        headers: of the caller.

    Attributes:
        lost: whether it is not whole any more.
    """

    __slots__ = (
        *("_calls", "_exchange", "_known", "_number", "_relay"),
        *("_reply_secretive", "_room", "_secretive", "_size", "lost"),
    )

    def __init__(
        self, relay: Relay, number: int, exchange: Exchange, *, start: str, headers: Headers
    ) -> None:
        self._relay = relay
        self._number = number
        self._exchange = exchange
        self._calls: list[list[object]] = []
        self._known = self._reply_secretive = self.lost = False
        self._room = self._size = 0
        sealed, self._secretive = relay.cutter.fields(headers)
        line = start.encode("utf-8", "surrogateescape")
        self._tell("begin", _text(line), _text(sealed), size=len(line) + len(sealed))

    def body(self, parts: Iterable[bytes]) -> None:
        """The caller's body has arrived whole."""
        kept, room = [], self._relay.body_limit
        for part in () if self.lost else parts:
            kept.append(_text(part[:room]))
            room -= len(part)
            if room <= 0:
                break
        text = "".join(kept)
        self._tell("body", text, size=len(text))

    def waiting(self) -> None:
        """A token is waited for."""
        self._tell("waiting")

    def waited(self) -> None:
        """The wait is over."""
        self._tell("waited")

    def attempt(
        self, head: RequestHead, *, account: str, token: Secret, generation: int, why: str
    ) -> RequestHead:
        """A request is about to be sent."""
        self._room = self._relay.body_limit
        start = self._relay.cutter.head(head.start) if self._secretive else head.start
        mark = token.imprint()
        known = (mark.length, mark.total, mark.digest)
        self._tell("attempt", _text(start), account, known, generation, why, size=len(start))
        return head

    def sending(self, dialled: Dialled | None) -> None:
        """Its first byte is written."""
        times = None if dialled is None else (dialled.began, dialled.reached, dialled.ready)
        self._tell("sending", times)

    def answered(self, status: int, *, reason: bytes, headers: Headers) -> None:
        """The head of its reply has come."""
        sealed, self._reply_secretive = self._relay.cutter.fields(headers)
        self._tell("answered", status, _text(reason), _text(sealed), size=len(sealed))

    def part(self, data: bytes) -> None:
        """Some of its body has passed."""
        if self.lost:
            return
        calls, size = self._calls, len(data)
        kept = data if size <= self._room else data[: self._room]
        if not kept and calls and calls[-1][0] == "part":  # a long body is told of in few words
            calls[-1][1] = self._relay.monotonic()
            calls[-1][3] += size  # type: ignore[operator]
            return
        self._room -= len(kept)
        self._tell("part", _text(kept), size - len(kept), size=len(kept))

    def failed(self, error: str) -> None:
        """The attempt, or its reply, came to a bad end."""
        self._tell("failed", error)

    def reply(self, data: bytes) -> None:
        """What the caller gets."""
        given = self._relay.cutter.head(data) if self._reply_secretive else data
        self._tell("reply", _text(given), size=len(given))

    def end(self) -> None:
        """The exchange is over."""
        self._tell("end")
        if self.lost and self._known:
            self._calls.append(["lost", self._relay.monotonic()])
        self._relay.over(self)

    def _tell(self, *call: object, size: int = 0) -> None:
        if self.lost:
            return
        relay = self._relay
        size += _PER_CALL
        if relay.held + size > relay.budget:
            self.lose()
            return
        relay.held += size
        self._size += size
        name, *what = call
        self._calls.append([name, relay.monotonic(), *what])

    # -- what the relay does -----------------------------------------------------------------

    def take(self) -> bytes:
        """What has not been sent, as a frame; empty if there is nothing."""
        if not self._calls:
            return b""
        try:
            data = orjson.dumps(["capture", self._number, self._exchange, self._calls])
        except TypeError:  # half a character of UTF-16
            data = b""
        relay = self._relay
        room = min(relay.budget - relay.held + self._size, MOST)
        if not data or (len(data) + PREFIX > room and not self.lost):
            over = self._calls[-1][0] == "end"
            self.lose()
            if over and self._known:
                self.end()
            return b""
        relay.held -= self._size
        self._size = 0
        self._calls.clear()
        self._known = True
        return data

    def lose(self) -> None:
        """Tell no more of it: it would not be whole."""
        if not self.lost:
            self.lost = True
            self._relay.held -= self._size
            self._size = 0
            self._calls.clear()
            self._relay.drop()

    def unknown(self) -> None:
        """Whoever was told of it has gone."""
        if self._known:
            self._known = False
            self.lose()
            self._calls.clear()


def _text(data: bytes) -> str:
    return str(data, "latin-1")
