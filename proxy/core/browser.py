"""Keep web pages out: what a browser on this machine sends for somebody else's page.

Two attacks, two checks. A name of the attacker's that suddenly points at this machine
(DNS rebinding) comes with that name in `Host`. A page that calls another origin comes
with its own in `Origin`, or says `cross-site` in `Sec-Fetch-Site`; no program that is no
browser sends either.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.core.heads import Headers
from proxy.core.origin import PRODUCTION, SANDBOX, host_name
from proxy.errors import HostRefused, OriginRefused

_NAMES = frozenset(
    {
        "localhost",
        "host.docker.internal",
        *(one.partition("//")[2] for one in (PRODUCTION, SANDBOX)),
    }
)


@dataclass(frozen=True, slots=True)
class Pages:
    """Which hosts and origins are ours.

    Attributes:
        hosts: names, lower case, that `Host` may hold beside this machine's own.
        origins: of pages that may call, lower case.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, *, hosts: Iterable[str], origins: Iterable[str]) -> "Pages":
        """From what people write."""
        return cls(
            frozenset(one.lower() for one in hosts),
            frozenset(one.lower().rstrip("/") for one in origins),
        )

    def check(self, headers: Headers, *, any_host: bool = False) -> None:
        """Refuse what a foreign page makes a browser send.

        Args:
            headers: raw fields.
            any_host: whether the proxy may be called by any name: who has a secret to send
                is no victim of DNS rebinding.

        Raises:
            HostRefused: `Host` is no name of this proxy's.
            OriginRefused: a page of another origin calls.
        """
        host, site = None, b""
        origins = []
        for name, value in headers:
            lower = name.lower()
            if lower == b"host":
                host = value.decode("latin-1").lower()
                if not any_host and not self._is_ours(host_name(host)):
                    raise HostRefused(
                        "This proxy is not called by the name in Host.",
                        hint="Against DNS rebinding only this machine's names are answered without "
                        "a key; list others in callers.hosts.",
                    )
            elif lower == b"origin":
                origins.append(value.decode("latin-1").lower())
            elif lower == b"sec-fetch-site":
                site = value.lower()
        if origins and all(one in self.origins for one in origins):
            return
        if any(one.partition("://")[2] != host for one in origins):
            raise _foreign()
        if site == b"cross-site":
            raise _foreign()

    def _is_ours(self, name: str) -> bool:
        if name in _NAMES or name in self.hosts or name.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def _foreign() -> OriginRefused:
    return OriginRefused(
        "A web page of another origin called through a browser.",
        hint="Call from a server; a page's origin can be allowed in callers.origins.",
    )
