"""The exchanges of the last while, within a budget of bytes; the oldest go first.

What was captured is raw, and lies here only, in fields that begin with `sealed_`. `exit.py` shows
it to people, decoded and redacted, and `replay.py` sends it to the proxy itself;
`tests/test_rooms.py` holds that nothing else looks into one. Secret headers are cut (`cut.py`)
before they get here, by a relay that tells of another process or by the recording itself. Capturing is on the path of every request: it copies little and decides nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from proxy.core.capture import Capture, Dialled
from proxy.core.exchange import Exchange
from proxy.core.heads import Headers, RequestHead
from proxy.core.secret import Secret
from proxy.inspector.cut import Cutter

# What an exchange and an attempt take beside the bytes they hold, with what the list shows of it and
# what the allocator wastes: measured (`tests/torture/test_inspector.py`).
_PER_EXCHANGE = 5800
_PER_ATTEMPT = 500
_PER_PART = 100
_LARGE = 2048  # bytes of a head that the ring has to know of at once

# Masks in a text what must not be shown of it: `Secret.veil`, or that of its imprint.
Veil = Callable[[str, str], str]


class Clip:
    """The first bytes of a body, as they came.

    Args:
        limit: how many are kept.

    Attributes:
        size: how many there were.
        kept: how many of them are here.
    """

    __slots__ = ("_limit", "_parts", "kept", "size")

    def __init__(self, limit: int, data: bytes = b"") -> None:
        self._limit = limit
        self.size = len(data)
        self._parts: bytes | list[bytes] = data if self.size <= limit else data[:limit]
        self.kept = len(self._parts)

    def add(self, data: bytes) -> int:
        """Take some more; how many bytes were kept."""
        size = len(data)
        self.size += size
        room = self._limit - self.kept
        if room <= 0 or not size:
            return 0
        if size > room:
            data, size = data[:room], room
        if isinstance(self._parts, list):
            self._parts.append(bytes(data))
        else:
            self._parts = [self._parts, bytes(data)]
        self.kept += size
        return size + _PER_PART

    def uncover(self) -> bytes:
        """What is kept, raw."""
        return b"".join(self._parts) if isinstance(self._parts, list) else self._parts


_EMPTY = Clip(0)


class Attempt:
    """One sending, as it went; times are on the monotonic clock, 0 for what did not happen.

    Attributes:
        why, generation: as `Capture.attempt` has them.
        account: that it was completed with.
        veil: masks the token that it was completed with.
        sealed_head: as sent, without our pair; secret headers cut.
        began, sent, first_byte, ended: when.
        dialled: how its connection came about, if that was for it.
        status, reason: of the reply; 0 for none.
        sealed_headers: of the reply, one a line, secret ones cut.
        body: of the reply.
        error: code of ours that it ended with, or "".
        secretive: whether there are secret headers in the reply.
    """

    # What is the same for most stands in the class: setting it would be work for every request.
    sent = first_byte = ended = 0.0
    dialled: Dialled | None = None
    status = 0
    reason = sealed_headers = b""
    body = _EMPTY
    error = ""
    secretive = False

    def __init__(
        self,
        why: str,
        generation: int,
        account: str,
        veil: Veil,
        head: bytes,
        *,
        began: float,
    ) -> None:
        self.why = why
        self.generation = generation
        self.account = account
        self.veil = veil
        self.sealed_head = head
        self.began = began


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
        start: target and version.
        sealed: headers of the caller, cut.
        secretive: whether a secret one of those is sent on.

    Attributes:
        at: epoch seconds.
        sealed_start: target and version of the request line; empty if it could not be read.
        sealed_headers: of the caller, one a line, secret ones cut.
        request: the caller's body.
        read: when that had arrived whole.
        attempts: one after another.
        waits: for a token.
        sealed_given: the head the caller got, secret headers cut; with it a body of our own.
        replay_of: number of the exchange it repeats, or 0.
        cost: bytes it takes.
        charged: bytes of those that the ring knows of; the rest are heads, until it is over.
        change: grows whenever any recording changes.
        done: whether it is over.
        gone: whether it was forgotten, and keeps nothing any more.
        summary: what `exit.py` found out of it, once it is done.
    """

    # The same as for an attempt.
    sealed_given = b""
    request = _EMPTY
    read = 0.0
    attempts: tuple[Attempt, ...] = ()
    waits: tuple[Wait, ...] = ()
    replay_of = 0
    charged = 0
    change = 0
    done = gone = False
    summary: dict[str, object] | None = None

    def __init__(
        self,
        ring: "Ring",
        number: int,
        exchange: Exchange,
        *,
        start: str,
        sealed: bytes,
        secretive: bool,
    ) -> None:
        self._ring = ring
        self.number = number
        self.exchange = exchange
        self.at = ring.wall()
        self.sealed_start = start
        self.sealed_headers, self._secretive = sealed, secretive
        self.cost = _PER_EXCHANGE + len(start) + len(sealed)

    # -- what the handler tells; once it is forgotten, to nobody ------------------------------

    def body(self, parts: Iterable[bytes]) -> None:
        """The caller's body has arrived whole."""
        for part in () if self.gone else parts:
            if self.request is _EMPTY:
                self.request = Clip(self._ring.body_limit, bytes(part))
                self.cost += self.request.kept
            else:
                self.cost += self.request.add(part)
            if self.request.kept < self.request.size:
                break
        if self.request.kept < self.exchange.body_bytes and self.request is not _EMPTY:
            self.request.size = self.exchange.body_bytes
        self._ring.charge(self)
        self.read = self._ring.monotonic()

    def waiting(self) -> None:
        """A token is waited for."""
        self.waits = (*self.waits, Wait(self._ring.monotonic()))

    def waited(self) -> None:
        """The wait is over."""
        if not self.gone:
            self.waits[-1].ended = self._ring.monotonic()

    def attempt(
        self, head: RequestHead, *, account: str, token: Secret, generation: int, why: str
    ) -> RequestHead:
        """A request is about to be sent."""
        if not self.gone:
            sealed = self._ring.cutter.head(head.start) if self._secretive else head.start
            self.tried(sealed, account=account, veil=token.veil, generation=generation, why=why)
        return head

    def tried(self, sealed: bytes, *, account: str, veil: Veil, generation: int, why: str) -> None:
        """The same, its head cut."""
        if not self.gone:
            began = self._ring.monotonic()
            made = Attempt(why, generation, account, veil, sealed, began=began)
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
            sealed, secretive = self._ring.cutter.fields(headers)
            self.replied(status, reason=reason, sealed=sealed, secretive=secretive)

    def replied(
        self, status: int, *, reason: bytes, sealed: bytes, secretive: bool = False
    ) -> None:
        """The same, its headers cut; and, unless it is `secretive`, what the caller gets."""
        if not self.gone:
            attempt = self.attempts[-1]
            attempt.first_byte = attempt.ended = self._ring.monotonic()
            attempt.status, attempt.reason = status, reason
            attempt.sealed_headers, attempt.secretive = sealed, secretive
            self._grow(len(sealed))

    def part(self, data: bytes, *, beyond: int = 0) -> None:
        """Some of its body has passed; `beyond` further bytes are not here."""
        if not self.gone:
            attempt = self.attempts[-1]
            attempt.ended = self._ring.monotonic()
            if attempt.body is _EMPTY:
                attempt.body = Clip(self._ring.body_limit, data)
                self.cost += attempt.body.kept
            else:
                self.cost += attempt.body.add(data)
                self._ring.charge(self)
            attempt.body.size += beyond

    def failed(self, error: str) -> None:
        """The attempt, or its reply, came to a bad end."""
        if not self.gone and self.attempts:
            attempt = self.attempts[-1]
            attempt.error, attempt.ended = error, self._ring.monotonic()

    def reply(self, data: bytes) -> None:
        """What the caller gets."""
        if not self.gone:
            secretive = self.attempts and self.attempts[-1].secretive
            self.sealed_given = self._ring.cutter.head(data) if secretive else data
            self._grow(len(self.sealed_given))

    def end(self) -> None:
        """The exchange is over."""
        self.done = True
        if self.attempts and not self.attempts[-1].ended:  # nobody waited for it any more
            self.attempts[-1].ended = self._ring.monotonic()
        self._ring.charge(self)
        self._ring.changed(self)

    # -- what the ring does ----------------------------------------------------------------

    @property
    def unread(self) -> bool:
        """Whether a body was announced that never was read to its end."""
        lower = self.sealed_headers.lower()
        announced = b"\r\ntransfer-encoding: " in lower or (
            b"content-length: " in lower and b"content-length: 0\r\n" not in lower
        )
        return announced and not self.read

    @property
    def now(self) -> float:
        """The monotonic clock, for what is under way."""
        return self._ring.monotonic()

    def keep(self, summary: dict[str, object]) -> None:
        """Keep what was found out of it."""
        if not self.gone:
            self.summary = summary
            self.cost += sum(2 * len(one) for one in summary.values() if isinstance(one, str))
            self._ring.charge(self)

    def _grow(self, by: int) -> None:
        self.cost += by
        if by > _LARGE:
            self._ring.charge(self)

    def hollow(self) -> None:
        """Keep nothing but the row: what is here is not whole."""
        self.request, self.attempts, self.waits = _EMPTY, (), ()
        self.sealed_start = ""
        self.sealed_headers = self.sealed_given = b""
        self.cost = _PER_EXCHANGE

    def forget(self) -> None:
        """Keep nothing from now on."""
        self.gone = True
        self.hollow()


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
        oldest: the number of the oldest; the next one's if there is none.
        change: counts changes; a recording's own tells when it last did.
        era: grows when all are forgotten at once.
        cutter: cuts what is_secret.
    """

    budget: int
    body_limit: int
    is_secret: Callable[[bytes], bool]
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    used: int = 0
    oldest: int = 1
    change: int = 0
    era: int = 0
    cutter: Cutter = field(init=False)
    _replays: dict[str, int] = field(default_factory=dict)  # by the request id to come
    _count: int = 0
    _kept: dict[int, Recording] = field(default_factory=dict)  # by number, the oldest first
    _changed: dict[int, Recording] = field(default_factory=dict)  # the longest unchanged first

    def __post_init__(self) -> None:
        self.cutter = Cutter(self.is_secret)

    def watch(self, exchange: Exchange, start: str, headers: Headers) -> Recording:
        """Begin to record an exchange (`core.capture.Watch`)."""
        sealed, secretive = self.cutter.fields(headers)
        return self.begin(exchange, start, sealed=sealed, secretive=secretive)

    def begin(
        self, exchange: Exchange, start: str, *, sealed: bytes, secretive: bool = False
    ) -> Recording:
        """The same, its headers cut; and, unless it is `secretive`, the heads it is sent with."""
        self._count = number = self._count + 1
        recording = Recording(
            self, number, exchange, start=start, sealed=sealed, secretive=secretive
        )
        if self._replays:
            recording.replay_of = self._replays.pop(exchange.request_id, 0)
        self._kept[number] = recording
        if recording.cost > _PER_EXCHANGE + _LARGE:
            self.charge(recording)
        self.changed(recording)
        return recording

    def note(self, exchange: Exchange) -> None:
        """Take an exchange that ended before its head could be read."""
        self.watch(exchange, "", ()).end()

    def clear(self) -> None:
        """Forget all that is over."""
        for recording in list(self._kept.values()):
            if recording.done:
                self._drop(recording)
        self.oldest = next(iter(self._kept), self._count + 1)
        self.era += 1

    def get(self, number: int) -> Recording | None:
        """One of them, if it is still here."""
        return self._kept.get(number)

    def forgo(self, request_id: str) -> None:
        """It will not come."""
        self._replays.pop(request_id, None)

    def expect(self, request_id: str, *, replay_of: int) -> None:
        """The exchange with this id will be a repetition of another."""
        self._replays[request_id] = replay_of

    def find(self, request_id: str) -> Recording | None:
        """The newest with this request id."""
        newest = reversed(self._kept.values())
        return next((one for one in newest if one.exchange.request_id == request_id), None)

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

    def charge(self, recording: Recording) -> None:
        """A recording takes more: the oldest go until all fit."""
        if recording.gone:
            return
        self.used += recording.cost - recording.charged
        recording.charged = recording.cost
        while self.used > self.budget and self._kept:
            # By its number: finding the first of a dict passes all that were taken from it.
            oldest = self._kept.get(self.oldest)
            self.oldest += 1
            if oldest is not None:
                self._drop(oldest)

    def _drop(self, recording: Recording) -> None:
        del self._kept[recording.number]
        self._changed.pop(recording.number, None)
        self.used -= recording.charged
        recording.forget()
