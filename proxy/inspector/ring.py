"""The exchanges of the last while, within a budget of bytes; the oldest go first.

What was captured is raw, and lies here only, in fields that begin with `sealed_`. `exit.py` shows
it to people, decoded and redacted, and `replay.py` sends it to the proxy itself;
`tests/test_rooms.py` holds that nothing else looks into one. Secret headers are cut before they
get here. Capturing is on the path of every request: it copies little and decides nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from proxy.core.capture import Capture, Dialled
from proxy.core.exchange import Exchange
from proxy.core.heads import Headers, RequestHead
from proxy.inspector.redact import MASK

# What an exchange and an attempt take beside the bytes they hold: measured, and a little more.
_PER_EXCHANGE = 1800
_PER_ATTEMPT = 500
_MASK = MASK.encode()
# Secret, and never sent on: a head without others needs no cutting.
_STAYS_HERE = frozenset({b"authorization", b"proxy-authorization", b"x-nomba-proxy-key"})


class Clip:
    """The first bytes of a body, as they came.

    Args:
        limit: how many are kept.

    Attributes:
        size: how many there were.
        kept: how many of them are here.
    """

    __slots__ = ("_limit", "_parts", "kept", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: bytes | list[bytes] = b""
        self.size = 0
        self.kept = 0

    def add(self, data: bytes) -> int:
        """Take some more; how many bytes were kept."""
        size = len(data)
        self.size += size
        room = self._limit - self.kept
        if room <= 0 or not size:
            return 0
        if size > room:
            data, size = data[:room], room
        if not self.kept:
            self._parts = bytes(data)
        elif isinstance(self._parts, list):
            self._parts.append(bytes(data))
        else:
            self._parts = [self._parts, bytes(data)]
        self.kept += size
        return size

    def uncover(self) -> bytes:
        """What is kept, raw."""
        if isinstance(self._parts, list):
            self._parts = b"".join(self._parts)
        return self._parts


_EMPTY = Clip(0)


class Attempt:
    """One sending, as it went; times are on the monotonic clock, 0 for what did not happen.

    Attributes:
        why, generation: as `Capture.attempt` has them.
        account: that it was completed with.
        sealed_head: as sent, without our pair; secret headers cut.
        began, sent, first_byte, ended: when.
        dialled: how its connection came about, if that was for it.
        start: the reply's status line.
        sealed_headers: of the reply, one a line, secret ones cut.
        body: of the reply.
        error: code of ours that it ended with, or "".
        secretive: whether there are secret headers in the reply.
    """

    __slots__ = (
        *("why", "generation", "account", "sealed_head", "began", "sent", "first_byte", "ended"),
        *("dialled", "start", "sealed_headers", "body", "error", "secretive"),
    )

    def __init__(
        self, why: str, generation: int, account: str, head: bytes, *, began: float
    ) -> None:
        self.why = why
        self.generation = generation
        self.account = account
        self.sealed_head = head
        self.began = began
        self.sent = self.first_byte = self.ended = 0.0
        self.dialled: Dialled | None = None
        self.start = self.sealed_headers = b""
        self.body = _EMPTY
        self.error = ""
        self.secretive = False


@dataclass(slots=True)
class Wait:
    """A wait for a token; `ended` is 0 while it lasts."""

    began: float
    ended: float = 0.0


class Recording(Capture):
    """What is kept of one exchange.

    Args:
        ring: that it lies in.
        number: counts the exchanges.
        exchange: its record, which goes on changing until `done`.
        at: epoch seconds.

    Attributes:
        sealed_start: the request line.
        sealed_headers: of the caller, one a line, secret ones cut.
        request: the caller's body.
        read: when that had arrived whole.
        attempts: one after another.
        waits: for a token.
        sealed_given: the head the caller got, secret headers cut; with it a body of our own.
        replay_of: number of the exchange it repeats, or 0.
        cost: bytes it takes.
        change: grows whenever any recording changes.
        done: whether it is over.
        gone: whether it was forgotten, and keeps nothing any more.
        summary: what `exit.py` found out of it, once it is done.
    """

    __slots__ = (
        *("_ring", "number", "exchange", "at", "sealed_start", "sealed_headers", "request"),
        *("read", "attempts", "waits", "sealed_given", "replay_of", "cost", "change", "done"),
        *("gone", "summary", "_secretive"),
    )

    def __init__(self, ring: "Ring", number: int, exchange: Exchange, *, at: float) -> None:
        self._ring = ring
        self.number = number
        self.exchange = exchange
        self.at = at
        self.sealed_start = self.sealed_headers = self.sealed_given = b""
        self.request = _EMPTY
        self.read = 0.0
        self.attempts: tuple[Attempt, ...] = ()
        self.waits: tuple[Wait, ...] = ()
        self.replay_of = 0
        self.cost = _PER_EXCHANGE
        self.change = 0
        self.done = self.gone = False
        self.summary: dict[str, object] | None = None
        self._secretive = False  # whether a secret header of the caller's is sent on

    # -- what the handler tells; once it is forgotten, to nobody ------------------------------

    def body(self, parts: Iterable[bytes]) -> None:
        """The caller's body has arrived whole."""
        self.request = clip = Clip(self._ring.body_limit)
        for part in parts:
            self._keep(clip, part)
            if clip.kept < clip.size:
                break
        clip.size = max(clip.size, self.exchange.body_bytes)
        self.read = self._ring.monotonic()

    def waiting(self) -> None:
        """A token is waited for."""
        self.waits = (*self.waits, Wait(self._ring.monotonic()))

    def waited(self) -> None:
        """The wait is over."""
        if not self.gone:
            self.waits[-1].ended = self._ring.monotonic()

    def attempt(self, head: RequestHead, *, account: str, generation: int, why: str) -> None:
        """A request is about to be sent."""
        if not self.gone:
            sealed = self._ring.cut_head(head.start) if self._secretive else head.start
            made = Attempt(why, generation, account, sealed, began=self._ring.monotonic())
            self.attempts = (*self.attempts, made)
            self._grow(len(sealed) + _PER_ATTEMPT)

    def sending(self, dialled: Dialled | None) -> None:
        """Its first byte is written."""
        if not self.gone:
            attempt = self.attempts[-1]
            attempt.sent, attempt.dialled = self._ring.monotonic(), dialled

    def answered(self, status: int, *, reason: bytes, headers: Headers) -> None:
        """The head of its reply has come."""
        if not self.gone:
            attempt = self.attempts[-1]
            attempt.first_byte = attempt.ended = self._ring.monotonic()
            attempt.start = b"HTTP/1.1 %d %b" % (status, reason)
            attempt.sealed_headers, attempt.secretive = self._ring.cut(headers)
            self._grow(len(attempt.sealed_headers))

    def part(self, data: bytes) -> None:
        """Some of its body has passed."""
        if not self.gone:
            attempt = self.attempts[-1]
            attempt.ended = self._ring.monotonic()
            if attempt.body is _EMPTY:
                attempt.body = Clip(self._ring.body_limit)
            self._keep(attempt.body, data)

    def failed(self, error: str) -> None:
        """The attempt, or its reply, came to a bad end."""
        if not self.gone and self.attempts:
            attempt = self.attempts[-1]
            attempt.error, attempt.ended = error, self._ring.monotonic()

    def reply(self, data: bytes) -> None:
        """What the caller gets."""
        if not self.gone:
            secretive = self.attempts and self.attempts[-1].secretive
            self.sealed_given = self._ring.cut_head(data) if secretive else data
            self._grow(len(self.sealed_given))

    def end(self) -> None:
        """The exchange is over."""
        self.done = True
        self._ring.changed(self)

    # -- what the ring does ----------------------------------------------------------------

    def begin(self, start: bytes, headers: Headers) -> None:
        """The request's head has come."""
        self.sealed_start = start
        self.sealed_headers, self._secretive = self._ring.cut(headers)
        self._grow(len(start) + len(self.sealed_headers))

    def forget(self) -> None:
        """Keep nothing from now on."""
        self.gone = True
        self.request, self.attempts, self.waits = _EMPTY, (), ()
        self.sealed_start = self.sealed_headers = self.sealed_given = b""

    def _keep(self, clip: Clip, data: bytes) -> None:
        if not self.gone and (kept := clip.add(data)):
            self._grow(kept)

    def _grow(self, by: int) -> None:
        self.cost += by
        self._ring.grew(by)


