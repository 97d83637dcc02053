"""Misbehaviour on demand: the kinds of fault, and how they are asked for.

A fault is asked for by its name and options, as text (settings, command line) or as an
object (control API):

    lose-reply path=/v2/transfers/* times=2
    {"fault": "lose-reply", "path": "/v2/transfers/*", "times": 2}
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from proxy.simulator.messages import Headers, Reply, phrase, reply_json

Then = Literal["close", "reset", "stall"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How a reply goes out on the wire.

    Attributes:
        cut: send this many bytes of it only; None for all.
        then: what follows a cut: `close`, `reset`, or `stall` (nothing, until the sender leaves).
        pause: seconds to wait before each byte after the first.
        behind: bytes right behind the reply, in the same write.
        later: seconds after the reply until it is sent a second time, unasked.
        raw: these bytes instead of the reply, then `then`.
    """

    cut: int | None = None
    then: Then = "close"
    pause: float = 0.0
    behind: bytes = b""
    later: float | None = None
    raw: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a request gets instead of an honest answer.

    Attributes:
        name: its kind.
        path: pattern of the path without query; `*` stands for any characters.
        method: which requests; `*` for all.
        times: how often; None for always.
        probability: of each request that matches, 0 to 1.
        work: whether the request is carried out, before anything else happens.
        reply: given instead of the real reply; None keeps that.
        session: what happens to all tokens as the request comes: `expire`, `revoke` or nothing.
        drop: reset the connection: when it is opened (`accept`), once the head is read
            (`before`), in the middle of the body (`during`), once all is read (`after`).
        delay: seconds to wait before the answer (and before the work, unless `work`).
        stall: never answer.
        delivery: how the reply goes out; None for plainly.
    """

    name: str
    path: str = "*"
    method: str = "*"
    times: int | None = 1
    probability: float = 1.0
    work: bool = False
    reply: Reply | None = None
    session: Literal["", "expire", "revoke"] = ""
    drop: Literal["", "accept", "before", "during", "after"] = ""
    delay: float = 0.0
    stall: bool = False
    delivery: Delivery | None = None

    def matches(self, method: str, path: str) -> bool:
        """Whether it is meant for a request."""
        return self.method in {"*", method} and fits(path, pattern=self.path)


def fits(path: str, *, pattern: str) -> bool:
    """Whether a path fits a pattern, whose stars stand for any characters."""
    first, *middle = pattern.split("*")
    if not middle:
        return path == first
    last = middle.pop()
    if not path.startswith(first) or not path.endswith(last):
        return False
    at, end = len(first), len(path) - len(last)
    for part in middle:  # the leftmost place is as good as any
        at = path.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return at <= end


def reply_with(
    status: int, *, body: bytes | Mapping[str, object] | None = None, headers: Headers = ()
) -> Reply:
    """A scripted reply: a mapping is sent as JSON; None is the status in an envelope."""
    if isinstance(body, bytes):
        return Reply(status=status, body=body, headers=headers)
    if body is None:
        body = {"code": str(status), "description": phrase(status)}
    return reply_json(status, content=dict(body), headers=headers)


_HTML = (
    b"<!DOCTYPE html><html><head><title>Access denied</title></head>"
    b"<body><h1>Error 1020</h1><p>Access denied</p></body></html>"
)
_EXPIRED = "Internal Server Error: INTERNAL: JWT expired at 2026-07-07T23:10:48Z."
_GARBAGE = b"\x16\x03\x01\x02\x00 no HTTP at all\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    Attributes:
        about: one line for people.
        build: the fields of `Fault` for given options.
        options: its own options with their defaults, beside those that all kinds have.
    """

    about: str
    build: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


def _fixed(**fields: Any) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    return lambda _: fields


def _scripted(options: Mapping[str, Any]) -> Mapping[str, Any]:
    body = options["body"] or None
    if isinstance(body, str):
        body = body.encode()
    headers = (("Content-Type", options["content_type"]),) if options["content_type"] else ()
    reply = reply_with(options["status"], body=body, headers=headers)
    return {"reply": reply, "work": options["work"]}


