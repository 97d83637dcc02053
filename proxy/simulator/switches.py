"""Every belief about Nomba that is not documented, as a switch (see the facts' marks D, O, A)."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin

from proxy.simulator.times import TimeForm

_IDENTIFIER = re.compile(r"[\x21-\x7e]{1,256}")
_LARGEST = 1_000_000_000
_Value = TypeVar("_Value")


def _switch(default: _Value, about: str) -> _Value:
    switch: _Value = field(default=default, metadata={"about": about})
    return switch


@dataclass(slots=True, kw_only=True)
class Switches:
    """How the simulator behaves; may be changed at any time, also while it runs.

    What each one means is said beside it, for people who ask `--help` too; times are seconds.
    """

    client_id: str = _switch(
        "00000000-0000-4000-8000-51312a7e0001", "the client that may log in; 36 characters (D)"
    )
    client_secret: str = _switch(
        "simulator-secret-not-a-real-one", "its secret; the length means nothing (D/O)"
    )
    account_id: str = _switch(
        "00000000-0000-4000-8000-acc000000001",
        "the parent account, the only valid accountId header (D/O)",
    )
    other_clients: tuple[str, ...] = _switch(
        (), "more clients of the same account, each client_id:client_secret"
    )
    session_scope: Literal["client", "account"] = _switch(
        "client", "whose tokens a login ends: those of its client or of the whole account (A)"
    )
    lifetime: float = _switch(1800, "seconds a token lives; 1800 (D), 3600 circulates (O)")
    expires_at_form: TimeForm = _switch(
        "seconds-z", "how expiresAt is written: (D), millis-z (O), the others elsewhere or (A)"
    )
    expires_in: bool = _switch(False, "also send data.expires_in, in seconds (A)")
    clock_skew: float = _switch(
        0, "seconds added to every time shown; when a token really dies is not moved (A)"
    )
    refresh_kills_old: bool = _switch(True, "a refresh ends the access token before it (A)")
    refresh_token_dies: bool = _switch(True, "a refresh token works once (A)")
    login_variants: bool = _switch(
        True, "issue also at /v1/auth/token and with a trailing slash, clientId, clientSecret (A)"
    )
    wrong_secret: Literal["401", "200"] = _switch(
        "401", "a wrong secret gets HTTP 401, or HTTP 200 with code 01 (both A)"
    )
    expired_as: Literal["401", "500", "200"] = _switch(
        "401", "an expired token gets HTTP 401 (D), 500 with detail (O), or 200 with code 02 (D)"
    )
    debit_before_auth_error: bool = _switch(
        False, "money moves before a dead token is refused (A, the worst case)"
    )
    rate_limit: int = _switch(40, "requests a second before HTTP 429 (D); 0: no limit")
    recipient_limit: int = _switch(
        5, "transfers per recipient and minute before HTTP 429 (D); 0: no limit"
    )
    settle_after: float = _switch(
        0, "seconds after a call in which a requery leaves it in flight (D/O)"
    )
    settlement: Literal["at-once", "on-requery", "reversed"] = _switch(
        "at-once",
        "transfers and bills are final, or in flight (201, D) until a requery settles"
        " or reverses them",
    )
    requery_delay: float = _switch(0, "seconds after a call in which a requery gets 404 (D/O)")
    card_otp: bool = _switch(True, "card details ask for an OTP before the card is charged (A)")

    def knows(self, client_id: object, secret: object) -> bool:
        """Whether a client may log in with a secret."""
        return (client_id, secret) == (self.client_id, self.client_secret) or (
            f"{client_id}:{secret}" in self.other_clients
        )

    def change(self, values: Mapping[str, Any]) -> None:
        """Set some switches, all or none.

        Args:
            values: names with values of their types; a tuple may be a list.

        Raises:
            ValueError: a name or a value that does not fit; the text says which.
        """
        types = {one.name: one.type for one in fields(self)}
        fitted = {}
        for name, value in values.items():
            if name not in types:
                raise ValueError(f"{name} is no switch; there are: {', '.join(types)}")
            try:
                fitted[name] = _fit(value, kind=types[name])
            except ValueError as error:
                raise ValueError(f"{name} must be {error}") from None
            if name == "account_id" and not _IDENTIFIER.fullmatch(value):
                raise ValueError("account_id must be 1 to 256 visible characters")
            if name == "lifetime" and value <= 0:
                raise ValueError("lifetime must be above 0")
            if name == "other_clients" and not all(":" in one for one in value):
                raise ValueError("other_clients must each be client_id:client_secret")
        for name, value in fitted.items():
            setattr(self, name, value)

    def shown(self) -> dict[str, object]:
        """Every switch with its value."""
        return asdict(self)


def _fit(value: Any, *, kind: Any) -> Any:
    """The value in the switch's type; else ValueError, whose text says what is expected."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"one of {', '.join(get_args(kind))}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise ValueError("a list of texts")
        return tuple(value)
    if kind is bool or kind is str:
        if not isinstance(value, kind):
            raise ValueError("true or false" if kind is bool else "a text")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number")
    if not -_LARGEST <= value <= _LARGEST:  # NaN is neither
        raise ValueError(f"a number from {-_LARGEST} to {_LARGEST}")
    if kind is int and not (isinstance(value, int) and value >= 0):
        raise ValueError("a whole number, not negative")
    return kind(value)


def choices(kind: Any) -> str:
    """The values of a switch's type, for people."""
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    names = {bool: "true or false", str: "text", int: "whole number", float: "number"}
    return names.get(kind, "list")
