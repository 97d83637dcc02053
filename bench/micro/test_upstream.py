"""The upstream half: a token is lent, a connection is picked, a reply is parsed."""

import random
import socket
import time

import pytest

from proxy.core.secret import Secret
from proxy.core.session import Limits
from proxy.tokens.asking import Clocks
from proxy.tokens.keyring import Keyring
from proxy.tokens.known import Known
from proxy.tokens.manager import Session
from proxy.tokens.nomba import Credentials, Grant
from proxy.tokens.store import MemoryStore
from proxy.upstream.connection import Connection
from proxy.upstream.pool import Pool, PoolLimits

ORIGIN = "https://issuer.test"


class Transport:
    """Stands in for asyncio's: takes what is written, over a socket on which nothing comes."""

    def __init__(self, sock):
        self._sock = sock

    def get_extra_info(self, name):
        return self._sock if name == "socket" else None

    def set_write_buffer_limits(self, *, high):
        pass

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return False

    def write(self, data):
        pass

    def abort(self):
        pass


@pytest.fixture
async def connection():
    """A connection that nothing has been sent on."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made = Connection()
        made.connection_made(Transport(ours))
        yield made


def wire(headers, body):
    lines = b"".join(b"%b: %b\r\n" % field for field in headers)
    return b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (lines, body)


@pytest.fixture
def reply(reply_headers, body):
    return wire(reply_headers, body)


async def test_parse_reply(benchmark, connection, reply, body):
    def exchange():
        connection.begin(head_only=False)
        connection.data_received(reply)
        return connection.head.status, connection.take()

    assert benchmark(exchange) == (200, body)


async def test_parse_100_kib_in_parts(benchmark, connection):
    """As it comes from a socket: 64 KiB at a time at most."""
    body = b"x" * 102_400
    reply = wire([(b"Content-Length", b"%d" % len(body))], body)
    first, second = reply[:65536], reply[65536:]

    def exchange():
        connection.begin(head_only=False)
        connection.data_received(first)
        size = len(connection.take())
        connection.data_received(second)
        return size + len(connection.take())

    assert benchmark(exchange) == len(body)
    assert connection.complete


async def test_give_and_pick(benchmark, connection, reply):
    async def dial(_lost):
        return connection

    pool = Pool(dial, limits=PoolLimits())
    taken = await pool.take(fresh=False)
    taken.begin(head_only=False)
    taken.send(b"GET / HTTP/1.1\r\n\r\n", body=(), stall=1.0)
    taken.data_received(reply)
    taken.take()

    def again():
        pool.give(connection)
        return pool.pick(recent=True)

    try:
        assert benchmark(again) is connection
    finally:
        pool.close()


class Issuer:
    """Stands in for the wire calls."""

    credentials = Credentials(ORIGIN, "client", "account")

    async def issue(self, _secret, **_):
        access, refresh = (Secret(one * 700, origin=ORIGIN) for one in "tr")
        return Grant(access_token=access, refresh_token=refresh, life=1800.0, account_id="account")


async def test_lend(benchmark):
    known = Known(
        "nomba",
        keyring=Keyring(Secret("the-client-secret", origin=ORIGIN)),
        store=MemoryStore(),
        clocks=Clocks(alive=time.monotonic, wall=time.time, random=random.random),
        emit=lambda _: None,
    )
    session = Session(known, auth=Issuer(), limits=Limits())
    borrowed = await session.borrow()
    try:
        assert benchmark(session.lend) is borrowed
    finally:
        await session.close(revoke=False)
