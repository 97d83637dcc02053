"""Renew a session's token: one renewal at a time, each by whoever holds the store's lease.

A renewal is a task, so that any number of callers can wait for it and none can cancel it. It
looks first at what is stored: another process may have been faster, or forbidden it.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace

from proxy.core.exchange import Event
from proxy.core.secret import Secret
from proxy.core.session import (
    Asked,
    Decision,
    Held,
    Limits,
    Token,
    Trouble,
    by_issue,
    decide,
    force,
    newer,
    try_again_at,
    why_not,
)
from proxy.tokens.asking import Asking, internal, not_in_force
from proxy.tokens.known import Known
from proxy.tokens.nomba import IssuerError, NombaAuth
from proxy.tokens.store import StoreFailed
from proxy.tokens.told import SECRETS, STORES

# Seconds that a process that ends waits for its turn. A server that does not answer is known in less.
_LAST_TURN = 3.0


class Renewals:
    """The renewals of one session.

    Args:
        known: what is known of it.
        auth: the wire calls.
        limits: what may be done.

    Attributes:
        flight: the one under way, or None.
        leased: whether it has come to its turn.
        alone: whether it goes without the store.
        started_at: when the last one began.
        share: whose part of the budget forced ones are on.
        problem: why a refusal was no reason to renew, or "".
    """

    def __init__(self, known: Known, *, auth: NombaAuth, limits: Limits) -> None:
        self._known = known
        self._asking = Asking(
            known.name,
            auth=auth,
            limits=limits,
            clocks=known.clocks,
            emit=known.emit,
            ensure=self._ensure,
        )
        self._keyring = known.keyring
        self._store = known.store
        self._limits = limits
        self._now = known.clocks.alive
        self._emit = known.emit
        self.alone = False
        self.flight: asyncio.Task[None] | None = None
        self.leased = False
        self.started_at = -math.inf
        self.share = ""
        self.problem = ""

    async def landed(self) -> None:
        """Wait until nothing is under way."""
        while self.flight is not None:
            await settled(self.flight)

    async def give_back(self, token: Token) -> None:
        """At the end: let the others know that a token goes, and revoke it, if that can be done.

        Whoever has the lease is about to replace it, and is not waited for long.
        """
        try:
            async with asyncio.timeout(_LAST_TURN), self._store.lease() as stored:
                if stored is not None and stored.generation > token.generation:
                    return
                if stored is not None:
                    await self._store.save(stored.ended(token))
        except TimeoutError:
            return
        except StoreFailed:
            pass
        await self._asking.revoked(token)

    # -- what can be begun: nothing may be under way ----------------------------------------

    def renew(self, asked: Asked, *, reason: str) -> asyncio.Task[None]:
        """Begin a renewal of what is known now.

        Args:
            asked: for what.
            reason: the same in a word, for events.
        """
        after = self._known.held.generation

        async def work(held: Held) -> None:
            await self._renew(held, asked, reason=reason)

        def moot() -> bool:
            token = self._known.living()
            return token is not None and follows(token, after, but=self._known.refused)

        return self._start(work, reason=reason, moot=moot, insist=asked is Asked.OPERATOR)

    def switch(self) -> asyncio.Task[None]:
        """Begin to put the newest client secret in force; the one before it is, until it is accepted."""
        newest, again = self._keyring.newest, self._known.again
        digest, self._known.again = newest.digest(), False

        async def work(held: Held) -> None:
            old = held.token
            if not again and self._now() < try_again_at(held, digest):
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
                self._emit(Event("old_token_revoked", level, self._known.name, told))

        def moot() -> bool:
            held = self._known.held
            return held.secret == digest or held.stopped

        return self._start(work, reason="rotation", moot=moot)

    async def revoke(self, *, stop: bool) -> tuple[str, bool]:
        """Revoke the token at the issuer, and get a new one unless the session is stopped.

        Args:
            stop: stop it.

        Returns:
            Why the issuer did not confirm the revocation, or ""; and whether the session is
            stopped now.
        """
        problem = "nothing was done: the session's store cannot be used"
        stopping = stop

        async def work(held: Held) -> None:
            nonlocal problem, stopping
            token, stopping = held.token, stop or held.stopped
            held = replace(held.ended(token), stopped=stopping)
            if await self._save(held) is not held:
                problem = "nothing was done: another process has come first, so try again"
                return
            self._known.refused = token or self._known.refused
            problem = await self._asking.revoked(token)
            told: dict[str, object] = {"generation": held.generation, "confirmed": not problem}
            told["stopped"] = stopping
            level = "warning" if problem else "info"
            self._emit(Event("token_revoked", level, self._known.name, told))
            if not stopping:
                secrets = self._keyring.order(held.secret) or self._keyring.given
                await self._obtain(held, issue=True, secrets=secrets, reason="revoke")

        # A stop that the store has not heard of would end with it, or be overlooked there.
        await settled(self._start(work, reason="revoke", alone=not stop))
        return problem, stopping

    # -- under the lease ----------------------------------------------------------------------

    def _start(
        self,
        work: Callable[[Held], Awaitable[None]],
        *,
        reason: str,
        moot: Callable[[], bool] = bool,
        insist: bool = False,
        alone: bool = True,
    ) -> asyncio.Task[None]:
        """Begin what needs the lease; the caller has seen that nothing of it is under way.

        Args:
            work: is given what is stored.
            reason: for events.
            moot: as `Store.lease`.
            insist: the same.
            alone: whether it may be done without the store, if that cannot be used.
        """
        known = self._known

        async def fly() -> None:
            try:
                try:
                    async with self._store.lease(moot, insist=insist) as stored:
                        if stored is None:
                            return
                        self.leased = True
                        held = newer(known.mine(), stored)
                        known.adopt(held)
                        if 0 < stored.generation < held.generation:  # that could not be kept
                            await known.save(_for_all(held))
                        if not moot():
                            await work(_for_all(held))
                        known.store_works()
                except StoreFailed as error:
                    if error.reason == "sealed" or not (alone and self._goes_alone()):
                        raise
                    self.alone = True
                    await work(_for_all(known.mine()))
            except StoreFailed as error:
                failure = IssuerError(str(error), reason=error.reason)
                known.held = self._asking.failing(known.held, failure, reason=reason)
            except IssuerError as error:
                known.held = self._asking.failing(known.held, error, reason=reason)
            except Exception as fault:  # noqa: BLE001 - a fault of ours must back off too
                known.held = self._asking.failing(known.held, internal(fault), reason=reason)
            finally:
                self.flight, self.leased, self.alone = None, False, False
                known.wake.set()

        self.started_at = self._now()
        self.flight = asyncio.create_task(fly(), name=f"renew token of {self._known.name}")
        return self.flight

    def _goes_alone(self) -> bool:
        """Whether to do without the store, which has failed."""
        if not self._limits.alone or not self._known.is_needy():
            return False
        hint = "Whoever else renews without the store ends this session, and this ends theirs."
        self._emit(Event("renewing_alone", "warning", self._known.name, {"hint": hint}))
        return True

    async def _renew(self, held: Held, asked: Asked, *, reason: str) -> None:
        """Renew, unless what is stored says that it must not be."""
        known = self._known
        now, wall, token = self._now(), known.clocks.wall(), held.token
        refused = token is not None and held.without(known.refused).token is None
        if refused and asked is not Asked.OPERATOR:
            asked = Asked.REFUSED
        decision = decide(held, asked, now=now, wall=wall)
        issue = refused or by_issue(held, decision, now=now)
        if decision is Decision.FORCE:
            self.problem = why_not(held, self.share, now=now, limits=self._limits)
            if self.problem:
                known.refused = None
                known.held = held
                return
            held = force(held, self.share, now=now, limits=self._limits)
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
                    self._emit(Event("token_refresh_failed", "warning", self._known.name, told))
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
                self._known.held = held
                return
        await self._save(held)

    async def _save(self, held: Held) -> Held:
        return await self._known.save(held, alone=self.alone)

    def _ensure(self) -> None:
        """Be sure that nobody else is renewing.

        Raises:
            IssuerError: it is not sure.
        """
        if not self.alone and not self._store.sure():
            raise IssuerError("the right to renew ended before it was used", reason="store")


def _for_all(held: Held) -> Held:
    """The same without a trouble of this process alone: it holds nobody else off."""
    return replace(held, trouble=Trouble()) if held.trouble.reason in STORES | SECRETS else held


async def settled(task: asyncio.Task[None]) -> None:
    """Wait for a task to end, however it ends; being cancelled cancels only the wait."""
    await asyncio.wait((task,))


def follows(token: Token, after: int, *, but: Token | None) -> bool:
    """Whether a token is newer than a generation, or of that but another one than `but`."""
    if token.generation != after or but is None:
        return token.generation > after
    return but.generation == after and not token.same(but)
