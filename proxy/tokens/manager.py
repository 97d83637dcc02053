"""Keep one session alive and lend its token.

Three rules carry everything: a renewal is one task that any number of callers wait for
and none can cancel; a forced renewal names the generation that failed, so a late refusal
of an old token never costs a new one; a token is lent only while it lives.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from proxy.core.exchange import Emit, Event
from proxy.core.lifetime import Backoff, Lifetime
from proxy.core.secret import Secret
from proxy.errors import RenewalNotAllowed, TokenUnavailable
from proxy.tokens.nomba import Grant, IssuerError, NombaAuth

# How often the background task looks at the clocks: timers stop while a machine
# sleeps and know nothing of wall-clock jumps.
_LOOK_EVERY = 15.0
# Background renewals are never closer together than this, whatever life is claimed.
_MIN_GAP = 0.5
_UNREACHABLE = Backoff(first=0.5, cap=30.0)
# A refused secret does not get better by asking: slow from the start.
_CREDENTIALS = Backoff(first=30.0, cap=600.0)

# Digests of tokens held before: none of them is taken for a new one.
_REMEMBERED = 64

State = Literal["empty", "living", "stopped"]


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


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """Limits of the token's life here, in seconds.

    Attributes:
        early: renew at least this long before expiry (at most a quarter of the life).
        wait_limit: the longest a request waits for a token.
        gap: after two generations in a row that were refused and never accepted, no
            forced renewal for this long.
    """

    early: float = 300.0
    wait_limit: float = 20.0
    gap: float = 10.0


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the session.

    Attributes:
        access: the bearer token.
        refresh: the refresh token, possibly empty.
        generation: counts renewals, from 1.
        lifetime: when to renew and when it is dead.
    """

    access: Secret
    refresh: Secret
    generation: int
    lifetime: Lifetime


@dataclass(frozen=True, slots=True)
class Status:
    """What there is to show of a session: nothing in it is secret.

    Attributes:
        state: `living`, `empty` (no token yet, or a dead one) or `stopped`.
        token: digest of the access token, or "".
        generation: 0 before the first token.
        expires_in: seconds the token still lives; 0 for none.
        renews_in: seconds until the background renewal; 0 for none.
        renewing: whether a renewal is under way.
        failures: renewals failed in a row.
        last_error: why the last one failed, or "".
        retry_in: seconds until the next try after failures.
    """

    state: State
    token: str
    generation: int
    expires_in: float
    renews_in: float
    renewing: bool
    failures: int
    last_error: str
    retry_in: float


