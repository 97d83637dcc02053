"""Keep one session alive and lend its token.

Three rules carry everything: a renewal is one task that any number of callers wait for
and none can cancel; a forced renewal names the generation that failed, so a late refusal
of an old token never costs a new one; a token is lent only while it lives.

What follows from what is decided by the table in `core/session.py`; here is what is awaited.
Processes that share a session share a store: whoever holds its lease may renew, and looks
first whether another one has.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal

from proxy.core.exchange import Emit, Event
from proxy.core.lifetime import Lifetime
from proxy.core.session import (
    Asked,
    Decision,
    Held,
    Limits,
    Pair,
    Refusals,
    Token,
    Trouble,
    accepted,
    by_issue,
    decide,
    died,
    failed,
    force,
    granted,
    held_off,
    newer,
    why_not,
)
from proxy.errors import RenewalNotAllowed, TokenUnavailable
from proxy.tokens.nomba import Grant, IssuerError, NombaAuth
from proxy.tokens.store import Store, StoreFailed

# How often the background task looks at the clocks: timers stop while a machine
# sleeps and know nothing of wall-clock jumps.
_LOOK_EVERY = 15.0
# Background renewals are never closer together than this, whatever life is claimed.
_MIN_GAP = 0.5
# A renewal under way is waited for at the end: cut off, it may cost the session.
_LAST_WAIT = 2.0
_SKEWED = 60.0  # seconds
_SERVED = 4096  # (caller, path) pairs

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
        skew: seconds that the issuer's clock is ahead of ours; None if that is not known.
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
    skew: float | None


class Session:
    """One session with one issuer, shared by every caller.

    Args:
        name: the upstream's name, for events.
        auth: the wire calls.
        store: keeps it, for this process and those that share it.
        limits: what it may do.
        clocks: time and randomness.
        emit: takes events.
    """

    def __init__(
        self,
        name: str,
        *,
        auth: NombaAuth,
        store: Store,
        limits: Limits,
        clocks: Clocks,
        emit: Emit,
    ) -> None:
        self.name = name
        self._auth = auth
        self._store = store
        self._limits = limits
        self._clocks = clocks
        self._emit = emit
        self._held = Held()
        self._refused = 0  # tokens up to this generation are not lent here any more
        self._share = ""  # whose part of the budget it is on
        self._died = 0  # the last generation that is known to have died early
        self._served: dict[Pair, int] = {}  # with which generation
        self._problem = ""  # why a refusal was no reason to renew
        self._refusals = Refusals(limits.memory)
        self._flight: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._noting: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._leased = False  # whether the flight has come to its turn
        self._closed = False
        self._had_token = False
        self._started_at = -math.inf

    # -- what requests need ------------------------------------------------------------

    def lend(self) -> Token | None:
        """The living token, without waiting; None if `borrow` has to be asked."""
        self._listen()
        token = self._held.token
        if token is None or token.lifetime.urgent(now=self._clocks.alive()):
            return None
        return token

    async def borrow(self) -> Token:
        """The living token, waiting for a renewal if there is none, or hardly any.

        Raises:
            TokenUnavailable: none could be had within the wait limit.
        """
        self._listen()
        if (token := self._living()) is not None:
            if self._decide(Asked.WANTED) is Decision.TRY:
                await self._try_renewal(token)
            token = self._living()
        return token or await self._wait(after=0)

    async def _try_renewal(self, token: Token) -> None:
        """Wait for one renewal, half as long as `token` lives; whatever comes of it."""
        if self._closed:
            return
        flight = self._flight or self._renewal(Asked.WANTED, reason="urgent")
        left = (token.lifetime.dies_at - self._clocks.alive()) / 2
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._limits.wait_limit, left)):
                await self._settled(flight)

    async def renew(self, *, after: int, by: Pair) -> Token:
        """A token newer than generation `after`, which was refused.

        Joins a renewal under way, reuses a newer token that is there already, and
        skips every freshness check: the refused token is not lent again.

        Args:
            after: the generation.
            by: who was refused, and what for: the (caller, path).

        Raises:
            RenewalNotAllowed: the refusal is no reason to renew.
            TokenUnavailable: no newer token within the wait limit.
        """
        self._refuse(after, by)
        return await self._wait(after=after)

    def refused(self, generation: int, *, by: Pair) -> None:
        """Note a refusal whose request is not replayed; renews without waiting."""
        with contextlib.suppress(RenewalNotAllowed):
            self._refuse(generation, by)

    def refused_again(self, generation: int, *, by: Pair) -> bool:
        """Note that a replay was refused too; whether that is remembered from now on.

        Where nobody had this generation accepted, it may be dead: somebody else may have logged in
        twice. So that is remembered for no longer than the gap.
        """
        known = generation == self._held.generation and self._held.accepted
        memory = math.inf if known else self._limits.gap
        return self._refusals.note(by, generation, now=self._clocks.alive(), memory=memory)

    def _refuse(self, generation: int, by: Pair) -> None:
        self._listen()
        now = self._clocks.alive()
        remembered = self._refusals.remembered(by, now=now)
        token = self._held.token
        if generation == self._held.generation:  # a late one says nothing of the present token
            self._refusals.note(by, generation, now=now)
        if token is None or token.generation != generation:
            return
        if remembered:
            raise RenewalNotAllowed(
                "Two tokens in a row were refused for this caller and path, so it is not the token: "
                "a wrong accountId, sandbox and production mixed up, or Nomba's IP allowlist?"
            )
        # What was served with this very token is refused now: so it is the token.
        self._share = "" if self._served.get(by) == generation else by[0]
        if self._flight is None:
            if problem := why_not(self._held, self._share, now=now, limits=self._limits):
                raise RenewalNotAllowed(problem)
            self._renewal(Asked.REFUSED, reason="refused")
        self._refused = generation
        self._held = self._held.without(generation)
        self._emit(Event("token_refused", "warning", self.name, {"generation": generation}))

    def accepted(self, generation: int, *, by: Pair) -> None:
        """Note that the upstream took a token of this generation."""
        refused = self._refusals.forget(by) if self._refusals else 0
        self._served[by] = generation
        if len(self._served) > _SERVED:
            del self._served[next(iter(self._served))]
        if refused == self._died:  # the others have been told
            refused = 0
        if generation == self._held.generation and (refused or not self._held.accepted):
            self._died = refused or self._died
            self._held = accepted(self._held, generation)
            self._noting.add(task := asyncio.create_task(self._note(generation, refused=refused)))
            task.add_done_callback(self._noting.discard)

    async def _note(self, generation: int, *, refused: int) -> None:
        """Let the others know what was accepted, and what must have died before.

        Who never saw a generation accepted must not take it for unusable.

        Args:
            generation: was accepted.
            refused: the generation that was refused before for the same, or 0.
        """
        with contextlib.suppress(StoreFailed):
            async with self._store.lease() as stored:
                self._adopt(stored)
                known, deaths = accepted(stored, generation), 0
                if 0 < refused < generation:
                    known, deaths = died(known, refused, now=self._clocks.alive())
                if known != stored:
                    await self._save(known)
                if deaths:
                    self._emit(_rival(self.name, deaths))

    # -- what operators need -----------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether there has been a token since start."""
        return self._had_token

    def status(self) -> Status:
        """What there is to show of the session now."""
        self._listen()
        now, held = self._clocks.alive(), self._held
        token, trouble = self._living(), held.trouble
        state: State = "stopped" if held.stopped else "living" if token else "empty"
        return Status(
            state=state,
            token=token.access.digest() if token else "",
            generation=held.generation,
            expires_in=max(0.0, token.lifetime.dies_at - now) if token else 0.0,
            renews_in=max(0.0, token.lifetime.renew_at - now) if token else 0.0,
            renewing=self._flight is not None,
            failures=trouble.failures,
            last_error=trouble.text,
            retry_in=max(0.0, trouble.retry_at - now) if trouble.failures else 0.0,
            skew=held.skew,
        )

    async def renew_now(self) -> Token:
        """Renew on an operator's word: ends a stop, ignores back-off and gap.

        Raises:
            TokenUnavailable: no new token.
        """
        self._listen()
        before, self._problem = self._held.generation, ""
        while self._flight is not None:
            await self._settled(self._flight)
        if self._held.generation == before:
            await self._settled(self._renewal(Asked.OPERATOR, reason="operator"))
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
        before = self._held.generation
        problem = "nothing was done: the session's store cannot be used"
        stopping = stop

        async def revoke_and_issue(held: Held) -> None:
            nonlocal problem, stopping
            token, stopping = held.token, stop or held.stopped
            held = replace(held, token=None, stopped=stopping)
            await self._save(held)
            problem = await self._revoke(token)
            told: dict[str, object] = {"generation": held.generation, "confirmed": not problem}
            told["stopped"] = stopping
            level = "warning" if problem else "info"
            self._emit(Event("token_revoked", level, self.name, told))
            if not stopping:
                await self._obtain(held, issue=True, reason="revoke")

        self._refused = max(self._refused, before)
        self._held = self._held.without(before)
        await self._settled(self._start(revoke_and_issue, reason="revoke"))
        if not stopping:
            try:
                await self._wait(after=before)
            except TokenUnavailable as error:
                if problem:  # both went wrong, and the old token may still be living
                    error.description += f" Nor was the revocation confirmed: {problem}."
                raise
        return problem

    async def _revoke(self, token: Token | None) -> str:
        if token is None:
            return ""
        try:
            await self._auth.revoke(token.access)
        except IssuerError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - not confirmed, whatever it was
            return f"internal fault: {type(error).__name__}"
        return ""

    # -- the background ----------------------------------------------------------------

    def start(self) -> None:
        """Have a token from now on, traffic or not: the stored one, or a new one."""
        self._renewal(Asked.WANTED, reason="start")
        self._keeper = asyncio.create_task(self._keep(), name=f"keep token of {self.name}")

    async def close(self, *, revoke: bool) -> None:
        """Stop the background; optionally revoke the token (best effort)."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
        if self._flight is not None:
            await asyncio.wait((self._flight,), timeout=_LAST_WAIT)
        for task in (self._keeper, self._flight, *self._noting):
            if task is not None:
                task.cancel()
                await self._settled(task)
        self._listen()
        if revoke and (token := self._living()) is not None:
            with contextlib.suppress(StoreFailed):
                async with self._store.lease() as stored:
                    await self._store.save(stored.without(token.generation))
            await self._revoke(token)
        self._held = replace(self._held, token=None)
        self._store.close()

    async def _keep(self) -> None:
        while True:
            self._listen()
            delay = self._next_look()
            if delay <= 0:
                self._renewal(Asked.LOOK, reason="due")
                delay = _LOOK_EVERY
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(delay, _LOOK_EVERY)):
                    await self._wake.wait()

    def _next_look(self) -> float:
        """Seconds until there is something to do; 0 if a renewal is due."""
        held = self._held
        if held.stopped or self._flight is not None:
            return _LOOK_EVERY
        now, wall = self._clocks.alive(), self._clocks.wall()
        if held_off(held, now=now):
            return held.trouble.retry_at - now
        gap = self._started_at + _MIN_GAP - now
        if held.token is None or held.calling:
            return gap
        return max(gap, held.token.lifetime.due_in(now=now, wall=wall))

    # -- what is known -----------------------------------------------------------------

    def _listen(self) -> None:
        """Take over what another process has done."""
        if (news := self._store.news()) is not None:
            self._adopt(news)

    def _adopt(self, stored: Held) -> None:
        before = self._held.generation
        was_stopped = self._held.stopped
        self._held = held = newer(self._held, stored).without(self._refused)
        if held.stopped and not was_stopped:
            hint = "Requests get 503 until somebody says: nomba-proxy token renew"
            self._emit(Event("session_stopped", "warning", self.name, {"hint": hint}))
        self._had_token = self._had_token or self._living() is not None
        if held.generation != before:
            told: dict[str, object] = {"generation": held.generation}
            self._emit(Event("token_adopted", "debug", self.name, told))

    async def _save(self, held: Held) -> None:
        """Know something new, and let the others know."""
        self._held = held.without(self._refused)
        await self._store.save(held)

    def _decide(self, asked: Asked) -> Decision:
        return decide(self._held, asked, now=self._clocks.alive(), wall=self._clocks.wall())

    def _living(self) -> Token | None:
        token = self._held.token
        if token is None or token.lifetime.dead(now=self._clocks.alive()):
            return None
        return token

    # -- one renewal at a time ---------------------------------------------------------

    def _start(self, work: Callable[[Held], Awaitable[None]], *, reason: str) -> asyncio.Task[None]:
        """Begin what needs the lease; the caller has seen that nothing of it is under way.

        Args:
            work: is given what is stored.
            reason: for events.
        """

        async def fly() -> None:
            try:
                async with self._store.lease() as stored:
                    self._leased = True
                    held = newer(self._held, stored)
                    self._adopt(held)
                    await work(held)
            except StoreFailed as error:
                self._held = self._failing(
                    self._held, IssuerError(str(error), reason="store"), reason=reason
                )
            except Exception as fault:  # noqa: BLE001 - a fault of ours must back off too
                self._held = self._failing(self._held, _internal(fault), reason=reason)
            finally:
                self._flight, self._leased = None, False
                self._wake.set()

        self._started_at = self._clocks.alive()
        self._flight = asyncio.create_task(fly(), name=f"renew token of {self.name}")
        return self._flight

    def _renewal(self, asked: Asked, *, reason: str) -> asyncio.Task[None]:
        """Begin a renewal of what is known now."""
        after = self._held.generation

        async def renew(held: Held) -> None:
            await self._renew(held, asked, after=after, reason=reason)

        return self._start(renew, reason=reason)

    async def _renew(self, held: Held, asked: Asked, *, after: int, reason: str) -> None:
        """Renew, unless another process has, or what is stored says that it must not be."""
        now, wall, token = self._clocks.alive(), self._clocks.wall(), held.token
        if token is not None and token.generation > after and not token.lifetime.dead(now=now):
            return
        if token is not None and token.generation <= self._refused:
            asked = Asked.REFUSED
        decision = decide(held, asked, now=now, wall=wall)
        issue = by_issue(held, decision, now=now)
        if decision is Decision.FORCE:
            self._problem = why_not(held, self._share, now=now, limits=self._limits)
            if self._problem:
                self._refused = held.generation - 1
                self._held = held
                return
            held = force(held, self._share, now=now, limits=self._limits)
        elif decision not in {Decision.TRY, Decision.WAIT, Decision.RENEW}:
            return
        if asked is Asked.OPERATOR:
            held = replace(held, stopped=False, gap_until=0.0, trouble=Trouble())
        await self._obtain(held, issue=issue, reason=reason)

    async def _obtain(self, held: Held, *, issue: bool, reason: str) -> None:
        """Call the issuer, and keep what it says."""
        held = replace(held, calling=True)
        await self._save(held)
        token = None if issue else held.token
        try:
            if token is not None:
                try:
                    held = await self._ask(held, token=token, reason=reason)
                except IssuerError as error:
                    told: dict[str, object] = {"reason": str(error)}
                    self._emit(Event("token_refresh_failed", "warning", self.name, told))
                    # The refresh may have been carried out and its reply lost, in which case
                    # the old token is dead: only an issue is sure to bring a living one.
                    token = None
            if token is None:
                held = await self._ask(held, token=None, reason=reason)
        except IssuerError as error:
            held = self._failing(held, error, reason=reason)
        await self._save(held)

    async def _ask(self, held: Held, *, token: Token | None, reason: str) -> Held:
        """A newer token by refresh of `token`, or by issue.

        Raises:
            IssuerError: none.
        """
        auth = self._auth
        sent, sent_wall = self._clocks.alive(), self._clocks.wall()
        try:
            if token is None:
                grant = await auth.issue()
            else:
                grant = await auth.refresh(access_token=token.access, refresh_token=token.refresh)
        except IssuerError:
            raise
        except Exception as fault:  # whatever it was, there is no token
            raise _internal(fault) from fault
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
        held = granted(
            held,
            access=grant.access_token,
            refresh=grant.refresh_token,
            lifetime=lifetime,
            skew=skew,
        )
        self._had_token = True
        told: dict[str, object] = {
            "grant": "issue" if token is None else "refresh",
            "for": reason,
            "generation": held.generation,
            "life_seconds": round(grant.life, 3),
            "expires_at": sent_wall + grant.life,
        }
        if skew is not None:
            told["skew_seconds"] = skew
        self._emit(Event("token_renewed", "info", self.name, told))
        if skew is not None and abs(skew) > _SKEWED:
            hint = "Set this machine's clock (NTP); what expires is judged without it."
            told = {"skew_seconds": skew, "hint": hint}
            self._emit(Event("clock_skewed", "warning", self.name, told))
        mine = auth.credentials.account_id
        if grant.account_id and grant.account_id.lower() != mine.lower():
            self._emit(Event("token_account_differs", "warning", self.name))
        return held

    def _failing(self, held: Held, error: IssuerError, *, reason: str) -> Held:
        now = self._clocks.alive()
        held = failed(
            held, reason=error.reason, text=str(error), now=now, jitter=self._clocks.random()
        )
        told: dict[str, object] = {
            "cause": error.reason,
            "reason": str(error),
            "for": reason,
            "failures": held.trouble.failures,
            "retry_in": round(held.trouble.retry_at - now, 1),
        }
        self._emit(Event("token_renewal_failed", "error", self.name, told))
        return held

    async def _wait(self, *, after: int) -> Token:
        """A token newer than generation `after`, which is lent no more."""
        try:
            async with asyncio.timeout(self._limits.wait_limit):
                while True:
                    token = self._living()
                    if token is not None and token.generation > after:
                        return token
                    if self._closed:
                        raise TokenUnavailable("The proxy is shutting down.", retry_after=1)
                    if token is not None and self._problem:  # lent again, and not renewed
                        raise RenewalNotAllowed(self._problem)
                    if token is not None or self._decide(Asked.WANTED) is Decision.FAIL:
                        raise self._unavailable()
                    flight = self._flight or self._renewal(Asked.WANTED, reason="wanted")
                    await self._settled(flight)
                    self._listen()
        except TimeoutError:
            raise self._unavailable() from None

    def _unavailable(self) -> TokenUnavailable:
        held, now = self._held, self._clocks.alive()
        if held.stopped:
            return TokenUnavailable(
                "The session was stopped by an operator.",
                hint="Start it again with: nomba-proxy token renew",
                retry_after=30,
            )
        trouble = held.trouble
        text = trouble.text
        if self._flight is not None and not self._leased:
            text = "another process holds the session's lock and does not let go of it"
        what = "There is no living token for" if self._living() is None else "No newer token for"
        hints = {
            "credentials": "Nomba refused our credentials: check client id, secret, parent account "
            "and environment, then: nomba-proxy token renew",
            "store": "The session could not be shared, so nobody logs in: mend the folder that "
            "`store` names (nomba-proxy check --show), or its file system.",
        }
        return TokenUnavailable(
            f"{what} {self.name}{f' ({text})' if text else ''}.",
            hint=hints.get(
                trouble.reason,
                "Nomba's token call does not succeed at the moment; retry after the delay.",
            ),
            retry_after=max(1, math.ceil(trouble.retry_at - now) if trouble.failures else 1),
        )

    @staticmethod
    async def _settled(task: asyncio.Task[None]) -> None:
        """Wait for a task to end, however it ends; being cancelled cancels only the wait."""
        await asyncio.wait((task,))


def _internal(fault: Exception) -> IssuerError:
    return IssuerError(f"internal fault: {type(fault).__name__}", reason="internal")


def _skew(grant: Grant, *, before: float, after: float) -> float | None:
    """Seconds that the issuer's clock is ahead of ours; None if it does not tell its own."""
    if grant.date is None:
        return None
    # A `Date` has whole seconds, and is cut: it is half a second old on average.
    return round(grant.date + 0.5 - (before + after) / 2, 1)


def _rival(name: str, deaths: int) -> Event:
    told: dict[str, object] = {
        "deaths": deaths,
        "reason": f"{deaths} tokens that worked were refused before their time, within minutes.",
        "hint": "Somebody else seems to log in with our credentials: another proxy, a script or "
        "an app with the same client id. Nomba keeps one session; point it at this proxy, or "
        "give it credentials of its own.",
    }
    return Event("session_rival", "error", name, told)
