"""Sockets that are listened on."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.settings import Address, Listener, UnixSocket

if TYPE_CHECKING:  # the simulator alone needs none of it
    from aiohttp import web

    from proxy.server import TrafficServer

BACKLOG = 1024  # callers that wait to be accepted, as between two proxies on one socket
ANY_PORT = Address("127.0.0.1", 0)
_WHY_NOT = {  # why an address cannot be had, and what to do; else somebody may be there
    errno.EACCES: (
        "This user may not listen there: a port below 1024 is root's (docs/hard-coded-hosts.md has "
        "ways), and the folder of a Unix socket has to be writable for the proxy."
    ),
    errno.ENOENT: "The folder of a Unix socket has to be there before the proxy starts.",
    errno.EADDRNOTAVAIL: "This machine has no such address; 0.0.0.0 and [::] are all it has.",
    socket.EAI_NONAME: "That name leads to no address; see /etc/hosts and DNS.",
}
_THERE = OSError(0, "somebody listens there")
_GOODBYE = 2.0  # seconds in which a caller has to answer that a TLS connection ends


class CannotStart(Exception):
    """The proxy cannot start; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A socket that callers come in by.

    Attributes:
        sock: it listens already.
        listener: where it is, its real port included.
        file: device and inode of the file that a Unix socket of ours has.
    """

    sock: socket.socket
    listener: Listener
    file: tuple[int, int] | None = None

    @property
    def shareable(self) -> bool:
        """Whether another process can have a socket of its own at the same place."""
        return isinstance(self.listener.at, Address) and self.listener.descriptor is None

    def again(self) -> "Bound":
        """The same place for another process: a socket of its own where there can be two."""
        if not self.shareable or not isinstance(self.listener.at, Address):
            return Bound(self.sock.dup(), self.listener)
        [sock] = _tcp(self.listener.at, key="listen", exclusive=False, shared=True)
        return Bound(sock, self.listener)

    def leave(self) -> None:
        """Take the file of a Unix socket away, unless it is another's by now."""
        if self.file is not None and isinstance(self.listener.at, UnixSocket):
            path = self.listener.at.path
            with contextlib.suppress(OSError):
                if _file(path) == self.file:
                    Path(path).unlink()


def bind(listener: Listener, *, key: str = "listen", shared: bool = False) -> list[Bound]:
    """Take a place that the settings name; several sockets where a name has several addresses.

    Args:
        listener: where.
        key: the setting that says so.
        shared: whether other processes are to have the same TCP address.

    Raises:
        CannotStart: it cannot be had.
    """
    if listener.descriptor is not None:
        if listener.at is None:
            raise CannotStart(
                f"{key} = {listener}: that descriptor is no listening socket.\n"
                "systemd passes one for each Listen… line of the .socket unit, from fd:3 on."
            )
        return [Bound(socket.socket(fileno=os.dup(listener.descriptor)), listener)]
    if isinstance(listener.at, UnixSocket):
        return [Bound(_unix(listener.at, key=key), listener, _file(listener.at.path))]
    assert listener.at is not None  # noqa: S101 - only a descriptor's is
    every = _tcp(listener.at, key=key, exclusive=True, shared=shared)
    return [Bound(one, replace(listener, at=Address(*one.getsockname()[:2]))) for one in every]


def _tcp(address: Address, *, key: str, exclusive: bool, shared: bool) -> list[socket.socket]:
    """Bound sockets that listen, those of IPv4 first.

    Args:
        address: where.
        key: the setting that it comes from.
        exclusive: whether nobody may be there yet.
        shared: whether others are to have the same address.

    Raises:
        CannotStart: it cannot be had.
    """
    made: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        every = dict.fromkeys(sorted(((one[0], one[4]) for one in found), key=_ipv4_first))
        for family, where in every:
            if where[1] == 0 and made:  # the same port for all
                where = (where[0], made[0].getsockname()[1], *where[2:])  # noqa: PLW2901
            if exclusive:  # SO_REUSEPORT would let us in where another proxy listens with it
                with socket.socket(family) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    _bind(probe, where)
                    where = probe.getsockname()  # noqa: PLW2901
            sock = socket.socket(family)
            made.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _bind(sock, where)
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in made:
            sock.close()
        raise taken(key, address=address, error=error) from None
    return made


def _ipv4_first(found: tuple[socket.AddressFamily, tuple[object, ...]]) -> bool:
    return found[0] != socket.AF_INET


def _bind(sock: socket.socket, where: tuple[object, ...]) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(where)


def _unix(at: UnixSocket, *, key: str) -> socket.socket:
    """A Unix socket; one that nobody listens on any more is taken away first.

    Raises:
        CannotStart: somebody does, or there is another file.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        path = Path(at.path)
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                probe.setblocking(False)  # whoever is there may accept nobody
                try:
                    probe.connect(at.path)
                except ConnectionRefusedError:
                    path.unlink()
                except BlockingIOError:  # so many wait there already
                    raise taken(key, address=at, error=_THERE) from None
                else:
                    raise taken(key, address=at, error=_THERE)
        # From its first moment on it has that mode; to change it later would follow a link.
        before = os.umask(0o777 & ~at.mode)
        try:
            sock.bind(at.path)
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise taken(key, address=at, error=error) from None
    except CannotStart:
        sock.close()
        raise
    return sock


def _file(path: str) -> tuple[int, int]:
    found = Path(path).lstat()
    return found.st_dev, found.st_ino


async def take_traffic(
    server: "TrafficServer", bound: Bound, *, tls: ssl.SSLContext | None, handshake: float
) -> asyncio.Server:
    """Listen without a runner of aiohttp's, whose way of stopping loses requests.

    Args:
        server: makes the connections.
        bound: where they come in.
        tls: what they begin with, if the listener speaks TLS.
        handshake: seconds in which they have to have begun.
    """
    secure = bound.listener.tls
    bound.sock.setblocking(False)
    return await asyncio.get_running_loop().create_server(
        server,
        sock=bound.sock,
        backlog=BACKLOG,
        ssl=tls if secure else None,
        ssl_handshake_timeout=handshake if secure else None,
        ssl_shutdown_timeout=_GOODBYE if secure else None,
    )


async def listen_on(runner: "web.BaseRunner", bound: Bound, *, stack: AsyncExitStack) -> None:
    """Let a server of aiohttp's answer at a place."""
    from aiohttp import web

    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, bound.sock).start()


def taken(key: str, *, address: Address | UnixSocket, error: OSError) -> CannotStart:
    """What to say of an address that cannot be had."""
    shows = "ss -lxp" if isinstance(address, UnixSocket) else "ss -ltnp"
    somebody = (
        f"Another process may be listening there, such as a proxy that runs already ({shows} shows "
        f"it). End it, or choose another address for {key}."
    )
    hint = _WHY_NOT.get(error.errno, somebody) if error.errno else somebody
    return CannotStart(f"{key} = {address}: {error.strerror}.\n{hint}")


def authorities_of(listener: Listener) -> set[str]:
    """What this machine's callers call a listener."""
    at = listener.at
    if not isinstance(at, Address):
        return {"localhost"}
    names = {str(at), f"localhost:{at.port}", f"127.0.0.1:{at.port}", f"[::1]:{at.port}"}
    usual = 443 if listener.tls else 80
    return names | ({"localhost", "127.0.0.1", "[::1]"} if at.port == usual else set())


def reached(listen: Address) -> Address:
    """How this machine reaches a listener."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked for, not listened on
    return Address(everywhere.get(listen.host, listen.host), listen.port)
