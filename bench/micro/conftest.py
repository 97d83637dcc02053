"""What the hot functions are given: a request and a reply as they come, head fields as raw bytes."""

import json

import pytest

KEY = "npk_bench_" + "k" * 43
TOKEN = "t" * 700
BODY = json.dumps({"code": "00", "description": "Success", "data": "x" * 970}).encode()


@pytest.fixture
def key():
    """A caller's key."""
    return KEY


@pytest.fixture
def headers(key):
    """The fields that an HTTP library sends, and a key."""
    return (
        (b"Host", b"localhost:8080"),
        (b"User-Agent", b"python-requests/2.32.3"),
        (b"Accept", b"*/*"),
        (b"Accept-Encoding", b"gzip, deflate"),
        (b"Connection", b"keep-alive"),
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"1024"),
        (b"X-Nomba-Proxy-Key", key.encode()),
    )


@pytest.fixture
def reply_headers():
    """The fields of a reply of `body`."""
    return (
        (b"Date", b"Thu, 01 Jan 2026 00:00:00 GMT"),
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(BODY)),
        (b"Connection", b"keep-alive"),
        (b"Server", b"nginx"),
        (b"Vary", b"Origin"),
    )


@pytest.fixture
def body():
    """A kilobyte in Nomba's envelope."""
    return BODY


@pytest.fixture
def token():
    """As long as Nomba's are."""
    return TOKEN
