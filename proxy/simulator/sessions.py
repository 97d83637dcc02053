"""The auth state: who holds a living token, and the three calls that change it."""

import base64
import hashlib
import hmac
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from proxy.simulator.ids import Ids
from proxy.simulator.messages import Reply, failure, json_object, reply_json
from proxy.simulator.switches import Switches
from proxy.simulator.times import jwt_expired, write_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a bearer is worth.

    Attributes:
        state: `living`, `expired`, or `invalid` (unknown, superseded, revoked or missing).
        expired_at: unix seconds by the simulator's clock, skew included, for
            messages: the token's expiry, or the present for an invalid one.
    """

    state: Literal["living", "expired", "invalid"]
    expired_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Access:
    client_id: str
    expires_at: float  # unix seconds, without skew


class Sessions:
    """The single session of each client, or of the account: the newest token wins (A).

    Args:
        switches: the behaviour wanted, read anew at each call.
        clock: unix seconds.
        seed: tokens are the same for the same seed and the same moment.

    Attributes:
        changes: how often anything changed.
    """

    def __init__(self, switches: Switches, *, clock: Callable[[], float], seed: int) -> None:
        self._switches = switches
        self._clock = clock
        self._ids = Ids(seed, purpose="tokens")
        self._key = Ids(seed, purpose="signature").octets(32)
        self.changes = 0
        self._access: dict[str, _Access] = {}
        self._refresh: dict[str, str] = {}  # refresh token -> client_id

    def standing(self, bearer: str | None) -> Standing:
        """What a bearer is worth now."""
        skew = self._switches.clock_skew
        access = self._access.get(bearer or "")
        if access is None:
            return Standing(state="invalid", expired_at=self._clock() + skew)
        state: Literal["living", "expired"] = (
            "living" if self._clock() < access.expires_at else "expired"
        )
        return Standing(state=state, expired_at=access.expires_at + skew)

    def expire(self) -> None:
        """Let every living access token be expired from now on."""
        now = self._clock()
        self.changes += 1
        for token, access in self._access.items():
            self._access[token] = _Access(
                client_id=access.client_id, expires_at=min(now, access.expires_at)
            )

    def clear(self) -> None:
        """Make every access and refresh token invalid."""
        self._access.clear()
        self._refresh.clear()
        self.changes += 1

    def dump(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        access = {token: asdict(one) for token, one in self._access.items()}
        return {"ids": self._ids.count, "access": access, "refresh": self._refresh}

    def load(self, state: dict[str, Any]) -> None:
        """Become what `dump` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        access = {
            token: _Access(client_id=str(one["client_id"]), expires_at=float(one["expires_at"]))
            for token, one in state["access"].items()
        }
        self._ids.count = int(state["ids"])
        self._access, self._refresh = access, dict(state["refresh"])
        self.changes += 1

    def issue(self, body: bytes) -> Reply:
        """`POST /v1/auth/token/issue` (D): a new session; the older one dies."""
        form = json_object(body)
        if form is None or form.get("grant_type") != "client_credentials":
            return failure(400, description="Bad Request")
        if self._switches.login_variants:
            form = {
                "client_id": form.get("clientId"),
                "client_secret": form.get("clientSecret"),
            } | form
        client_id = form.get("client_id")
        if not self._switches.knows(client_id, form.get("client_secret")):
            if self._switches.wrong_secret == "401":  # noqa: S105 - a status
                return failure(401, description="Unauthorized")
            return reply_json(200, content={"code": "01", "description": "Invalid credentials"})
        self._forget(str(client_id))
        return self._grant(str(client_id))

    def refresh(self, body: bytes, *, bearer: str | None) -> Reply:
        """`POST /v1/auth/token/refresh` (D): needs the current token, living (O)."""
        form = json_object(body)
        if form is None or form.get("grant_type") != "refresh_token":
            return failure(400, description="Bad Request")
        standing = self.standing(bearer)
        if standing.state == "invalid":
            return failure(401, description="Unauthorized")
        if standing.state == "expired":
            return failure(400, description=jwt_expired(standing.expired_at))
        client_id = self._access[bearer or ""].client_id
        old = str(form.get("refresh_token"))
        if self._refresh.get(old) != client_id:
            return reply_json(
                404,
                content={"code": "404", "description": "Refresh Token not found", "status": False},
            )
        if self._switches.refresh_token_dies:
            del self._refresh[old]
        if self._switches.refresh_kills_old:
            self._forget_access(client_id)
        return self._grant(client_id)

    def revoke(self, body: bytes) -> Reply:
        """`POST /v1/auth/token/revoke` (D); that it ends the refresh tokens too is A."""
        form = json_object(body)
        if form is None:
            return failure(400, description="Bad Request")
        access = self._access.get(str(form.get("access_token")))
        if access is None or access.client_id != form.get("clientId"):
            return failure(401, description="Unauthorized")
        self._forget(access.client_id)
        return reply_json(200, content={"code": "00", "description": "Token revoked successfully"})

    def _ends(self, client_id: str, *, other: str) -> bool:
        """Whether a session of one client ends that of the other."""
        return self._switches.session_scope == "account" or client_id == other

    def _forget_access(self, client_id: str) -> None:
        self._access = {
            token: one
            for token, one in self._access.items()
            if not self._ends(client_id, other=one.client_id)
        }
        self.changes += 1

    def _forget(self, client_id: str) -> None:
        self._forget_access(client_id)
        self._refresh = {
            token: other
            for token, other in self._refresh.items()
            if not self._ends(client_id, other=other)
        }

    def _grant(self, client_id: str) -> Reply:
        switches, now = self._switches, self._clock()
        shown = now + switches.clock_skew
        access_token = self._jwt(client_id, issued=shown)
        refresh_token = _base64url(self._ids.octets(32))
        self._access[access_token] = _Access(
            client_id=client_id, expires_at=now + switches.lifetime
        )
        self._refresh[refresh_token] = client_id
        self.changes += 1
        data: dict[str, object] = {
            "businessId": switches.account_id,
            "access_token": access_token,
            "refresh_token": refresh_token,
        }
        expires_at = write_time(shown + switches.lifetime, form=switches.expires_at_form)
        if expires_at is not None:
            data["expiresAt"] = expires_at
        if switches.expires_in:
            data["expires_in"] = math.floor(switches.lifetime)
        return reply_json(200, content={"code": "00", "description": "Success", "data": data})

    def _jwt(self, client_id: str, *, issued: float) -> str:
        """An HS256 JWT of 300 to 600 characters (D); claims but `iat` and `exp` are A."""
        claims = {
            "sub": client_id,
            "iss": "nomba-simulator",
            "iat": math.floor(issued),
            "exp": math.floor(issued + self._switches.lifetime),
            "jti": self._ids.octets(16).hex(),
            "pad": self._ids.octets(48).hex(),
        }
        parts = ({"alg": "HS256", "typ": "JWT"}, claims)
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in parts)
        return f"{signed}.{_base64url(hmac.digest(self._key, signed.encode(), hashlib.sha256))}"


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")
