"""What one process knows of a session, and takes from and gives to those that share its store."""

import asyncio
import math
from dataclasses import replace

from proxy.core.exchange import Emit, Event
from proxy.core.secret import Secret
from proxy.core.session import (
    Asked,
    Decision,
    Held,
    Phase,
    Token,
    Trouble,
    decide,
    newer,
    phase,
    try_again_at,
)
from proxy.tokens.asking import Clocks
from proxy.tokens.keyring import Keyring
from proxy.tokens.store import Store, StoreFailed
from proxy.tokens.told import SECRETS, STORES

_NEEDY = frozenset({Phase.NOW, Phase.EMPTY})


class Known:
    """What is known of a session here.

    Args:
        name: the upstream's name, for events.
        keyring: the client secrets.
        store: keeps it, for this process and those that share it.
        clocks: time and randomness.
        emit: takes events.

    Attributes:
        name, keyring, store, clocks, emit: as given.
        held: the newest there is.
        refused: it and older ones are not lent here any more.
        had_token: whether there has been a token since start.
        pending: whether another client secret is to be put in force.
        again: whether that is to be tried though it was refused a moment ago.
        changed: done when there is news.
        wake: set when there may be something to do.
    """

    def __init__(
        self, name: str, *, keyring: Keyring, store: Store, clocks: Clocks, emit: Emit
    ) -> None:
        self.name = name
        self.keyring = keyring
        self.store = store
        self.clocks = clocks
        self.emit = emit
        self.held = Held()
        self.refused: Token | None = None
        self.had_token = False
        self.pending = len(keyring.given) > 1
        self.again = False
        self.changed = asyncio.get_running_loop().create_future()
        self.wake = asyncio.Event()
        store.listen(self._heard)

    # -- here --------------------------------------------------------------------------

    def living(self) -> Token | None:
        """The token, if it lives."""
        token = self.held.token
        if token is None or token.lifetime.dead(now=self.clocks.alive()):
            return None
        return token

    def decide(self, asked: Asked) -> Decision:
        """What follows (`core.session.decide`) now."""
        return decide(self.held, asked, now=self.clocks.alive(), wall=self.clocks.wall())

    def is_needy(self) -> bool:
        """Whether requests need another token, now or soon, and may get one."""
        return phase(self.held, now=self.clocks.alive(), wall=self.clocks.wall()) in _NEEDY

    def refuse(self, token: Token) -> None:
        """Do not lend it any more."""
        self.refused = token
        self.held = self.held.without(token)

    def stir(self) -> None:
        """Let those look who wait for a token."""
        self.changed.set_result(None)
        self.changed = asyncio.get_running_loop().create_future()

    # -- from the others, and to them ----------------------------------------------------

    def listen(self) -> None:
        """Take over what another process has done."""
        if (news := self.store.news()) is not None:
            self.adopt(news)

    def _heard(self) -> None:
        """The store says that there is news."""
        self.listen()
        self.store_works()
        self.wake.set()
        self.stir()

    def adopt(self, stored: Held) -> None:
        """Know what is stored, unless more is known here."""
        before = self.held.generation
        was_stopped = self.held.stopped
        self.held = held = newer(self.mine(), stored).without(self.refused)
        self._look_at_secret()
        if held.stopped and not was_stopped:
            hint = "Requests get 503 until somebody says: nomba-proxy token renew"
            self.emit(Event("session_stopped", "warning", self.name, {"hint": hint}))
        self.had_token = self.had_token or self.living() is not None
        if held.generation != before:
            told: dict[str, object] = {"generation": held.generation}
            self.emit(Event("token_adopted", "debug", self.name, told))
            self.stir()

    def mine(self) -> Held:
        """What is known here; a store that has just answered may be tried again."""
        if (trouble := self.held.trouble).reason in STORES:
            return replace(self.held, trouble=replace(trouble, retry_at=0.0))
        return self.held

    def store_works(self) -> None:
        """The store has answered."""
        if self.held.trouble.reason in STORES:
            self.held = replace(self.held, trouble=Trouble())

    async def save(self, held: Held, *, alone: bool = False) -> Held:
        """Know something new, and let the others know; what is known then.

        A token is not lent before: if others have come first, theirs has ended it.

        Args:
            held: the new.
            alone: whether to go without the store, which is told as soon as it can be.

        Raises:
            StoreFailed: the others could not be told.
        """
        try:
            if alone:
                self.store.remember(held)
            else:
                held = await self.store.save(held)
        except StoreFailed:
            if held.generation > self.held.generation:  # a new token is used all the same
                self.held = held.without(self.refused)
            raise
        self.held = held.without(self.refused)
        self.had_token = self.had_token or self.living() is not None
        self._look_at_secret()
        if not held.calling:
            self.stir()
        return held

    # -- the client secret ---------------------------------------------------------------

    def given(self, current: Secret, following: Secret | None, *, again: bool) -> None:
        """Take over the client secrets that are set now.

        Args:
            current: the client secret.
            following: the one that is to replace it, if there is one already.
            again: try it also if it was refused a moment ago.
        """
        self.pending = self.keyring.change(current, following) or self.pending
        self.again = again or self.again
        if self.held.trouble.reason in SECRETS:  # what was lacking may be there now
            self.held = replace(self.held, trouble=Trouble())
        self._look_at_secret()
        self.wake.set()

    def _look_at_secret(self) -> None:
        """Whether the newest is in force: if others switch back later, that is not undone here."""
        if self.pending and self.held.secret == self.keyring.newest.digest():
            self.pending = self.again = False

    def switch_in(self) -> float:
        """Seconds until another client secret is to be tried."""
        held = self.held
        if not self.pending or not (held.secret or held.trouble.failures):
            return math.inf
        if self.again:
            return 0.0
        return try_again_at(held, self.keyring.newest.digest()) - self.clocks.alive()
