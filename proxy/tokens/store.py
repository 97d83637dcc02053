"""Where what is known of a session lies: the interface, and the store of a single process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from proxy.core.session import Held


class StoreFailed(Exception):
    """The store could not be read, locked or written. The text is fit for people.

    Attributes:
        reason: `store`; or `sealed`, if what lies there was sealed with other secrets than ours.
    """

    def __init__(self, text: str, *, reason: str = "store") -> None:
        super().__init__(text)
        self.reason = reason


class Store(Protocol):
    """Keeps one session for all that share it."""

    @property
    def problem(self) -> str:
        """Why it cannot be used now, in words; or ""."""

    def listen(self, told: Callable[[], object]) -> None:
        """Call `told` as soon as there is news, where a store learns of it by itself."""

    def news(self) -> Held | None:
        """What another process has written since this one last knew; cheap, never waits."""

    def lease(
        self, moot: Callable[[], bool] = ..., *, insist: bool = ...
    ) -> AbstractAsyncContextManager[Held | None]:
        """The right to renew, which one holder has at a time; it brings what is stored.

        Nothing but a lease's holder calls the issuer. A holder that dies loses it.

        Args:
            moot: whether it is of no use any more, which may turn out while it is waited for:
                then it brings None.
            insist: have it also where what is stored was sealed with other secrets than ours.

        Raises:
            StoreFailed: it cannot be had.
        """

    async def save(self, held: Held) -> Held:
        """Keep this, and let the others know. Only while the lease is held.

        Returns:
            What is kept: the same; or with another number; or what others have written, if the
            lease was lost meanwhile.

        Raises:
            StoreFailed: it is not kept.
        """

    def sure(self) -> bool:
        """Whether the lease is held still, as far as that can be told without asking."""

    def remember(self, held: Held) -> None:
        """Keep this as soon as it can be kept: it was made without the lease."""

    def close(self) -> None:
        """Let go of what it holds."""


class MemoryStore:
    """Keeps a session in this process, for this process."""

    def __init__(self) -> None:
        self._held = Held()
        self._lock = asyncio.Lock()
        self.problem = ""

    def listen(self, told: Callable[[], object]) -> None:
        """There is never any."""

    def news(self) -> Held | None:
        """Nobody else writes here."""
        return None

    @asynccontextmanager
    async def lease(
        self, moot: Callable[[], bool] = bool, *, insist: bool = False
    ) -> AsyncIterator[Held | None]:
        """As `Store`."""
        del insist
        async with self._lock:
            yield None if moot() else self._held

    async def save(self, held: Held) -> Held:
        """As `Store`."""
        self._held = held
        return held

    def sure(self) -> bool:
        """Nobody can take it away."""
        return True

    def remember(self, held: Held) -> None:
        """As `Store`."""
        self._held = held

    def close(self) -> None:
        """There is nothing to let go of."""