KINDS: Mapping[str, Kind] = {
    "expire": Kind("every token expires as the request comes", _fixed(session="expire")),
    "revoke": Kind("every token is revoked as the request comes", _fixed(session="revoke")),
    "unauthorized": Kind("HTTP 401, nothing done", _fixed(reply=reply_with(401))),
    "debit-then-expired": Kind(
        "the work is done, then HTTP 500 says 'JWT expired'",
        _fixed(work=True, reply=reply_with(500, body={"detail": _EXPIRED})),
    ),
    "lose-reply": Kind(
        "the work is done, then the connection is reset", _fixed(work=True, drop="after")
    ),
    "forbidden": Kind(
        "HTTP 403 with an HTML page, as an edge sends it",
        _fixed(reply=reply_with(403, body=_HTML, headers=(("Content-Type", "text/html"),))),
    ),
    "too-many-requests": Kind(
        "HTTP 429",
        _fixed(reply=reply_with(429, body={"code": "429", "description": "Too many requests"})),
    ),
    "reply": Kind(
        "a reply of your own",
        _scripted,
        {"status": 200, "body": "", "content_type": "", "work": False},
    ),
    "delay": Kind(
        "wait, then answer",
        lambda o: {"delay": o["seconds"], "work": o["work"]},
        {"seconds": 1.0, "work": False},
    ),
    "stall": Kind("never answer", lambda o: {"stall": True, "work": o["work"]}, {"work": False}),
    "drop-connection": Kind(
        "reset the next connection as it is opened (any path)", _fixed(drop="accept")
    ),
    "drop-before": Kind("reset once the head is read, before the body", _fixed(drop="before")),
    "drop-during": Kind("reset in the middle of the body", _fixed(drop="during")),
    "drop-after": Kind("reset once all is read, nothing done", _fixed(drop="after")),
    "cut": Kind(
        "do the work, send the first bytes of the reply; then=close, reset or stall",
        lambda o: {"work": True, "delivery": Delivery(cut=o["bytes"], then=o["then"])},
        {"bytes": 120, "then": "close"},
    ),
    "garbage": Kind(
        "do the work, answer something that is no HTTP",
        _fixed(work=True, delivery=Delivery(raw=_GARBAGE)),
    ),
    "stray-byte": Kind(
        "do the work, answer, with one more byte behind the reply",
        _fixed(work=True, delivery=Delivery(behind=b"x")),
    ),
    "unsolicited": Kind(
        "do the work, answer, and send the reply once more on the idle connection",
        lambda o: {"work": True, "delivery": Delivery(later=o["seconds"])},
        {"seconds": 0.05},
    ),
    "slow-bytes": Kind(
        "do the work, answer byte by byte",
        lambda o: {"work": True, "delivery": Delivery(pause=o["seconds"])},
        {"seconds": 0.01},
    ),
}

_COMMON: Mapping[str, Any] = {"path": "*", "method": "*", "times": 1, "probability": 1.0}
_THEN = ("close", "reset", "stall")
_RANGES = {
    "times": (1, 1_000_000_000, "always or a whole number"),
    "probability": (0, 1, "a number"),
    "seconds": (0, 3600, "a number of seconds"),
    "status": (200, 999, "a final HTTP status,"),
    "bytes": (0, 1_000_000_000, "a whole number"),
}
_FIELD = re.compile(r"[\x20-\x7e]*")


def make_fault(name: str, options: Mapping[str, Any]) -> Fault:
    """A fault from its name and options.

    Args:
        name: one of `KINDS`.
        options: the kind's own, and path, method, times (a number or "always") and
            probability, which makes times "always" unless it is given.

    Raises:
        ValueError: something does not fit; the text says what is expected.
    """
    kind = KINDS.get(name)
    if kind is None:
        raise ValueError(f"{name!r} is no fault; there are: {', '.join(KINDS)}")
    known = {**_COMMON, **kind.options}
    for key in options:
        if key not in known:
            raise ValueError(f"{name} has no option {key!r}; it has: {', '.join(known)}")
    filled = {
        key: _option(key, options.get(key, default), like=default) for key, default in known.items()
    }
    if filled.get("then", "close") not in _THEN:
        raise ValueError(f"then must be one of {', '.join(_THEN)}")
    if not _FIELD.fullmatch(filled.get("content_type", "")):
        raise ValueError("content_type must be visible ASCII")
    if filled["path"][:1] not in {"/", "*"} or "?" in filled["path"]:
        raise ValueError("path must begin with / or *, and has no query")
    if not filled["method"].isalpha() and filled["method"] != "*":
        raise ValueError("method must be an HTTP method or *")
    times = filled["times"]
    if times == "always" or ("times" not in options and filled["probability"] < 1):
        times = None
    if name == "drop-connection" and (filled["path"], filled["method"]) != ("*", "*"):
        raise ValueError("drop-connection knows no path and no method: nothing is read yet")
    return Fault(
        name=name,
        path=filled["path"],
        method=filled["method"].upper(),
        times=times,
        probability=filled["probability"],
        **kind.build(filled),
    )


def parse_fault(text: str) -> Fault:
    """A fault from `NAME key=value …`, quoted as in a shell.

    Raises:
        ValueError: as `make_fault`.
    """
    name, *pairs = shlex.split(text) or [""]
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} is no key=value")
        options[key] = value
    body = options.get("body", "")
    if body.startswith(("{", "[")) and not _is_json(body):
        raise ValueError('body begins like JSON and is none; quote it: body=\'{"code": "00"}\'')
    return make_fault(name, options)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _option(key: str, value: Any, *, like: Any) -> Any:
    """A value in its default's type, from text too."""
    if key == "times" and value == "always":
        return value
    if key == "body" and isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"))
    if isinstance(like, bool):
        if value in (True, False, "true", "false"):
            return value in (True, "true")
        raise ValueError(f"{key} must be true or false")
    if isinstance(like, str):
        if not isinstance(value, str) or not _encodable(value):
            raise ValueError(f"{key} must be a text" + " or JSON" * (key == "body"))
        return value
    least, most, what = _RANGES[key]
    try:
        fitted = type(like)(value)
    except (TypeError, ValueError, OverflowError):
        fitted = -1
    # A whole number may be written 2 or "2", not 2.5.
    exact = isinstance(value, str) or fitted == value
    if isinstance(value, bool) or not exact or not least <= fitted <= most:
        raise ValueError(f"{key} must be {what} from {least} to {most}") from None
    return fitted


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
