"""Dial the upstream's origin and carry requests to it.

One dialler per upstream serves forwarding and the token calls, so both go the same way:
same addresses, same TLS. Where a request goes is decided here by the configured origin
and by nothing a caller sends.
"""

import asyncio
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohappyeyeballs import AddrInfoType

from proxy.core.capture import Dialled
from proxy.core.heads import Headers
from proxy.core.origin import Origin
from proxy.core.reply import WholeReply
from proxy.errors import (
    Outcome,
    UpstreamBroken,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.upstream.connection import Connection, Interim
from proxy.upstream.pool import Pool, PoolLimits
from proxy.upstream.reply import Reply
from proxy.upstream.way import Way, find, greet, reach

_MAX_WHOLE = 1024 * 1024
_OWN_CALLS = 4  # connections for calls of our own; renewals come one at a time


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds: `total` of an exchange, the others of each attempt in it."""

    connect: float = 5.0
    tls: float = 5.0
    write_stall: float = 30.0
    first_byte: float = 60.0
    between_bytes: float = 30.0
    total: float = 90.0


class Dialler:
    """Carries requests to one origin.

    Args:
        origin: where to.
        timeouts: limits of an attempt.
        way: how to get there.
        limits: of the connections kept.
        via: value of the `Via` line of calls of our own, or empty for none.
        ignored: told, once, of addresses that the system has for the origin's name and that are
            not dialled, as they are this machine's. None dials them.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        timeouts: Timeouts,
        way: Way | None = None,
        limits: PoolLimits | None = None,
        via: bytes = b"",
        ignored: Callable[[tuple[str, ...]], object] | None = None,
    ) -> None:
        self.origin = origin
        self._timeouts = timeouts
        self._way = way or Way()
        self._loop = asyncio.get_running_loop()
        self._via = via
        # An origin on this machine is meant to be here.
        self._ignored = None if origin.environment == "loopback" else ignored
        self._told = False
        self._tls = _tls(self._way.ca_file) if origin.tls else None
        self._pool = Pool(self._connect, limits=limits or PoolLimits())
        # Requests that wait for a renewal hold connections: it must not wait for theirs.
        self._own = Pool(self._connect, limits=PoolLimits(size=_OWN_CALLS))

    def change(self, *, timeouts: Timeouts, limits: PoolLimits) -> None:
        """Other limits hold for requests from now on."""
        self._timeouts = timeouts
        self._pool.change(limits)

    def close(self) -> None:
        """Close the connections kept; requests under way go on."""
        self._pool.close()
        self._own.close()

    def deadline(self) -> float:
        """Loop time at which an exchange that begins now has to be over."""
        return self._loop.time() + self._timeouts.total

    async def send(
        self,
        head: bytes,
        *,
        body: Iterable[bytes],
        head_only: bool,
        fresh: bool = False,
        recent: bool = False,
        sending: Callable[[Dialled | None], object] = lambda _: None,
        interim: Interim = lambda *_: None,
        own: bool = False,
        deadline: float | None = None,
    ) -> Reply:
        """Send a request and wait for the head of its reply.

        Args:
            head: complete request head.
            body: the body in parts, none of them empty.
            head_only: whether the method is HEAD.
            fresh: over a connection that has carried nothing yet.
            recent: over one that is fresh or was used a moment ago.
            sending: told right before the first byte is written; when its connection came
                about, if that was for this request.
            interim: told of replies that come before the final one.
            own: a call of the proxy's own, beside those it forwards.
            deadline: of the exchange; without one it begins now.

        Raises:
            UpstreamUnreachable, Overloaded: not a byte was sent.
            UpstreamTimeout: not_sent while connecting, else unknown.
            UpstreamBroken: sent, and no valid reply.
        """
        loop, timeouts = self._loop, self._timeouts
        now = loop.time()
        if deadline is None:
            deadline = now + timeouts.total
        elif now >= deadline:
            raise _no_time()
        pool = self._own if own else self._pool
        connection = None if fresh else pool.pick(recent=recent)
        if connection is None:
            connection = await self._take(pool, deadline=deadline, fresh=fresh or recent)
            now = loop.time()
        try:
            connection.begin(head_only=head_only, interim=interim)
            rest = connection.send(
                head, body=body, stall=timeouts.write_stall, by=deadline, sending=sending
            )
            if rest is not None:
                await rest
                now = loop.time()
            await connection.wait_head(by=min(deadline, now + timeouts.first_byte))
        except TimeoutError:
            _give_up(connection, pool)
            raise UpstreamTimeout(
                "The upstream took the request and did not answer in time.",
                hint=(
                    "It may still be carrying it out: before repeating it, ask for its state "
                    "by its own reference (merchantTxRef or orderReference)."
                ),
                outcome=Outcome.UNKNOWN,
            ) from None
        except UpstreamError as error:
            ended = isinstance(error, UpstreamBroken)
            error.stale = ended and connection.used > 1 and connection.silent
            _give_up(connection, pool)
            raise
        except BaseException:
            _give_up(connection, pool)
            raise
        if self._tls is not None and connection.used == 1:
            self._tls.remember(connection.tls)
        return Reply(
            connection,
            release=pool.give,
            between=timeouts.between_bytes,
            deadline=deadline,
        )

    async def _take(self, pool: Pool, *, deadline: float, fresh: bool) -> Connection:
        try:
            async with asyncio.timeout_at(deadline):
                return await pool.take(fresh=fresh)
        except TimeoutError:
            raise _no_time() from None

    async def call(
        self,
        target: bytes,
        *,
        headers: Headers,
        body: bytes,
        within: float,
        sending: Callable[[], object] = bool,
        method: bytes = b"POST",
    ) -> WholeReply:
        """Send a request of our own and read the whole reply (`core.reply.CallUpstream`)."""
        lines = [
            method,
            b" ",
            target,
            b" HTTP/1.1\r\nHost: ",
            self.origin.authority.encode(),
            b"\r\n",
        ]
        if self._via:  # so that a proxy that calls itself finds out
            lines += (b"Via: ", self._via, b"\r\n")
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if body or method == b"POST":
            lines.append(b"Content-Length: %d\r\n" % len(body))
        lines.append(b"\r\n")
        try:
            async with asyncio.timeout(within):
                reply = await self.send(
                    b"".join(lines),
                    body=(body,) if body else (),
                    head_only=False,
                    fresh=True,
                    own=True,
                    sending=lambda _: sending(),
                )
                try:
                    data, complete = await reply.peek(_MAX_WHOLE)
                finally:
                    reply.close()
        except TimeoutError:
            raise UpstreamTimeout(
                f"no answer within {within:g} seconds", outcome=Outcome.UNKNOWN
            ) from None
        if not complete:
            raise UpstreamBroken("the reply is too large", outcome=Outcome.UNKNOWN)
        return WholeReply(reply.head.status, reply.head.headers, data)

    async def _connect(self, ended: Callable[[Connection], object]) -> Connection:
        timeouts, tls = self._timeouts, self._tls is not None
        try:
            async with asyncio.timeout(timeouts.connect + (timeouts.tls if tls else 0)):
                return await self._dial(lambda: Connection(ended=ended))
        except TimeoutError:
            raise UpstreamTimeout(
                f"No connection to {self.origin.authority} in time; nothing was sent.",
                hint="The request may be repeated. Check the network, the firewall and DNS.",
            ) from None
        except (OSError, UnicodeError) as error:  # TLS and DNS errors are OSErrors
            raise UpstreamUnreachable(
                f"No connection to {self.origin.authority} ({_why(error)}); nothing was sent.",
                hint="The request may be repeated. Check the base URL, DNS, firewall and TLS.",
            ) from None

    async def _dial(self, protocol: Callable[[], Connection]) -> Connection:
        began = time.monotonic()
        # A tunnel's time and that of TLS in it are not told apart.
        sock = None if self._way.proxy is not None else await self.reach(await self.find())
        reached = began if sock is None else time.monotonic()
        connection = await self.greet(sock, protocol=protocol)
        ready = reached if self._tls is None else time.monotonic()
        connection.dialled = Dialled(began, reached, ready)
        return connection

    # -- the same a step at a time -----------------------------------------------------------

    async def find(self) -> Sequence[AddrInfoType]:
        """The origin's addresses (`way.find`)."""
        ignored = None if self._ignored is None else self._ignore
        return await find(self.origin, way=self._way, ignored=ignored)

    async def reach(self, found: Sequence[AddrInfoType]) -> socket.socket:
        """A TCP connection to one of them (`way.reach`)."""
        return await reach(found, way=self._way)

    async def greet(
        self, sock: socket.socket | None, *, protocol: Callable[[], Connection] = Connection
    ) -> Connection:
        """TLS over it, if the origin speaks it; without one, through the proxy (`way.greet`)."""
        return await greet(
            self.origin,
            way=self._way,
            sock=sock,
            tls=self._tls,
            patience=self._timeouts.tls,
            protocol=protocol,
        )

    def _ignore(self, addresses: tuple[str, ...]) -> None:
        if self._ignored is not None and not self._told:
            self._told = True
            self._ignored(addresses)


def _no_time() -> UpstreamTimeout:
    return UpstreamTimeout(
        "There was no time left to send the request; nothing was sent.",
        hint="The request may be repeated. Send fewer at a time, or raise pool.size.",
    )


def _give_up(connection: Connection, pool: Pool) -> None:
    connection.close()
    pool.give(connection)


class _Tls(ssl.SSLContext):
    """Verifies as the system does, from TLS 1.2 on, and resumes the last session."""

    _session: ssl.SSLSession | None = None

    def remember(self, made: ssl.SSLObject | None) -> None:
        """Resume the session of a connection next time, if the server gave one."""
        if made is not None and made.session is not None:
            self._session = made.session

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """asyncio: begin a connection."""
        return super().wrap_bio(*args, **{**options, "session": self._session})


def _tls(ca_file: str | None) -> _Tls:
    context = _Tls(ssl.PROTOCOL_TLS_CLIENT)
    if sys.version_info >= (3, 13):  # as `ssl.create_default_context` has it
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_default_certs()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


def _why(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "the host is no host name"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'handshake failed'}"
    return error.strerror or type(error).__name__
