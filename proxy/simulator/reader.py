"""Bytes in, requests out: httptools judges the syntax, the raw head is kept beside it.

httptools does not say where in its input a message ended. A head, a chunk
header and the end of a chunked body all end with a newline, and a body with a
`Content-Length` ends where that says; so the input is fed in pieces cut there,
and after each piece it is known exactly what belongs to which request.
"""

import re
from collections.abc import Iterator

import httptools

from proxy.simulator.messages import Received

_MAX_HEAD = 256 * 1024
_HEX = re.compile(rb"[0-9a-fA-F]+")
_METHOD = re.compile(rb"[\r\n]*(?:[A-Za-z]|$)")
_ALIAS = b"x-simulated-"


class Reader:
    """Cuts the byte stream of one connection into requests.

    Args:
        connection: the connection's number, written into each request.

    Attributes:
        unfinished: the request whose head is complete and whose body is not, if any.
        unread: how many of the bytes fed last have not been looked at yet.
    """

    def __init__(self, connection: int) -> None:
        self._connection = connection
        self.unread = 0
        self._begin()

    def _begin(self) -> None:
        self.unfinished: Received | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._raw = bytearray()
        self._line = bytearray()
        self._trailers = False
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._body = bytearray()
        self._body_left = 0
        self._head_done = False
        self._done = False
        self._keep_alive = False

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and is not complete."""
        return self.unfinished is None and bool(self._raw + self._line)

    def feed(self, data: bytes) -> Iterator[Received]:
        """Read on.

        Args:
            data: the next bytes of the connection, cut anywhere.

        Yields:
            Each request twice: when its head is complete, and when it is whole.

        Raises:
            httptools.HttpParserError: what came is not HTTP/1; nothing more can be read.
        """
        at = 0
        while at < len(data):
            end = self._piece_end(data, at=at)
            self.unread = len(data) - end
            yield from self._feed_piece(data[at:end])
            at = end

    def _piece_end(self, data: bytes, *, at: int) -> int:
        if self._head_done and self._body_left:
            return min(len(data), at + self._body_left)
        return data.find(b"\n", at) + 1 or len(data)

    def _feed_piece(self, piece: bytes) -> Iterator[Received]:
        if self._head_done and self._body_left:
            self._body_left -= len(piece)
        else:  # by whole lines, wherever the segments end
            self._line += piece
            if not piece.endswith(b"\n"):
                if len(self._raw) + len(self._line) > _MAX_HEAD:
                    raise httptools.HttpParserError("a line without end")
                if self.unfinished is None and not _METHOD.match(self._raw + self._line):
                    raise httptools.HttpParserError("no request begins like this")
                return
            piece, self._line = bytes(self._line), bytearray()
            if self._head_done:
                self._expect_chunk(piece)
            else:
                self._raw += piece
                if len(self._raw) > _MAX_HEAD:
                    raise httptools.HttpParserError("a head without end")
                # An upgrade may be ignored (RFC 9110 section 7.8), and here always is:
                # httptools would take the body for the other protocol's, so it must not see it.
                if piece[:8].lower() == b"upgrade:":
                    piece = _ALIAS + piece
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:  # CONNECT
            raise httptools.HttpParserError("no tunnel is made here") from None
        if self._head_done and self.unfinished is None:
            self.unfinished = self._received()
            yield self.unfinished
        if self._done and self.unfinished is not None:
            request = self.unfinished
            request.body, request.whole = bytes(self._body), True
            request.keep_alive = self._keep_alive
            self._begin()
            yield request

    def _expect_chunk(self, line: bytes) -> None:
        """After the line that gives a chunk's size, the chunk comes in one piece."""
        size = line.partition(b";")[0].strip()
        if not self._trailers and _HEX.fullmatch(size):
            length = int(size, 16)
            self._body_left = length + 2 if length else 0  # and its CRLF
            self._trailers = not length

    def _received(self) -> Received:
        return Received(
            method=self._parser.get_method().decode("ascii"),
            target=self._target,
            # Empty lines before a request line are skipped (RFC 9112 section 2.2).
            raw_head=bytes(self._raw).lstrip(b"\r\n"),
            headers=tuple(self._headers),
            connection=self._connection,
        )

    # What httptools calls.

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line; trailers of a chunked body are not kept."""
        if self._head_done:
            return
        name = name.removeprefix(_ALIAS)
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))
        if name.lower() == b"content-length":
            self._body_left = int(value)

    def on_headers_complete(self) -> None:
        """The blank line."""
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """The last byte; persistence of HTTP/1.0 is not offered."""
        self._done = True
        self._keep_alive = (
            self._parser.should_keep_alive() and self._parser.get_http_version() != "1.0"
        )
