"""Answer the three auth calls in Nomba's place.

Legacy apps log in by themselves, and a login that reached Nomba would end the session
that everybody shares (facts, section 1). What they get is a stand-in: it looks like
Nomba's answer, names the account they asked for, and is worth nothing anywhere.

The fields are those that public integrations read (facts, section 5): `access_token`,
`refresh_token`, `expiresAt` in strict RFC 3339, `expires_in`, `expiresIn`, `businessId`.
"""

import base64
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime

import orjson


def answer_login(
    call: str, *, business_id: str, wall: float, lifetime: float
) -> Mapping[str, object]:
    """The envelope for a login call.

    Args:
        call: `issue`, `refresh` or `revoke`.
        business_id: the account the caller is told it belongs to.
        wall: epoch seconds now.
        lifetime: seconds the stand-in claims to live.
    """
    if call == "revoke":
        return {"code": "00", "description": "Token revoked successfully"}
    expires = datetime.fromtimestamp(wall + lifetime, UTC)
    return {
        "code": "00",
        "description": "Success",
        "data": {
            "businessId": business_id,
            "access_token": _jwt_shaped(wall, lifetime),
            "refresh_token": secrets.token_urlsafe(32),
            "expiresAt": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "expires_in": int(lifetime),
            "expiresIn": int(lifetime),
        },
    }


def _jwt_shaped(wall: float, lifetime: float) -> str:
    """A text of a JWT's shape and documented length (300 to 600), signed by nobody."""
    claims = {
        "iss": "nomba-proxy",
        "sub": "stand-in: not a Nomba token",
        "iat": int(wall),
        "exp": int(wall + lifetime),
        "jti": secrets.token_hex(60),
    }
    header = {"alg": "HS256", "typ": "JWT"}
    return ".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=").decode()
        for part in (orjson.dumps(header), orjson.dumps(claims), secrets.token_bytes(32))
    )
