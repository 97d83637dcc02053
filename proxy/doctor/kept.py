"""Ask the store what it knows of a session: whoever uses it must not lose it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from proxy.app.listeners import CannotStart
from proxy.app.sessions import alive_clock, make_store, make_valkey
from proxy.core.exchange import Event
from proxy.core.session import Held
from proxy.doctor.of_kept import of_held, of_store_problem
from proxy.doctor.step import Step, good
from proxy.settings import ReadyUpstream, Settings
from proxy.tokens.file_store import is_kept
from proxy.tokens.keyring import Keyring
from proxy.tokens.seal import Identity
from proxy.tokens.store import StoreFailed


@dataclass(frozen=True, slots=True)
class Kept:
    """What a store knows of a session.

    Attributes:
        step: what is to be said of the store.
        held: what lies there; None if nobody can tell.
    """

    step: Step
    held: Held | None


def place_of(settings: Settings) -> str:
    """Where sessions are kept, in words."""
    if settings.shared_store is not None:
        return str(settings.shared_store)
    return "memory" if settings.store_dir is None else f"file:{settings.store_dir}"


@asynccontextmanager
async def look_into_store(one: ReadyUpstream, *, settings: Settings) -> AsyncIterator[Kept]:
    """What lies in the store; until this is left, nobody else who has it logs in.

    Args:
        one: the upstream whose session it is.
        settings: say where the store is.
    """
    where, folder = place_of(settings), settings.store_dir
    if settings.shared_store is None and folder is None:
        yield Kept(good("store", "memory: a restart logs in anew"), Held())
        return
    if folder is not None and not is_kept(folder, identity=Identity(*one.session)):
        # To open it would make it, as a user's perhaps that is not the proxy's.
        yield Kept(good("store", f"{where}: no session was ever kept there"), Held())
        return
    async with AsyncExitStack() as stack:
        try:
            held = await _lease(one, settings=settings, stack=stack)
        except (StoreFailed, CannotStart) as error:
            kept = Kept(of_store_problem(where, problem=str(error)), None)
        except TimeoutError:
            limit = settings.model.token.wait_limit
            problem = f"its lease was not to be had for {limit:g} s: somebody keeps it"
            kept = Kept(of_store_problem(where, problem=problem), None)
        else:
            kept = Kept(of_held(held, where=where, now=alive_clock()()), held)
        yield kept


async def _lease(one: ReadyUpstream, *, settings: Settings, stack: AsyncExitStack) -> Held:
    """What is stored, with the right to renew it.

    Raises:
        StoreFailed, CannotStart: it cannot be had, or is not for us to read.
        TimeoutError: somebody else has it all the time.
    """
    unread: list[str] = []

    def emit(event: Event) -> None:
        if event.name == "stored_session_ignored":
            unread.append(str(event.fields["reason"]))

    valkey = None
    if settings.shared_store is not None:
        valkey = make_valkey(settings.shared_store, emit=emit)
        stack.push_async_callback(valkey.close)
    keyring = Keyring(one.client_secret, one.next_secret)
    store = make_store(one, keyring=keyring, settings=settings, valkey=valkey, emit=emit)
    stack.callback(store.close)
    if valkey is not None:
        valkey.start()
    async with asyncio.timeout(settings.model.token.wait_limit):
        held = await stack.enter_async_context(store.lease())
    if unread:  # whoever wrote it may be using it
        raise StoreFailed(unread[-1], reason="sealed")
    return held or Held()
