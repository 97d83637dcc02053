"""Keep one session alive and lend its token.

Three rules carry everything: a renewal is one task that any number of callers wait for
and none can cancel; a forced renewal names the generation that failed, so a late refusal
of an old token never costs a new one; a token is lent only while it lives.

What follows from what is decided by the table in `core/session.py`; here is what is awaited, but
for the renewal itself (`renewing.py`). Processes that share a session share a store (`known.py`).
"""

import asyncio
import contextlib
import math
from dataclasses import replace

from proxy.core.exchange import Event
from proxy.core.refusals import Pair, Refusals
from proxy.core.secret import Secret
from proxy.core.session import (
    Asked,
    Decision,
    Limits,
    Token,
    accepted,
    died,
    held_off,
    try_again_at,
    why_not,
)
from proxy.errors import RenewalNotAllowed, TokenUnavailable
from proxy.tokens.known import Known
from proxy.tokens.nomba import NombaAuth
from proxy.tokens.renewing import Renewals, follows, settled
from proxy.tokens.store import StoreFailed
from proxy.tokens.told import SECRETS, STORES, State, Status, rival, unavailable

# How often the background task looks at the clocks: timers stop while a machine
# sleeps and know nothing of wall-clock jumps.
_LOOK_EVERY = 15.0
# Background renewals are never closer together than this, whatever life is claimed.
_MIN_GAP = 0.5
# A renewal under way is waited for at the end: cut off, it may cost the session.
_LAST_WAIT = 2.0
# How often a request looks that waits for what others bring: a file says nothing by itself.
_LOOK_FOR_OTHERS = 1.0


