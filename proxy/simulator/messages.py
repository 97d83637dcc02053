"""A request as it came and a reply to give: the values the other modules pass around."""

import json
from dataclasses import dataclass
from http import HTTPStatus

_DEEPEST = 32
Headers = tuple[tuple[str, str], ...]


@dataclass(slots=True, kw_only=True)
class Received:
    """One request whose head arrived completely.

    Attributes:
        method: as sent, upper case for every documented call.
        target: the request target exactly as sent, query included.
        raw_head: the bytes from the request line to the blank line, inclusive.
        headers: names and values in order, names in the sender's case.
        connection: number of the connection it came on, counted from 1.
        number: its place among all requests, counted from 1.
        body: the body with chunk framing removed; empty until `whole`.
        whole: whether the body has arrived completely too.
        keep_alive: whether the sender lets the connection carry another request.
        status: HTTP status of the answer it got; None while, or if, it got none.
    """

    method: str
    target: bytes
    raw_head: bytes
    headers: Headers
    connection: int
    number: int = 0
    body: bytes = b""
    whole: bool = False
    keep_alive: bool = False
    status: int | None = None

    @property
    def path(self) -> str:
        """The target without its query, not decoded."""
        return self.target.partition(b"?")[0].decode("latin-1")

    @property
    def query(self) -> str:
        """The target's query without the question mark, not decoded."""
        return self.target.partition(b"?")[2].decode("latin-1")

    @property
    def bearer(self) -> str | None:
        """The token of the one `Authorization: Bearer` header, else None."""
        scheme, _, token = (self.header("Authorization") or "").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    def has(self, name: str) -> bool:
        """Whether a header was sent at all."""
        return any(key.lower() == name.lower() for key, _ in self.headers)

    def header(self, name: str) -> str | None:
        """The value of a header that was sent exactly once, else None.

        A repeated `Authorization` or `accountId` is as bad as none, so that a
        sender who adds one instead of replacing it is found out.
        """
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return values[0] if len(values) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply to give; the wire adds the headers every reply has unless named here."""

    status: int
    body: bytes = b""
    headers: Headers = ()


def phrase(status: int) -> str:
    """The reason phrase of a status, empty for an unregistered one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def reply_json(status: int, *, content: object, headers: Headers = ()) -> Reply:
    """A reply with a JSON body."""
    return Reply(
        status=status, body=json.dumps(content, separators=(",", ":")).encode(), headers=headers
    )


def failure(status: int, *, description: str) -> Reply:
    """An HTTP error in Nomba's envelope, whose code repeats the status (D)."""
    return reply_json(status, content={"code": str(status), "description": description})


class Fraction(str):
    """A JSON number with a fraction or an exponent, kept as its text."""

    __slots__ = ()


def json_object(body: bytes) -> dict[str, object] | None:
    """The JSON object in a body, numbers with a fraction kept as their text; else None."""
    try:
        content = json.loads(body, parse_float=Fraction, parse_constant=Fraction)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and _is_flat(content, depth=_DEEPEST) else None


def _is_flat(content: object, *, depth: int) -> bool:
    """Whether nothing is nested deeper than `depth`: what is kept has to be told again."""
    if not isinstance(content, dict | list):
        return True
    inner = content.values() if isinstance(content, dict) else content
    return depth > 0 and all(_is_flat(one, depth=depth - 1) for one in inner)
