"""Takes what the workers' relays tell (`relay.py`) and tells it to the one ring.

It is told as if the calls had been made here, at the times they were made at. What comes is looked
at call by call: a relay that says what no relay would is let go of, and reaches nothing else.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import orjson

from proxy.core.capture import Dialled
from proxy.core.exchange import Event, Exchange
from proxy.core.secret import Imprint
from proxy.errors import Outcome
from proxy.inspector.relay import MOST, PREFIX
from proxy.inspector.ring import Recording, Ring
from proxy.inspector.sessions import Sessions

_READ = 256 * 1024  # bytes that are taken from one worker before the others have their turn
_WAITING = 128  # connections
_NO_ROOM = 1.0  # seconds before a connection is tried again for which there was no descriptor
_FIELDS = {one.name: one.type for one in fields(Exchange)}
_LOST = "the worker process ended while this was under way"
_AGE = 1e6  # seconds that what is told of can be away from now
_NOT_WHOLE = "the inspector could not keep up: what was captured of this is not kept"


def listen(path: Path) -> socket.socket:
    """A socket that relays connect to; `path` is in a directory that is nobody else's.

    Raises:
        OSError: it cannot be had there; a path has some hundred characters at most.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_WAITING)
    except OSError:
        listener.close()
        raise
    return listener


@dataclass(slots=True)
class Clock:
    """The clocks of a ring that is told of what was: the time is that of what is being told.

    Attributes:
        now_wall: epoch seconds.
        now_monotonic: seconds; the same clock as the workers'.
        at: the monotonic time that it is meanwhile, or None for the present.
    """

    now_wall: Callable[[], float] = time.time
    now_monotonic: Callable[[], float] = time.monotonic
    at: float | None = None

    def turn(self, at: float) -> None:
        """Make it another time.

        Raises:
            ValueError: no worker was there then.
        """
        if abs(self.now_monotonic() - at) > _AGE:
            raise ValueError("not a time")
        self.at = at

    def monotonic(self) -> float:
        """`Ring.monotonic`."""
        at = self.at
        return self.now_monotonic() if at is None else at

    def wall(self) -> float:
        """`Ring.wall` and `Sessions.wall`."""
        at = self.at
        return self.now_wall() - (0.0 if at is None else self.now_monotonic() - at)


