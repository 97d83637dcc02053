"""The one way out of the ring: what is captured becomes what is shown, decoded and redacted.

Every page, event, file and line of a terminal is made from `Exit.show` or `Exit.row`.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from proxy.core.routes import family
from proxy.core.target import canonical_path
from proxy.errors import Outcome
from proxy.inspector.decode import decode
from proxy.inspector.looks import MASK
from proxy.inspector.redact import Redactor
from proxy.inspector.ring import Clip, Recording, Veil

# Bodies beyond it are not looked into for the list; what is shown in full is decoded off the loop.
_GLANCE = 64 * 1024
_LONGEST = 1000  # characters of a target in the list
_REFERENCE = 128  # characters of a reference in it; what is twice as long is none
REFERENCES = ("merchantTxRef", "orderReference", "idempotencyKey", "transactionRef", "reference")
_GOOD = frozenset({"00", "200", "201", ""})  # facts, section 4

State = Literal["pending", "ok", "in_flight", "failed", "unknown"]
Field = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Body:
    """A body as it may be shown.

    Attributes:
        size: bytes on the wire.
        kept: how many of them were captured.
        type: media type, without parameters.
        encoding: content codings.
        kind: how to read `text`; for `binary` there is `base64` instead.
        note: what is wrong or missing, or "".
    """

    size: int = 0
    kept: int = 0
    type: str = ""
    encoding: str = ""
    kind: Literal["none", "json", "form", "text", "binary"] = "none"
    text: str | None = None
    base64: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """A request or reply as it may be shown."""

    start: str
    headers: list[Field]
    body: Body

    def get(self, name: str) -> str:
        """The first value of a field; empty if there is none."""
        return next((value for key, value in self.headers if key.lower() == name), "")


@dataclass(frozen=True, slots=True)
class Sent:
    """One attempt as it may be shown; times are seconds on the monotonic clock."""

    why: str
    generation: int
    sent: bool
    reused: bool
    start: str
    headers: list[Field]
    reply: Message | None
    error: str


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time within an exchange: seconds from its beginning, and how long.

    Attributes:
        attempt: its number, or 0 for what belongs to none.
    """

    attempt: int
    name: str
    start: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Shown:
    """An exchange as it may be shown, with all of it."""

    row: dict[str, Any]
    request: Message | None
    attempts: list[Sent]
    reply: Message | None
    timeline: list[Span]


