"""Send an exchange once more, as it was or edited, through the proxy's own front door.

What is sent comes from the raw bytes here, so nothing has to leave for it. Two guards stand on
this side of the wire: what still holds a mask is not sent, and a request that moves real money
only once its reference has been typed anew.
"""

import asyncio
import html
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import orjson

from proxy.core.caller import ANONYMOUS
from proxy.core.ids import new_request_id
from proxy.errors import ProxyError
from proxy.inspector.exit import REFERENCES
from proxy.inspector.looks import MASK
from proxy.inspector.ring import Recording, Ring

_MASKED = re.compile(r"•\s?•")
_ESCAPED = re.compile(r"\\u2022", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_METHOD = re.compile(r"[A-Z]{1,16}")
_TARGET = re.compile(r"[\x21-\x7e]{1,8192}")
_CHARSET = re.compile(r"charset\s*=\s*\"?[\w.:-]+\"?", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# The connection's, or who calls: both are the replay's own. A page's origin is nobody's here.
_OWN = frozenset(
    {
        *("host", "connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"),
        *("transfer-encoding", "content-length", "expect", "http2-settings", "cookie"),
        *("authorization", "proxy-authorization", "x-nomba-proxy-key", "x-request-id", "via"),
        *("origin", "referer"),
    }
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHO = (b"authorization", b"proxy-authorization", b"x-nomba-proxy-key")
_UNTOLD = 25  # looks for a repetition that another process tells of, until it is given up
_KEPT = ("method", "target", "headers", "body", "confirm")


class ReplayRefused(Exception):
    """It is not sent.

    Attributes:
        status: of the answer.
        hint: what to do.
        confirm: name of the reference that has to be typed, or "".
    """

    def __init__(self, text: str, *, status: int, hint: str = "", confirm: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.hint = hint
        self.confirm = confirm


@dataclass(frozen=True, slots=True)
class Preview:
    """What a request would be.

    Attributes:
        upstream: the name of where it would go.
        kind: `read`, `write`, `money` or `login`.
        simulated: whether no real money is there.
    """

    upstream: str
    kind: str
    simulated: bool


@dataclass(frozen=True, slots=True)
class Door:
    """The proxy's own traffic listener.

    Attributes:
        authority: `host:port` that it is called by.
        preview: what a request would be there; raises `ProxyError` if it would be refused.
        send: sends a head and a body there and hears the reply out.
        ticket: a token that a caller of this name is known by at an upstream; "" for none.
    """

    authority: str
    preview: Callable[[str, bytes], Preview]
    send: Callable[[bytes, bytes, bool], Awaitable[None]]
    ticket: Callable[[str, str], str]


class Replayer:
    """Replays.

    Args:
        ring: what is replayed, and where its repetition turns up.
        door: where it is sent.
    """

    def __init__(self, ring: Ring, door: Door) -> None:
        self._ring = ring
        self._door = door

    def outlook(self, recording: Recording) -> dict[str, Any]:
        """Whether it can be replayed as it was, and what has to be typed for it."""
        try:
            method, target, _, body = self._read(recording, {})
            preview = self._preview(method, target)
            self._ticket(recording, preview.upstream)
        except ReplayRefused as refused:
            return {"possible": False, "why": str(refused), "confirm": ""}
        confirm = "" if not _dangerous(preview) else _reference(body, recording)[0]
        return {"possible": True, "why": "", "confirm": confirm}

    async def replay(self, recording: Recording, edits: dict[str, Any]) -> Recording:
        """Send it; the exchange that came of it.

        Args:
            recording: the original.
            edits: `method`, `target`, `headers` (pairs) and `body` take the place of what was
                sent; `confirm` is what was typed.

        Raises:
            ReplayRefused: it is not sent.
        """
        method, target, headers, body = self._read(recording, edits)
        preview = self._preview(method, target)
        if _dangerous(preview):
            name, value = _reference(body, recording)
            if edits.get("confirm", "") != value:
                raise ReplayRefused(
                    f"This may move real money: type its {name} to send it.",
                    status=409,
                    hint="It is the one in the body that would be sent; against the simulator nothing has to be typed.",
                    confirm=name,
                )
        request_id = new_request_id()
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._door.authority}"]
        lines += [f"{name}: {value}" for name, value in headers]
        ticket = self._ticket(recording, preview.upstream)
        if ticket:
            lines.append(f"Authorization: Bearer {ticket}")
        lines.append(f"X-Request-Id: {request_id}")
        if body or method not in {"GET", "HEAD", "OPTIONS"}:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"
        self._ring.expect(request_id, replay_of=recording.number)
        failed: ProxyError | None = None
        try:
            await self._door.send(head, body, method == "HEAD")
        except ProxyError as error:
            failed = error
        for at in range(200):  # its reply is written before it is over, and before it is told of
            found = self._ring.find(request_id)
            if (found is None and at >= _UNTOLD) or (found is not None and found.done):
                break
            await asyncio.sleep(0.01)
        self._ring.forgo(request_id)
        if found is None and failed is not None:
            raise ReplayRefused(failed.description, status=502, hint=failed.hint)
        if found is None:
            raise ReplayRefused(
                "It was sent, and is not in the list: its head was refused, or it has gone already.",
                status=410,
                hint="Look for malformed requests at the top of the list.",
            )
        return found

    def _ticket(self, recording: Recording, upstream: str) -> str:
        """What says that the original's caller calls; empty where nobody had to say anything."""
        caller = recording.exchange.caller
        ticket = self._door.ticket(caller, upstream)
        if ticket or caller == ANONYMOUS:
            return ticket
        lower = recording.sealed_headers.lower()
        if caller == "-" and not any(b"%b: " % name in lower for name in _WHO):
            return ""
        raise ReplayRefused(
            "Nobody knows who called: the key was never kept."
            if caller == "-"
            else f"Caller {caller} has no key that it could be sent with, or is not here any more.",
            status=409,
            hint="Copy the request and send it with a key.",
        )

    def _preview(self, method: str, target: str) -> Preview:
        try:
            return self._door.preview(method, target.encode())
        except ProxyError as error:
            raise ReplayRefused(error.description, status=422, hint=error.hint) from None

    def _read(
        self, recording: Recording, edits: dict[str, Any]
    ) -> tuple[str, str, list[tuple[str, str]], bytes]:
        """What would be sent: method, target, fields, body."""
        if not recording.sealed_start:
            raise ReplayRefused("The request could not be read.", status=409)
        if not recording.done:
            raise ReplayRefused("It is still under way.", status=409)
        _check(edits)
        method = edits.get("method", recording.exchange.method)
        target = edits.get("target", recording.sealed_start.rpartition(" ")[0])
        if not _METHOD.fullmatch(method):
            raise ReplayRefused("A method is a word in upper-case letters.", status=422)
        if not _TARGET.fullmatch(target):
            raise ReplayRefused(
                "The target holds a space or something else that has to be encoded.",
                status=422,
                hint="Write it with percent signs, as in /v1/x?name=a%20b",
            )
        if "headers" in edits:
            pairs = [(name, value) for name, value in edits["headers"]]
        else:
            lines = recording.sealed_headers.decode("utf-8", "surrogateescape").split("\r\n")
            pairs = [(one[0], one[2].strip()) for line in lines if (one := line.partition(":"))[1]]
            pairs = [(name, value) for name, value in pairs if value != MASK]
        headers = [pair for pair in pairs if not _is_own(pair[0])]
        if "body" in edits:
            body = edits["body"].encode("utf-8", "surrogatepass")
            return method, target, as_text(headers), body
        clip = recording.request
        if recording.unread:
            raise ReplayRefused("Its body had not been read.", status=409, hint="Edit the body.")
        if clip.kept < clip.size:
            raise ReplayRefused(
                f"Only the first {clip.kept} of {clip.size} bytes of the body were kept.",
                status=409,
                hint="Raise inspector.body_limit, or edit the body.",
            )
        return method, target, headers, clip.uncover()


def as_text(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Fields for a body that is sent as text: in no content coding, in UTF-8."""
    return [
        (name, _CHARSET.sub("charset=utf-8", value) if name.lower() == "content-type" else value)
        for name, value in headers
        if name.lower() != "content-encoding"
    ]


def left_out(recording: Recording) -> list[str]:
    """Names of the fields that a replay goes without: secret ones, which were never kept."""
    lines = recording.sealed_headers.decode("utf-8", "surrogateescape").split("\r\n")
    pairs = (one.partition(": ") for one in lines)
    return [name for name, _, value in pairs if value == MASK and not _is_own(name)]


def _check(edits: dict[str, Any]) -> None:
    """Refuse what cannot be sent as it was typed."""
    unknown = sorted(set(edits) - set(_KEPT))
    texts = [edits[name] for name in _KEPT if name in edits and name != "headers"]
    pairs = edits.get("headers", [])
    sound = isinstance(pairs, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(one, str) for one in pair)
        and _NAME.fullmatch(pair[0])
        and not _CONTROL.search(pair[1])
        and not _SURROGATE.search(pair[1])
        for pair in pairs
    )
    if unknown or not sound or not all(isinstance(one, str) for one in texts):
        raise ReplayRefused(
            "The edits are not understood.",
            status=422,
            hint="method, target, body and confirm are texts, headers are pairs of name and value.",
        )
    for name, text in _typed(edits):
        plain = html.unescape(_ESCAPED.sub("•", unquote(unquote(text))))
        if _MASKED.search(plain):
            raise ReplayRefused(
                f"The {name} still holds a mask ({MASK}): nothing was sent.",
                status=422,
                hint="Type what is to stand there; what is not edited is sent as it was.",
            )


def _typed(edits: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for name in ("target", "body"):
        if name in edits:
            yield name, edits[name]
    for name, value in edits.get("headers", []):
        yield f"header {name}", value


def _is_own(name: str) -> bool:
    lower = name.lower()
    return lower in _OWN or lower.startswith("sec-")


def _dangerous(preview: Preview) -> bool:
    return preview.kind == "money" and not preview.simulated


def _reference(body: bytes, recording: Recording) -> tuple[str, str]:
    """What names a request for people: its reference, else the id of the exchange."""
    try:
        fields = orjson.loads(body)
    except ValueError:
        fields = None
    if isinstance(fields, dict):
        order = fields.get("order")
        for holder in (fields, order if isinstance(order, dict) else {}):
            for name in REFERENCES:
                if isinstance(value := holder.get(name), str | int) and value:
                    return name, str(value)
    return "request id", recording.exchange.request_id
