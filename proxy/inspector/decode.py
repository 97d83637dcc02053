"""From the bytes of a body to a text: content codings and charset, never more than a limit.

A body may have been cut off when it was captured; what can be read of it is read.
"""

import codecs
import json
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

import brotli
import zstandard

MOST = 512 * 1024  # bytes that a body may have after decoding
_WINDOW = 8 << 20  # RFC 9659 section 3
_CODINGS = 3  # one after another; nobody sends more
_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]{1,40})", re.IGNORECASE)
_ASCII_BELOW = re.compile(r"(?i)(?:utf-?8|(?:us-)?ascii|latin-?1|iso-8859-|windows-12|cp12)")
_TEXTUAL = re.compile(r"(?i)^text/|json|xml|javascript|x-www-form-urlencoded|multipart/")
_TRAILING_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class Decoded(NamedTuple):
    """What a body says.

    Attributes:
        text: None for what is no text.
        data: the bytes after content decoding.
        note: what is wrong or missing, or "".
    """

    text: str | None
    data: bytes
    note: str


def decode(body: bytes, *, media: str, codings: str, most: int = MOST) -> Decoded:
    """Decode a body.

    Args:
        body: as it came, possibly cut off.
        media: value of `Content-Type`.
        codings: value of `Content-Encoding`.
        most: bytes that are decoded at most.
    """
    wanted = [one.strip().lower() for one in codings.split(",")]
    wanted = [one for one in wanted if one not in {"", "identity"}]
    if len(wanted) > _CODINGS:
        return Decoded(None, b"", "has too many content codings to be shown")
    note = ""
    for coding in reversed(wanted):
        decoder = _DECODERS.get(coding)
        if decoder is None:
            return Decoded(None, b"", "has a content coding that is not known here")
        try:
            body, whole = decoder(body, most)
        except (ValueError, EOFError, zlib.error, brotli.error, zstandard.ZstdError):
            return Decoded(None, b"", f"is no valid {coding}")
        if not whole:
            note = "is cut off"
        if len(body) >= most:
            note = f"is longer than {most} bytes when decoded"
    return Decoded(_text(body, media), body, note)


def _text(body: bytes, media: str) -> str | None:
    found = _CHARSET.search(media)
    charset = found[1] if found else ""
    # What calls itself by another name could be read back from what is shown: bytes that could
    # be ASCII are read as that.
    wide = body[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\0" in body[:4]
    if wide:
        charset = charset if charset.lower().startswith(("utf-16", "utf-32")) else ""
        charset = charset or json.detect_encoding(body)
    elif "json" in media.lower() or not _ASCII_BELOW.match(charset):
        charset = "utf-8"
    try:
        known = codecs.lookup(charset or "utf-8")
        sound = getattr(known, "_is_text_encoding", False)
    except (LookupError, ValueError):
        sound = False
    name = known.name if sound else "utf-8"
    if name == "utf-8":
        body = body.removeprefix(codecs.BOM_UTF8)
    if _TEXTUAL.search(media):
        try:
            return body.decode(name, "replace")
        except (UnicodeError, ValueError):  # of those that know no "replace"
            return body.decode("utf-8", "replace")
    if name == "utf-8" and _TRAILING_CONTROL.search(body):
        return None
    try:
        return codecs.getincrementaldecoder(name)().decode(body)  # it may end within a character
    except (UnicodeError, ValueError):
        return None


# Each gives what could be decoded, and whether it was all.


def _inflate(body: bytes, most: int, wbits: int) -> tuple[bytes, bool]:
    inflater = zlib.decompressobj(wbits)
    return inflater.decompress(body, most), inflater.eof


def _gzip(body: bytes, most: int) -> tuple[bytes, bool]:
    return _inflate(body, most, 31)


def _deflate(body: bytes, most: int) -> tuple[bytes, bool]:
    try:
        return _inflate(body, most, 15)
    except zlib.error:  # RFC 9110 section 8.4.1.2: some send the bare stream
        return _inflate(body, most, -15)


def _brotli(body: bytes, most: int) -> tuple[bytes, bool]:
    decompressor = brotli.Decompressor()
    data = bytes(decompressor.process(body, output_buffer_limit=most))
    return data[:most], decompressor.is_finished()


def _zstd(body: bytes, most: int) -> tuple[bytes, bool]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    parts, size = [], 0
    with decompressor.stream_reader(body, read_across_frames=True) as reader:
        while size < most and (part := reader.read(min(65536, most - size))):
            parts.append(part)
            size += len(part)
    return b"".join(parts), True


_DECODERS: dict[str, Callable[[bytes, int], tuple[bytes, bool]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