class Session:
    """One session with one issuer, shared by every caller.

    Args:
        name: the upstream's name, for events.
        auth: the wire calls.
        settings: limits.
        clocks: time and randomness.
        emit: takes events.
    """

    def __init__(
        self, name: str, *, auth: NombaAuth, settings: TokenSettings, clocks: Clocks, emit: Emit
    ) -> None:
        self.name = name
        self._auth = auth
        self._settings = settings
        self._clocks = clocks
        self._emit = emit
        self._token: Token | None = None
        self._generation = 0
        self._flight: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._stopped = False
        self._closed = False
        self._had_token = False
        self._failures = 0
        self._retry_at = 0.0
        self._last_error: IssuerError | None = None
        self._seen: deque[str] = deque(maxlen=_REMEMBERED)
        self._started_at = -math.inf
        self._reason = ""  # of the present renewal
        self._accepted = False  # whether the present generation was ever accepted
        self._unaccepted = 0  # generations in a row that were refused and never accepted
        self._gap_until = 0.0

    # -- what requests need ------------------------------------------------------------

    def lend(self, *, lasting: bool = False) -> Token | None:
        """The living token, without waiting; None if there is none to lend.

        Args:
            lasting: only one that will live for a while.
        """
        token = self._token
        if token is None:
            return None
        now = self._clocks.alive()
        if token.lifetime.dead(now=now) or (lasting and token.lifetime.thin(now=now)):
            return None
        return token

    async def borrow(self, *, lasting: bool = False) -> Token:
        """The living token, waiting for a renewal if there is none.

        Args:
            lasting: wait for one renewal too if the living one is about to die; if that
                brings nothing, the living one has to do.

        Raises:
            TokenUnavailable: none could be had within the wait limit.
        """
        token = self.lend()
        if lasting and token is not None:
            await self._try_renewal(token)
            token = self.lend()
        return token or await self._wait(after=0)

    async def _try_renewal(self, token: Token) -> None:
        """Wait for one renewal, half as long as `token` lives; whatever comes of it."""
        now = self._clocks.alive()
        held_off = self._stopped or self._closed or (self._failures and now < self._retry_at)
        if self._flight is None and not held_off:
            self._start(self._refresh_or_issue, reason="thin")
        if self._flight is not None:
            left = min(self._settings.wait_limit, (token.lifetime.dies_at - now) / 2)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._settled(self._flight)

    async def renew(self, *, after: int) -> Token:
        """A token newer than generation `after`, which was refused.

        Joins a renewal under way, reuses a newer token that is there already, and
        skips every freshness check: the refused token is not lent again.

        Raises:
            RenewalNotAllowed: too many generations in a row were refused unused.
            TokenUnavailable: no newer token within the wait limit.
        """
        self._refused(after)
        return await self._wait(after=after)

    def refused(self, generation: int) -> None:
        """Note a refusal whose request is not replayed; renews without waiting."""
        with contextlib.suppress(RenewalNotAllowed):
            self._refused(generation)

    def _refused(self, generation: int) -> None:
        if self._token is None or self._token.generation != generation:
            return
        if self._flight is None:
            self._count_refused()
            self._start(self._issue, reason="refused")
        self._token = None
        self._emit(Event("token_refused", "warning", self.name, {"generation": generation}))

    def _count_refused(self) -> None:
        if self._accepted:
            return
        now = self._clocks.alive()
        if now < self._gap_until:
            raise RenewalNotAllowed("The token was renewed a moment ago and refused again.")
        self._unaccepted += 1
        if self._unaccepted > 1:
            self._gap_until = now + self._settings.gap

    def accepted(self, generation: int) -> None:
        """Note that the upstream took a token of this generation."""
        if generation == self._generation and not self._accepted:
            self._accepted = True
            self._unaccepted = 0
            self._gap_until = 0.0

    # -- what operators need -----------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether there has been a token since start."""
        return self._had_token

    def status(self) -> Status:
        """What there is to show of the session now."""
        now = self._clocks.alive()
        token = self.lend()
        state: State = "stopped" if self._stopped else "living" if token else "empty"
        return Status(
            state=state,
            token=token.access.digest() if token else "",
            generation=self._generation,
            expires_in=max(0.0, token.lifetime.dies_at - now) if token else 0.0,
            renews_in=max(0.0, token.lifetime.renew_at - now) if token else 0.0,
            renewing=self._flight is not None,
            failures=self._failures,
            last_error=str(self._last_error or ""),
            retry_in=max(0.0, self._retry_at - now) if self._failures else 0.0,
        )

    async def renew_now(self) -> Token:
        """Renew on an operator's word: ends a stop, ignores back-off and gap.

        Raises:
            TokenUnavailable: no new token.
        """
        self._stopped = False
        self._retry_at = self._gap_until = 0.0
        before = self._generation
        if self._flight is None:
            self._start(self._refresh_or_issue, reason="operator")
        return await self._wait(after=before)

    async def revoke(self, *, stop: bool) -> str:
        """Revoke the token at the issuer; requests are held meanwhile.

        Args:
            stop: stay without a token until `renew_now`; else a new one is issued,
                unless the session is stopped already.

        Returns:
            Why the issuer did not confirm the revocation, or "".

        Raises:
            TokenUnavailable: no new token could be issued afterwards.
        """
        while self._flight is not None:
            await self._settled(self._flight)
        token, self._token = self._token, None
        stop = self._stopped = stop or self._stopped
        problem = ""

        async def revoke_and_issue() -> None:
            nonlocal problem
            if token is not None:
                try:
                    await self._auth.revoke(token.access)
                except IssuerError as error:
                    problem = str(error)
                except Exception as error:  # noqa: BLE001 - not confirmed, whatever it was
                    problem = f"internal fault: {type(error).__name__}"
            self._emit(
                Event(
                    "token_revoked",
                    "warning" if problem else "info",
                    self.name,
                    {"generation": self._generation, "confirmed": not problem, "stopped": stop},
                )
            )
            if not stop:
                await self._issue()

        before = self._generation
        flight = self._start(revoke_and_issue, reason="revoke")
        await self._settled(flight)
        if not stop:
            try:
                await self._wait(after=before)
            except TokenUnavailable as error:
                if problem:  # both went wrong, and the old token may still be living
                    error.description += f" Nor was the revocation confirmed: {problem}."
                raise
        return problem

    # -- the background ----------------------------------------------------------------

    def start(self) -> None:
        """Obtain a token now and keep one from then on, traffic or not."""
        self._start(self._issue, reason="start")
        self._keeper = asyncio.create_task(self._keep(), name=f"keep token of {self.name}")

    async def close(self, *, revoke: bool) -> None:
        """Stop the background task; optionally revoke the token (best effort)."""
        self._closed = True
        for task in (self._keeper, self._flight):
            if task is not None:
                task.cancel()
                await self._settled(task)
        if revoke and self._token is not None:
            with contextlib.suppress(IssuerError):
                await self._auth.revoke(self._token.access)
        self._token = None

    async def _keep(self) -> None:
        while True:
            delay = self._next_look()
            if delay <= 0:
                self._start(self._refresh_or_issue, reason="due")
                delay = _LOOK_EVERY
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(delay, _LOOK_EVERY)):
                    await self._wake.wait()

    def _next_look(self) -> float:
        """Seconds until there is something to do; 0 if a renewal is due."""
        if self._stopped or self._flight is not None:
            return _LOOK_EVERY
        now, wall = self._clocks.alive(), self._clocks.wall()
        if self._failures and now < self._retry_at:
            return self._retry_at - now
        gap = self._started_at + _MIN_GAP - now
        token = self._token
        if token is None:
            return gap
        return max(gap, token.lifetime.due_in(now=now, wall=wall))

    # -- one renewal at a time ---------------------------------------------------------

    def _start(self, work: Callable[[], Awaitable[None]], *, reason: str) -> asyncio.Task[None]:
        """Begin a renewal; the caller has seen that none is under way."""

        async def fly() -> None:
            try:
                await work()
            except IssuerError as error:
                self._failed(error, reason=reason)
            except Exception as error:  # noqa: BLE001 - a fault of ours must back off too
                fault = IssuerError(f"internal fault: {type(error).__name__}", reason="internal")
                self._failed(fault, reason=reason)
            finally:
                self._flight = None
                self._wake.set()

        self._started_at = self._clocks.alive()
        self._reason = reason
        self._flight = asyncio.create_task(fly(), name=f"renew token of {self.name}")
        return self._flight

    async def _refresh_or_issue(self) -> None:
        token = self.lend()
        if token is None or not token.refresh:
            await self._issue()
            return
        sent = self._clocks.alive(), self._clocks.wall()
        try:
            grant = await self._auth.refresh(access_token=token.access, refresh_token=token.refresh)
            self._check_different(grant)
        except IssuerError as error:
            self._emit(Event("token_refresh_failed", "warning", self.name, {"reason": str(error)}))
            # The refresh may have been carried out and its reply lost, in which case
            # the old token is dead: only an issue is sure to bring a living one.
            await self._issue()
            return
        self._take(grant, sent=sent, grant_type="refresh")

    async def _issue(self) -> None:
        sent = self._clocks.alive(), self._clocks.wall()
        grant = await self._auth.issue()
        self._check_different(grant)
        if sent[0] + grant.life <= self._clocks.alive():
            raise IssuerError("the issuer brought a token that was dead already", reason="reply")
        self._take(grant, sent=sent, grant_type="issue")

    def _check_different(self, grant: Grant) -> None:
        if grant.access_token.digest() in self._seen:
            raise IssuerError("the issuer brought an old token again", reason="reply")

    def _take(self, grant: Grant, *, sent: tuple[float, float], grant_type: str) -> None:
        now, wall = sent
        lifetime = Lifetime.begin(
            grant.life,
            now=now,
            wall=wall,
            early=self._settings.early,
            jitter=self._clocks.random(),
        )
        self._generation += 1
        self._token = Token(grant.access_token, grant.refresh_token, self._generation, lifetime)
        self._seen.append(grant.access_token.digest())
        self._had_token = True
        self._accepted = False
        self._failures = 0
        self._last_error = None
        self._emit(
            Event(
                "token_renewed",
                "info",
                self.name,
                {
                    "grant": grant_type,
                    "for": self._reason,
                    "generation": self._generation,
                    "life_seconds": round(grant.life, 3),
                    "expires_at": wall + grant.life,
                },
            )
        )
        mine = self._auth.credentials.account_id
        if grant.account_id and grant.account_id.lower() != mine.lower():
            self._emit(Event("token_account_differs", "warning", self.name))

    def _failed(self, error: IssuerError, *, reason: str) -> None:
        self._failures += 1
        backoff = _CREDENTIALS if error.reason == "credentials" else _UNREACHABLE
        delay = backoff.delay(self._failures, jitter=self._clocks.random())
        self._retry_at = self._clocks.alive() + delay
        self._last_error = error
        self._emit(
            Event(
                "token_renewal_failed",
                "error",
                self.name,
                {
                    "cause": error.reason,
                    "reason": str(error),
                    "for": reason,
                    "failures": self._failures,
                    "retry_in": round(delay, 1),
                },
            )
        )

    async def _wait(self, *, after: int) -> Token:
        try:
            async with asyncio.timeout(self._settings.wait_limit):
                while True:
                    token = self.lend()
                    if token is not None and token.generation > after:
                        return token
                    if self._closed:
                        raise TokenUnavailable("The proxy is shutting down.", retry_after=1)
                    if self._stopped:
                        raise TokenUnavailable(
                            "The session was stopped by an operator.",
                            hint="Start it again with: nomba-proxy token renew",
                            retry_after=30,
                        )
                    if self._flight is None:
                        now = self._clocks.alive()
                        if self._failures and now < self._retry_at:
                            raise self._unavailable(self._retry_at - now)
                        self._start(self._refresh_or_issue, reason="wanted")
                    assert self._flight is not None  # noqa: S101 - for the type checker
                    await self._settled(self._flight)
        except TimeoutError:
            raise self._unavailable(1.0) from None

    def _unavailable(self, retry_in: float) -> TokenUnavailable:
        because = f" ({self._last_error})" if self._last_error else ""
        refused = self._last_error is not None and self._last_error.reason == "credentials"
        return TokenUnavailable(
            f"There is no living token for {self.name}{because}.",
            hint=(
                "Nomba refused our credentials: check client id, secret, parent account and "
                "environment, then: nomba-proxy token renew"
                if refused
                else "Nomba's token call does not succeed at the moment; retry after the delay."
            ),
            retry_after=max(1, math.ceil(retry_in)),
        )

    @staticmethod
    async def _settled(task: asyncio.Task[None]) -> None:
        """Wait for a task to end, however it ends; being cancelled cancels only the wait."""
        await asyncio.wait((task,))
