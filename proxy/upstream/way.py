"""The way to an origin, a step at a time: its addresses, a TCP connection, TLS."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohappyeyeballs import AddrInfoType, start_connection

from proxy.core.origin import Origin
from proxy.upstream.connection import Connection
from proxy.upstream.lookup import look_up
from proxy.upstream.tunnel import open_tunnel

_HAPPY_EYEBALLS = 0.25  # seconds before the next address is tried too (RFC 8305 section 5)


@dataclass(frozen=True, slots=True)
class Way:
    """How to reach an origin, beyond its name.

    Attributes:
        ca_file: certificates to trust beside the system's, or None.
        addresses: IP addresses to dial instead of asking DNS, in this order.
        ipv4_only: never dial IPv6 (Nomba's allowlist takes IPv4 only; facts, section 2).
        proxy: `(host, port)` of an HTTP proxy to CONNECT through, or None.
    """

    ca_file: str | None = None
    addresses: tuple[str, ...] = ()
    ipv4_only: bool = False
    proxy: tuple[str, int] | None = None


async def find(
    origin: Origin, *, way: Way, ignored: Callable[[tuple[str, ...]], object] | None = None
) -> Sequence[AddrInfoType]:
    """The addresses that an origin is dialled at.

    Args:
        origin: where to.
        way: how to get there.
        ignored: as `look_up`.

    Raises:
        OSError, UnicodeError, UpstreamUnreachable: as `look_up`.
    """
    family = socket.AF_INET if way.ipv4_only else socket.AF_UNSPEC
    found: list[AddrInfoType] = []
    for host in way.addresses or (origin.host,):
        found += await look_up(host, origin.port, family=family, ignored=ignored)
    return found


async def reach(found: Sequence[AddrInfoType], *, way: Way) -> socket.socket:
    """A TCP connection to the first of the addresses that takes it.

    Raises:
        OSError: none does.
    """
    return await start_connection(
        found,
        happy_eyeballs_delay=_HAPPY_EYEBALLS,
        interleave=0 if way.addresses else 1,
    )


async def greet(
    origin: Origin,
    *,
    way: Way,
    sock: socket.socket | None,
    tls: ssl.SSLContext | None,
    patience: float,
    protocol: Callable[[], Connection],
) -> Connection:
    """A connection that a request can be written to.

    Args:
        origin: where to.
        way: how to get there.
        sock: a TCP connection to it; None where a proxy is asked for one.
        tls: what TLS is spoken with, if it is.
        patience: seconds that its handshake may take.
        protocol: makes the connection.

    Raises:
        OSError: the proxy cannot be reached or refuses, or TLS fails.
    """
    secure: dict[str, Any] = {}
    if tls is not None:
        secure = {"ssl": tls, "server_hostname": origin.host, "ssl_handshake_timeout": patience}
    if sock is None:
        assert way.proxy is not None  # noqa: S101 - whoever has no socket has one
        to = (origin.host, origin.port)
        return await open_tunnel(way.proxy, to=to, protocol=protocol, **secure)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(protocol, sock=sock, **secure)
    return connection


async def reach_proxy(way: Way) -> None:
    """Whether the HTTP proxy that the way leads through can be reached at all.

    Raises:
        OSError: it cannot.
    """
    assert way.proxy is not None  # noqa: S101 - whoever asks has one
    _, writer = await asyncio.open_connection(*way.proxy)
    writer.close()


async def certificate_shown(
    origin: Origin, *, way: Way, sock: socket.socket | None, patience: float
) -> bytes | None:
    """The certificate that is shown for an origin, by whoever is there, in DER.

    Nothing is verified, so nothing is sent: it is for saying what is wrong with one that was
    refused.

    Args:
        origin: where to.
        way: how to get there.
        sock: as `greet`.
        patience: as `greet`.

    Raises:
        OSError: there is none to be had.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    made = await greet(
        origin, way=way, sock=sock, tls=context, patience=patience, protocol=Connection
    )
    try:
        return None if made.tls is None else made.tls.getpeercert(binary_form=True)
    finally:
        made.close()
