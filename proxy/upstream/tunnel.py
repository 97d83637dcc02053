"""A tunnel through an HTTP proxy (CONNECT, RFC 9110 section 9.3.6)."""

import asyncio
import re
import ssl as _ssl
from collections.abc import Callable

from proxy.upstream.connection import Connection

_MAX_HEAD = 16 * 1024
_OPEN = re.compile(rb"HTTP/1\.[01] 2\d\d(?: |\r|$)")


class _Asking(asyncio.Protocol):
    """Waits for the proxy's word; bytes behind it, which nobody asked for yet, are a refusal."""

    def __init__(self) -> None:
        self._head = b""
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """asyncio: some of the proxy's head."""
        self._head += data
        head, blank, rest = self._head.partition(b"\r\n\r\n")
        if self.answered.done():
            return
        if not blank and len(head) <= _MAX_HEAD:
            return
        if blank and not rest and _OPEN.match(head):
            self.answered.set_result(None)
            return
        status = head.split(b"\r\n")[0][:60].decode("ascii", "backslashreplace")
        self.answered.set_exception(OSError(0, f"the connect proxy answered {status!r}"))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """asyncio: the proxy has gone."""
        if not self.answered.done():
            self.answered.set_exception(OSError(0, "the connect proxy closed the connection"))


async def open_tunnel(
    proxy: tuple[str, int],
    *,
    to: tuple[str, int],
    protocol: Callable[[], Connection],
    ssl: _ssl.SSLContext,
    server_hostname: str,
    ssl_handshake_timeout: float,
) -> Connection:
    """A TLS connection to `to` through a proxy; the rest is as `loop.start_tls` has it.

    Raises:
        OSError: the proxy cannot be reached or refuses, or TLS with the upstream fails.
    """
    loop = asyncio.get_running_loop()
    transport, asking = await loop.create_connection(_Asking, *proxy)
    try:
        host = f"[{to[0]}]" if ":" in to[0] else to[0]
        authority = f"{host}:{to[1]}".encode("ascii")
        transport.write(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (authority, authority))
        await asking.answered
        connection = protocol()
        secure = await loop.start_tls(
            transport,
            connection,
            ssl,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
        )
    except BaseException:
        transport.abort()
        raise
    if secure is None:
        raise OSError(0, "the connection was closed during the TLS handshake")
    connection.connection_made(secure)
    return connection
