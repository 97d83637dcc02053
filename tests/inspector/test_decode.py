"""Bodies in any coding and charset, cut off, faulty, or meant to harm."""

import gzip
import zlib

import brotli
import pytest
import zstandard

from proxy.inspector.decode import decode

TEXT = '{"code":"00","name":"Adé"}' * 20


def bare(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


CODINGS = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": bare,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
}


@pytest.mark.parametrize("codings", CODINGS)
def test_every_coding_is_read(codings):
    found = decode(CODINGS[codings](TEXT.encode()), media="application/json", codings=codings)
    assert (found.text, found.note) == (TEXT, "")


@pytest.mark.parametrize("codings", ["gzip", "deflate", "br"])
def test_of_a_body_that_was_cut_off_is_read_what_there_is(codings):
    data = CODINGS[codings](TEXT.encode() + bytes(range(256)) * 40)
    found = decode(data[: len(data) // 2], media="text/plain", codings=codings)
    assert found.note == "is cut off"


@pytest.mark.parametrize("codings", ["gzip", "deflate", "br", "zstd"])
def test_what_is_in_no_such_coding_is_not_shown(codings):
    found = decode(b"client_secret=abc", media="text/plain", codings=codings)
    assert b"secret" not in found.data
    assert "secret" not in (found.text or "")
    assert found.note


@pytest.mark.parametrize("codings", ["compress", "gzip,gzip,gzip,gzip", "aes128gcm"])
def test_a_coding_that_cannot_be_read_shows_nothing(codings):
    found = decode(b"x", media="text/plain", codings=codings)
    assert (found.text, found.data) == (None, b"")
    assert found.note


@pytest.mark.parametrize("codings", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_bomb_does_not_go_off(codings):
    bomb = b"\0" * (200 << 20)
    for coding in codings.split(", "):
        bomb = brotli.compress(bomb, quality=1) if coding == "br" else CODINGS[coding](bomb)
    found = decode(bomb, media="application/octet-stream", codings=codings)
    assert len(found.data) <= 2 << 20
    assert "longer than" in found.note or found.note == "is cut off"


@pytest.mark.parametrize(
    ("media", "charset"),
    [
        ("application/json", "utf-8"),
        ("application/json", "utf-8-sig"),
        ("application/json", "utf-16"),
        ("application/json", "utf-16-le"),
        ("application/json", "utf-32-be"),
        ("text/plain; charset=iso-8859-1", "iso-8859-1"),
        ('text/plain; charset="utf-16"', "utf-16"),
        ("text/html;charset=windows-1252", "windows-1252"),
    ],
)
def test_every_charset_is_read(media, charset):
    assert decode(TEXT.encode(charset), media=media, codings="").text == TEXT


@pytest.mark.parametrize("charset", ["rot13", "base64", "no-such", "zlib", "x" * 100, "idna"])
def test_a_charset_that_is_none_falls_back(charset):
    found = decode(b"abc", media=f"text/plain; charset={charset}", codings="")
    assert found.text == "abc"


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0", b"\xff\xd8\xff\xe0", bytes(range(256))])
def test_what_is_no_text_stays_bytes(data):
    found = decode(data, media="application/octet-stream", codings="")
    assert (found.text, found.data) == (None, data)


def test_a_character_that_was_cut_off_makes_it_no_binary():
    assert decode("Adé".encode()[:-1], media="", codings="").text == "Ad"
