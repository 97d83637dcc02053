"""Read the settings again while the proxy runs: all of it, or nothing."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from proxy.admin import ControlFailed
from proxy.core.caller import Roster
from proxy.core.exchange import Emit, Event
from proxy.settings import Reloaded, Settings, SettingsError, take_over


class Reload:
    """Takes new settings over.

    Args:
        settings: in force.
        roster: the callers in force, who may be others by now.
        apply: takes others over; nothing is awaited in it.
        emit: takes events.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        roster: Callable[[], Roster],
        apply: Callable[[Reloaded], None],
        emit: Emit,
    ) -> None:
        self._settings = settings
        self._roster = roster
        self._apply = apply
        self._emit = emit
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self) -> Mapping[str, object]:
        """Read them, and take over what can be; what has changed, and what needs a restart.

        Raises:
            ControlFailed: they cannot be used; nothing has changed.
        """
        async with self._one_at_a_time:
            try:
                new = await asyncio.to_thread(self._settings.again)
            except SettingsError as error:
                tell_failed(error, emit=self._emit)
                raise ControlFailed(str(error), status=400) from None
            found = take_over(replace(self._settings, callers=self._roster()), new)
            self._settings = found.settings
            self._apply(found)
            tell(found, emit=self._emit)
            return found.told


async def quietly(reload: Callable[[], Awaitable[object]]) -> None:
    """Reload for a signal: whoever sent it reads the log."""
    with contextlib.suppress(ControlFailed):
        await reload()


def tell(found: Reloaded, *, emit: Emit) -> None:
    """Say what came of it."""
    emit(Event("reloaded", "warning" if found.restart else "info", fields=found.told))


def tell_failed(error: SettingsError, *, emit: Emit) -> None:
    """Say that nothing did, and why."""
    fields: dict[str, object] = {"reason": str(error.problems[0]), "problems": len(error.problems)}
    fields["hint"] = "the settings of before are in force; nomba-proxy check shows every problem"
    emit(Event("reload_failed", "error", fields=fields))
