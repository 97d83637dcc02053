"""Where to listen and where to send: parsed once, checked once."""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass

from yarl import URL

from proxy.core.origin import (
    PRODUCTION,
    SANDBOX,
    WRONG_SANDBOX_HOSTS,
    Environment,
    Origin,
    host_name,
)


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        """`host:port`, with brackets around an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A path to listen on.

    Attributes:
        path: absolute.
        mode: of the socket file; who may write to it may call.
    """

    path: str
    mode: int = 0o600

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class Listener:
    """Where callers connect.

    Attributes:
        at: the address; None for a descriptor of which nothing is known.
        tls: whether they speak TLS.
        descriptor: of a socket that the process was given, or None.
    """

    at: Address | UnixSocket | None
    tls: bool = False
    descriptor: int | None = None

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.at.loopback if isinstance(self.at, Address) else True

    @property
    def url(self) -> str:
        """Where it is, for people."""
        if isinstance(self.at, Address):
            return f"http{'s' if self.tls else ''}://{self.at}"
        return f"fd:{self.descriptor}" if self.at is None else str(self.at)

    def __str__(self) -> str:
        """As `listen` says it."""
        where = f"fd:{self.descriptor}" if self.descriptor is not None else str(self.at)
        return f"https://{where}" if self.tls else where


def parse_listener(text: str) -> Listener:
    """Parse `host:port`, `https://host:port`, `unix:///path?mode=0660` or `fd:3`.

    Raises:
        ValueError: it is none.
    """
    scheme, found, rest = text.partition("://")
    scheme = scheme.lower() if found else ""
    if scheme == "unix":
        return Listener(_unix(rest))
    if scheme not in {"", "http", "https"}:
        raise ValueError("write host:port, https://host:port, unix:///path or fd:3")
    tls, where = scheme == "https", rest if found else text
    if inherited := re.fullmatch(r"fd:(\d{1,6})", where):
        descriptor = int(inherited[1])
        if descriptor < 3:
            raise ValueError("0, 1 and 2 are no sockets; the first that is passed on is fd:3")
        at = _inherited(descriptor)
        if tls and isinstance(at, UnixSocket):
            raise ValueError("TLS is for TCP; what comes over a Unix socket stays on this machine")
        return Listener(at, tls, descriptor)
    return Listener(parse_address(where.rstrip("/")), tls)


def _unix(rest: str) -> UnixSocket:
    path, _, options = rest.partition("?")
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError("the path of a Unix socket is absolute: unix:///run/nomba-proxy.sock")
    if len(os.fsencode(path)) > 107:  # sun_path, unix(7)
        raise ValueError("the path of a Unix socket has 107 bytes at most")
    if not options:
        return UnixSocket(path)
    if not (mode := re.fullmatch(r"mode=(0?[0-7]{3})", options)):
        raise ValueError("behind ? a Unix socket has its mode only: ?mode=0660")
    return UnixSocket(path, int(mode[1], 8))


def _inherited(descriptor: int) -> Address | UnixSocket | None:
    """Where a socket listens that this process was given; None if it has none."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                return None
            name = sock.getsockname()
    except OSError:
        return None
    if isinstance(name, tuple):
        return Address(*name[:2])
    return UnixSocket(os.fsdecode(name))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(text: str) -> Address:
    """Parse `host:port` (an IPv6 host in brackets).

    Raises:
        ValueError: it is none.
    """
    host, colon, port = text.lower().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("write an IPv6 address in brackets: [::1]:8080")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected host:port, for example 127.0.0.1:8080")
    _check_host(host)
    return Address(host, int(port))


def _check_host(host: str) -> None:
    try:
        host.encode("idna")  # what resolving it will do
    except UnicodeError:
        raise ValueError("the host is no host name") from None
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
        raise ValueError("the host is no host name")


def parse_host_name(text: str) -> str:
    """Parse a host name or IP address without port, as `core.origin.host_name` spells it.

    Raises:
        ValueError: it is none.
    """
    try:
        return ipaddress.ip_address(text).compressed
    except ValueError:
        found = "" if ":" in text or "[" in text else host_name(text)
    if not found:
        raise ValueError("is no host name")
    return found


def parse_origin(text: str) -> Origin:
    """Parse and check an upstream's origin.

    Raises:
        ValueError: it cannot be used; the text says why and what to write.
    """
    try:
        url = URL(text)
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    host = (url.raw_host or "").rstrip(".").lower()
    if host:
        _check_host(host)
    if url.scheme not in {"http", "https"} or not host or url.port is None:
        raise ValueError(f"expected an origin such as {PRODUCTION}")
    if host in WRONG_SANDBOX_HOSTS:
        raise ValueError(f"{host} does not exist; Nomba's sandbox is {SANDBOX}")
    if url.user is not None or url.password is not None:
        raise ValueError("credentials do not belong into a URL")
    if url.path not in {"", "/"} or url.query_string or url.fragment:
        raise ValueError("give the origin only, without path: callers send /v1/… themselves")
    loopback = is_loopback(host)
    if url.scheme == "http" and not loopback:
        raise ValueError("plain http is for loopback origins only; write https://")
    default = url.port == (443 if url.scheme == "https" else 80)
    shown = f"[{host}]" if ":" in host else host
    authority = shown if default else f"{shown}:{url.port}"
    origin = f"{url.scheme}://{authority}"
    environment: Environment = "loopback" if loopback else "custom"
    if origin == PRODUCTION:
        environment = "production"
    elif origin == SANDBOX:
        environment = "sandbox"
    return Origin(origin, host, url.port, url.scheme == "https", authority, environment)
