"""What a store keeps, encrypted: only who has a client secret of the session can read or write it.

AES-256-GCM under a random key, which lies beside it wrapped for each client secret that is in use
(HKDF-SHA256, AES-256-GCM): while a secret is being replaced, who has the old one and who has the
new one can both read. The head stands in clear and is authenticated: a format, and a line for
each secret with its digest, so that what another secret wrote can be told from what is corrupt.
"""

import base64
import os
from collections.abc import Mapping
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
from proxy.core.session import Held, Token, Trouble, switch_is_over
from proxy.tokens.keyring import Keyring

_FORMAT = b"nomba-proxy session 2"
_NONCE = 12  # bytes (NIST SP 800-38D section 8.2)
_KEY = 32  # bytes


class Unreadable(Exception):
    """A value that is none of ours; the text says what is wrong with it.

    Attributes:
        foreign: whether others may be able to read it: with other secrets, or as another version.
    """

    def __init__(self, text: str, *, foreign: bool = False) -> None:
        super().__init__(text)
        self.foreign = foreign


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

    Args:
        identity: of the session.
        keyring: has the secrets.
    """

    def __init__(self, identity: Identity, *, keyring: Keyring) -> None:
        self._origin = identity.origin
        self._identity = identity.digest().encode()
        self._keyring = keyring
        self._ciphers: dict[str, AESGCM] = {}  # by digest of the client secret
        self._key = b""
        self._wraps: dict[str, bytes] = {}  # the key, by digest of the client secret

    def close(self, held: Held, stamp: Mapping[str, Any], *, now: float) -> bytes:
        """The value, sealed for every secret that is set here or in force.

        Until a new secret has had the time to get everywhere, also for those that others have
        sealed it for.

        Args:
            held: the value.
            stamp: whatever else is to be known of it, fit for JSON.
            now: the time.
        """
        in_force = self._keyring.find(held.secret)
        if not self._key or (in_force is not None and switch_is_over(held, now=now)):
            self._key, self._wraps = os.urandom(_KEY), {}
        for secret in (*self._keyring.given, *([in_force] if in_force else ())):
            if secret.digest() not in self._wraps:
                self._wraps[secret.digest()] = self._encrypted(self._cipher(secret), self._key)
        token = held.token
        value: dict[str, Any] = {"stamp": stamp, "held": asdict(replace(held, token=None))}
        if token is not None:
            value["token"] = {
                "access": token.access.reveal(to=self._origin),
                "refresh": token.refresh.reveal(to=self._origin),
                "generation": token.generation,
                "lifetime": asdict(token.lifetime),
            }
        lines = [f"{name} {base64.b64encode(self._wraps[name]).decode()}" for name in self._wraps]
        head = b"%b\n%b\n\n" % (_FORMAT, "\n".join(lines).encode())
        return head + self._encrypted(AESGCM(self._key), orjson.dumps(value), about=head)

    def open(self, data: bytes) -> tuple[Held, Mapping[str, Any]]:
        """What was sealed, and its stamp.

        Raises:
            Unreadable: it was not sealed by us, or with other secrets.
        """
        head, end, sealed = data.partition(b"\n\n")
        kind, _, lines = head.partition(b"\n")
        if kind != _FORMAT:
            raise Unreadable("it is no session of this version of the proxy", foreign=True)
        try:
            wraps = {
                name: base64.b64decode(wrapped, validate=True)
                for name, wrapped in (line.split(" ") for line in lines.decode("ascii").split("\n"))
            }
            mine = next((one for one in self._keyring.known if one.digest() in wraps), None)
            if mine is None:
                raise Unreadable("it was written with another client secret", foreign=True)
            key = self._decrypted(self._cipher(mine), wraps[mine.digest()])
            value = orjson.loads(self._decrypted(AESGCM(key), sealed, about=head + end))
            held = self._restored(value)
            stamp: Mapping[str, Any] = value["stamp"]
        except (InvalidTag, ValueError):
            raise Unreadable("it is corrupt, or of another session") from None
        except (KeyError, TypeError):
            raise Unreadable("it was written by another version of the proxy") from None
        self._key, self._wraps = key, wraps
        return held, stamp

    def _cipher(self, secret: Secret) -> AESGCM:
        digest = secret.digest()
        if digest not in self._ciphers:
            derive = HKDF(algorithm=SHA256(), length=_KEY, salt=self._identity, info=_FORMAT)
            self._ciphers[digest] = AESGCM(derive.derive(secret.reveal(to=self._origin).encode()))
        return self._ciphers[digest]

    def _encrypted(self, cipher: AESGCM, data: bytes, *, about: bytes = b"") -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + cipher.encrypt(nonce, data, about + self._identity)

    def _decrypted(self, cipher: AESGCM, data: bytes, *, about: bytes = b"") -> bytes:
        return cipher.decrypt(data[:_NONCE], data[_NONCE:], about + self._identity)

    def _restored(self, value: Mapping[str, Any]) -> Held:
        kept = dict(value["held"])
        for name in ("forced", "deaths", "rejected"):
            kept[name] = tuple((one, other) for one, other in kept[name])
        kept["seen"] = tuple(kept["seen"])
        held = Held(**kept | {"trouble": Trouble(**kept["trouble"])})
        if (told := value.get("token")) is not None:
            access, refresh = (
                Secret(told[name], origin=self._origin) for name in ("access", "refresh")
            )
            token = Token(access, refresh, told["generation"], Lifetime(**told["lifetime"]))
            held = replace(held, token=token)
        return held
