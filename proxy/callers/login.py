"""Answer the three auth calls in Nomba's place.

Legacy apps log in by themselves, and a login that reached Nomba would end the session
that everybody shares (facts, section 1). What they get are phantom tokens of our own.

Both spellings of the fields are read (facts, section 5), and what is answered holds
everything that public integrations look for: `access_token`, `refresh_token`, `expiresAt`
in strict RFC 3339, `expires_in`, `expiresIn`, `businessId`.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from proxy.callers.registry import Registry
from proxy.callers.revoked import Revocations
from proxy.core.account import AccountRule, told_account
from proxy.core.caller import OWNER, Caller, check_upstream
from proxy.core.exchange import Emit, Event
from proxy.core.phantom import Phantoms
from proxy.errors import CallerUnknown, LoginInvalid, RefreshTokenUnknown

_CHANCE = 56


@dataclass(frozen=True, slots=True)
class LoginCall:
    """A login as it came.

    Attributes:
        call: `issue`, `refresh` or `revoke`.
        body: whole.
        upstream: name of the one it was sent to.
        account: that upstream's rule.
        sent: the account ids in the head (`heads.CallerHead`).
    """

    call: str
    body: bytes
    upstream: str
    account: AccountRule
    sent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoginAnswer:
    """The envelope for a login.

    Attributes:
        body: the envelope.
        caller: who it was.
        problem: why it failed, if that is told in a 200; for the log.
    """

    body: Mapping[str, object]
    caller: str
    problem: str = ""


class Login:
    """Answers login calls.

    Args:
        registry: knows who may log in.
        phantoms: makes what they get.
        revoked: remembers what they gave back.
        wall: epoch seconds.
        emit: takes events.
        fails_in_200: whether wrong credentials are told in a 200 with code 01 (facts,
            section 1: both are possible), instead of a 401.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        phantoms: Phantoms,
        revoked: Revocations,
        wall: Callable[[], float],
        emit: Emit,
        fails_in_200: bool = False,
    ) -> None:
        self._registry = registry
        self._phantoms = phantoms
        self._revoked = revoked
        self._wall = wall
        self._emit = emit
        self._fails_in_200 = fails_in_200
        self._told: set[str] = set()

    def answer(self, call: LoginCall) -> LoginAnswer:
        """Answer a login call.

        Raises:
            LoginInvalid: the body cannot be understood.
            CallerUnknown: wrong credentials or token.
            CallerForbidden, AccountMismatch: not for this upstream or account.
            RateLimited: more than the caller may.
            TokenUnavailable: it is not known yet which tokens were revoked.
        """
        fields = _read(call.body)
        if call.call == "revoke":
            return self._revoke(fields, call)
        if call.call == "refresh":
            caller, secret = self._refresh(fields, call)
        else:
            try:
                caller, secret = self._registry.log_in(
                    _text(fields, "client_id", "clientId"),
                    _text(fields, "client_secret", "clientSecret"),
                    upstream=call.upstream,
                )
            except CallerUnknown as error:
                if not self._fails_in_200:
                    raise
                body = {"code": "01", "description": "Invalid credentials"}
                return LoginAnswer(body, "-", error.description)
        if (limiter := self._registry.enter(caller)) is not None:
            limiter.leave()
        check_upstream(caller, upstream=call.upstream)
        business = told_account(call.account, sent=call.sent, own=caller.accounts)
        if caller.name == OWNER:
            self._hint(call.upstream)
        return LoginAnswer(self._pair(caller, secret, business, call.upstream), caller.name)

    def _pair(
        self, caller: Caller, secret: str, business: str, upstream: str
    ) -> Mapping[str, object]:
        pair = self._phantoms.issue(
            caller.name,
            upstream=upstream,
            secret=secret,
            now=self._wall(),
            chance=os.urandom(_CHANCE),
        )
        expires = datetime.fromtimestamp(pair.phantom.expires, UTC)
        return {
            "code": "00",
            "description": "Success",
            "data": {
                "businessId": business,
                "access_token": pair.access,
                "refresh_token": pair.refresh,
                "expiresAt": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "expires_in": int(self._phantoms.lifetime),
                "expiresIn": int(self._phantoms.lifetime),
            },
        }

    def _refresh(self, fields: Mapping[str, object], call: LoginCall) -> tuple[Caller, str]:
        text = _text(fields, "refresh_token", "refreshToken")
        read = self._phantoms.read_refresh(text.encode(), upstream=call.upstream)
        found = self._registry.of_refresh(read) if read is not None else None
        if found is None:
            raise RefreshTokenUnknown("Refresh Token not found", hint="Log in again.")
        return found

    def _revoke(self, fields: Mapping[str, object], call: LoginCall) -> LoginAnswer:
        text = _text(fields, "access_token", "accessToken")
        phantom = self._phantoms.read(text.encode())
        if phantom is None or phantom.upstream != call.upstream:
            raise CallerUnknown("The token is none that was issued here.")
        try:
            # Its refresh token lives longer, and goes with it.
            until = phantom.expires + int(self._phantoms.refresh_lifetime)
            self._revoked.add(phantom.token_id, expires=until)
        except OSError as error:
            fields = {"caller": phantom.caller, "reason": error.strerror or type(error).__name__}
            self._emit(Event("revocation_not_stored", "error", call.upstream, dict(fields)))
        return LoginAnswer(
            {"code": "00", "description": "Token revoked successfully"}, phantom.caller
        )

    def _hint(self, upstream: str) -> None:
        if upstream in self._told:
            return
        self._told.add(upstream)
        hint = (
            "an app logged in with Nomba's own client secret; give it one of its own: "
            "nomba-proxy caller add, then callers.accept_upstream_credentials = false"
        )
        self._emit(Event("owner_logged_in", "warning", upstream, {"hint": hint}))


def _read(body: bytes) -> Mapping[str, object]:
    try:
        fields = json.loads(body)  # UTF-8, -16 and -32, with or without a byte order mark
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise LoginInvalid(
            "The body of a login is a JSON object.",
            hint='Send {"grant_type":"client_credentials","client_id":"…","client_secret":"…"}',
        )
    return fields


def _text(fields: Mapping[str, object], *names: str) -> str:
    """A field under one of its names."""
    found = {value for name in names if isinstance(value := fields.get(name), str) and value}
    if len(found) != 1:
        raise LoginInvalid(f"The body has to hold {names[0]}, as one text.")
    text: str = found.pop()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LoginInvalid(f"{names[0]} is no text.") from None
    return text
