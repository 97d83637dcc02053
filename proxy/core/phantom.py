"""Phantom tokens: what a caller gets when it logs in as if we were Nomba.

The pair looks like Nomba's (facts, section 1: a JWT of 300 to 600 characters, an opaque
refresh token of 30 to 60) and is worth nothing anywhere but here: it is signed with a key
of the proxy's own, names the caller, the upstream and the secret it was issued for, and
ends by itself. Nothing has to be stored, so every process that has the key can read it.
"""

import base64
import hmac
import math
import struct
from dataclasses import dataclass
from typing import Any

import orjson

_ISSUER = "nomba-proxy"
_HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
_ID = 8  # bytes that name one pair
_PADDING = 48  # bytes, so that the shortest token has the documented length
_MAC = 16  # bytes of the refresh token's signature
_MAX_TEXT = 1024


@dataclass(frozen=True, slots=True)
class Phantom:
    """What a phantom token says.

    Attributes:
        caller: name of the caller it was issued to.
        upstream: the only upstream it opens.
        secret: id of the caller's secret it was issued for; it ends with that.
        token_id: names the pair, for its revocation.
        expires: epoch seconds.
    """

    caller: str
    upstream: str
    secret: str
    token_id: str
    expires: int


@dataclass(frozen=True, slots=True)
class Pair:
    """An access token, its refresh token, and what they say."""

    access: str
    refresh: str
    phantom: Phantom


@dataclass(frozen=True, slots=True)
class Refresh:
    """What a refresh token says; whom it was issued to, only `Phantoms.is_for` can tell."""

    upstream: str
    token_id: str
    expires: int
    tag: bytes


class Phantoms:
    """Issues and reads phantom tokens.

    Args:
        key: the signing key; what is signed with another is worth nothing.
        lifetime: seconds an access token lives.
        refresh_lifetime: the same for its refresh token.
    """

    def __init__(self, key: bytes, *, lifetime: float, refresh_lifetime: float) -> None:
        self._access_key = hmac.digest(key, b"nomba-proxy phantom access", "sha256")
        self._refresh_key = hmac.digest(key, b"nomba-proxy phantom refresh", "sha256")
        self.lifetime = lifetime
        self.refresh_lifetime = refresh_lifetime

    def issue(self, caller: str, *, upstream: str, secret: str, now: float, chance: bytes) -> Pair:
        """A new pair.

        Args:
            caller: name.
            upstream: name.
            secret: id of the secret the caller logged in with.
            now: epoch seconds.
            chance: 56 random bytes.
        """
        token_id, padding = chance[:_ID].hex(), chance[_ID : _ID + _PADDING].hex()
        expires = math.ceil(now + self.lifetime)  # never before what `expires_in` says
        claims = {
            "iss": _ISSUER,
            "sub": caller,
            "aud": upstream,
            "iat": int(now),
            "exp": expires,
            "jti": token_id,
            "sec": secret,
            "pad": padding,
        }
        signed = _HEADER + b"." + _text(orjson.dumps(claims))
        access = signed + b"." + self._signature(signed)
        until = int(now + self.refresh_lifetime)
        said = struct.pack(">Q", until) + chance[:_ID] + self._tag(caller, secret)
        refresh = _text(said + self._mac(said, upstream))
        phantom = Phantom(caller, upstream, secret, token_id, expires)
        return Pair(access.decode(), refresh.decode(), phantom)

    def read(self, text: bytes) -> Phantom | None:
        """What an access token says if it is one of ours; whether it lives is `expires`."""
        signed, dot, signature = text.rpartition(b".")
        if len(text) > _MAX_TEXT or not dot or not signed.startswith(_HEADER + b"."):
            return None
        if not hmac.compare_digest(signature, self._signature(signed)):
            return None
        claims: dict[str, Any] = orjson.loads(_bytes(signed[len(_HEADER) + 1 :]))
        return Phantom(claims["sub"], claims["aud"], claims["sec"], claims["jti"], claims["exp"])

    def read_refresh(self, text: bytes, *, upstream: str) -> Refresh | None:
        """What a refresh token says if it is one of ours for this upstream."""
        try:
            data = _bytes(text)
        except ValueError:
            return None
        said, mac = data[:-_MAC], data[-_MAC:]
        if len(said) != 8 + 2 * _ID or _text(data) != text:
            return None
        if not hmac.compare_digest(mac, self._mac(said, upstream)):
            return None
        return Refresh(
            upstream, said[8 : 8 + _ID].hex(), int.from_bytes(said[:8], "big"), said[8 + _ID :]
        )

    def is_for(self, refresh: Refresh, *, caller: str, secret: str) -> bool:
        """Whether a refresh token was issued to this caller, for this secret."""
        return hmac.compare_digest(refresh.tag, self._tag(caller, secret))

    def fingerprint(self, *texts: str) -> str:
        """Names some texts without saying anything of them to who has not the key."""
        data = "\0".join(texts).encode()
        return hmac.digest(self._refresh_key, b"fingerprint " + data, "sha256")[:6].hex()

    def _signature(self, signed: bytes) -> bytes:
        return _text(hmac.digest(self._access_key, signed, "sha256"))

    def _mac(self, said: bytes, upstream: str) -> bytes:
        return hmac.digest(self._refresh_key, said + upstream.encode(), "sha256")[:_MAC]

    def _tag(self, caller: str, secret: str) -> bytes:
        return hmac.digest(self._refresh_key, f"{caller}\0{secret}".encode(), "sha256")[:_ID]


def _text(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _bytes(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
