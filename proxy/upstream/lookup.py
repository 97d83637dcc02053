"""Which addresses a host has: the system's word, or that of DNS where a hosts entry leads here.

An app whose host is hard-coded comes here by a hosts entry. Where the proxy shares that file with
it (one machine, one pod), the entry would lead the proxy to itself.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path

from aiohappyeyeballs import AddrInfoType

from proxy.errors import UpstreamUnreachable

_RESOLV_CONF = Path("/etc/resolv.conf")
_TICK = 0.1  # seconds


async def look_up(
    host: str,
    port: int,
    *,
    family: int,
    ignored: Callable[[tuple[str, ...]], object] | None,
) -> Sequence[AddrInfoType]:
    """The addresses of a host, to be dialled.

    Args:
        host: an address, or a name.
        port: goes with each of them.
        family: `AF_INET` or `AF_UNSPEC`.
        ignored: told of addresses of this machine which are not followed. None follows them: the
            host is meant to be here.

    Raises:
        OSError, UnicodeError: the system knows no such host.
        UpstreamUnreachable: it leads to this machine, and DNS says nothing else.
    """
    kind = {"family": family, "type": socket.SOCK_STREAM}
    try:  # an address needs neither DNS nor the thread that asks it
        return socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST, **kind)
    except socket.gaierror:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, **kind)
    own = tuple(str(one[4][0]) for one in found if _is_own(one))
    if ignored is None or not own:
        return found
    addresses = await _ask_dns(host, family=family)
    if others := tuple(one for one in own if one not in addresses):
        ignored(others)
    asked: list[AddrInfoType] = []
    for address in addresses:
        asked += socket.getaddrinfo(address, port, flags=socket.AI_NUMERICHOST, **kind)
    return asked


def _is_own(found: AddrInfoType) -> bool:
    """Whether an address is this machine's: then, and only then, a socket can be bound to it."""
    family, _, _, _, address = found
    host = str(address[0])
    if ip_address(host.partition("%")[0]).is_loopback:
        return True
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0, *address[2:]))
    except OSError as error:
        return error.errno == errno.EADDRINUSE  # no port is free, but the address is there
    return True


async def _ask_dns(host: str, *, family: int) -> list[str]:
    """The addresses that DNS has for a name, whatever the hosts file says.

    IPv4 first: Nomba's allowlist takes nothing else.
    """
    found, reasons = [], []
    for addresses, reason in await _answers(host, both=family != socket.AF_INET):
        found += addresses
        reasons.append(reason)
    if not found:
        raise UpstreamUnreachable(
            f"A hosts entry leads {host} to this machine, and DNS has no address for it "
            f"({reasons[0]}); nothing was sent.",
            hint=(
                "The request may be repeated. upstream.addresses names where the upstream "
                "really is; without it the proxy has to reach a DNS server."
            ),
        )
    return found


async def _answers(host: str, *, both: bool) -> list[tuple[list[str], str]]:
    """What DNS says of IPv4 and, for `both`, of IPv6: addresses, or why there are none.

    c-ares says which sockets it waits for, and the event loop waits. (With the thread that it
    can wait in, it would also watch its files: on a full machine that fails.)
    """
    import pycares  # few need it

    loop, watched = asyncio.get_running_loop(), set[int]()

    def forget(number: int) -> None:
        watched.discard(number)
        loop.remove_reader(number)
        loop.remove_writer(number)

    def watch(number: int, readable: bool, writable: bool) -> None:  # noqa: FBT001 - its signature
        if number in watched:
            forget(number)
        if readable or writable:
            watched.add(number)
        if readable:
            loop.add_reader(number, channel.process_read_fd, number)
        if writable:
            loop.add_writer(number, channel.process_write_fd, number)

    async def ask(kind: int) -> tuple[list[str], str]:
        answered: asyncio.Future[tuple[pycares.DNSResult | None, int | None]]
        answered = loop.create_future()

        def tell(answer: pycares.DNSResult | None, error: int | None) -> None:
            if not answered.done():
                answered.set_result((answer, error))

        try:
            channel.query(host, kind, callback=tell)
        except pycares.AresError as error:  # no name that could be asked for
            return [], str(error.args[-1])
        while not answered.done():
            await asyncio.wait([answered], timeout=_TICK)
            channel.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)  # its timeouts
        answer, number = answered.result()
        if answer is None:
            return [], str(pycares.errno.strerror(number or 0))
        # Aliases on the way have no address.
        found = [one.data.addr for one in answer.answer if hasattr(one.data, "addr")]
        return found, "an empty answer"

    try:
        channel = pycares.Channel(sock_state_cb=watch, resolvconf_path=servers_file(_RESOLV_CONF))
    except pycares.AresError as error:
        return [([], str(error))]
    kinds = [pycares.QUERY_TYPE_A, pycares.QUERY_TYPE_AAAA]
    try:
        return await asyncio.gather(*map(ask, kinds if both else kinds[:1]))
    finally:
        channel.cancel()
        for number in tuple(watched):
            forget(number)
        channel.close()


def servers_file(resolv_conf: Path) -> str | None:
    """A file of DNS servers to use instead of the system's; None uses that.

    The server that systemd-resolved puts into resolv.conf reads the hosts file as well. It keeps
    a list of those that it asks itself beside it (systemd-resolved.service(8)).
    """
    real = resolv_conf.resolve()
    beside = real.with_name("resolv.conf")
    return str(beside) if real.name == "stub-resolv.conf" and beside.is_file() else None
