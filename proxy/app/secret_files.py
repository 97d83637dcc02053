"""Client secrets that change while the proxy runs."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Protocol

from proxy.app.looking import LOOK_EVERY, looking
from proxy.core.exchange import Emit, Event
from proxy.core.secret import Secret
from proxy.settings import ReadyUpstream, SettingsError

_Pair = tuple[Secret, Secret | None]


class Told(Protocol):
    """Takes the secrets that are set."""

    def __call__(self, current: Secret, following: Secret | None, *, again: bool) -> None:
        """Take them.

        Args:
            current: the client secret.
            following: the one that is to replace it, if there is one already.
            again: whether to try it though it was refused a moment ago.
        """


class SecretFiles:
    """Looks at the files that client secrets are in, by their content.

    What is new has to be there at two looks in a row: it may have been half written at the first.

    Args:
        upstreams: all of them.
        told: by the name that a session goes by.
        emit: takes events.
    """

    def __init__(
        self, upstreams: Iterable[ReadyUpstream], *, told: Mapping[str, Told], emit: Emit
    ) -> None:
        self._watched = [one for one in upstreams if one.name in told]
        self._every = LOOK_EVERY if any(one.read_secrets for one in self._watched) else None
        self._told = told
        self._emit = emit
        self._seen: dict[str, _Pair] = {
            one.name: (one.client_secret, one.next_secret) for one in self._watched
        }
        self._taken = dict(self._seen)
        self._problems = dict.fromkeys(self._seen, "")
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Somebody says that they have changed, and are whole: look at once."""
        self._asked.set()

    async def catch_up(self) -> None:
        """Take over what is there now: whoever takes another's place knows what that knew."""
        for one in self._watched:
            await self._look_at(one, asked=False, at_once=True)

    async def watch(self) -> None:
        """Look now and then; never ends."""
        await looking(self._look, asked=self._asked, every=self._every)

    async def _look(self, asked: bool) -> None:  # noqa: FBT001 - `looking` says so
        for one in self._watched:
            await self._look_at(one, asked=asked)

    async def _look_at(self, one: ReadyUpstream, *, asked: bool, at_once: bool = False) -> None:
        name, found = one.name, self._taken[one.name]
        try:
            if one.read_secrets is not None:
                found = await asyncio.to_thread(one.read_secrets)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is read again
            first = str(error.problems[0]) if isinstance(error, SettingsError) else repr(error)
            if asked or first != self._problems[name]:
                self._problems[name] = first
                self._emit(Event("secret_not_reloaded", "error", name, {"reason": first}))
            return
        self._problems[name] = ""
        changed = found != self._taken[name]
        if asked or (changed and (at_once or found == self._seen[name])):
            self._taken[name] = found
            if changed:
                self._emit(Event("secret_changed", "info", name))
            self._told[name](*found, again=asked)
        self._seen[name] = found