@dataclass(slots=True)
class Ring:
    """Keeps recordings.

    Attributes:
        budget: bytes that all together may take.
        body_limit: bytes kept of each body.
        is_secret: whether a header of this name is cut.
        wall: epoch seconds.
        monotonic: seconds, the handler's clock.
        used: bytes they take.
        change: counts changes; a recording's own tells when it last did.
        era: grows when all are forgotten at once.
    """

    budget: int
    body_limit: int
    is_secret: Callable[[bytes], bool]
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    used: int = 0
    change: int = 0
    era: int = 0
    _replays: dict[str, int] = field(default_factory=dict)  # by the request id to come
    _count: int = 0
    _kept: dict[int, Recording] = field(default_factory=dict)  # the oldest first
    _changed: dict[int, Recording] = field(default_factory=dict)  # the longest unchanged first

    def watch(self, exchange: Exchange, start: bytes, headers: Headers) -> Recording:
        """Begin to record an exchange (`core.capture.Watch`)."""
        recording = self._add(exchange)
        if self._replays:
            recording.replay_of = self._replays.pop(exchange.request_id, 0)
        recording.begin(start, headers)
        self.changed(recording)
        return recording

    def note(self, exchange: Exchange) -> None:
        """Take an exchange that ended before its head could be read."""
        self._add(exchange).end()

    def clear(self) -> None:
        """Forget all."""
        for recording in self._kept.values():
            recording.forget()
        self._kept.clear()
        self._changed.clear()
        self.used = 0
        self.era += 1

    def get(self, number: int) -> Recording | None:
        """One of them, if it is still here."""
        return self._kept.get(number)

    def expect(self, request_id: str, *, replay_of: int) -> None:
        """The exchange with this id will be a repetition of another."""
        self._replays[request_id] = replay_of

    def find(self, request_id: str) -> Recording | None:
        """The newest with this request id."""
        newest = reversed(self._kept.values())
        return next((one for one in newest if one.exchange.request_id == request_id), None)

    @property
    def oldest(self) -> int:
        """The number of the oldest; the next one's if there is none."""
        return next(iter(self._kept), self._count + 1)

    def __iter__(self) -> Iterator[Recording]:
        """All, the oldest first."""
        return iter(list(self._kept.values()))

    def since(self, change: int) -> list[Recording]:
        """Those that have changed since, the longest unchanged first."""
        found = []
        for recording in reversed(self._changed.values()):
            if recording.change <= change:
                break
            found.append(recording)
        found.reverse()
        return found

    # -- what recordings ask -----------------------------------------------------------------

    def changed(self, recording: Recording) -> None:
        """A recording has something new to show."""
        if recording.gone:
            return
        self.change += 1
        recording.change = self.change
        self._changed.pop(recording.number, None)
        self._changed[recording.number] = recording

    def grew(self, by: int) -> None:
        """A recording takes more: the oldest go until all fit."""
        self.used += by
        while self.used > self.budget and self._kept:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._changed.pop(oldest.number, None)
            self.used -= oldest.cost
            oldest.forget()

    def cut(self, headers: Headers) -> tuple[bytes, bool]:
        """Header fields, one a line, the values of secret ones masked; whether one is passed on."""
        is_secret, passed = self.is_secret, False
        lines: list[bytes] = []
        for name, value in headers:
            if is_secret(name):
                passed = passed or name.lower() not in _STAYS_HERE
                lines += (name, b": ", _MASK, b"\r\n")
            else:
                lines += (name, b": ", value, b"\r\n")
        return b"".join(lines), passed

    def cut_head(self, head: bytes) -> bytes:
        """The same of a head that is ready to be written."""
        is_secret = self.is_secret
        fields, blank, rest = head.partition(b"\r\n\r\n")
        lines = fields.split(b"\r\n")
        for at, line in enumerate(lines):
            name, colon, _ = line.partition(b":")
            if at and colon and is_secret(name):
                lines[at] = b"%b: %b" % (name, _MASK)
        return b"\r\n".join(lines) + blank + rest

    def _add(self, exchange: Exchange) -> Recording:
        self._count += 1
        recording = Recording(self, self._count, exchange, at=self.wall())
        self._kept[recording.number] = recording
        self.grew(recording.cost)
        return recording
