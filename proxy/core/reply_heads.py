"""The heads of replies: read once, and made anew for the caller.

As with requests (`heads`), names and values stay the bytes they are; hop-by-hop fields and
whatever `Connection` names are left out, and so is what only we may say.
"""

import math
import re
from collections.abc import Callable
from functools import lru_cache

from proxy.core.heads import (
    HOP_BY_HOP,
    ORDINARY_OPTIONS,
    Headers,
    named_by_connection,
)
from proxy.core.origin import Origin

# Headers a reply carries in our name: an upstream must not be able to fake them.
_DROPPED_NAMES = HOP_BY_HOP | {b"x-request-id"}
_DROPPED_PREFIX = b"nomba-proxy-"
# A page of another origin may read a reply that says so.
_SHARING_PREFIX = b"access-control-"
_NAMES = 256  # of fields that are remembered
# What is to be done with a field: some go on as they are, and may be read;
_PLAIN, _LENGTH, _MEDIA, _CODING = range(4)
# some do not go on to every caller as they are;
_LOCATED, _SHARING = range(4, 6)
# and some do not go on.
_DROPPED, _TRANSFER, _CONNECTION, _KEEP_ALIVE = range(6, 10)
_FIELDS = {
    b"content-length": _LENGTH,
    b"transfer-encoding": _TRANSFER,
    b"content-type": _MEDIA,
    b"content-encoding": _CODING,
    b"connection": _CONNECTION,
    b"keep-alive": _KEEP_ALIVE,
    b"location": _LOCATED,
}
_IDLE_LIMIT = re.compile(rb"\btimeout=(\d{1,9})", re.IGNORECASE)
_CLOSE = re.compile(rb"(?:^|,)[ \t]*close[ \t]*(?:,|$)", re.IGNORECASE)
# A path, or an authority with what follows it: `scheme://host/…`, `//host/…`.
_LOCATION = re.compile(rb"(?:(?:(https?):)?//([^/?#]+)|(?=/(?!/)))(.*)", re.IGNORECASE)
_ODD_LOCATION = re.compile(rb"[\x00-\x20\x7f\\]")


class ReplyHead:
    """The head of an upstream's reply, gone through once.

    Args:
        status, reason: as the upstream sent them.
        headers: raw fields.
        old: whether it speaks HTTP/1.0.

    Attributes:
        length: its Content-Length, None if it is delimited otherwise.
        chunked: whether it comes in chunks.
        sound: whether it is framed in a way that can be passed on.
        persists: whether its connection does.
        idle_limit: seconds for which that does, by the upstream's word (`Keep-Alive: timeout=`).
        media, coding: its first Content-Type and Content-Encoding; empty for none.
    """

    __slots__ = (
        *("_kept", "_named", "_special"),
        *("chunked", "coding", "headers", "idle_limit", "length", "media", "persists"),
        *("reason", "sound", "status"),
    )

    def __init__(self, status: int, *, reason: bytes, headers: Headers, old: bool = False) -> None:
        self.status, self.reason, self.headers = status, reason, headers
        self.length: int | None = None
        self.chunked, self.sound, self.persists = False, True, not old
        self.idle_limit = math.inf
        self.media = self.coding = b""
        self._named = self._special = False
        kept: list[tuple[bytes, bytes]] = []
        self._kept = kept
        for field in headers:
            name, value = field
            kind = _known(name)
            if kind <= _SHARING:
                kept.append(field)
                if kind == _PLAIN:
                    continue
                if kind == _LENGTH:
                    self.length = int(value)
                elif kind == _MEDIA:
                    self.media = self.media or value
                elif kind == _CODING:
                    self.coding = self.coding or value
                else:
                    self._special = True
            elif kind == _CONNECTION:
                if value not in ORDINARY_OPTIONS:
                    self._named = True
                if value != b"keep-alive" and _CLOSE.search(value):
                    self.persists = False
            elif kind == _TRANSFER:
                # Doubled, unknown, or in HTTP/1.0, where it is faulty (RFC 9112 section 6.1).
                if self.chunked or old or value.lower() != b"chunked":
                    self.sound = False
                self.chunked = True
            elif kind == _KEEP_ALIVE and (found := _IDLE_LIMIT.search(value)):
                self.idle_limit = float(found[1])

    def render(
        self,
        own: bytes = b"",
        *,
        location: Callable[[bytes], bytes] | None = None,
        shared: bool = True,
    ) -> bytes:
        """The head that the caller gets.

        Args:
            own: lines the proxy adds: request id, outcome, framing.
            location: makes the `Location` that the caller gets, or None to leave it.
            shared: whether the upstream may open it to pages of other origins (CORS).
        """
        kept = self._kept
        if self._named:
            # The length stays whatever `Connection` says: without it the reply would have no end.
            named = named_by_connection(self.headers) - {b"content-length"}
            kept = [one for one in kept if one[0].lower() not in named]
        if self._special:
            kept = [
                (name, location(value) if location and kind == _LOCATED else value)
                for name, value in kept
                if (kind := _look_at(name)) != _SHARING or shared
            ]
        start = b"HTTP/1.1 %d %b" % (self.status, self.reason)
        return b"\r\n".join([start, *map(b": ".join, kept), own + b"\r\n"])


def _look_at(name: bytes) -> int:
    lower = name.lower()
    kind = _FIELDS.get(lower, _PLAIN)
    if kind != _PLAIN:
        return kind
    if lower in _DROPPED_NAMES or lower.startswith(_DROPPED_PREFIX):
        return _DROPPED
    return _SHARING if lower.startswith(_SHARING_PREFIX) else _PLAIN


# A reply has many fields and few are new.
_known = lru_cache(_NAMES)(_look_at)


def own_location(value: bytes, *, origin: Origin, mount: bytes) -> bytes:
    """A `Location` on the upstream's own origin as the caller reaches it; else as it is.

    It becomes a path (RFC 9110 section 10.2.2), so no host has to be believed.

    Args:
        value: as the upstream sent it.
        origin: the upstream's.
        mount: the prefix under which the caller reaches it.
    """
    found = None if _ODD_LOCATION.search(value) else _LOCATION.fullmatch(value)
    if found is None:
        return value
    scheme, authority, rest = found.groups()
    if authority is not None:
        secure = b"https" if origin.tls else b"http"
        host, port = _authority(authority, default=b"443" if origin.tls else b"80")
        here = (origin.host.encode(), b"%d" % origin.port)
        if (scheme or secure).lower() != secure or (host.strip(b"[]"), port) != here:
            return value
        if not rest.startswith(b"/"):
            rest = b"/" + rest
    if rest.startswith(b"//") and not mount:
        return value  # it would be read as a host
    return mount + rest


def _authority(text: bytes, *, default: bytes) -> tuple[bytes, bytes]:
    host, colon, port = text.lower().rpartition(b":")
    if not colon or port.endswith(b"]"):
        return text.lower(), default
    return host, port or default