class Exit:
    """Shows recordings.

    Args:
        redactor: masks.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    @property
    def reveals(self) -> bool:
        """Whether nothing is masked."""
        return self._redactor.reveal

    def row(self, recording: Recording, *, keep: bool = True) -> dict[str, Any]:
        """An exchange as a line of the list.

        Args:
            recording: the exchange.
            keep: whether what is found out may be kept with it: on the event loop only.
        """
        exchange = recording.exchange
        summary = recording.summary
        if summary is None:
            try:
                summary = self._summary(recording)
            except Exception:  # noqa: BLE001 - one that cannot be shown must not hide the others
                summary = {"path": "", "family": "other", "description": "", "reference": ""}
                summary |= {"code": "", "detail": "the inspector cannot show this one"}
            if recording.done and keep:
                recording.keep(summary)
        done = recording.done
        row = {
            "id": recording.number,
            "request_id": self._redactor.text(exchange.request_id, loose=True),
            "at": _iso(recording.at),
            "method": exchange.method,
            "route": exchange.route,
            "kind": exchange.kind,
            "caller": exchange.caller,
            "upstream": exchange.upstream,
            "status": exchange.status if done else 0,
            "outcome": str(exchange.outcome),
            "attempts": exchange.attempts,
            "error": exchange.error,
            "detail": exchange.detail,
            "seconds": round(exchange.seconds, 6),
            "waited": round(exchange.waited, 6),
            "upstream_seconds": round(exchange.upstream_seconds, 6),
            "request_bytes": exchange.body_bytes,
            "reply_bytes": exchange.reply_bytes,
            "replay_of": recording.replay_of or None,
        }
        row |= summary
        if done and exchange.status == 499:  # the answer was somebody else's: nobody got it
            row |= {"error": row["error"] or "caller_left", "code": "", "description": ""}
            row["detail"] = row["detail"] or "the caller hung up before it had the whole reply"
        row["state"] = _state(row, done=done)
        return row

    def show(self, recording: Recording) -> Shown:
        """All of an exchange; takes its time, so not on the event loop."""
        row = self.row(recording, keep=False)
        veils = _veils(recording)
        request = None
        if recording.sealed_start:
            line = f"{recording.exchange.method} {recording.sealed_start}"
            request = self._message(
                line.encode("utf-8", "surrogateescape"),
                recording.sealed_headers,
                recording.request,
            )
            if recording.unread:
                request = replace(request, body=Body(note="the body had not been read"))
        attempts: list[Sent] = []
        for one in recording.attempts:
            reply = None
            if one.status:
                start_line = b"HTTP/1.1 %d %b" % (one.status, one.reason)
                reply = self._message(start_line, one.sealed_headers, one.body, veils)
            start, _, headers = one.sealed_head.partition(b"\r\n")
            shown = self._message(start, headers)
            shown.headers.append(("Authorization", MASK))
            shown.headers.append(("accountId", one.account))
            reused = one.sent > 0 and one.dialled is None
            attempts.append(
                Sent(
                    one.why,
                    one.generation,
                    one.sent > 0,
                    reused,
                    shown.start,
                    shown.headers,
                    reply,
                    one.error,
                )
            )
        given = None
        if recording.sealed_given:
            head, body = _given(recording)
            start, _, headers = head.partition(b"\r\n")
            given = self._message(start, headers, body, veils)
        return Shown(row, request, attempts, given, _timeline(recording))

    # -- the list -----------------------------------------------------------------------------

    def _summary(self, recording: Recording) -> dict[str, object]:
        """What has to be found out of heads and bodies, for the list."""
        line = recording.sealed_start.encode("utf-8", "surrogateescape")
        target = _text(line).rpartition(" ")[0]
        route = recording.exchange.route
        path = target.partition("?")[0] if route == "other" else route
        head, body = _given(recording)
        envelope = self._glance(body, head) if recording.done else {}
        sent = self._glance(recording.request, recording.sealed_headers) or {}
        reference = next((found for name in REFERENCES if (found := _reference(sent, name))), "")
        if len(reference) > 2 * _REFERENCE:
            reference = ""
        told = envelope.get("description") or envelope.get("message") or envelope.get("detail")
        redact, veils = self._redactor, _veils(recording)
        shown = _begins(target)
        if not redact.reveal:
            shown = redact.target(shown)
        return {
            **({"reply_bytes": body.size} if body.size else {}),
            "path": shown[:_LONGEST],
            "family": family(canonical_path(path.encode("utf-8"))) if path else "other",
            "code": _short(envelope.get("code"), redact, veils),
            "description": _short(told, redact, veils),
            "reference": redact.text(reference, loose=True)[:_REFERENCE],
        }

    def _glance(self, body: Clip, fields: bytes) -> dict[str, Any]:
        if not body.kept or body.kept < body.size or body.size > _GLANCE:
            return {}
        headers = _fields(fields)
        try:
            read = decode(
                body.uncover(),
                media=_of(headers, "content-type"),
                codings=_of(headers, "content-encoding"),
                most=_GLANCE,
            )
            found = orjson.loads(read.text or "")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    # -- one message --------------------------------------------------------------------------

    def _message(
        self,
        start: bytes,
        fields: bytes,
        clip: Clip | None = None,
        veils: Iterable[Veil] = (),
    ) -> Message:
        redact = self._redactor
        headers = [(name, _veil(value, veils)) for name, value in _fields(fields)]
        first, space, rest = _veil(_text(start), veils).partition(" ")
        if first.startswith("HTTP/"):
            line = first + space + redact.text(rest, loose=True)
        else:
            target, space_too, version = rest.rpartition(" ")
            line = first + space + redact.target(target) + space_too + version
        shown = [(name, redact.value(name, value)) for name, value in headers]
        body = Body() if clip is None else self._body(clip, headers, veils)
        return Message(line, shown, body)

    def _body(self, clip: Clip, headers: Iterable[Field], veils: Iterable[Veil]) -> Body:
        media, codings = _of(headers, "content-type"), _of(headers, "content-encoding")
        # Names of types and codings are the sender's words: nothing of theirs is shown unread.
        kind_of = self._redactor.text(media.partition(";")[0].strip()[:100])
        coded = self._redactor.text(codings[:100])
        if not clip.size:
            return Body(type=kind_of, encoding=coded)
        read = decode(clip.uncover(), media=media, codings=codings)
        notes = [f"it {read.note}"] if read.note else []
        if clip.kept < clip.size:
            notes = [f"only the first {clip.kept} of {clip.size} bytes were kept"]
        kind, data = _kind(read.text, media), None
        text = None if read.text is None else _veil(read.text, veils)
        redact = self._redactor
        if text is None:
            loose = _veil(read.data.decode("latin-1"), veils)
            masked = redact.text(loose).replace(MASK, "***").encode("latin-1", "replace")
            data = base64.b64encode(masked).decode() if read.data else None
        elif kind == "json":
            text = redact.json(text)
        else:
            text = redact.form(text) if kind == "form" else redact.text(text)
        return Body(clip.size, clip.kept, kind_of, coded, kind, text, data, "; ".join(notes))


def _given(recording: Recording) -> tuple[bytes, Clip]:
    """Head and body of what the caller got: a body of ours is with its head."""
    head, _, own = recording.sealed_given.partition(b"\r\n\r\n")
    if own or not recording.attempts:
        return head, Clip(len(own), own)
    return head, recording.attempts[-1].body


def _kind(text: str | None, media: str) -> Literal["json", "form", "text", "binary"]:
    if text is None:
        return "binary"
    if "x-www-form-urlencoded" in media.lower():
        # Many send JSON and say nothing of it: curl -d does.
        return "json" if text.lstrip()[:1] in {"{", "["} else "form"
    return "json" if "json" in media.lower() or text.lstrip()[:1] in {"{", "["} else "text"


def _state(row: dict[str, Any], *, done: bool) -> State:
    """What became of an exchange, as one looks at it (facts, section 4)."""
    if not done:
        return "pending"
    if row["outcome"] == Outcome.UNKNOWN and row["kind"] != "read":
        return "unknown"
    if row["status"] >= 400 or row["status"] == 0 or row["code"] not in _GOOD:
        return "failed"
    return "in_flight" if row["status"] == 201 or row["code"] == "201" else "ok"


def _timeline(recording: Recording) -> list[Span]:
    """Where the time went."""
    zero = recording.exchange.started
    spans: list[Span] = []

    def span(attempt: int, name: str, start: float, end: float) -> None:
        if start and end >= start:
            spans.append(Span(attempt, name, round(start - zero, 6), round(end - start, 6)))

    if recording.read:
        span(0, "read request", zero, recording.read)
    now = 0.0 if recording.done else recording.now
    for at, wait in enumerate(recording.waits):
        renewal = any(one.began < wait.began for one in recording.attempts)
        name = "renewal" if renewal or at else "wait for token"
        span(0, name, wait.began, wait.ended or now)
    for number, one in enumerate(recording.attempts, 1):
        ready, dialled = one.began, one.dialled
        if dialled is not None:
            span(number, "queue", one.began, dialled.began)
            span(number, "connect", dialled.began, dialled.reached)
            if dialled.ready > dialled.reached:
                span(number, "TLS", dialled.reached, dialled.ready)
            ready = dialled.ready
        elif one.sent - one.began > 0.001:
            span(number, "queue", one.began, one.sent)
        sent = one.sent or ready
        if one.first_byte:
            span(number, "first byte", sent, one.first_byte)
            # A reply that another one took the place of was let go of after the wait for that.
            later = (wait.began for wait in recording.waits if wait.began >= one.first_byte)
            span(number, "body", one.first_byte, min([one.ended, *later]))
        elif one.ended or now:
            what = "no reply" if one.sent else "no connection"
            span(number, what if one.ended else "under way", sent, one.ended or now)
    return sorted(spans, key=lambda one: one.start)


def _reference(sent: dict[str, Any], name: str) -> str:
    found = sent.get(name)
    if found is None and isinstance(order := sent.get("order"), dict):
        found = order.get(name)
    return found if isinstance(found, str) else ""


def _begins(target: str) -> str:
    """As much of a target as is gone through for the list, on the loop; what is there is whole."""
    if len(target) <= _LONGEST:
        return target
    cut = target[:_LONGEST]
    return cut[: 1 + max(map(cut.rfind, "/?&"))]


def _short(value: object, redact: Redactor, veils: Iterable[Veil]) -> str:
    if value is None or isinstance(value, bool | dict | list):
        return ""
    return redact.text(_veil(str(value)[:2000], veils)[:300])[:200]


def _veils(recording: Recording) -> list[Veil]:
    """Of our own tokens, which an upstream may repeat."""
    return [one.veil for one in recording.attempts]


def _veil(text: str, veils: Iterable[Veil]) -> str:
    for veil in veils:
        text = veil(text, MASK)
    return text


def _fields(lines: bytes) -> list[Field]:
    found = []
    for line in lines.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon:
            found.append((_text(name), _text(value).strip()))
    return found


def _of(headers: Iterable[Field], name: str) -> str:
    return ", ".join(value for key, value in headers if key.lower() == name)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _iso(epoch: float) -> str:
    moment = datetime.fromtimestamp(epoch, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")
