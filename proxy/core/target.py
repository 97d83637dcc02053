"""Parse a request target once; policy and forwarding use the same parsed value.

A target that two parsers could read differently is refused here, before anything
is decided on it: dot segments (also encoded, also more than once, also with path
parameters), backslashes, control and non-ASCII bytes, fragments (RFC 9112 section 3.2
allows none of the raw ones). Everything else is forwarded byte for byte.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from proxy.errors import HostRefused, TargetAmbiguous

_ALLOWED = bytes(set(range(0x21, 0x7F)) - set(b"#\\"))
_DOTS = re.compile(rb"(?:^|[/\\])\.{1,2}(?:;[^/\\]*)?(?=[/\\]|$)")
# A path parameter ends at the next slash: for some servers before decoding, for others after.
# Anchored to the beginning of a segment, so that each is looked at once.
_HIDDEN_SLASH = re.compile(rb"(?:^|/)[^/;]*;[^/]*%(?:2f|5c)", re.IGNORECASE)
_SLASHES = re.compile(r"/{2,}")
_PARAMS = re.compile(r";[^/]*")
_UNRESERVED = re.compile(
    rb"%(?:4[1-9a-f]|5[0-9a]|6[1-9a-f]|7[0-9ae]|3[0-9]|2[de]|5f)", re.IGNORECASE
)
_ENCODED = re.compile(rb"%[0-9a-f]{2}", re.IGNORECASE)
_HEX = "0123456789abcdefABCDEF"
_BYTES = {f"%{one}{two}".encode(): bytes.fromhex(one + two) for one in _HEX for two in _HEX}
_SANDBOX = re.compile(r"/sandbox(?=/|$)")
_DECODE_ROUNDS = 8
_PATHS = 1024  # that are known again, if they are not longer than
_PATH = 256  # bytes


class Target(NamedTuple):
    """A request target that can be read in one way only.

    Attributes:
        raw: path and query exactly as they are to be forwarded.
        path: the path part of `raw`.
        canonical: the path as policy sees it: unreserved characters decoded, case
            folded, slashes collapsed, parameters, trailing slash and `/sandbox` removed.
        decoded: `canonical` of the path decoded to the end: what a careless upstream
            could make of it. Used only to keep logins from reaching Nomba.
        authority: `host:port` of an absolute-form target, lower case; else "".
    """

    raw: bytes
    path: bytes
    canonical: str
    decoded: str
    authority: str = ""


def parse_target(raw: bytes, *, is_own_authority: Callable[[str], bool]) -> Target:
    """Parse an origin-form or absolute-form target (RFC 9112 section 3.2).

    Args:
        raw: the target as it stood in the request line.
        is_own_authority: whether a `host:port` is this listener, or a name of an upstream's
            here; an absolute-form target for it is its path.

    Raises:
        TargetAmbiguous: the target can be read in two ways.
        HostRefused: an absolute-form target for somebody else.
    """
    if raw.translate(None, _ALLOWED):
        raise TargetAmbiguous(
            "The request target contains a byte that is not allowed there.",
            hint="Percent-encode control, non-ASCII, '#' and backslash bytes.",
        )
    authority = ""
    if not raw.startswith(b"/"):
        authority, raw = _from_absolute(raw, is_own_authority)
    path = raw.partition(b"?")[0]
    canonical, decoded = (_known_readings if len(path) <= _PATH else _readings)(path)
    return Target(raw, path, canonical, decoded, authority)


def _readings(path: bytes) -> tuple[str, str]:
    """`Target.canonical` and `Target.decoded` of a path."""
    decoded = path
    if path.find(b".") >= 0 or path.find(b"%") >= 0:
        for _ in range(_DECODE_ROUNDS):
            if _DOTS.search(decoded):
                raise TargetAmbiguous(
                    "The path contains a dot segment.",
                    hint="Resolve '.' and '..' before sending; they are never forwarded.",
                )
            if _HIDDEN_SLASH.search(decoded):
                raise TargetAmbiguous(
                    "A path parameter contains an encoded slash.",
                    hint="Encode ';' as %3B if it is meant as part of the segment.",
                )
            if decoded.find(b"%") < 0:
                break
            before, decoded = decoded, _decode(_ENCODED, decoded)
            if before == decoded:
                break
        else:
            raise TargetAmbiguous("The path is percent-encoded too many times.")
    canonical = canonical_path(path)
    return canonical, canonical if decoded is path else _most_careless(decoded)


def _decode(what: re.Pattern[bytes], path: bytes) -> bytes:
    """Decode once; `%` that encodes nothing stays, and costs nothing, however often it stands there."""
    return what.sub(lambda found: _BYTES[found[0]], path)


_known_readings = lru_cache(_PATHS)(_readings)


def _most_careless(decoded: bytes) -> str:
    text = decoded.replace(b"\\", b"/").decode("utf-8", "replace")
    return canonical_path(unicodedata.normalize("NFKC", text).casefold().encode())


def canonical_path(path: bytes) -> str:
    """The one spelling of a path that the endpoint table is asked for.

    >>> canonical_path(b"/V1//sandbox/%74ransfers;x=1/banks/")
    '/v1/transfers/banks'
    """
    while path.find(b"%") >= 0:
        before, path = path, _decode(_UNRESERVED, path)
        if path == before:
            break
    text = path.decode("latin-1").lower()
    if ";" in text:
        text = _PARAMS.sub("", text)
    if "//" in text:
        text = _SLASHES.sub("/", text)
    if "/sandbox" in text:
        text = _SANDBOX.sub("", text)
    if len(text) > 1 and text.endswith("/"):
        text = text[:-1]
    return text or "/"


def _from_absolute(raw: bytes, is_own_authority: Callable[[str], bool]) -> tuple[str, bytes]:
    """Authority and origin-form of an absolute-form target."""
    scheme, separator, rest = raw.partition(b"://")
    if not separator or scheme.lower() not in {b"http", b"https"}:
        raise TargetAmbiguous("The request target is neither a path nor an http URL.")
    split = re.search(rb"[/?]", rest)
    at = split.start() if split else len(rest)
    authority = rest[:at].decode("ascii").lower()
    if not is_own_authority(authority):
        raise HostRefused(  # not named: a URL may hold a password
            "This proxy does not forward to the host that the request target names.",
            hint="Use it as a base URL, not as an HTTP proxy (unset http_proxy / HTTPS_PROXY).",
        )
    tail = rest[at:]
    return authority, tail if tail.startswith(b"/") else b"/" + tail


def strip_mount(target: Target, *, mount: bytes) -> Target:
    """The target below a mount prefix, as it goes to that mount's upstream.

    Args:
        target: a parsed target whose path is `mount` or starts with `mount` + `/`.
        mount: the prefix without a trailing slash; empty for the root mount.
    """
    if not mount:
        return target
    raw = target.raw[len(mount) :]
    raw = raw if raw.startswith(b"/") else b"/" + raw
    return parse_target(raw, is_own_authority=lambda _: False)
