"""Build heads afresh: what came in is never changed, what goes out is made anew.

Names and values are bytes from the wire and stay so: order, case, duplicates and
non-UTF-8 values survive. Hop-by-hop fields (RFC 9110 section 7.6.1) and whatever
`Connection` names are removed first; our own pair is put in last, so nothing a caller
sends can remove or precede it.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from proxy.core.origin import Origin
from proxy.errors import HeadInvalid, HeadTooLarge

Headers = Sequence[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
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
# Answered by us.
_REQUEST_DROPPED = _HOP_BY_HOP | {b"expect"}
# Addresses of our network, unless `headers.forwarded` lets them pass.
_FORWARDED = frozenset({b"forwarded", b"x-real-ip"})
_FORWARDED_PREFIX = b"x-forwarded-"
# Headers a reply carries in our name: an upstream must not be able to fake them.
_REPLY_DROPPED = _HOP_BY_HOP | {b"x-request-id"}
_REPLY_DROPPED_PREFIX = b"nomba-proxy-"
# A page of another origin may read a reply that says so.
_SHARING_PREFIX = b"access-control-"
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

# Begins the name of the inspector's session: cookies know no ports, so a browser sends it here too.
INSPECTOR_COOKIE = b"nomba_proxy_inspector"

_PUNCTUATION = bytes(one for one in range(256) if not chr(one).isalnum() or one > 127)
# A path, or an authority with what follows it: `scheme://host/…`, `//host/…`.
_LOCATION = re.compile(rb"(?:(?:(https?):)?//([^/?#]+)|(?=/(?!/)))(.*)", re.IGNORECASE)
_ODD_LOCATION = re.compile(rb"[\x00-\x20\x7f\\]")
_CONNECTION_TOKENS = re.compile(rb"[^\s,]+")


def _squash(name: bytes) -> bytes:
    return name.translate(None, _PUNCTUATION)


def named_by_connection(headers: Headers) -> frozenset[bytes]:
    """Lower-case names that `Connection` fields declare to be hop-by-hop."""
    return frozenset(
        token.lower()
        for name, value in headers
        if name.lower() == b"connection"
        for token in _CONNECTION_TOKENS.findall(value)
    )


def caller_accounts(headers: Headers) -> tuple[str, ...]:
    """The different account ids a caller sent, under any spelling of `accountId`."""
    found = dict.fromkeys(
        value.decode("latin-1")
        for name, value in headers
        if _squash(name.lower()) == b"accountid" and value
    )
    return tuple(found)


CHUNKED = -1


def check_head(
    headers: Headers, *, target_length: int, limit: int, version: tuple[int, int] = (1, 1)
) -> int | None:
    """Refuse a head that is too large or framed in a way two parsers could read apart.

    Args:
        headers: raw fields.
        target_length: bytes of the request target.
        limit: bytes the whole head may take.
        version: of HTTP, as the request line says.

    Returns:
        The declared body length; `CHUNKED`, or None if no body is declared.

    Raises:
        HeadTooLarge: all fields together are larger than `limit`.
        HeadInvalid: a transfer coding other than `chunked`, one beside a length or in HTTP/1.0
            (RFC 9112 section 6.1), or another version.
    """
    if version not in {(1, 1), (1, 0)}:
        raise HeadInvalid("The request is none of HTTP/1.1 or HTTP/1.0.", close=True)
    size = target_length
    length: int | None = None
    for name, value in headers:
        size += len(name) + len(value) + 4
        lower = name.lower()
        if b"_" in lower:
            lower = lower.replace(b"_", b"-")
        if lower not in {b"transfer-encoding", b"content-length"}:
            continue
        chunked = lower == b"transfer-encoding"
        # 19 digits hold any length there is; Python refuses to read 5,000 of them.
        sound = value.isdigit() and len(value) <= 19
        if chunked:
            sound = value.lower() == b"chunked" and version == (1, 1)
        if length is not None or b"_" in name or not sound:
            raise HeadInvalid(
                "The request is framed in a way the proxy does not pass on.",
                hint="Send one Content-Length or Transfer-Encoding: chunked, not both.",
                close=True,
            )
        length = CHUNKED if chunked else int(value)
    if size > limit:
        raise HeadTooLarge(
            f"The request head is larger than {limit} bytes.",
            hint="Send fewer or shorter headers (cookies are the usual reason).",
            close=True,
        )
    return length


class RequestHead:
    """The outgoing head of an exchange: built once, completed with a token per attempt.

    Args:
        method: as sent.
        target: `Target.raw`.
        headers: raw fields of the caller.
        host: value of `Host` for the upstream.
        body_length: bytes of the body, or None if the caller sent no body at all.
        via: value of the `Via` line we add, or empty for none.
        keep_forwarded: whether `Forwarded`, `X-Forwarded-*` and `X-Real-IP` pass.

    Attributes:
        start: all of it but our own pair.
    """

    __slots__ = ("start",)

    def __init__(
        self,
        method: bytes,
        *,
        target: bytes,
        headers: Headers,
        host: bytes,
        body_length: int | None,
        via: bytes = b"",
        keep_forwarded: bool = False,
    ) -> None:
        named = named_by_connection(headers)
        lines = [method, b" ", target, b" HTTP/1.1\r\n"]
        length = None if body_length is None else b"%d" % body_length
        host_done = False
        for name, value in headers:
            lower = name.lower()
            if b"_" in lower:
                lower = lower.replace(b"_", b"-")
            if lower == b"host":
                host_done = True
                lines += (name, b": ", host, b"\r\n")
            elif lower == b"cookie" and INSPECTOR_COOKIE in value:
                if kept := _without_ours(value):
                    lines += (name, b": ", kept, b"\r\n")
            elif lower == b"content-length":
                if length is not None:
                    lines += (name, b": ", length, b"\r\n")
                    length = None
            elif not (
                lower in _REQUEST_DROPPED
                or (not keep_forwarded and _is_forwarded(lower))
                or lower in named
                or name.lower() in named
                or _squash(lower) in _OWN
            ):
                lines += (name, b": ", value, b"\r\n")
        if not host_done:
            lines[4:4] = (b"Host: ", host, b"\r\n")
        if length is not None:
            lines += (b"Content-Length: ", length, b"\r\n")
        if via:
            lines += (b"Via: ", via, b"\r\n")
        self.start = b"".join(lines)

    def with_token(self, token: str, *, account: str) -> bytes:
        """The complete head with our own pair last."""
        return b"%bAuthorization: Bearer %b\r\naccountId: %b\r\n\r\n" % (
            self.start,
            token.encode("ascii"),
            account.encode("latin-1"),
        )


def _without_ours(cookies: bytes) -> bytes:
    """A `Cookie` (RFC 6265 section 4.2.1) without the inspector's."""
    others = (one.strip() for one in cookies.split(b";"))
    return b"; ".join(one for one in others if one and not one.startswith(INSPECTOR_COOKIE))


