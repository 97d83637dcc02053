"""Ask this machine: a proxy that runs here, and who has the places that one would listen at."""

import asyncio
import errno
import json
import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from proxy.app.listeners import reached
from proxy.core.secret import ADMIN
from proxy.doctor.holders import holders, name_of
from proxy.doctor.of_local import Around, Door
from proxy.doctor.of_proxy import rivals_of
from proxy.doctor.status import is_of_a_proxy, not_said
from proxy.settings import Address, Listener, Settings, UnixSocket

_PATIENCE = 3.0  # seconds; all of it is on this machine
_FORWARDED = 100.0  # longer than a proxy waits for Nomba
_MAX = 1024 * 1024
# Every proxy of ours refuses it by itself, whoever asks. It accounts for that with a log line and in
# its metrics, as for everything that comes to a traffic listener: nothing is answered there without
# a trace. So it is the last resort, where its admin listener says nothing.
_HARMLESS = "TRACE"
_OURS = "nomba-proxy-error"


@dataclass(frozen=True, slots=True)
class Heard:
    """A reply of something on this machine.

    Attributes:
        status: HTTP's.
        headers: names in lower case.
        body: the first MiB.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


async def look_around(settings: Settings) -> Around:
    """Who is where; nothing is changed, and no session touched."""
    return await asyncio.to_thread(_look_around, settings)


def _look_around(settings: Settings) -> Around:
    admin, rivals = settings.admin_listen, dict[str, int]()
    said = _sessions(settings)
    if (status := said.status) is not None:
        with suppress(OSError, HTTPException):
            told = _ask_admin(settings, path="/metrics").body
            rivals = rivals_of(told.decode("utf-8", "replace"))
    known = holders(admin) if said.by_a_proxy else frozenset[int]()
    doors = [_door_of(one, known=known) for one in settings.listen]
    if said.by_a_proxy:
        doors.append(Door("admin.listen", str(admin), "ours"))
    else:
        doors.append(_asked(_place("admin.listen", admin), at=admin))
    if settings.inspect:
        inspector = _place("inspect_listen", settings.inspect_listen)
        if status is not None and inspector.state == "taken":  # it says nothing to strangers
            inspector = Door(inspector.key, inspector.at, "ours")
        doors.append(inspector)
    return Around(str(admin), status, said.locked, rivals, tuple(doors), said.odd)


@dataclass(frozen=True, slots=True)
class _Said:
    """What the admin listener says of sessions; see `Around`."""

    status: Mapping[str, Any] | None = None
    locked: bool = False
    odd: str = ""

    @property
    def by_a_proxy(self) -> bool:
        """Whether it is one of ours that says so, whatever it says."""
        return self.status is not None or self.locked or bool(self.odd)


def _sessions(settings: Settings) -> _Said:
    try:
        heard = _ask_admin(settings, path="/token")
        found = json.loads(heard.body)
    except (OSError, HTTPException, ValueError, RecursionError):
        return _Said()
    if not isinstance(found, dict) or not found:
        return _Said()
    if heard.status in {401, 403}:
        return _Said(locked=set(found) == {"error"})
    if not is_of_a_proxy(found):
        return _Said()
    odd = not_said(found)
    return _Said(odd=odd) if odd else _Said(found)


async def status_now(settings: Settings) -> Mapping[str, Any] | None:
    """What a proxy says of its sessions now; None if it says nothing that can be read."""
    return (await asyncio.to_thread(_sessions, settings)).status


def _ask_admin(settings: Settings, *, path: str) -> Heard:
    at, token = settings.admin_listen, settings.admin_token
    headers = {} if token is None else {"Authorization": f"Bearer {token.reveal(to=ADMIN)}"}
    return ask(at, path=path, headers=headers)


def ask(
    at: Address | UnixSocket,
    *,
    path: str,
    tls: bool = False,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    patience: float = _PATIENCE,
) -> Heard:
    """Ask something on this machine.

    A certificate may be anybody's: over TLS nothing secret is sent.

    Args:
        at: where.
        path: what for.
        tls: whether it speaks TLS.
        method: of the request.
        headers: beside those that have to be; `Host` is the address unless it is among them.
        patience: seconds that each part of it may take.

    Raises:
        OSError, HTTPException: it does not answer, or not in HTTP.
    """
    at = reached(at) if isinstance(at, Address) else at
    with closing(_connected(at, patience=patience)) as plain:
        sock = _secure(plain) if tls else plain
        made = HTTPConnection("localhost")
        made.sock = sock
        with closing(made):
            where = str(at) if isinstance(at, Address) else "localhost"
            usual = {"Host": where, "Connection": "close"}
            made.request(method, path, headers=usual | dict(headers or {}))
            reply = made.getresponse()
            fields = {name.lower(): value for name, value in reply.getheaders()}
            return Heard(reply.status, fields, reply.read(_MAX))


async def ask_traffic(settings: Settings, *, path: str, host: str) -> Heard | None:
    """Ask a proxy that runs here, as a caller would; None if no listener answers.

    Args:
        settings: know where it listens.
        path: what for.
        host: that it is called by, or "".
    """
    for one in settings.listen:
        if one.at is None:
            continue
        with suppress(OSError, HTTPException):
            return await asyncio.to_thread(
                ask,
                one.at,
                path=path,
                tls=one.tls,
                headers={"Host": host} if host else {},
                patience=_FORWARDED,
            )
    return None


def _connected(at: Address | UnixSocket, *, patience: float) -> socket.socket:
    if isinstance(at, Address):
        return socket.create_connection((at.host, at.port), timeout=patience)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(patience)
    try:
        sock.connect(at.path)
    except OSError:
        sock.close()
        raise
    return sock


def _secure(sock: socket.socket) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(sock)


# -- places to listen at --------------------------------------------------------------------


def _door_of(listener: Listener, *, known: frozenset[int]) -> Door:
    """Who is at a traffic listener's place.

    Args:
        listener: it.
        known: the processes that have the admin listener of a proxy, if one says that it is one.
    """
    where = str(listener)
    if listener.descriptor is not None:
        return Door("listen", where, "inherited")
    assert listener.at is not None  # noqa: S101 - only a descriptor's is
    found = _place("listen", listener.at)
    # All of its processes and no others: a parent that opened sockets for several has them as well.
    if found.state == "taken" and known and holders(listener.at) == known:
        return Door("listen", where, "ours")
    return replace(_asked(found, at=listener.at, tls=listener.tls), at=where)


def _asked(door: Door, *, at: Address | UnixSocket, tls: bool = False) -> Door:
    """The same once whoever has it was asked: a proxy of ours says so, unless it hangs."""
    if door.state != "taken":
        return door
    try:
        heard = ask(at, path="/", tls=tls, method=_HARMLESS)
    except (TimeoutError, ConnectionError, PermissionError):
        return replace(door, state="silent")
    except (OSError, HTTPException):
        return door
    return replace(door, state="ours", detail="") if _OURS in heard.headers else door


def _place(key: str, at: Address | UnixSocket) -> Door:
    error = _unix_error(at) if isinstance(at, UnixSocket) else _tcp_error(at)
    if error is None:
        return Door(key, str(at), "free")
    if error.errno == errno.EADDRINUSE:
        return Door(key, str(at), "taken", name_of(holders(at)))
    return Door(key, str(at), "denied", error.strerror or str(error))


def _tcp_error(at: Address) -> OSError | None:
    """Why an address cannot be listened at; nobody is ever accepted by the trial."""
    try:
        found = socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM)
        for kind, where in dict.fromkeys((one[0], one[4]) for one in found):
            with socket.socket(kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if kind == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(where)
    except OSError as error:
        return error
    return None


def _unix_error(at: UnixSocket) -> OSError | None:
    """Why a path cannot be listened at; one that nobody listens at any more can."""
    path = Path(at.path)
    try:
        if path.is_socket():
            with suppress(ConnectionRefusedError):
                _connected(at, patience=_PATIENCE).close()
                return OSError(errno.EADDRINUSE, "somebody listens there")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            there = path.parent.exists()
            text = "its folder cannot be written" if there else "its folder is not there"
            return OSError(errno.EACCES, text)
        if path.exists() and not path.is_socket():
            return OSError(errno.EEXIST, "there is another file, which is no socket")
    except (PermissionError, TimeoutError, BlockingIOError):  # who is there cannot be asked
        return OSError(errno.EADDRINUSE, "somebody may listen there")
    except OSError as error:
        return error
    return None
