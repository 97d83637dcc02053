"""Dial the upstream's origin and carry requests to it.

One dialler per upstream serves forwarding and the token calls, so both go the same way:
same addresses, same TLS. Where a request goes is decided here by the configured origin
and by nothing a caller sends.
"""

import asyncio
import ssl
from dataclasses import dataclass

from proxy.core.heads import Headers
from proxy.core.origin import Origin
from proxy.core.reply import WholeReply
from proxy.errors import Outcome, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream.connection import Connection, Reply

_MAX_WHOLE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one attempt, in seconds."""

    connect: float = 5.0
    tls: float = 5.0
    first_byte: float = 60.0
    between_bytes: float = 30.0
    total: float = 90.0


class Dialler:
    """Opens connections to one origin.

    Args:
        origin: where to.
        timeouts: limits of an attempt.
        ca_file: certificates to trust beside the system's, or None.
    """

    def __init__(self, origin: Origin, *, timeouts: Timeouts, ca_file: str | None = None) -> None:
        self.origin = origin
        self._timeouts = timeouts
        self._ssl: ssl.SSLContext | None = None
        if origin.tls:
            self._ssl = ssl.create_default_context()
            self._ssl.minimum_version = ssl.TLSVersion.TLSv1_2
            self._ssl.set_alpn_protocols(["http/1.1"])
            if ca_file is not None:
                self._ssl.load_verify_locations(ca_file)

    async def send(self, head: bytes, *, body: bytes, head_only: bool) -> Reply:
        """Send a request over a fresh connection and wait for the head of its reply.

        Args:
            head: complete request head.
            body: complete request body.
            head_only: whether the method is HEAD.

        Raises:
            UpstreamUnreachable: not a byte was sent.
            UpstreamTimeout: not_sent while connecting, else unknown.
            UpstreamBroken: sent, and no valid reply.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeouts.total
        connection = await self._connect(head_only=head_only)
        try:
            connection.send(head, body=body)
            async with asyncio.timeout_at(min(deadline, loop.time() + self._timeouts.first_byte)):
                await connection.wait_head()
        except TimeoutError:
            connection.close()
            raise UpstreamTimeout(
                "The upstream took the request and did not answer in time.",
                hint=(
                    "It may still be carrying it out: before repeating it, ask for its state "
                    "by its own reference (merchantTxRef or orderReference)."
                ),
                outcome=Outcome.UNKNOWN,
            ) from None
        except BaseException:
            connection.close()
            raise
        return Reply(connection, between=self._timeouts.between_bytes, deadline=deadline)

    async def call(
        self, target: bytes, *, headers: Headers, body: bytes, within: float
    ) -> WholeReply:
        """POST a body of our own and read the whole reply (`core.reply.CallUpstream`)."""
        lines = [b"POST ", target, b" HTTP/1.1\r\nHost: ", self.origin.authority.encode(), b"\r\n"]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"Content-Length: %d\r\n\r\n" % len(body))
        try:
            async with asyncio.timeout(within):
                reply = await self.send(b"".join(lines), body=body, head_only=False)
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
        return WholeReply(reply.status, reply.headers, data)

    async def _connect(self, *, head_only: bool) -> Connection:
        origin = self.origin
        tls = self._ssl is not None
        try:
            async with asyncio.timeout(self._timeouts.connect + (self._timeouts.tls if tls else 0)):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(head_only=head_only),
                    origin.host,
                    origin.port,
                    ssl=self._ssl,
                    server_hostname=origin.host if tls else None,
                    ssl_handshake_timeout=self._timeouts.tls if tls else None,
                )
        except TimeoutError:
            raise UpstreamTimeout(
                f"No connection to {origin.authority} in time; nothing was sent.",
                hint="The request may be repeated. Check the network, the firewall and DNS.",
            ) from None
        except (OSError, UnicodeError) as error:  # TLS and DNS errors are OSErrors
            raise UpstreamUnreachable(
                f"No connection to {origin.authority} ({_why(error)}); nothing was sent.",
                hint="The request may be repeated. Check the base URL, DNS, firewall and TLS.",
            ) from None
        return connection


def _why(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "the host is no host name"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'handshake failed'}"
    return error.strerror or type(error).__name__
