"""Addresses that are listened on."""

import asyncio
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from proxy.settings import Address

if TYPE_CHECKING:  # the simulator alone needs none of it
    from aiohttp import web

    from proxy.server import TrafficServer

BACKLOG = 1024  # callers that wait to be accepted, as between two proxies on one socket
ANY_PORT = Address("127.0.0.1", 0)


class CannotStart(Exception):
    """The proxy cannot start; the text says why and what to do."""


async def take_traffic(
    server: "TrafficServer", address: Address, *, sock: socket.socket | None
) -> asyncio.Server:
    """Listen without a runner of aiohttp's, whose way of stopping loses requests."""
    where = {"host": address.host, "port": address.port} if sock is None else {"sock": sock}
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(server, **where, backlog=BACKLOG)
    except OSError as error:
        raise taken("listen", address=address, error=error) from None


async def listen_on(
    runner: "web.BaseRunner",
    address: Address,
    *,
    stack: AsyncExitStack,
    key: str,
    sock: socket.socket | None = None,
) -> Address:
    """Let a server answer at an address, or on a bound socket; the address it got.

    Raises:
        CannotStart: it cannot be had.
    """
    from aiohttp import web

    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site: web.BaseSite = web.TCPSite(runner, address.host, address.port)
    if sock is not None:
        site = web.SockSite(runner, sock)
    try:
        await site.start()
    except OSError as error:
        raise taken(key, address=address, error=error) from None
    host, port = runner.addresses[0][:2]
    return Address(host, port)


def taken(key: str, *, address: Address, error: OSError) -> CannotStart:
    """What to say of an address that cannot be had."""
    return CannotStart(
        f"{key} = {address}: {error.strerror}.\n"
        f"Another process may be listening there; choose another address for {key}."
    )


def authorities_of(listen: Address) -> set[str]:
    """What this machine's callers call a listener."""
    names = {str(listen), f"localhost:{listen.port}", f"127.0.0.1:{listen.port}"}
    names.add(f"[::1]:{listen.port}")
    return names | ({"localhost", "127.0.0.1", "[::1]"} if listen.port == 80 else set())


def reached(listen: Address) -> Address:
    """How this machine reaches a listener."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked for, not listened on
    return Address(everywhere.get(listen.host, listen.host), listen.port)