def _is_forwarded(lower: bytes) -> bool:
    return lower in _FORWARDED or lower.startswith(_FORWARDED_PREFIX)


def names_us(headers: Headers, *, via: bytes) -> bool:
    """Whether a request has been here before: a `Via` field holds our own entry.

    RFC 9110 section 7.6.3. Pseudonyms are compared as whole entries.
    """
    for name, value in headers:
        if name.lower() == b"via" and via in [one.strip() for one in value.split(b",")]:
            return True
    return False


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


def reply_head(
    status: int,
    *,
    reason: bytes,
    headers: Headers,
    own: Iterable[tuple[bytes, bytes]],
    location: Callable[[bytes], bytes] | None = None,
    shared: bool = True,
) -> bytes:
    """The head of a forwarded reply.

    Args:
        status: as the upstream sent it.
        reason: the same.
        headers: raw fields of the upstream's reply.
        own: fields the proxy adds: request id, outcome, framing.
        location: makes the `Location` that the caller gets, or None to leave it.
        shared: whether the upstream may open it to pages of other origins (CORS).
    """
    # The length stays whatever `Connection` says: without it the reply would have no end.
    named = named_by_connection(headers) - {b"content-length"}
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason)]
    for name, value in headers:
        lower = name.lower()
        if not (
            lower in _REPLY_DROPPED
            or lower in named
            or lower.startswith(_REPLY_DROPPED_PREFIX)
            or (not shared and lower.startswith(_SHARING_PREFIX))
        ):
            if location is not None and lower == b"location":
                lines += (name, b": ", location(value), b"\r\n")
            else:
                lines += (name, b": ", value, b"\r\n")
    for name, value in own:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)