class Session:
    """One session with one issuer, shared by every caller.

    Args:
        known: what is known of it.
        auth: the wire calls.
        limits: what it may do.
    """

    def __init__(self, known: Known, *, auth: NombaAuth, limits: Limits) -> None:
        self.name = known.name
        self._known = known
        self._renewals = Renewals(known, auth=auth, limits=limits)
        self._limits = limits
        self._now = known.clocks.alive
        self._emit = known.emit
        self._refusals = Refusals(limits.memory)
        self._died = 0  # the last generation that is known to have died early
        self._keeper: asyncio.Task[None] | None = None
        self._noting: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- what requests need ------------------------------------------------------------

    def lend(self) -> Token | None:
        """The living token, without waiting; None if `borrow` has to be asked."""
        self._known.listen()
        token = self._known.held.token
        if token is None or token.lifetime.urgent(now=self._now()):
            return None
        return token

    async def borrow(self) -> Token:
        """The living token, waiting for a renewal if there is none, or hardly any.

        Raises:
            TokenUnavailable: none could be had within the wait limit.
        """
        self._known.listen()
        if (token := self._known.living()) is not None:
            if self._known.decide(Asked.WANTED) is Decision.TRY:
                await self._try_renewal(token)
            token = self._known.living()
        return token or await self._wait(after=0)

    async def _try_renewal(self, token: Token) -> None:
        """Wait for one renewal, half as long as `token` lives; whatever comes of it."""
        if self._closed:
            return
        flight = self._renewals.flight or self._renewals.renew(Asked.WANTED, reason="urgent")
        left = (token.lifetime.dies_at - self._now()) / 2
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._limits.wait_limit, left)):
                await self._either(flight)

    async def renew(self, *, after: Token, by: Pair) -> Token:
        """A token newer than `after`, which was refused.

        Joins a renewal under way, reuses a newer token that is there already, and
        skips every freshness check: the refused token is not lent again.

        Args:
            after: the refused one.
            by: who was refused, and what for: the (caller, path).

        Raises:
            RenewalNotAllowed: the refusal is no reason to renew.
            TokenUnavailable: no newer token within the wait limit.
        """
        self._refuse(after, by)
        return await self._wait(after=after.generation, but=after)

    def refused(self, token: Token, *, by: Pair) -> None:
        """Note a refusal whose request is not replayed; renews without waiting."""
        with contextlib.suppress(RenewalNotAllowed):
            self._refuse(token, by)

    def refused_again(self, generation: int, *, by: Pair) -> bool:
        """Note that a replay was refused too; whether that is remembered from now on.

        Where nobody had this generation accepted, it may be dead: somebody else may have logged in
        twice. So that is remembered for no longer than the gap.
        """
        held = self._known.held
        known = generation == held.generation and held.accepted
        memory = math.inf if known else self._limits.gap
        return self._refusals.note(by, generation, now=self._now(), memory=memory)

    def _refuse(self, refused: Token, by: Pair) -> None:
        known, renewals = self._known, self._renewals
        known.listen()
        now, generation = self._now(), refused.generation
        remembered = self._refusals.remembered(by, now=now)
        token = known.held.token
        late = generation != known.held.generation or not (token is None or token.same(refused))
        if not late:  # a late one says nothing of the present token
            self._refusals.note(by, generation, now=now)
        if token is None or late:
            return
        if remembered:
            raise RenewalNotAllowed(
                "Two tokens in a row were refused for this caller and path, so it is not the token: "
                "a wrong accountId, sandbox and production mixed up, or Nomba's IP allowlist?"
            )
        # What was served with this very token is refused now: so it is the token.
        renewals.share = "" if self._refusals.served(by, generation) else by[0]
        if renewals.flight is None:
            if problem := why_not(known.held, renewals.share, now=now, limits=self._limits):
                raise RenewalNotAllowed(problem)
            renewals.renew(Asked.REFUSED, reason="refused")
        known.refuse(refused)
        self._emit(Event("token_refused", "warning", self.name, {"generation": generation}))

    def accepted(self, generation: int, *, by: Pair) -> None:
        """Note that the upstream took a token of this generation."""
        refused = self._refusals.accepted(by, generation, clock=self._now)
        if refused == self._died:  # the others have been told
            refused = 0
        held = self._known.held
        if generation == held.generation and (refused or not held.accepted):
            self._died = refused or self._died
            self._known.held = accepted(held, generation)
            self._noting.add(task := asyncio.create_task(self._note(generation, refused=refused)))
            task.add_done_callback(self._noting.discard)

    async def _note(self, generation: int, *, refused: int) -> None:
        """Let the others know what was accepted, and what must have died before.

        Who never saw a generation accepted must not take it for unusable.

        Args:
            generation: was accepted.
            refused: the generation that was refused before for the same, or 0.
        """
        known = self._known
        with contextlib.suppress(StoreFailed):
            async with known.store.lease(lambda: known.held.generation > generation) as stored:
                if stored is None:
                    return
                known.adopt(stored)
                known.store_works()
                # What was renewed without the store may not be there.
                held = stored if stored.generation >= generation else known.held
                held, deaths = accepted(held, generation), 0
                if 0 < refused < generation:
                    held, deaths = died(held, refused, now=self._now())
                if held != stored:
                    # Who renews without the store does not wait for this: nor must this wait.
                    await known.save(held, alone=self._renewals.alone)
                if deaths:
                    self._emit(rival(self.name, deaths))

    # -- what operators need -----------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether there has been a token since start."""
        return self._known.had_token

    def status(self) -> Status:
        """What there is to show of the session now."""
        self._known.listen()
        now, held = self._now(), self._known.held
        token, trouble = self._known.living(), held.trouble
        state: State = "stopped" if held.stopped else "living" if token else "empty"
        return Status(
            state=state,
            token=token.access.digest() if token else "",
            generation=held.generation,
            expires_in=max(0.0, token.lifetime.dies_at - now) if token else 0.0,
            renews_in=max(0.0, token.lifetime.renew_at - now) if token else 0.0,
            renewing=self._renewals.flight is not None,
            failures=trouble.failures,
            last_error=trouble.text,
            retry_in=max(0.0, trouble.retry_at - now) if trouble.failures else 0.0,
            skew=held.skew,
            store=self._known.store.problem,
            secret=held.secret,
            secret_pending=held.secret not in {"", (newest := self._known.keyring.newest.digest())},
            secret_retry_in=max(0.0, try_again_at(held, newest) - now),
        )

    def given(self, current: Secret, following: Secret | None, *, again: bool = False) -> None:
        """Take over the client secrets that are set now; a new one is tried at once.

        It is in force once the issuer has accepted it. Until then, and if it is refused, the one
        before it stays so.

        Args:
            current: the client secret.
            following: the one that is to replace it, if there is one already.
            again: try it also if it was refused a moment ago.
        """
        self._known.given(current, following, again=again)

    async def renew_now(self) -> Token:
        """Renew on an operator's word: ends a stop, ignores back-off and gap.

        Raises:
            TokenUnavailable: no new token.
        """
        known, renewals = self._known, self._renewals
        known.listen()
        before, renewals.problem = known.held.generation, ""
        await renewals.landed()
        if known.pending:
            known.again = True
            await settled(renewals.switch())
        for again in (False, True):  # what others write back at that moment undoes the first
            await renewals.landed()  # the keeper may have been faster
            if known.held.generation == before and not (again and known.held.trouble.failures):
                await settled(renewals.renew(Asked.OPERATOR, reason="operator"))
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
        await self._renewals.landed()
        before = self._known.held.generation
        problem, stopped = await self._renewals.revoke(stop=stop)
        if not stopped:
            try:
                await self._wait(after=before)
            except TokenUnavailable as error:
                if problem:  # both went wrong, and the old token may still be living
                    error.description += f" Nor was the revocation confirmed: {problem}."
                raise
        return problem

    # -- the background ----------------------------------------------------------------

    def start(self) -> None:
        """Have a token from now on, traffic or not: the stored one, or a new one."""
        self._renewals.renew(Asked.WANTED, reason="start")
        self._keeper = asyncio.create_task(self._keep(), name=f"keep token of {self.name}")

    async def close(self, *, revoke: bool) -> None:
        """Stop the background; optionally revoke the token (best effort)."""
        self._closed = True
        self._known.stir()
        if self._keeper is not None:
            self._keeper.cancel()
        if self._renewals.flight is not None:
            await asyncio.wait((self._renewals.flight,), timeout=_LAST_WAIT)
        for task in (self._keeper, self._renewals.flight, *self._noting):
            if task is not None:
                task.cancel()
                await settled(task)
        self._known.listen()
        if revoke and (token := self._known.living()) is not None:
            await self._renewals.give_back(token)
        self._known.held = replace(self._known.held, token=None)
        self._known.store.close()

    async def _keep(self) -> None:
        while True:
            self._known.listen()
            delay = self._next_look()
            if delay <= 0:
                if self._known.switch_in() <= 0:
                    self._renewals.switch()
                else:
                    self._renewals.renew(Asked.LOOK, reason="due")
                delay = _LOOK_EVERY
            self._known.wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(delay, _LOOK_EVERY)):
                    await self._known.wake.wait()

    def _next_look(self) -> float:
        """Seconds until there is something to do; 0 if a renewal is due."""
        held = self._known.held
        if held.stopped or self._renewals.flight is not None:
            return _LOOK_EVERY
        now, wall = self._now(), self._known.clocks.wall()
        gap = self._renewals.started_at + _MIN_GAP - now
        if held_off(held, now=now):
            # A secret that was not refused is no reason to wait for those that were.
            other = self._known.switch_in() if held.trouble.reason == "credentials" else math.inf
            return min(held.trouble.retry_at - now, max(gap, other))
        # Whether a store that failed works again is seen by who looks.
        if held.token is None or held.calling or held.trouble.reason in STORES:
            return gap
        due = held.token.lifetime.due_in(now=now, wall=wall)
        return max(gap, min(due, self._known.switch_in()))

    # -- waiting --------------------------------------------------------------------

    async def _wait(self, *, after: int, but: Token | None = None) -> Token:
        """A token newer than generation `after`, or of that but another one than `but`."""
        known, renewals = self._known, self._renewals
        try:
            async with asyncio.timeout(self._limits.wait_limit):
                while True:
                    token = known.living()
                    if token is not None and follows(token, after, but=but):
                        return token
                    if self._closed:
                        raise TokenUnavailable("The proxy is shutting down.", retry_after=1)
                    if token is not None and renewals.problem:  # lent again, and not renewed
                        raise RenewalNotAllowed(renewals.problem)
                    waits = renewals.flight is not None and not known.held.stopped
                    failed = known.decide(Asked.WANTED) is Decision.FAIL and not waits
                    others = not known.held.stopped and known.held.trouble.reason in SECRETS
                    if token is not None or (failed and not others):
                        raise self._unavailable()
                    if failed:
                        await asyncio.wait((known.changed,), timeout=_LOOK_FOR_OTHERS)
                        known.listen()
                        continue
                    flight = renewals.flight or renewals.renew(Asked.WANTED, reason="wanted")
                    await self._either(flight)
                    known.listen()
        except TimeoutError:
            raise self._unavailable() from None

    def _unavailable(self) -> TokenUnavailable:
        renewals = self._renewals
        waiting = (
            renewals.flight is not None and not renewals.leased and not self._known.store.problem
        )
        living, now = self._known.living() is not None, self._now()
        return unavailable(self.name, self._known.held, living=living, waiting=waiting, now=now)

    async def _either(self, task: asyncio.Task[None]) -> None:
        """Wait for a task to end, or for news."""
        await asyncio.wait((task, self._known.changed), return_when=asyncio.FIRST_COMPLETED)
