"""Where an upstream lives, and how hosts are named."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

Environment = Literal["production", "sandbox", "loopback", "custom"]

PRODUCTION = "https://api.nomba.com"
SANDBOX = "https://sandbox.nomba.com"
ENVIRONMENTS: dict[str, Environment] = {
    "api.nomba.com": "production",
    "sandbox.nomba.com": "sandbox",
}
# Widespread mistakes (facts, section 2): neither host exists.
WRONG_SANDBOX_HOSTS = frozenset({"sandbox.api.nomba.com", "api.sandbox.nomba.com"})

_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::[0-9]{0,5})?")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an upstream lives, parsed and validated by the settings.

    Attributes:
        text: `scheme://host[:port]`, what secrets are pinned to.
        host, port: what is dialled.
        tls: whether the scheme is https.
        authority: value of `Host`.
        environment: `production` and `sandbox` are Nomba's two origins (facts, section 2),
            `loopback` is this machine, `custom` anything else.
    """

    text: str
    host: str
    port: int
    tls: bool
    authority: str
    environment: Environment


def host_name(text: str) -> str:
    """The host of a `Host` field or an authority in its one spelling; "" if it is none.

    Lower case, without port, brackets and the dot at its end.

    >>> host_name("API.Nomba.com.:443"), host_name("[::0:1]:80"), host_name("a@b")
    ('api.nomba.com', '::1', '')
    """
    found = _AUTHORITY.fullmatch(text.lower()) if text.isascii() else None
    if found is None:
        return ""
    address, name = found.groups()
    if address is None:
        name = name.removesuffix(".")
        return name if _NAME.fullmatch(name) else ""
    try:
        return ipaddress.IPv6Address(address).compressed
    except ValueError:
        return ""