class Hub:
    """The inspector's end of all relays.

    Args:
        ring: is told of exchanges; its clocks are the clock's.
        sessions: are told of events; the same.
        clock: theirs.

    Attributes:
        dropped: how many captures the relays have dropped.
    """

    def __init__(self, ring: Ring, sessions: Sessions, *, clock: Clock) -> None:
        self._ring = ring
        self._sessions = sessions
        self._clock = clock
        self.dropped = 0

    async def serve(self, listener: socket.socket) -> None:
        """Take every relay that connects, until cancelled; `listener` stays open."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    sock, _ = await loop.sock_accept(listener)
                except OSError:
                    await asyncio.sleep(_NO_ROOM)
                else:
                    group.create_task(self.take(sock))

    async def take(self, sock: socket.socket) -> None:
        """Take one relay, until it ends; `sock` is closed then."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        under_way: dict[int, Recording] = {}
        buffer = bytearray()
        try:
            while data := await loop.sock_recv(sock, _READ):
                buffer += data
                self._read(buffer, under_way)
                await asyncio.sleep(0)  # where there is more at once, nobody else had a turn
        except Exception:  # noqa: BLE001, S110 - it has gone, or says what no relay would
            pass
        finally:
            sock.close()
            for recording in under_way.values():
                self._lost(recording)

    def _read(self, buffer: bytearray, under_way: dict[int, Recording]) -> None:
        """Apply all whole frames, and take them out."""
        at = 0
        try:
            while len(buffer) - at >= PREFIX:
                start = at + PREFIX
                end = start + int.from_bytes(buffer[at:start])
                if end - start > MOST:
                    raise ValueError("a frame is too long")
                if end > len(buffer):
                    break
                self._apply(orjson.loads(buffer[start:end]), under_way)
                at = end
        finally:
            self._clock.at = None
        del buffer[:at]

    def _apply(self, frame: object, under_way: dict[int, Recording]) -> None:
        match frame:
            case ["capture", int(number), dict(record), list(calls)]:
                self._capture(number, record, calls, under_way)
            case ["event", float(at), dict(told)]:
                self._clock.turn(at)
                self._sessions.emit(_event(told))
            case ["dropped", int(count)]:
                self.dropped += count
            case _:
                raise ValueError("not a frame")

    def _capture(
        self,
        number: int,
        record: dict[str, Any],
        calls: list[object],
        under_way: dict[int, Recording],
    ) -> None:
        recording = under_way.get(number)
        if recording is not None:
            _update(recording.exchange, record)
        for call in calls:
            match call:
                case ["begin", float(at), str(start), str(sealed)] if recording is None:
                    self._clock.turn(at)
                    exchange = Exchange("", 0.0)
                    _update(exchange, record)
                    line = _raw(start).decode("utf-8", "surrogateescape")
                    recording = self._ring.begin(exchange, line, sealed=_raw(sealed))
                    under_way[number] = recording
                case ["end" | "lost" as name, float(at)] if recording is not None:
                    self._clock.turn(at)
                    if name == "lost":
                        recording.hollow()
                        recording.exchange.detail = recording.exchange.detail or _NOT_WHOLE
                    recording.end()
                    del under_way[number]
                case [str(), float(at), *_] if recording is not None:
                    self._clock.turn(at)
                    _tell(recording, call)
                case _:
                    raise ValueError("not a call")

    def _lost(self, recording: Recording) -> None:
        """A worker has ended in the middle.

        It may have been a moment ahead of what it could still tell, so that nothing had been sent
        is never certain.
        """
        exchange = recording.exchange
        exchange.error, exchange.detail = "worker_lost", _LOST
        exchange.outcome = Outcome.UNKNOWN
        exchange.seconds = max(0.0, self._clock.monotonic() - exchange.started)
        recording.end()


def _tell(recording: Recording, call: Sequence[Any]) -> None:
    """Make a call that was made elsewhere."""
    match call:
        case ["body", _, str(data)]:
            recording.body((_raw(data),))
        case ["waiting", _]:
            recording.waiting()
        case ["waited", _]:
            recording.waited()
        case ["attempt", _, str(head), str(account), list(mark), int(generation), str(why)]:
            veil = _imprint(mark).veil
            recording.tried(_raw(head), account=account, veil=veil, generation=generation, why=why)
        case ["sending", _, None]:
            recording.sending(None)
        case ["sending", _, [float(began), float(reached), float(ready)]]:
            recording.sending(Dialled(began, reached, ready))
        case ["answered", _, int(status), str(reason), str(sealed)]:
            recording.replied(status, reason=_raw(reason), sealed=_raw(sealed))
        case ["part", _, str(data), int(beyond)]:
            recording.part(_raw(data), beyond=beyond)
        case ["failed", _, str(error)]:
            recording.failed(error)
        case ["reply", _, str(data)]:
            recording.reply(_raw(data))
        case _:
            raise ValueError("not a call")


def _update(exchange: Exchange, record: dict[str, Any]) -> None:
    for name, kind in _FIELDS.items():
        value = Outcome(record[name]) if kind is Outcome else record[name]
        if type(value) is not kind:
            raise ValueError(f"not a {name}")
        setattr(exchange, name, value)


def _imprint(mark: list[Any]) -> Imprint:
    match mark:
        case [int(length), int(total), str(digest)]:
            return Imprint(length, total, digest)
    raise ValueError("not an imprint")


def _event(told: dict[str, Any]) -> Event:
    match told:
        case {"name": str(name), "level": str(level), "upstream": str(of), "fields": dict(found)}:
            return Event(name, level, of, found)
    raise ValueError("not an event")


def _raw(text: str) -> bytes:
    return text.encode("latin-1")
