"""The three auth calls on the wire (facts, section 1), every reply checked field by field."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import orjson

from proxy.core.heads import Headers, field_value
from proxy.core.lifetime import parse_http_date, token_life
from proxy.core.reply import CallUpstream, WholeReply
from proxy.core.secret import Secret
from proxy.errors import UpstreamError

_LOOP = (
    "a loop: DNS, upstream.addresses or upstream.base_url leads back to a proxy (set "
    "upstream.addresses to where the upstream is)"
)


class IssuerError(Exception):
    """A token could not be had. The text is fit for people: no secrets, no bodies.

    Attributes:
        reason: `unreachable`, `credentials` (the issuer refused what we are), `reply` (it answered
            something else than a token), or `secret` (it was not asked: ours is not in force).
        seconds: that the call took; 0 if there was none.
    """

    def __init__(self, text: str, *, reason: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.seconds = 0.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are at one upstream.

    Attributes:
        origin: the origin that issues and takes the tokens.
        client_id: Nomba's public id of the client.
        account_id: the parent account.
    """

    origin: str
    client_id: str
    account_id: str


@dataclass(frozen=True, slots=True)
class Grant:
    """What a successful issue or refresh brought.

    Attributes:
        access_token, refresh_token: pinned to the issuer's origin.
        life: seconds, counted from before the call was sent.
        account_id: the `businessId` of the reply, or "".
        date: the reply's `Date` in epoch seconds, or None.
    """

    access_token: Secret
    refresh_token: Secret
    life: float
    account_id: str
    date: float | None = None


class NombaAuth:
    """The issue, refresh and revoke calls for one set of credentials.

    Args:
        credentials: who we are.
        call: sends a POST through the upstream's dialler.
        timeout: seconds one call may take in all.
    """

    def __init__(self, credentials: Credentials, *, call: CallUpstream, timeout: float) -> None:
        self.credentials = credentials
        self._call = call
        self._timeout = timeout

    async def issue(self, secret: Secret, *, sending: Callable[[], object] = bool) -> Grant:
        """A new token by client credentials; it may end every older session.

        Args:
            secret: of the client, pinned to the issuer's origin.
            sending: called right before the first byte is written; if it raises, none is.

        Raises:
            IssuerError: no token.
        """
        mine = self.credentials
        body = {
            "grant_type": "client_credentials",
            "client_id": mine.client_id,
            "client_secret": secret.reveal(to=mine.origin),
        }
        reply = await self._post("issue", body, sending=sending)
        return self._grant(reply, call="issue")

    async def refresh(
        self,
        *,
        access_token: Secret,
        refresh_token: Secret,
        sending: Callable[[], object] = bool,
    ) -> Grant:
        """A new token by refresh token; needs a living access token.

        Args:
            access_token: the present one.
            refresh_token: that came with it.
            sending: as `issue`.

        Raises:
            IssuerError: no token; an issue may still bring one.
        """
        origin = self.credentials.origin
        bearer = f"Bearer {access_token.reveal(to=origin)}".encode("ascii")
        body = {
            "grant_type": "refresh_token",
            "refresh_token": refresh_token.reveal(to=origin),
        }
        reply = await self._post(
            "refresh", body, extra=((b"Authorization", bearer),), sending=sending
        )
        return self._grant(reply, call="refresh")

    async def revoke(self, access_token: Secret) -> None:
        """End a token at the issuer.

        Raises:
            IssuerError: the issuer did not confirm it.
        """
        mine = self.credentials
        body = {
            "clientId": mine.client_id,
            "access_token": access_token.reveal(to=mine.origin),
        }
        reply = await self._post("revoke", body)
        _data(reply, call="revoke")

    async def _post(
        self,
        call: str,
        body: Mapping[str, str],
        *,
        extra: Headers = (),
        sending: Callable[[], object] = bool,
    ) -> WholeReply:
        headers: Headers = (
            (b"Content-Type", b"application/json"),
            (b"accountId", self.credentials.account_id.encode("latin-1")),
            *extra,
        )
        try:
            return await self._call(
                b"/v1/auth/token/" + call.encode(),
                headers=headers,
                body=orjson.dumps(body),
                within=self._timeout,
                sending=sending,
            )
        except UpstreamError as error:
            raise IssuerError(f"{call}: {error.description}", reason="unreachable") from error

    def _grant(self, reply: WholeReply, *, call: str) -> Grant:
        data = _data(reply, call=call)
        access, refresh = data.get("access_token"), data.get("refresh_token")
        if not isinstance(access, str) or not _header_safe(access):
            raise IssuerError(f"{call}: the reply has no usable access_token", reason="reply")
        # A missing refresh token is survivable: the next renewal falls back to issue.
        refresh = refresh if isinstance(refresh, str) else ""
        business = data.get("businessId")
        field = field_value(reply.headers, b"date")
        date = field.decode("latin-1") if field else None
        origin = self.credentials.origin
        return Grant(
            access_token=Secret(access, origin=origin),
            refresh_token=Secret(refresh, origin=origin),
            life=token_life(data, date=date),
            account_id=business if isinstance(business, str) else "",
            date=parse_http_date(date),
        )


def _header_safe(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _data(reply: WholeReply, *, call: str) -> Mapping[str, object]:
    """The `data` of a success envelope.

    Only the envelope's `code` says success: failures were seen with HTTP 200, and
    `status: false` on successes (facts, section 4).
    """
    try:
        envelope = orjson.loads(reply.body)
    except ValueError:
        envelope = None
    if not isinstance(envelope, dict):
        kind = "not JSON" if reply.body else "empty"
        # A page instead of an envelope is what an edge in front of Nomba sends.
        hint = " (IP allowlist or edge?)" if reply.status == 403 else ""
        raise IssuerError(f"{call}: HTTP {reply.status}, body is {kind}{hint}", reason="reply")
    code = str(envelope.get("code"))
    if reply.status == 200 and code == "00":
        data = envelope.get("data")
        return data if isinstance(data, dict) else {}
    if reply.status == HTTPStatus.LOOP_DETECTED:
        raise IssuerError(f"{call}: HTTP 508, {_LOOP}", reason="reply")
    refused = reply.status == 401 or (reply.status == 200 and code in {"01", "401"})
    known = code if code.isdigit() and len(code) <= 4 else "?"
    raise IssuerError(
        f"{call}: HTTP {reply.status}, envelope code {known}",
        reason="credentials" if refused else "reply",
    )
