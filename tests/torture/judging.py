"""What h11 makes of bytes: requests of a caller, requests at the upstream, replies."""

import asyncio
import re
from dataclasses import dataclass
from zlib import crc32

import h11

MOST = 1 << 20
# Fields that reach the upstream, should a caller send them.
PASSED = {b"x-ref", b"x-trailer", b"x-empty", b"x"}
# What no upstream should find under another spelling.
FRAMING = {b"content-length", b"transfer-encoding"}
# Of a request line h11 refuses what llhttp lets pass: several spaces for one (RFC 9112 section 3),
# and names of other protocols, which are read as if they were this one's.
LENIENT, ALIKE = re.compile(rb" +"), re.compile(rb" (RTSP|ICE)/")
GRANT = b'{"code":"00","data":{"access_token":"the-token","expires_in":86400}}'


@dataclass(frozen=True)
class Asked:
    """A request as h11 reads it.

    Attributes:
        begin, end: where in the stream.
    """

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    begin: int = 0
    end: int = 0

    @property
    def told(self):
        """What the upstream answers: which request it was, and with which fields of ours."""
        named = b",".join(value for name, value in self.headers if name == b"connection").lower()
        passed = PASSED - {one.strip() for one in named.split(b",")}
        fields = b"".join(sorted(b"%b:%b;" % one for one in self.headers if one[0] in passed))
        target = self.target.removeprefix(b"http://localhost")
        body = b"%d %08x" % (len(self.body), crc32(self.body))
        return b"%b %b %b [%b]" % (self.method, target, body, fields[:80])


def requests(data):
    """The requests in what a caller sends, and what is behind the last.

    Returns:
        They, and `whole`, `part` of another, or what is wrong with the next one.
    """
    found, rest = [], data
    while rest := rest.lstrip(b"\r\n"):  # RFC 9112 section 2.2
        begin = len(data) - len(rest)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST)
        line = rest.partition(b"\n")[0]
        connection.receive_data(LENIENT.sub(b" ", ALIKE.sub(b" HTTP/", line)) + rest[len(line) :])
        body = []
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body.append(bytes(event.data))
                else:  # NEED_DATA
                    return found, "part"
        except h11.RemoteProtocolError as error:
            return found, str(error)
        rest = connection.trailing_data[0]
        end = len(data) - len(rest)
        found.append(
            Asked(head.method, head.target, tuple(head.headers), b"".join(body), begin, end)
        )
    return found, "whole"


@dataclass(frozen=True)
class Answered:
    """A reply as h11 reads it."""

    status: int
    outcome: bytes
    last: bool
    body: bytes


def reply(data, *, method):
    """The first reply in what came, and what came behind it; None as long as it is not whole.

    Args:
        data: what came.
        method: of its request.

    Raises:
        h11.RemoteProtocolError: it is none.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    if data:  # nothing would be the end
        connection.receive_data(data)
    head, body = None, b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif not isinstance(event, h11.InformationalResponse):
            return None, data
    fields = dict(head.headers)
    outcome, last = fields.get(b"nomba-proxy-outcome"), fields.get(b"connection") == b"close"
    return Answered(head.status_code, outcome, last, body), connection.trailing_data[0]


class Court:
    """An upstream that h11 reads for: every request is noted, and answered with what it was.

    Attributes:
        heard: what it answered to each request since it was last emptied.
        wrong: what no upstream should get, with the bytes that it got.
        cut: connections that ended within a request.
        logins: for tokens.
    """

    def __init__(self):
        self.heard, self.wrong = [], []
        self.cut = self.logins = 0

    async def start(self):
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Bench(self), "127.0.0.1", 0)
        self.origin = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def stop(self):
        self._server.close()

    def hear(self, asked, raw):
        """What is answered."""
        if asked.target.startswith(b"/v1/auth/token/"):
            self.logins += 1
            return GRANT
        own = [one for one in asked.headers if one[0] in {b"authorization", b"accountid"}]
        if [name for name, _ in own] != [b"authorization", b"accountid"]:
            self.wrong.append(("not our pair", raw))
        elif own[0][1] != b"Bearer the-token":
            self.wrong.append(("another token", raw))
        names = [name.replace(b"_", b"-") for name, _ in asked.headers]
        if sum(name in FRAMING for name in names) > 1 or b"transfer-encoding" in names:
            self.wrong.append(("framed in two ways", raw))
        self.heard.append(asked.told)
        return asked.told


class _Bench(asyncio.Protocol):
    """One connection of the proxy's."""

    def __init__(self, court):
        self.court = court
        self.parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST)
        self.raw, self.head, self.body = b"", None, []

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.raw += data
        try:
            self.parser.receive_data(data)
            self.listen()
        except h11.RemoteProtocolError as error:
            self.court.wrong.append((str(error), self.raw))
            self.transport.abort()

    def listen(self):
        while True:
            event = self.parser.next_event()
            if isinstance(event, h11.Request):
                self.head = event
            elif isinstance(event, h11.Data):
                self.body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self.answer()
            else:
                return

    def answer(self):
        head, body = self.head, b"".join(self.body)
        if self.parser.trailing_data[0]:  # nothing is sent before the reply has come
            self.court.wrong.append(("more than a request", self.raw))
        asked = Asked(head.method, head.target, tuple(head.headers), body)
        text = self.court.hear(asked, self.raw)
        fields = [("Content-Length", b"%d" % len(text))]
        send = self.parser.send
        out = send(h11.Response(status_code=200, reason="OK", headers=fields))
        if head.method != b"HEAD":
            out += send(h11.Data(data=text))
        out += send(h11.EndOfMessage())
        self.raw, self.head, self.body = b"", None, []
        if self.parser.our_state is h11.MUST_CLOSE:
            self.court.wrong.append(("a connection that is to be closed", self.raw))
            self.transport.close()
        else:
            self.parser.start_next_cycle()
        self.transport.write(out)

    def connection_lost(self, exc):
        if self.raw:
            self.court.cut += 1
