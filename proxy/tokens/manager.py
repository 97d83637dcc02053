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
from dataclasses import replace

from proxy.core.exchange import Emit, Event
from proxy.core.refusals import Pair, Refusals
from proxy.core.secret import Secret
from proxy.core.session import (
    Asked,
    Decision,
    Held,
    Limits,
    Phase,
    Token,
    Trouble,
    accepted,
    by_issue,
    decide,
    died,
    force,
    held_off,
    newer,
    phase,
    try_again_at,
    why_not,
)
from proxy.errors import RenewalNotAllowed, TokenUnavailable
from proxy.tokens.asking import Asking, Clocks, internal, not_in_force
from proxy.tokens.keyring import Keyring
from proxy.tokens.nomba import IssuerError, NombaAuth
from proxy.tokens.store import Store, StoreFailed
from proxy.tokens.told import STORES, State, Status, rival, unavailable

# How often the background task looks at the clocks: timers stop while a machine
# sleeps and know nothing of wall-clock jumps.
_LOOK_EVERY = 15.0
# Background renewals are never closer together than this, whatever life is claimed.
_MIN_GAP = 0.5
# A renewal under way is waited for at the end: cut off, it may cost the session.
_LAST_WAIT = 2.0
# Troubles of this process alone, of which others know nothing, that others can end.
_OTHERS = frozenset({"sealed", "secret"})
_NEEDY = frozenset({Phase.NOW, Phase.EMPTY})


