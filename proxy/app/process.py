"""What a process sees to before it forwards anything."""

import asyncio
import resource
from typing import Any

import aiohttp

from proxy.core.exchange import Emit, Event
from proxy.settings import Settings

TESTED = "3.14"  # of aiohttp, whose loop we use by names that it does not promise (ADR 6)
_BESIDE = 128  # descriptors for all that is neither a caller's nor the upstream's connection


def see_to_process(settings: Settings, *, emit: Emit) -> None:
    """Take the descriptors there are, and say what could become a problem.

    Args:
        settings: of all processes together.
        emit: takes events.
    """
    if not aiohttp.__version__.startswith(f"{TESTED}."):
        told: dict[str, object] = {"version": aiohttp.__version__, "tested": TESTED}
        emit(Event("aiohttp_untested", "warning", fields=told))
    model = settings.model
    upstreams = max(1, len(settings.upstreams))
    connections = model.callers.connections // model.workers
    needed = connections + model.pool.size * upstreams + _BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # As many again are told that there are too many: they must not take the upstream's descriptors.
    limit = max(soft, needed + connections)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < needed:
        told = {
            "limit": limit,
            "needed": needed,
            "hint": "raise the limit of open files (ulimit -n, LimitNOFILE=), or lower "
            "callers.connections or pool.size",
        }
        emit(Event("few_descriptors", "warning", fields=told))


def see_to_loop(*, emit: Emit) -> None:
    """Have the loop tell of faults without the data that caused them."""

    def tell(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fault = context.get("exception")
        # It may go on with a callback and what that was called with.
        where = str(context.get("message")).partition("<")[0].partition("(")[0].strip()
        told: dict[str, object] = {"type": type(fault).__name__, "where": where}
        emit(Event("loop_fault", "error", fields=told))

    asyncio.get_running_loop().set_exception_handler(tell)
