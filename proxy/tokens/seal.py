"""What a store keeps, encrypted: only who has the client secret can read or write it.

AES-256-GCM under a key derived from the client secret (HKDF-SHA256). Its header stands in
clear and is authenticated: a format, and a digest of the secret, so that what another secret
wrote can be told from what is corrupt.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from proxy.core.lifetime import Lifetime
from proxy.core.secret import Secret
from proxy.core.session import Held, Token, Trouble
from proxy.tokens.nomba import Credentials

_FORMAT = b"nomba-proxy session 1"
_NONCE = 12  # bytes (NIST SP 800-38D section 8.2)
_SAME_CLOCK = 5.0  # seconds


class Unreadable(Exception):
    """A value that is none of ours; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which session a value is of. Nomba's is one per client (facts, section 1).

    Attributes:
        origin: of the issuer.
        client_id: whose session it is.
        account_id: the account, if sessions are to be kept apart by it; else "".
    """

    origin: str
    client_id: str
    account_id: str = ""

    def digest(self) -> str:
        """Sixteen hex digits that name it."""
        return sha256("\0".join(("session", *asdict(self).values())).encode()).hexdigest()[:16]


class Seal:
    """Turns what is known of a session into bytes for a store, and back.

    Times travel with the clocks of whoever wrote them, and are read by the reader's own:
    after a restart of the machine the clock that runs during sleep begins anew.

    Args:
        identity: of the session.
        credentials: whose secret is the key, and whose account is recorded.
        boot: names this machine's boot, within which that clock is the same for everybody.
        alive: that clock, in seconds.
        wall: epoch seconds.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        credentials: Credentials,
        boot: str,
        alive: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        origin = identity.origin
        secret = credentials.client_secret
        derive = HKDF(algorithm=SHA256(), length=32, salt=identity.digest().encode(), info=_FORMAT)
        self._origin = origin
        self._account = credentials.account_id
        self._cipher = AESGCM(derive.derive(secret.reveal(to=origin).encode()))
        self._digest = secret.digest().encode()
        self._identity = identity.digest().encode()
        self._boot = boot
        self._alive = alive
        self._wall = wall

    def close(self, held: Held) -> bytes:
        """The value, sealed."""
        token = held.token
        value: dict[str, Any] = {
            "boot": self._boot,
            "alive": self._alive(),
            "wall": self._wall(),
            "account": self._account,
            "held": asdict(replace(held, token=None)),
        }
        if token is not None:
            value["token"] = {
                "access": token.access.reveal(to=self._origin),
                "refresh": token.refresh.reveal(to=self._origin),
                "generation": token.generation,
                "lifetime": asdict(token.lifetime),
            }
        head = b"%b\n%b\n" % (_FORMAT, self._digest)
        nonce = os.urandom(_NONCE)
        return (
            head + nonce + self._cipher.encrypt(nonce, orjson.dumps(value), head + self._identity)
        )

    def open(self, data: bytes) -> Held:
        """What was sealed.

        Raises:
            Unreadable: it was not sealed by us, or with another secret.
        """
        kind, _, rest = data.partition(b"\n")
        digest, _, sealed = rest.partition(b"\n")
        if kind != _FORMAT:
            raise Unreadable("it is no session of this version of the proxy")
        if digest != self._digest:
            raise Unreadable("it was written with another client secret")
        head = data[: len(data) - len(sealed)]
        nonce, body = sealed[:_NONCE], sealed[_NONCE:]
        try:
            value = orjson.loads(self._cipher.decrypt(nonce, body, head + self._identity))
            return self._restored(value)
        except (InvalidTag, ValueError):
            raise Unreadable("it is corrupt, or of another session") from None
        except (KeyError, TypeError):
            raise Unreadable("it was written by another version of the proxy") from None

    def _restored(self, value: Mapping[str, Any]) -> Held:
        kept = dict(value["held"])
        for name in ("forced", "deaths"):
            kept[name] = tuple((one, other) for one, other in kept[name])
        kept["seen"] = tuple(kept["seen"])
        held = Held(**kept | {"trouble": Trouble(**kept["trouble"])})
        if (told := value.get("token")) is not None:
            access, refresh = (
                Secret(told[name], origin=self._origin) for name in ("access", "refresh")
            )
            token = Token(access, refresh, told["generation"], Lifetime(**told["lifetime"]))
            held = replace(held, token=token)
        return self._of_this_clock(held, value)

    def _of_this_clock(self, held: Held, value: Mapping[str, Any]) -> Held:
        """The same by our own clock that runs during sleep."""
        now, wall = self._alive(), self._wall()
        if self._boot and value["boot"] == self._boot and now >= value["alive"]:
            return held
        passed = wall - value["wall"]
        if passed < -_SAME_CLOCK:  # nobody knows how long ago it was written
            return replace(held, token=None, trouble=Trouble(), gap_until=0.0, forced=(), deaths=())
        by = now - max(0.0, passed) - value["alive"]
        token, trouble = held.token, held.trouble
        return replace(
            held,
            token=token and replace(token, lifetime=token.lifetime.moved(by)),
            gap_until=held.gap_until + by,
            forced=tuple((at + by, who) for at, who in held.forced),
            deaths=tuple((number, at + by) for number, at in held.deaths),
            trouble=replace(trouble, retry_at=trouble.retry_at + by),
        )