class Session:
    """One session with one issuer, shared by every caller.

    Args:
        name: the upstream's name, for events.
        auth: the wire calls.
        keyring: the client secrets.
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
        keyring: Keyring,
        store: Store,
        limits: Limits,
        clocks: Clocks,
        emit: Emit,
    ) -> None:
        self.name = name
        self._asking = Asking(
            name, auth=auth, limits=limits, clocks=clocks, emit=emit, ensure=self._ensure
        )
        self._keyring = keyring
        self._store = store
        self._limits = limits
        self._clocks = clocks
        self._emit = emit
        self._held = Held()
        self._refused: Token | None = None  # it and older ones are not lent here any more
        self._share = ""  # whose part of the budget it is on
        self._died = 0  # the last generation that is known to have died early
        self._problem = ""  # why a refusal was no reason to renew
        self._refusals = Refusals(limits.memory)
        self._flight: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._noting: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._changed = asyncio.get_running_loop().create_future()  # done when there is news
        self._leased = False  # whether the flight has come to its turn
        self._alone = False  # whether it goes without the store
        self._pending = len(keyring.given) > 1  # whether another secret is to be put in force
        self._again = False  # whether one is to be tried though it was refused a moment ago
        self._closed = False
        self._had_token = False
        self._started_at = -math.inf
        store.listen(self._heard)

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
        known = generation == self._held.generation and self._held.accepted
        memory = math.inf if known else self._limits.gap
        return self._refusals.note(by, generation, now=self._clocks.alive(), memory=memory)

    def _refuse(self, refused: Token, by: Pair) -> None:
        self._listen()
        now, generation = self._clocks.alive(), refused.generation
        remembered = self._refusals.remembered(by, now=now)
        token = self._held.token
        late = generation != self._held.generation or not (token is None or token.same(refused))
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
        self._share = "" if self._refusals.served(by, generation) else by[0]
        if self._flight is None:
            if problem := why_not(self._held, self._share, now=now, limits=self._limits):
                raise RenewalNotAllowed(problem)
            self._renewal(Asked.REFUSED, reason="refused")
        self._refused = refused
        self._held = self._held.without(refused)
        self._emit(Event("token_refused", "warning", self.name, {"generation": generation}))

    def accepted(self, generation: int, *, by: Pair) -> None:
        """Note that the upstream took a token of this generation."""
        refused = self._refusals.accepted(by, generation)
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
            async with self._store.lease(lambda: self._held.generation > generation) as stored:
                if stored is None:
                    return
                self._adopt(stored)
                known, deaths = accepted(stored, generation), 0
                if 0 < refused < generation:
                    known, deaths = died(known, refused, now=self._clocks.alive())
                if known != stored:
                    await self._save(known)
                if deaths:
                    self._emit(rival(self.name, deaths))

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
            store=self._store.problem,
            secret=held.secret,
            secret_pending=held.secret not in {"", (newest := self._keyring.newest.digest())},
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
        self._pending = self._keyring.change(current, following) or self._pending
        self._again = again or self._again
        self._look_at_secret()
        self._wake.set()

    async def renew_now(self) -> Token:
        """Renew on an operator's word: ends a stop, ignores back-off and gap.

        Raises:
            TokenUnavailable: no new token.
        """
        self._listen()
        before, self._problem = self._held.generation, ""
        await self._landed()
        if self._pending:
            self._again = True
            await self._settled(self._switching())
        for again in (False, True):  # what others write back at that moment undoes the first
            await self._landed()  # the keeper may have been faster
            if self._held.generation == before and not (again and self._held.trouble.failures):
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
        await self._landed()
        before = self._held.generation
        problem = "nothing was done: the session's store cannot be used"
        stopping = stop

        async def revoke_and_issue(held: Held) -> None:
            nonlocal problem, stopping
            token, stopping = held.token, stop or held.stopped
            held = replace(held, token=None, stopped=stopping)
            if await self._save(held) is not held:
                return
            self._refused = token or self._refused
            problem = await self._asking.revoked(token)
            told: dict[str, object] = {"generation": held.generation, "confirmed": not problem}
            told["stopped"] = stopping
            level = "warning" if problem else "info"
            self._emit(Event("token_revoked", level, self.name, told))
            if not stopping:
                secrets = self._keyring.order(held.secret) or self._keyring.given
                await self._obtain(held, issue=True, secrets=secrets, reason="revoke")

        await self._settled(self._start(revoke_and_issue, reason="revoke"))
        if not stopping:
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
        self._renewal(Asked.WANTED, reason="start")
        self._keeper = asyncio.create_task(self._keep(), name=f"keep token of {self.name}")

    async def close(self, *, revoke: bool) -> None:
        """Stop the background; optionally revoke the token (best effort)."""
        self._closed = True
        self._stir()
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
                    if stored is not None:
                        await self._store.save(stored.without(token))
            await self._asking.revoked(token)
        self._held = replace(self._held, token=None)
        self._store.close()

    async def _keep(self) -> None:
        while True:
            self._listen()
            delay = self._next_look()
            if delay <= 0:
                if self._switch_in() <= 0:
                    self._switching()
                else:
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
        gap = self._started_at + _MIN_GAP - now
        if held_off(held, now=now):
            # A secret that was not refused is no reason to wait for those that were.
            other = self._switch_in() if held.trouble.reason == "credentials" else math.inf
            return min(held.trouble.retry_at - now, max(gap, other))
        if held.token is None or held.calling:
            return gap
        due = held.token.lifetime.due_in(now=now, wall=wall)
        return max(gap, min(due, self._switch_in()))

    def _switch_in(self) -> float:
        """Seconds until another client secret is to be tried."""
        held = self._held
        if not self._pending or not (held.secret or held.trouble.failures):
            return math.inf
        if self._again:
            return 0.0
        return try_again_at(held, self._keyring.newest.digest()) - self._clocks.alive()

    # -- what is known -----------------------------------------------------------------

    def _listen(self) -> None:
        """Take over what another process has done."""
        if (news := self._store.news()) is not None:
            self._adopt(news)

    def _heard(self) -> None:
        """The store says that there is news."""
        self._listen()
        self._store_works()
        self._wake.set()
        self._stir()

    def _stir(self) -> None:
        """Let those look who wait for a token."""
        self._changed.set_result(None)
        self._changed = asyncio.get_running_loop().create_future()

    def _adopt(self, stored: Held) -> None:
        before = self._held.generation
        was_stopped = self._held.stopped
        self._held = held = newer(self._mine(), stored).without(self._refused)
        self._look_at_secret()
        if held.stopped and not was_stopped:
            hint = "Requests get 503 until somebody says: nomba-proxy token renew"
            self._emit(Event("session_stopped", "warning", self.name, {"hint": hint}))
        self._had_token = self._had_token or self._living() is not None
        if held.generation != before:
            told: dict[str, object] = {"generation": held.generation}
            self._emit(Event("token_adopted", "debug", self.name, told))

    def _mine(self) -> Held:
        """What is known here; a store that has just answered may be tried again."""
        if (trouble := self._held.trouble).reason in STORES:
            return replace(self._held, trouble=replace(trouble, retry_at=0.0))
        return self._held

    def _store_works(self) -> None:
        if self._held.trouble.reason in STORES:
            self._held = replace(self._held, trouble=Trouble())

    async def _save(self, held: Held) -> Held:
        """Know something new, and let the others know; what is known then.

        A token is not lent before: if others have come first, theirs has ended it.
        """
        try:
            if self._alone:
                self._store.remember(held)
            else:
                held = await self._store.save(held)
        except StoreFailed:
            if held.generation > self._held.generation:  # a new token is used all the same
                self._held = held.without(self._refused)
            raise
        self._held = held.without(self._refused)
        self._had_token = self._had_token or self._living() is not None
        self._look_at_secret()
        if not held.calling:
            self._stir()
        return held

    def _look_at_secret(self) -> None:
        """Whether the newest is in force: if others switch back later, that is not undone here."""
        if self._pending and self._held.secret == self._keyring.newest.digest():
            self._pending = self._again = False

    def _decide(self, asked: Asked) -> Decision:
        return decide(self._held, asked, now=self._clocks.alive(), wall=self._clocks.wall())

    def _living(self) -> Token | None:
        token = self._held.token
        if token is None or token.lifetime.dead(now=self._clocks.alive()):
            return None
        return token

    # -- one renewal at a time ---------------------------------------------------------

    def _start(
        self,
        work: Callable[[Held], Awaitable[None]],
        *,
        reason: str,
        moot: Callable[[], bool] = bool,
        insist: bool = False,
    ) -> asyncio.Task[None]:
        """Begin what needs the lease; the caller has seen that nothing of it is under way.

        Args:
            work: is given what is stored.
            reason: for events.
            moot: as `Store.lease`.
            insist: the same.
        """

        async def fly() -> None:
            try:
                try:
                    async with self._store.lease(moot, insist=insist) as stored:
                        if stored is None:
                            return
                        self._leased = True
                        held = newer(self._mine(), stored)
                        self._adopt(held)
                        if not moot():
                            await work(held)
                        self._store_works()
                except StoreFailed:
                    if not self._goes_alone():
                        raise
                    self._alone = True
                    await work(self._mine())
            except StoreFailed as error:
                failure = IssuerError(str(error), reason=error.reason)
                self._held = self._asking.failing(self._held, failure, reason=reason)
            except IssuerError as error:
                self._held = self._asking.failing(self._held, error, reason=reason)
            except Exception as fault:  # noqa: BLE001 - a fault of ours must back off too
                self._held = self._asking.failing(self._held, internal(fault), reason=reason)
            finally:
                self._flight, self._leased, self._alone = None, False, False
                self._wake.set()

        self._started_at = self._clocks.alive()
        self._flight = asyncio.create_task(fly(), name=f"renew token of {self.name}")
        return self._flight

    def _goes_alone(self) -> bool:
        """Whether to do without the store, which has failed."""
        now, wall = self._clocks.alive(), self._clocks.wall()
        if not self._limits.alone or phase(self._held, now=now, wall=wall) not in _NEEDY:
            return False
        hint = "Whoever else renews without the store ends this session, and this ends theirs."
        self._emit(Event("renewing_alone", "warning", self.name, {"hint": hint}))
        return True

    def _renewal(self, asked: Asked, *, reason: str) -> asyncio.Task[None]:
        """Begin a renewal of what is known now."""
        after = self._held.generation

        async def renew(held: Held) -> None:
            await self._renew(held, asked, reason=reason)

        def moot() -> bool:
            token = self._living()
            return token is not None and _follows(token, after, but=self._refused)

        return self._start(renew, reason=reason, moot=moot, insist=asked is Asked.OPERATOR)

    async def _renew(self, held: Held, asked: Asked, *, reason: str) -> None:
        """Renew, unless what is stored says that it must not be."""
        now, wall, token = self._clocks.alive(), self._clocks.wall(), held.token
        refused = token is not None and held.without(self._refused).token is None
        if refused and asked is not Asked.OPERATOR:
            asked = Asked.REFUSED
        decision = decide(held, asked, now=now, wall=wall)
        issue = refused or by_issue(held, decision, now=now)
        if decision is Decision.FORCE:
            self._problem = why_not(held, self._share, now=now, limits=self._limits)
            if self._problem:
                self._refused = None
                self._held = held
                return
            held = force(held, self._share, now=now, limits=self._limits)
        elif decision not in {Decision.TRY, Decision.WAIT, Decision.RENEW}:
            return
        secrets = self._keyring.order(held.secret)
        if asked is Asked.OPERATOR:
            held = replace(held, stopped=False, gap_until=0.0, trouble=Trouble())
            issue, secrets = issue or not secrets, secrets or self._keyring.given
        await self._obtain(held, issue=issue, secrets=secrets, reason=reason)

    async def _obtain(
        self, held: Held, *, issue: bool, secrets: tuple[Secret, ...], reason: str
    ) -> None:
        """Call the issuer, and keep what it says.

        Args:
            held: what is known.
            issue: whether not to try a refresh first.
            secrets: to log in with, as `Keyring.order`.
            reason: for events.
        """
        token = None if issue else held.token
        if token is None and not secrets:
            raise not_in_force()
        held = replace(held, calling=True)
        if await self._save(held) is not held:  # others have come first
            return
        try:
            if token is not None:
                try:
                    held = await self._asking.refreshed(held, token, reason=reason)
                except IssuerError as error:
                    told: dict[str, object] = {"cause": error.reason, "reason": str(error)}
                    told |= {"for": reason, "duration_seconds": round(error.seconds, 6)}
                    self._emit(Event("token_refresh_failed", "warning", self.name, told))
                    # The refresh may have been carried out and its reply lost, in which case
                    # the old token is dead: only an issue is sure to bring a living one. Unless others
                    # have logged in: a store that has lost the lease knows, and our clock does not.
                    token = None
                    if await self._save(held) is not held:
                        return
            if token is None:
                held = await self._asking.issued(held, secrets, reason=reason)
        except IssuerError as error:
            held = self._asking.failing(held, error, reason=reason)
            if error.reason in {"secret", "store"}:  # it stays marked: others log in
                self._held = held
                return
        await self._save(held)

    def _ensure(self) -> None:
        """Be sure that nobody else is renewing.

        Raises:
            IssuerError: it is not sure.
        """
        if not self._alone and not self._store.sure():
            raise IssuerError("the right to renew ended before it was used", reason="store")

    def _switching(self) -> asyncio.Task[None]:
        """Begin to put the newest client secret in force; the one before it is, until it is accepted."""
        newest, again = self._keyring.newest, self._again
        digest, self._again = newest.digest(), False

        async def switch(held: Held) -> None:
            old = held.token
            if not again and self._clocks.alive() < try_again_at(held, digest):
                return  # others have tried it while we waited for the lease
            held = replace(held, calling=True)
            if held.stopped or await self._save(held) is not held:
                return
            try:
                held = await self._asking.issued(held, (newest,), reason="rotation")
            except IssuerError as error:
                if error.reason == "credentials":
                    held = self._asking.rejected(held, digest, error)
                else:
                    held = self._asking.failing(held, error, reason="rotation")
                if error.reason != "store":
                    await self._save(held)
                return
            await self._save(held)
            if self._limits.revoke_old and old is not None:
                problem = await self._asking.revoked(old)
                told: dict[str, object] = {"generation": old.generation, "confirmed": not problem}
                if problem:
                    told |= {"reason": problem, "hint": "The switch may have ended it already."}
                level = "warning" if problem else "info"
                self._emit(Event("old_token_revoked", level, self.name, told))

        def moot() -> bool:
            return self._held.secret == digest or self._held.stopped

        return self._start(switch, reason="rotation", moot=moot)

    async def _wait(self, *, after: int, but: Token | None = None) -> Token:
        """A token newer than generation `after`, or of that but another one than `but`."""
        try:
            async with asyncio.timeout(self._limits.wait_limit):
                while True:
                    token = self._living()
                    if token is not None and _follows(token, after, but=but):
                        return token
                    if self._closed:
                        raise TokenUnavailable("The proxy is shutting down.", retry_after=1)
                    if token is not None and self._problem:  # lent again, and not renewed
                        raise RenewalNotAllowed(self._problem)
                    waits = self._flight is not None and not self._held.stopped
                    failed = self._decide(Asked.WANTED) is Decision.FAIL and not waits
                    if token is not None or failed:
                        if token is not None or self._held.trouble.reason not in _OTHERS:
                            raise self._unavailable()
                        await asyncio.wait((self._changed,))
                        continue
                    await self._either(self._flight or self._renewal(Asked.WANTED, reason="wanted"))
                    self._listen()
        except TimeoutError:
            raise self._unavailable() from None

    def _unavailable(self) -> TokenUnavailable:
        waiting = self._flight is not None and not self._leased and not self._store.problem
        living, now = self._living() is not None, self._clocks.alive()
        return unavailable(self.name, self._held, living=living, waiting=waiting, now=now)

    async def _either(self, task: asyncio.Task[None]) -> None:
        """Wait for a task to end, or for news."""
        await asyncio.wait((task, self._changed), return_when=asyncio.FIRST_COMPLETED)

    async def _landed(self) -> None:
        """Wait until nothing is under way."""
        while self._flight is not None:
            await self._settled(self._flight)

    @staticmethod
    async def _settled(task: asyncio.Task[None]) -> None:
        """Wait for a task to end, however it ends; being cancelled cancels only the wait."""
        await asyncio.wait((task,))


def _follows(token: Token, after: int, *, but: Token | None) -> bool:
    """Whether a token is newer than a generation, or of that but another one than `but`."""
    if token.generation != after or but is None:
        return token.generation > after
    return but.generation == after and not token.same(but)
