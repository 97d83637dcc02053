"""Where to listen and where to send: parsed once, checked once."""

import ipaddress
import re
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
