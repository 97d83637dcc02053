"""Where what is known of a session lies: the interface, and the store of a single process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from proxy.core.session import Held


class StoreFailed(Exception):
    """The store could not be read, locked or written. The text is fit for people."""


class Store(Protocol):
    """Keeps one session for all that share it."""

    def news(self) -> Held | None:
        """What another process has written since this one last knew; cheap, never waits."""

    def lease(self) -> AbstractAsyncContextManager[Held]:
        """The right to renew, which one holder has at a time; it brings what is stored.

        Nothing but a lease's holder calls the issuer. A holder that dies loses it.

        Raises:
            StoreFailed: it cannot be had.
        """

    async def save(self, held: Held) -> None:
        """Keep this, and let the others know. Only while the lease is held.

        Raises:
            StoreFailed: it is not kept.
        """

    def close(self) -> None:
        """Let go of what it holds."""


class MemoryStore:
    """Keeps a session in this process, for this process."""

    def __init__(self) -> None:
        self._held = Held()
        self._lock = asyncio.Lock()

    def news(self) -> Held | None:
        """Nobody else writes here."""
        return None

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Held]:
        """As `Store`."""
        async with self._lock:
            yield self._held

    async def save(self, held: Held) -> None:
        """As `Store`."""
        self._held = held

    def close(self) -> None:
        """There is nothing to let go of."""
