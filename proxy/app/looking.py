"""Files that are looked at again: now and then, and at once when somebody says so."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

LOOK_EVERY = 1.0  # seconds


async def looking(
    look: Callable[[bool], Awaitable[None]], *, asked: asyncio.Event, every: float | None
) -> None:
    """Look again and again; never ends.

    Args:
        look: looks, and is told whether that was asked for.
        asked: set by whoever asks.
        every: seconds from one look to the next; None if only those count that are asked for.
    """
    while True:
        for_that = asked.is_set()
        asked.clear()
        await look(for_that)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every):
                await asked.wait()
