"""Where an upstream lives."""

from dataclasses import dataclass
from typing import Literal

Environment = Literal["production", "sandbox", "loopback", "custom"]

PRODUCTION = "https://api.nomba.com"
SANDBOX = "https://sandbox.nomba.com"
# Widespread mistakes (facts, section 2): neither host exists.
WRONG_SANDBOX_HOSTS = frozenset({"sandbox.api.nomba.com", "api.sandbox.nomba.com"})


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
