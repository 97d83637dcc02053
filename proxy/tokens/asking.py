"""Ask the issuer, and know what follows from its answer: values in, values out, and what is told of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from proxy.core.exchange import Emit, Event
from proxy.core.lifetime import Lifetime
from proxy.core.secret import Secret
from proxy.core.session import Held, Limits, Token, failed, granted, rejected
from proxy.tokens.nomba import Grant, IssuerError, NombaAuth

_SKEWED = 60.0  # seconds
_NOT_IN_FORCE = (
    "the client secret in force is another one than those of this process, which does not log in"
)


@dataclass(frozen=True, slots=True)
class Clocks:
    """The clocks and the randomness of a session, as arguments.

    Attributes:
        alive: seconds on a clock that runs during sleep.
        wall: epoch seconds.
        random: 0 <= x < 1.
    """

    alive: Callable[[], float]
    wall: Callable[[], float]
    random: Callable[[], float]


class Asking:
    """One session's calls to its issuer.

    Args:
        name: the upstream's name, for events.
        auth: the wire calls.
        limits: what the session may do.
        clocks: time and randomness.
        emit: takes events.
        ensure: called right before the first byte of a call that brings a token; if it raises, none
            is written.
    """

    def __init__(
        self,
        name: str,
        *,
        auth: NombaAuth,
        limits: Limits,
        clocks: Clocks,
        emit: Emit,
        ensure: Callable[[], None],
    ) -> None:
        self._name = name
        self._auth = auth
        self._limits = limits
        self._clocks = clocks
        self._emit = emit
        self._ensure = ensure

    async def refreshed(self, held: Held, token: Token, *, reason: str) -> Held:
        """A newer token by refresh of the present one.

        Raises:
            IssuerError: none.
        """
        call = self._auth.refresh(
            access_token=token.access, refresh_token=token.refresh, sending=self._ensure
        )
        return await self._ask(held, call, secret="", reason=reason)

    async def issued(self, held: Held, secrets: tuple[Secret, ...], *, reason: str) -> Held:
        """A new token by client credentials, with the first of the secrets that is accepted.

        Raises:
            IssuerError: none.
        """
        for secret in secrets:
            call, digest = self._auth.issue(secret, sending=self._ensure), secret.digest()
            try:
                return await self._ask(held, call, secret=digest, reason=reason)
            except IssuerError as error:
                if error.reason != "credentials" or secret is secrets[-1]:
                    raise
                if digest != held.secret:
                    held = self.rejected(held, digest, error)
        raise not_in_force()

    def rejected(self, held: Held, secret: str, error: IssuerError) -> Held:
        """A client secret was refused, while another one is in force."""
        self._emit(_secret_refused(self._name, secret, str(error)))
        return rejected(held, secret, now=self._clocks.alive())

    def failing(self, held: Held, error: IssuerError, *, reason: str) -> Held:
        """The issuer brought none, or was not asked."""
        now = self._clocks.alive()
        held = failed(
            held, reason=error.reason, text=str(error), now=now, jitter=self._clocks.random()
        )
        told: dict[str, object] = {
            "cause": error.reason,
            "reason": str(error),
            "for": reason,
            "duration_seconds": round(error.seconds, 6),
            "failures": held.trouble.failures,
            "retry_in": round(held.trouble.retry_at - now, 1),
        }
        # While a token lives it is tried again, and nobody notices; no time mends a wrong secret.
        lives = held.token is not None and not held.token.lifetime.dead(now=now)
        level = "warning" if lives and error.reason != "credentials" else "error"
        self._emit(Event("token_renewal_failed", level, self._name, told))
        return held

    async def revoked(self, token: Token | None) -> str:
        """Revoke a token; why the issuer did not confirm it, or ""."""
        if token is None:
            return ""
        try:
            await self._auth.revoke(token.access)
        except IssuerError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - not confirmed, whatever it was
            return f"internal fault: {type(error).__name__}"
        return ""

    async def _ask(self, held: Held, call: Awaitable[Grant], *, secret: str, reason: str) -> Held:
        """A newer token.

        Args:
            held: what is known.
            call: to the issuer.
            secret: digest of the client secret it is issued for; "" for a refresh.
            reason: for events.

        Raises:
            IssuerError: none.
        """
        sent, sent_wall = self._clocks.alive(), self._clocks.wall()
        try:
            grant = await call
        except IssuerError as error:
            error.seconds = self._clocks.alive() - sent
            raise
        except Exception as fault:  # whatever it was, there is no token
            raise internal(fault) from fault
        took = self._clocks.alive() - sent
        if grant.access_token.digest() in held.seen:
            raise IssuerError("the issuer brought an old token again", reason="reply")
        if sent + grant.life <= self._clocks.alive():
            raise IssuerError("the issuer brought a token that was dead already", reason="reply")
        lifetime = Lifetime.begin(
            grant.life,
            now=sent,
            wall=sent_wall,
            early=self._limits.early,
            urgent=self._limits.urgent,
            jitter=self._clocks.random(),
        )
        skew = _skew(grant, before=sent_wall, after=self._clocks.wall())
        before = held.secret
        held = granted(
            held,
            access=grant.access_token,
            refresh=grant.refresh_token,
            lifetime=lifetime,
            skew=skew,
            secret=secret or before,
            now=sent,
        )
        told: dict[str, object] = {
            "grant": "issue" if secret else "refresh",
            "for": reason,
            "generation": held.generation,
            "life_seconds": round(grant.life, 3),
            "expires_at": sent_wall + grant.life,
            "duration_seconds": round(took, 6),
        }
        if skew is not None:
            told["skew_seconds"] = skew
        self._emit(Event("token_renewed", "info", self._name, told))
        if skew is not None and abs(skew) > _SKEWED:
            hint = "Set this machine's clock (NTP); what expires is judged without it."
            told = {"skew_seconds": skew, "hint": hint}
            self._emit(Event("clock_skewed", "warning", self._name, told))
        mine = self._auth.credentials.account_id
        if grant.account_id and grant.account_id.lower() != mine.lower():
            self._emit(Event("token_account_differs", "warning", self._name))
        if before and held.secret != before:
            told = {"secret": held.secret, "before": before}
            self._emit(Event("secret_switched", "info", self._name, told))
        return held


def not_in_force() -> IssuerError:
    """Who has not the client secret in force does not ask."""
    return IssuerError(_NOT_IN_FORCE, reason="secret")


def _secret_refused(name: str, digest: str, reason: str) -> Event:
    told: dict[str, object] = {
        "secret": digest,
        "reason": reason,
        "hint": "The one before it stays in force. Check it at Nomba; it is tried again in ten minutes, "
        "when it changes, at SIGHUP, or with: nomba-proxy token renew",
    }
    return Event("secret_refused", "error", name, told)


def internal(fault: Exception) -> IssuerError:
    """A fault of ours, by its kind only."""
    return IssuerError(f"internal fault: {type(fault).__name__}", reason="internal")


def _skew(grant: Grant, *, before: float, after: float) -> float | None:
    """Seconds that the issuer's clock is ahead of ours; None if it does not tell its own."""
    if grant.date is None:
        return None
    # A `Date` has whole seconds, and is cut: it is half a second old on average.
    return round(grant.date + 0.5 - (before + after) / 2, 1)
