"""Is a reply an auth refusal, and may the request be sent once more?

| the upstream says                                           | renew | replay     |
| ----------------------------------------------------------- | ----- | ---------- |
| HTTP 401                                                     | yes   | any method |
| HTTP 500 or 400 whose envelope text says "JWT expired"       | yes   | reads only |
| HTTP 200 with envelope code 401, or 01/02 with a token text  | yes   | reads only |
| anything else                                                | no    | no         |

A 401 is Nomba's documented answer to an expired or invalid token and comes before any
work. The others were observed or documented too (facts, section 1), but an error from
inside does not prove that no money moved: those are replayed only where nothing can.
The match is anchored to fields of the envelope, never a substring of the body.

| an attempt ends without a reply                              | resend, over a fresh connection |
| ------------------------------------------------------------ | ------------------------------- |
| not a byte was written, and not for want of time             | any method                      |
| a used connection ends without a byte of a reply             | GET, HEAD, OPTIONS              |
| anything else                                                | no                              |

An exchange is replayed once and resent once at most.
"""

import re
import zlib
from collections.abc import Callable
from enum import Enum, auto

import brotli
import orjson
import zstandard

from proxy.core.routes import READ_METHODS, Kind
from proxy.errors import Outcome

PEEK_LIMIT = 16 * 1024
_PEEKED = frozenset({200, 400, 500})
# Begins the envelope of a success (facts, section 1), in the two ways that JSON is written.
_DONE = (b'{"code":"00"', b'{"code": "00"')
# Codes that Nomba's envelopes were seen with or are documented to have (facts, sections 1 to 4).
CODES = frozenset(
    {
        *("00", "01", "02", "200", "201", "400", "401", "403", "404", "409", "422", "429"),
        *("500", "502", "503", "504"),
    }
)
_SUCCESSES = frozenset({"", "00", "200", "201"})  # a failure can be HTTP 200 (facts, section 4)
# `02` is a validation error too, so the text must say what is wrong with a token. In each line only
# the first word is gone on from: from every one of them, a text full of them would hold up everybody.
_TOKEN_TEXT = re.compile(
    r"^(?>.*?\b(?:token|jwt)\b).*\b(?:expired|invalid|revoked)\b"
    r"|^(?>.*?\b(?:expired|invalid|revoked)\b).*\b(?:token|jwt|credentials)\b"
    r"|\bre-?authenticate\b|\bunauthori[sz]ed\b",
    re.IGNORECASE | re.MULTILINE,
)
_JWT_EXPIRED = re.compile(r"\bJWT expired\b", re.IGNORECASE)


class Verdict(Enum):
    """What a reply says of the token it was asked with."""

    ANSWER = auto()
    REFUSAL = auto()  # proves that nothing was done
    REFUSAL_UNPROVEN = auto()  # the token is dead, but something may have been done


_ANSWER = Verdict.ANSWER  # Python 3.11 looks a member up by its name every time
_PLAIN, _SUCCESS, _REFUSED = (_ANSWER, ""), (_ANSWER, "00"), (Verdict.REFUSAL, "")


def needs_body(status: int, *, media: bytes, length: int | None) -> bool:
    """Whether the verdict on a reply depends on the beginning of its body.

    Only then is a reply held back before it is passed on: JSON replies with status
    200, 400 or 500. A 200 known to be larger than `PEEK_LIMIT` is not looked into.

    Args:
        status: HTTP status.
        media: value of `Content-Type`, empty for none.
        length: value of `Content-Length`, None for none.
    """
    if status not in _PEEKED or (status == 200 and length is not None and length > PEEK_LIMIT):
        return False
    if media == b"application/json":
        return True
    media = media.partition(b";")[0].strip().lower()
    return media == b"application/json" or media.endswith(b"+json")


def judge(status: int, *, coding: bytes, body: bytes, complete: bool) -> tuple[Verdict, str]:
    """The verdict on a reply, and the code of its envelope: one of `CODES`, `other`, or "".

    Args:
        status: HTTP status.
        coding: value of `Content-Encoding`, empty for none.
        body: the first bytes of the body as they came, at most `PEEK_LIMIT`; none if the
            verdict does not depend on it (`needs_body`).
        complete: whether `body` is the whole body.
    """
    if status == 401:
        return _REFUSED
    if status not in _PEEKED or not body or not complete:
        return _PLAIN
    if status == 200 and body.startswith(_DONE):  # as nearly all begin; the rest can be long
        return _SUCCESS
    decode = _DECODERS.get(coding.strip().lower())
    if decode is None:
        return _PLAIN
    try:
        envelope = orjson.loads(decode(body))
    except (ValueError, zlib.error, brotli.error, zstandard.ZstdError):
        return _PLAIN
    if not isinstance(envelope, dict):
        return _PLAIN
    code = envelope.get("code")
    code = str(code) if isinstance(code, str | int) else ""  # others may be too deep to say
    if status != 200:
        refused = _says(envelope, _JWT_EXPIRED)
    else:
        refused = code == "401" or (code in {"01", "02"} and _says(envelope, _TOKEN_TEXT))
    if code and code not in CODES:
        code = "other"
    return Verdict.REFUSAL_UNPROVEN if refused else _ANSWER, code


def _says(envelope: dict[str, object], what: re.Pattern[str]) -> bool:
    texts = map(envelope.get, ("detail", "description", "message"))
    return any(what.search(one) for one in texts if isinstance(one, str))


def is_success(status: int, *, envelope: str) -> bool:
    """Whether nothing in a reply says that what was asked for was not done.

    Args:
        status: HTTP status.
        envelope: the code that `judge` found.
    """
    return 200 <= status < 400 and envelope in _SUCCESSES


def may_replay(verdict: Verdict, *, kind: Kind) -> bool:
    """Whether a refused request may be sent once more with a new token."""
    return verdict is Verdict.REFUSAL or (verdict is Verdict.REFUSAL_UNPROVEN and kind is Kind.READ)


def may_resend(outcome: Outcome, *, late: bool, stale: bool, method: str) -> bool:
    """Whether a request may be sent over a fresh connection after an attempt brought no reply.

    Args:
        outcome: of the attempt.
        late: whether its time was over.
        stale: whether a used connection ended without a byte of a reply.
        method: upper case.
    """
    unsent = outcome is Outcome.NOT_SENT and not late
    return unsent or (stale and method in READ_METHODS)


def _gzip(body: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(body, PEEK_LIMIT)


def _deflate(body: bytes) -> bytes:
    # RFC 9110 section 8.4.1.2: zlib format; some send the bare stream.
    try:
        return zlib.decompressobj().decompress(body, PEEK_LIMIT)
    except zlib.error:
        return zlib.decompressobj(wbits=-15).decompress(body, PEEK_LIMIT)


def _brotli(body: bytes) -> bytes:
    return bytes(brotli.Decompressor().process(body, output_buffer_limit=PEEK_LIMIT))


def _zstd(body: bytes) -> bytes:
    # RFC 9659 section 3: a decoder has to support windows of 8 MB.
    with zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(body) as reader:
        return reader.read(PEEK_LIMIT)


_DECODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"": bytes,
    b"identity": bytes,
    b"gzip": _gzip,
    b"x-gzip": _gzip,
    b"deflate": _deflate,
    b"br": _brotli,
    b"zstd": _zstd,
}
