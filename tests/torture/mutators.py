"""Request streams that are valid, and what can be made wrong with them.

Everything comes from a `random.Random`: the same seed makes the same streams. Each request carries
a reference in its target and in a field; most bodies hold what would be a request of its own, for
`/smuggled`, if anybody took its first byte for the first one of a head.
"""

import random
import re
from dataclasses import dataclass

METHODS = [b"GET", b"GET", b"GET", b"POST", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD"]
ORDINARY = [
    *(b"Accept: */*", b"Cookie: a=b; c=d", b"X-Empty:", b"X-Long: " + b"v" * 300),
    *(b"Content-Type: application/json", b"Connection: keep-alive", b"TE: trailers"),
]
LENGTH = re.compile(rb"(?i)\r\ncontent-length:[^\r\n]*")
CODING = re.compile(rb"(?i)\r\ntransfer-encoding:[^\r\n]*")
SIZE = re.compile(rb"(?<=\r\n)[0-9a-f]+(?=\r\n)")


@dataclass(frozen=True)
class Stream:
    """What one connection sends.

    Attributes:
        plain: where in it the requests begin and end that nothing was done to.
        data: all of it, as far as it is sent.
        cuts: where it is cut into segments.
        ending: `wait` for the replies, be `patient` until the proxy ends the connection by itself,
            or `half`-close, `close` or `reset` at the end of `data`.
    """

    plain: frozenset[tuple[int, int]]
    data: bytes
    cuts: tuple[int, ...]
    ending: str


def nested(ref):
    return b"GET /smuggled?ref=%b HTTP/1.1\r\nHost: localhost\r\nX-Ref: %b\r\n\r\n" % (ref, ref)


def request(rng, ref):
    """A request that is as it should be."""
    method = rng.choice(METHODS)
    target = rng.choice([b"/v1/r?ref=%b", b"/v1/r/%%61;b/?x=/../&ref=%b", b"//r?ref=%b&"]) % ref
    fields = [b"Host: localhost", b"X-Ref: " + ref]
    fields += rng.sample(ORDINARY, rng.randrange(3))
    rng.shuffle(fields)
    if method in {b"GET", b"HEAD"} and rng.random() < 0.8:
        return b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (method, target, b"\r\n".join(fields))
    body = rng.choice([b"", b"{}", nested(ref), b"0\r\n\r\n" + nested(ref), nested(ref) * 30])
    if rng.random() < 0.2:
        fields.append(b"Expect: 100-continue")
    if rng.random() < 0.5:
        fields.append(b"Content-Length: %d" % len(body))
    else:
        fields.append(b"Transfer-Encoding: chunked")
        body = chunked(rng, body)
    rng.shuffle(fields)
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n%b" % (method, target, b"\r\n".join(fields), body)


def chunked(rng, body):
    out = b""
    while body:
        part, body = _parted(body, rng.choice([1, 5, 100, len(body)]))
        extension = b";a=b" if rng.random() < 0.05 else b""
        out += b"%x%b\r\n%b\r\n" % (len(part), extension, part)
    trailers = b"X-Trailer: t\r\n" if rng.random() < 0.05 else b""
    return out + b"0\r\n%b\r\n" % trailers


def _parted(data, at):
    return data[:at], data[at:]


def _head_and_rest(data):
    head, end, rest = data.partition(b"\r\n\r\n")
    return head, end + rest


# -- mutators: bytes of a request in, other bytes out ------------------------------------


def bits(rng, data):
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def insert(rng, data):
    at = rng.randrange(len(data) + 1)
    odd = [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\x0b", b"0", b",", b";", b"\xff"]
    return data[:at] + rng.choice([*odd, rng.randbytes(1), rng.randbytes(4)]) + data[at:]


def delete(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice([1, 1, 2, 8, 40]) :]


def double(rng, data):
    begin = rng.randrange(len(data))
    end = begin + rng.choice([1, 2, 10, 60])
    return data[:end] + data[begin:end] + data[end:]


def double_line(rng, data):
    head, rest = _head_and_rest(data)
    lines = head.split(b"\r\n")
    line = rng.choice(lines)
    lines.insert(rng.randrange(1, len(lines) + 1), line)
    return b"\r\n".join(lines) + rest


def splice(rng, data):
    other = request(rng, b"spliced")
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


LINE_ENDS = [
    *(b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r", b"\r\n ", b"\r\n\t", b"\0\r\n", b" \r\n"),
    *(b"\x0b\r\n", b"\x85", b"\r\n\r\n", b"\n\n", b"\x0c\r\n", b"\x00\n"),
]


def line_ends(rng, data):
    """A line end of the head, or all of them, as some take it for one."""
    head, rest = _head_and_rest(data)
    end = rng.choice(LINE_ENDS)
    if rng.random() < 0.2:
        return (head + b"\r\n").replace(b"\r\n", end) + rest[2:]
    at = rng.choice([found.start() for found in re.finditer(b"\r\n", head + b"\r\n\r\n")])
    return data[:at] + end + data[at + 2 :]


LENGTHS = [
    *(b"+%d", b"0x%x", b"%d, %d", b"%d,5", b"-%d", b"%d.0", b"%d ", b" %d", b"0%d", b"\t%d", b"%d"),
    *(b"1%d", b"0", b"5", b"", b"\x0b5", b"99999999999999999999999", b"18446744073709551616"),
    *(b"4294967296", b"1_0", b"%de0", b"\xc2\xb2", b"'%d'", b'"%d"', b"%d;x", b"%d\0", b"1 0"),
]
LENGTH_NAMES = [
    *(b"Content-Length", b"content-length", b"CONTENT-LENGTH", b"Content-Length\t"),
    *(b"Content_Length", b" Content-Length", b"Content-Length ", b"Content-Length\0"),
    b"\xefContent-Length",
]


def length(rng, data):
    """`Content-Length` as it should not be, instead of what was there or beside it."""
    head, rest = _head_and_rest(data)
    size, value = len(rest) - 4, rng.choice(LENGTHS)
    if rng.random() < 0.2:
        value = b"%d" % max(0, size + rng.choice([-1, 1, -5, 5]))
    elif b"%" in value:
        value %= (size,) * value.count(b"%")
    return _framing(rng, head, b"%b: %b" % (rng.choice(LENGTH_NAMES), value), LENGTH) + rest


CODINGS = [
    *(b"chunked", b"gzip", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"xchunked"),
    *(b"identity", b" chunked", b"\tchunked", b"\x0bchunked", b"Chunked", b"CHUNKED", b"chunkedx"),
    *(b'"chunked"', b"chunked;q=1", b"chunked,", b",chunked", b"chunked\0", b"identity, chunked"),
    *(b"chunk", b"", b"\x00chunked", b"chunked \t", b"x\r\n chunked", b"chun\r\n ked"),
    b"c\xe9hunked",
]
CODING_NAMES = [
    *(b"Transfer-Encoding", b"Transfer-Encoding", b"Transfer-Encoding", b"Transfer-Encoding"),
    *(b"transfer-encoding", b"Transfer-Encoding ", b"Transfer_Encoding", b" Transfer-Encoding"),
    *(b"Transfer-Encoding\0", b"Transfer-Encoding\t", b"X\r\nTransfer-Encoding"),
    b"Transfer\xadEncoding",
]


def coding(rng, data):
    """`Transfer-Encoding` as it should not be, likewise."""
    head, rest = _head_and_rest(data)
    line = b"%b: %b" % (rng.choice(CODING_NAMES), rng.choice(CODINGS))
    return _framing(rng, head, line, CODING) + rest


def _framing(rng, head, line, old):
    """A head with another line about its framing: in place of the old ones, before or after."""
    if rng.random() < 0.5:
        head = old.sub(b"", head)
    lines = head.split(b"\r\n")
    lines.insert(rng.randrange(1, len(lines) + 1), line)
    return b"\r\n".join(lines)


# `#` is the size that it was.
SIZES = [
    *(b"0x#", b"0#", b"000000000#", b"# ", b" #", b"+#", b"-#", b"#;a", b'#;a="b\r\nc"', b"#\t;a"),
    *(b"#;" + b"e" * 300, b"#\n", b"#\r", b"#\0", b"#;\n", b"#x", b"", b"FFFFFFFFFFFFFFFF"),
    *(b"10000000000000000#", b"7FFFFFFFFFFFFFFF", b"0", b"1", b"2", b"g", b"#;a\nb", b"# 5", b"1#"),
    *(b"#;\r", b"#\r\n"),
]


def chunks(rng, data):
    """The size of a chunk, or what is around it."""
    head, rest = _head_and_rest(data)
    if b"chunked" not in head:
        head = LENGTH.sub(b"", head) + b"\r\nTransfer-Encoding: chunked"
        rest = b"\r\n\r\n" + chunked(rng, rest[4:])
    found = rng.choice([*SIZE.finditer(rest, 2), None])
    if found is None:
        return head + rest + rng.choice([b"\r\n", b"X: y\r\n\r\n", b"0\r\n\r\n", b"\0"])
    size = rng.choice(SIZES).replace(b"#", rng.choice([found[0], found[0].upper()]))
    rest = rest[: found.start()] + size + rest[found.end() :]
    if rng.random() < 0.2:  # and no line end where one belongs
        at = rest.find(b"\r\n", found.start())
        rest = rest[:at] + rng.choice([b"", b"\n", b"\r", b"xx"]) + rest[at + 2 :]
    return head + rest


FIELDS = [
    *(b"Upgrade: websocket\r\nConnection: Upgrade", b"Upgrade: h2c\r\nConnection: upgrade"),
    *(b"Upgrade: h2c", b"Connection: close", b"Connection: close, keep-alive"),
    *(b"Connection: Content-Length", b"Connection: Transfer-Encoding", b"Connection: Host"),
    *(b"Connection: authorization, accountId", b"Connection: X-Ref", b"Keep-Alive: timeout=1"),
    b"Proxy-Connection: close",
    *(b"Expect: 100-continue", b"Expect: 200-ok", b"Trailer: Content-Length", b"TE: chunked"),
    *(b"Host: evil", b"Host:", b"Host: a\r\nHost: b", b"Authorization: Bearer other"),
    *(b"accountId: 1", b"account_id: 2", b"Account-Id: 3", b"Via: 1.1 x", b"X-Request-Id: \xff"),
    *(b"Authorization: Basic eDp5", b"X-Nomba-Proxy-Key: k", b"Max-Forwards: 0", b": no name"),
    *(b"no colon", b"Bad Name: x", b"Na\xefme: x", b"X: \x01", b"X: \x7f", b"X: a\0b", b"(x): y"),
    *(b"X: " + b"x" * 20_000, b"\r\n".join([b"X: y"] * 200), b"X-Http-Method-Override: DELETE"),
    *(b"Sec-WebSocket-Key: x", b"HTTP2-Settings: AAMAAABkAAQAAP__", b"Content-Encoding: gzip"),
]


def fields(rng, data):
    head, rest = _head_and_rest(data)
    lines = head.split(b"\r\n")
    lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(FIELDS))
    if rng.random() < 0.1:
        lines = [line for line in lines if not line.startswith(b"Host:")]
    return b"\r\n".join(lines) + rest


VERSIONS = [
    *(b" HTTP/1.0", b" HTTP/1.0", b" HTTP/0.9", b" HTTP/2.0", b" HTTP/1.2", b" HTTP/1.1 ", b""),
    *(b" http/1.1", b" HTTP/1.10", b" HTTP/01.1", b"  HTTP/1.1", b"\tHTTP/1.1", b" HTTP/1,1"),
    *(b" HTTP/1", b" RTSP/1.0", b" HTTP/1.1\0", b" ICE/1.0", b" HTTP/11", b" XHTTP/1.1"),
]
TARGETS = [
    *(b"*", b"http://localhost/v1/r?ref=%b", b"//evil/v1/r?ref=%b", b"/v1/../r?ref=%b", b""),
    *(b"/v1/r\0?ref=%b", b"/v1/r ?ref=%b", b"/v1/%%zz?ref=%b", b"/v1/r#?ref=%b", b"/\xe9?ref=%b"),
    *(b"/v1/r?ref=%b%%0d%%0aX:%%20y", b"/v1/r?ref=%b%%20HTTP/1.1", b"v1/r?ref=%b"),
    b"localhost:443",
    *(b"http:///v1/r?ref=%b", b"/v1/auth/token/issue?ref=%b", b"/" + b"a" * 9000 + b"?ref=%b"),
    *(b"/v1/r?ref=%b HTTP/1.1", b"/v1/%%2e%%2e/r?ref=%b", b"/v1/r;/?ref=%b", b"?ref=%b"),
]
ODD_METHODS = [
    *(b"get", b"OPTIONS", b"CONNECT", b"TRACE", b"PRI", b"QUERY", b"PROPFIND", b"M-SEARCH"),
    b"G\0T",
    *(b"", b" GET", b"GET ", b"G ET", b"GETGET", b"SOURCE", b"HEAD", b"\x16\x03\x01", b"X" * 500),
]


def start_line(rng, data):
    """Method, target or version."""
    start, end, rest = data.partition(b"\r\n")
    method, target, version = start.split(b" ")
    version = b" " + version
    ref = target.partition(b"ref=")[2].rstrip(b"&")
    what = rng.randrange(3)
    if what == 0:
        method = rng.choice(ODD_METHODS)
    elif what == 1:
        target = rng.choice(TARGETS)
        target = target % ref if b"%b" in target else target
    else:
        version = rng.choice(VERSIONS)
    return b"%b %b%b%b%b" % (method, target, version, end, rest)


def around(rng, data):
    """Something before a request, or behind it."""
    more = rng.choice([b"\r\n", b"\n", b"\r", b" ", b"\r\n\r\n", b"\0", b"x", b"\r\nX: y\r\n\r\n"])
    return more + data if rng.random() < 0.5 else data + more


def preface(rng, data):
    """Another protocol altogether."""
    before = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", rng.randbytes(50)]
    before += [b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", data[::-1]]
    return rng.choice(before) + data


MUTATORS = [
    *(bits, insert, delete, double, double_line, splice, line_ends, line_ends, length, length),
    *(length, coding, coding, coding, chunks, chunks, chunks, fields, fields, start_line, around),
]
RARE = [preface]


def mutated(rng, data):
    for _ in range(rng.choice([1, 1, 1, 2])):
        mutate = rng.choice(MUTATORS if rng.random() < 0.98 else RARE)
        try:
            data = mutate(rng, data) or data
        except ValueError:  # the first has left nothing that the second knows
            data = bits(rng, data)
    return data


def stream(number, *, seed):
    """One of the streams of a seed."""
    rng = random.Random(f"{seed}-{number}")
    count = rng.choice([1, 2, 2, 3, 3, 4])
    damaged = {rng.randrange(count)} if rng.random() < 0.95 else set()
    plain, sent, borders, data = set(), [], set(), b""
    for at in range(count):
        ref = b"%d-%d" % (number, at)
        whole = request(rng, ref)
        if (
            sent and rng.random() < 0.1
        ):  # the same head again, perhaps with something else behind it
            whole = rng.choice(sent)
        if at in damaged:
            whole = mutated(rng, whole)
        else:
            plain.add((len(data), len(data) + len(whole)))
            sent.append(whole)
        data += whole
        borders.add(len(data))
    ending = rng.choice(["wait"] * 12 + ["patient", "half", "close", "reset"])
    if ending not in {"wait", "patient"}:
        data = data[: rng.randrange(1, len(data) + 1)]
    cuts = {rng.randrange(1, len(data)) for _ in range(rng.choice([0, 0, 1, 2, 5])) if data[1:]}
    if rng.random() < 0.6:  # what is wrong is not in one segment with what is before it
        cuts |= {begin for begin in borders if begin < len(data)}
    return Stream(frozenset(plain), data, tuple(sorted(cuts)), ending)
