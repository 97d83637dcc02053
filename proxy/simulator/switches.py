"""Every belief about Nomba that is not documented, as a switch (see the facts' marks D, O, A)."""

from dataclasses import dataclass
from typing import Literal

ExpiresAtForm = Literal[
    "seconds-z",
    "millis-z",
    "micros-z",
    "nanos-z",
    "offset",
    "no-zone",
    "epoch-seconds",
    "epoch-millis",
    "absent",
]


@dataclass(slots=True, kw_only=True)
class Switches:
    """How the simulator behaves; may be changed at any time, also while it runs.

    Attributes:
        client_id: the one client known; 36 characters (D).
        client_secret: its secret; the length means nothing (D/O).
        account_id: the parent account, the only valid `accountId` header (D/O).
        lifetime: seconds a token lives; 1800 (D), 3600 circulates (O).
        expires_at_form: how `expiresAt` is written. `seconds-z` (D), `millis-z` (O);
            `micros-z`, `nanos-z` and `no-zone` as elsewhere in the API (D); the others A.
        expires_in: also send `data.expires_in`, in seconds (A).
        clock_skew: seconds added to every timestamp shown (`Date`, `expiresAt`, the
            JWT's `iat` and `exp`); when a token really dies is not moved (A).
        refresh_kills_old: a refresh ends the access token before it (A).
        refresh_token_dies: a refresh token works once (A).
        wrong_secret: HTTP 401, or HTTP 200 with envelope code `01` (both A).
        expired_as: what a business call with an expired token gets: HTTP 401 (D), HTTP
            500 with `detail` (O), or HTTP 200 with envelope code `02` (D).
        debit_before_auth_error: a transfer with an expired or invalid token moves the
            money and is then answered as `expired_as` says (A, the worst case).
    """

    client_id: str = "00000000-0000-4000-8000-51312a7e0001"
    client_secret: str = "simulator-secret-not-a-real-one"  # noqa: S105 - it says so itself
    account_id: str = "00000000-0000-4000-8000-acc000000001"
    lifetime: float = 1800
    expires_at_form: ExpiresAtForm = "seconds-z"
    expires_in: bool = False
    clock_skew: float = 0
    refresh_kills_old: bool = True
    refresh_token_dies: bool = True
    wrong_secret: Literal["401", "200"] = "401"  # noqa: S105 - a status
    expired_as: Literal["401", "500", "200"] = "401"
    debit_before_auth_error: bool = False
