"""Who may call."""

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.app.sessions import alive_clock
from proxy.callers.keep import signing_key as kept_signing_key
from proxy.callers.login import Login
from proxy.callers.registry import Door, Registry
from proxy.callers.revoked import Revocations, Revoked
from proxy.core.browser import Pages
from proxy.core.exchange import Emit, Event
from proxy.core.limits import Tally
from proxy.core.phantom import Phantoms
from proxy.core.secret import SIGNING
from proxy.gate import Callers
from proxy.settings import (
    ReadyUpstream,
    Settings,
    SettingsError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.valkey import Valkey

_REFRESH = 24  # lives of an access token that its refresh token lives
_LOOK_EVERY = 1.0  # seconds between two looks at the callers file


def signing_key(settings: Settings, *, emit: Emit) -> bytes:
    """What phantom tokens are signed with: given, else kept, else for this process only."""
    if settings.signing_key is not None:
        return settings.signing_key.reveal(to=SIGNING).encode()
    try:
        return kept_signing_key(settings.state_dir).encode()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        fields: dict[str, object] = {
            "reason": f"{settings.state_dir}: {why}",
            "hint": "phantom tokens end with this process; set state_dir, or "
            "NOMBA_PROXY_CALLERS_SIGNING_KEY",
        }
        emit(Event("signing_key_not_kept", "warning", fields=fields))
        return secrets.token_bytes(32)


def make_revoked(
    settings: Settings,
    *,
    key: bytes,
    valkey: "Valkey | None",
    wall: Callable[[], float],
    stack: AsyncExitStack,
    emit: Emit,
) -> Revocations:
    """What remembers the phantom tokens that ended early: a file, and what replicas share."""
    own = Revoked(settings.state_dir / "revoked", wall=wall, monotonic=time.monotonic)
    if valkey is None:
        return own
    from proxy.callers.revoked_shared import SharedRevoked  # an extra, and slow to import

    shared = SharedRevoked(
        own,
        valkey=valkey,
        key=key,
        wall=wall,
        alive=alive_clock(),
        random=random.random,
        emit=emit,
    )
    stack.push_async_callback(shared.close)
    return shared


def make_callers(
    settings: Settings,
    *,
    upstreams: tuple[ReadyUpstream, ...],
    key: bytes,
    revoked: Revocations,
    wall: Callable[[], float],
    emit: Emit,
    tally: Callable[[str], Tally],
) -> Callers:
    """What knows the callers, and answers those that log in.

    Args:
        settings: what the proxy is to be.
        upstreams: what it forwards to.
        key: that phantom tokens are signed with.
        revoked: those that ended early.
        wall: epoch seconds, the same for all that read each other's phantom tokens.
        emit: takes events.
        tally: where a caller is counted.
    """
    options = settings.model.callers
    accepted = options.accept_upstream_credentials and settings.local
    doors = {
        one.name: Door(
            one.anonymous,
            explicit=options.anonymous is True,
            client_id=one.client_id,
            client_secrets=tuple(filter(None, (one.next_secret, one.client_secret)))
            if accepted
            else (),
            # The simulator has another port whenever it starts.
            realm="simulator" if settings.simulate else one.origin.text,
        )
        for one in upstreams
    }
    phantoms = Phantoms(
        key, lifetime=options.login_lifetime, refresh_lifetime=_REFRESH * options.login_lifetime
    )
    registry = Registry(
        settings.callers,
        doors=doors,
        phantoms=phantoms,
        revoked=revoked,
        wall=wall,
        monotonic=time.monotonic,
        tally=tally,
    )
    login = Login(
        registry,
        phantoms=phantoms,
        revoked=revoked,
        wall=wall,
        emit=emit,
        fails_in_200=options.login_failure == "200",
    )
    return Callers(registry, login, make_pages(settings))


def make_pages(settings: Settings) -> Pages:
    """Which web pages may call without a key."""
    options = settings.model.callers
    return Pages.of(hosts=(*options.hosts, *settings.hosts), origins=options.origins)


def callers_of_now(settings: Settings) -> Settings:
    """The same with the callers file as it is: whoever takes another's place knows what that knew."""
    try:
        if not settings.callers_file.is_file():
            return settings
        found = settings.read_callers()
    except Exception:  # noqa: BLE001 - whatever it is, `watch_callers` tells of it
        return settings
    return replace(settings, callers=found.after(settings.callers))


async def watch_callers(
    current: Callable[[], Settings],
    *,
    registry: Registry,
    noted: Callable[[], object],
    emit: Emit,
) -> None:
    """Take over the callers file whenever it changes; a bad one changes nothing.

    Args:
        current: the settings in force.
        registry: told.
        noted: told after it.
        emit: takes events.
    """
    seen: object = ()  # whatever happened since the settings were read is seen at the first look
    settings = current()
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        # A reload has read the file too: before it was looked at here, or after, or another one.
        if settings is not current():
            settings, seen = current(), ()
        if (now := _mark(settings.callers_file)) == seen:
            continue
        if now is None:  # who is known stays known, and the door as it is
            if seen != () or _was_there(settings):
                _tell_failed(f"{settings.callers_file} is gone", emit=emit)
            seen = now
            continue
        seen = now
        try:
            roster = await asyncio.to_thread(settings.read_callers)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next change is looked at
            first = str(error.problems[0]) if isinstance(error, SettingsError) else repr(error)
            _tell_failed(first, emit=emit)
            continue
        # Those of settings that are in force no more must not come back.
        if settings is current() and roster != registry.roster:
            registry.replace(roster)
            noted()
            emit(Event("callers_reloaded", fields={"callers": len(roster.callers)}))


def _mark(path: "Path") -> tuple[int, int, int] | None:
    """What tells a file from what it was before; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _was_there(settings: Settings) -> bool:
    """Whether some callers are those of a callers file."""
    own = {entry.name for entry in settings.model.caller}
    return any(one.name not in own for one in settings.callers.callers)


def _tell_failed(reason: str, *, emit: Emit) -> None:
    fields: dict[str, object] = {"reason": reason}
    fields["hint"] = "the callers of before are in force; nomba-proxy check shows every problem"
    emit(Event("callers_not_reloaded", "error", fields=fields))


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
