"""Build heads afresh: what came in is never changed, what goes out is made anew.

Here those of requests; `reply_heads` has those of replies.

Names and values are bytes from the wire and stay so: order, case, duplicates and
non-UTF-8 values survive. Hop-by-hop fields (RFC 9110 section 7.6.1) and whatever
`Connection` names are removed first; our own pair is put in last, so nothing a caller
sends can remove or precede it.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from proxy.core.trace import TRACEPARENT
from proxy.errors import HeadInvalid, HeadTooLarge

Headers = Sequence[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"close",  # no field of its own, but what `Connection` may name
        b"connection",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
# Addresses of our network, unless `headers.forwarded` lets them pass.
_FORWARDED = frozenset({b"forwarded", b"x-real-ip"})
_FORWARDED_PREFIX = b"x-forwarded-"
# Never forwarded, compared by letters and digits only: servers that map names to variables
# take `account_id`, `Account-Id` or `account.id` for `accountId`. The first are ours; the
# others would tell the upstream another method or path than the one we judged.
_OWN = frozenset(
    {
        *(b"authorization", b"accountid", b"xnombaproxykey", b"proxyauthorization"),
        *(b"xhttpmethodoverride", b"xhttpmethod", b"xmethodoverride", b"xoriginalmethod"),
        *(b"xoriginalurl", b"xoriginaluri", b"xoriginalpath", b"xrewriteurl"),
        *(b"xenvoyoriginalpath", b"xforwardeduri", b"xforwardedmethod"),
    }
)
# What is to be done with a field.
_PLAIN, _DROPPED, _HOST, _LENGTH, _CODING, _CONNECTION, _COOKIE = range(7)
_VIA, _UPGRADE, _ACCOUNT, _AUTHORIZATION, _KEY, _ADDRESS, _TRACE = range(7, 14)
_REQUEST_FIELDS = {
    b"host": _HOST,
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"cookie": _COOKIE,
    b"via": _VIA,
    TRACEPARENT: _TRACE,
    b"upgrade": _UPGRADE,
    b"authorization": _AUTHORIZATION,
    b"x-nomba-proxy-key": _KEY,
    b"proxy-authorization": _KEY,
    b"expect": _DROPPED,  # answered by us
}
_NAMES = 1024  # of fields that are remembered, if they are not longer than
_NAME = 64  # bytes
_VERSIONS = frozenset({(1, 1), (1, 0)})
# What `Connection` says most of the time: it names no fields.
ORDINARY_OPTIONS = frozenset({b"close", b"keep-alive", b"Close", b"Keep-Alive"})

# Begins the name of the inspector's session: cookies know no ports, so a browser sends it here too.
INSPECTOR_COOKIE = b"nomba_proxy_inspector"

_PUNCTUATION = bytes(one for one in range(256) if not chr(one).isalnum() or one > 127)
_CONNECTION_TOKENS = re.compile(rb"[^\s,]+")


def _squash(name: bytes) -> bytes:
    return name.translate(None, _PUNCTUATION)


def field_value(headers: Headers, name: bytes) -> bytes | None:
    """The first value of a field, by lower-case name."""
    for found, value in headers:
        if found.lower() == name:
            return value
    return None


def named_by_connection(headers: Headers) -> frozenset[bytes]:
    """Lower-case names that `Connection` fields declare to be hop-by-hop."""
    return frozenset(
        token.lower()
        for name, value in headers
        if name.lower() == b"connection"
        for token in _CONNECTION_TOKENS.findall(value)
    )


def _look_at(name: bytes) -> int:
    exact = name.lower()
    lower = exact.replace(b"_", b"-")
    if lower in _FRAMING:  # under any spelling, to be refused
        return _REQUEST_FIELDS[lower]
    if exact in _REQUEST_FIELDS:
        return _REQUEST_FIELDS[exact]
    squashed = _squash(lower)
    if squashed == b"accountid":
        return _ACCOUNT
    if squashed in _OWN or lower in HOP_BY_HOP or lower in _REQUEST_FIELDS:
        return _DROPPED
    if lower in _FORWARDED or lower.startswith(_FORWARDED_PREFIX):
        return _ADDRESS
    return _PLAIN


# A request has many fields and few are new.
_known = lru_cache(_NAMES)(_look_at)
_FRAMING = frozenset({b"transfer-encoding", b"content-length"})
CHUNKED = -1


class CallerHead:
    """The head of a caller's request, gone through once.

    Args:
        headers: raw fields.
        target_length: bytes of the request target.
        limit: bytes the whole head may take.
        version: of HTTP, as the request line says.
        keep_forwarded: whether `Forwarded`, `X-Forwarded-*` and `X-Real-IP` pass.

    Attributes:
        length: the declared body length; `CHUNKED`, or None if no body is declared.
        accounts: the different account ids, under any spelling of `accountId`.
        keys, authorizations: values of the fields that could say who calls.
        size: bytes of all that.
        upgrades, vias, traces: values of `Upgrade`, `Via` and `traceparent`.

    Raises:
        HeadTooLarge: all fields together are larger than `limit`.
        HeadInvalid: a transfer coding other than `chunked`, one beside a length or in HTTP/1.0
            (RFC 9112 section 6.1), or another version.
    """

    __slots__ = (
        *("_host_at", "_length_at", "_lines"),
        *("accounts", "authorizations", "keys", "length", "size", "traces", "upgrades", "vias"),
    )

    def __init__(
        self,
        headers: Headers,
        *,
        target_length: int = 0,
        limit: int = 64 * 1024,
        version: tuple[int, int] = (1, 1),
        keep_forwarded: bool = False,
    ) -> None:
        if version not in _VERSIONS:
            raise HeadInvalid("The request is none of HTTP/1.1 or HTTP/1.0.", close=True)
        self.length: int | None = None
        self.accounts: tuple[str, ...] = ()
        self.keys: list[bytes] = []
        self.authorizations: list[bytes] = []
        self.upgrades: list[bytes] = []
        self.vias: list[bytes] = []
        self.traces: tuple[bytes, ...] = ()
        self._host_at = self._length_at = 0
        # Method, target and `Host` are put into the first places later.
        self._lines: list[bytes] = [b"", b" ", b"", b" HTTP/1.1\r\n"]
        lines = self._lines
        size, named = target_length, False
        for name, value in headers:
            length = len(name)
            size += length + len(value) + 4
            kind = (_known if length <= _NAME else _look_at)(name)
            if kind == _PLAIN:
                lines += (name, b": ", value, b"\r\n")
            elif kind == _HOST:
                if not self._host_at:
                    lines += (name, b": ", b"", b"\r\n")
                    self._host_at = len(lines) - 2
            elif kind == _KEY:
                self.keys.append(value)
            elif kind == _AUTHORIZATION:
                self.authorizations.append(value)
            elif kind == _LENGTH:
                self._frame(name, value, coding=False, version=version)
                lines += (name, b": ", b"", b"\r\n")
                self._length_at = len(lines) - 2
            elif kind == _CODING:
                self._frame(name, value, coding=True, version=version)
            elif kind == _CONNECTION:
                named = named or value not in ORDINARY_OPTIONS
            elif kind == _ACCOUNT:
                if value and (account := value.decode("latin-1")) not in self.accounts:
                    self.accounts += (account,)
            elif kind == _VIA:
                self.vias.append(value)
                lines += (name, b": ", value, b"\r\n")
            elif kind == _COOKIE:
                if (kept := _without_ours(value)) or not value:
                    lines += (name, b": ", kept, b"\r\n")
            elif kind == _TRACE:
                self.traces += (value,)
                lines += (name, b": ", value, b"\r\n")
            elif kind == _UPGRADE:
                self.upgrades.append(value)
            elif kind == _ADDRESS and keep_forwarded:
                lines += (name, b": ", value, b"\r\n")
        self.size = size
        if size > limit:
            raise HeadTooLarge(
                f"The request head is larger than {limit} bytes.",
                hint="Send fewer or shorter headers (cookies are the usual reason).",
                close=True,
            )
        if named:
            self.leave_out(named_by_connection(headers))

    def _frame(self, name: bytes, value: bytes, *, coding: bool, version: tuple[int, int]) -> None:
        """Take in what says how long the body is, unless two parsers could read it apart."""
        # 19 digits hold any length there is; Python refuses to read 5,000 of them.
        sound = value.isdigit() and len(value) <= 19
        if coding:
            sound = value.lower() == b"chunked" and version == (1, 1)
        if self.length is not None or 0x5F in name or not sound:
            raise HeadInvalid(
                "The request is framed in a way the proxy does not pass on.",
                hint="Send one Content-Length or Transfer-Encoding: chunked, not both.",
                close=True,
            )
        self.length = CHUNKED if coding else int(value)

    def leave_out(self, named: frozenset[bytes]) -> None:
        """Leave out fields, by their lower-case names, but for what frames the request."""
        old, host, length = self._lines, self._host_at, self._length_at
        self._lines = old[:4]
        self._host_at = self._length_at = 0
        for at in range(4, len(old), 4):
            lower = old[at].lower()
            framing = at + 2 in {host, length}  # without it the request would be another
            if framing or not (lower in named or lower.replace(b"_", b"-") in named):
                self._lines += old[at : at + 4]
                if at + 2 == host:
                    self._host_at = len(self._lines) - 2
                elif at + 2 == length:
                    self._length_at = len(self._lines) - 2

    def names_us(self, via: bytes) -> bool:
        """Whether the request has been here before: a `Via` field holds our own entry.

        RFC 9110 section 7.6.3. Pseudonyms are compared as whole entries.
        """
        return any(via in [one.strip() for one in value.split(b",")] for value in self.vias)

    def forward(
        self,
        method: bytes,
        *,
        target: bytes,
        host: bytes,
        body_length: int | None,
        via: bytes = b"",
    ) -> "RequestHead":
        """The head that goes out for it; can be asked for once.

        Args:
            method: as sent.
            target: `Target.raw`.
            host: value of `Host` for the upstream.
            body_length: bytes of the body, or None if the caller sent no body at all.
            via: value of the `Via` line we add, or empty for none.
        """
        lines = self._lines
        lines[0], lines[2] = method, target
        if self._host_at:
            lines[self._host_at] = host
        else:
            lines[3] = b" HTTP/1.1\r\nHost: %b\r\n" % host
        if self._length_at:
            at = self._length_at
            if body_length is None:
                del lines[at - 2 : at + 2]
            else:
                lines[at] = b"%d" % body_length
        elif body_length is not None:
            lines.append(b"Content-Length: %d\r\n" % body_length)
        if via:
            lines += (b"Via: ", via, b"\r\n")
        return RequestHead(b"".join(lines))


class RequestHead:
    """The outgoing head of an exchange: built once, completed with a token per attempt.

    Args:
        start: all of it but our own pair.
    """

    __slots__ = ("start",)

    def __init__(self, start: bytes) -> None:
        self.start = start

    def with_length(self, length: int) -> "RequestHead":
        """The same for a body of so many bytes that came in chunks."""
        return RequestHead(b"%bContent-Length: %d\r\n" % (self.start, length))

    def with_line(self, line: bytes) -> "RequestHead":
        """The same with one more field, its end included."""
        return RequestHead(self.start + line)

    def with_token(self, token: str, *, account: str) -> bytes:
        """The complete head with our own pair last."""
        return b"%bAuthorization: Bearer %b\r\naccountId: %b\r\n\r\n" % (
            self.start,
            token.encode("ascii"),
            account.encode("latin-1"),
        )


def _without_ours(cookies: bytes) -> bytes:
    """A `Cookie` (RFC 6265 section 4.2.1) without the inspector's."""
    if cookies.find(INSPECTOR_COOKIE) < 0:
        return cookies
    others = (one.strip() for one in cookies.split(b";"))
    return b"; ".join(one for one in others if one and not one.startswith(INSPECTOR_COOKIE))
