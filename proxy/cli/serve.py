"""`nomba-proxy serve`."""

import asyncio
import gc
import importlib
import signal
import sys
from collections.abc import Callable

from proxy.app.listeners import CannotStart
from proxy.settings import Settings

_BLOCK = 4 * 1024 * 1024  # bytes


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for what comes next; elsewhere this does nothing.

    It gives back what is free above 128 KiB and gets it again page by page, for every large
    reply anew. Once a larger block has been freed, its limits follow that (mallopt(3)).
    """
    bytes(_BLOCK)


def serve(settings: Settings) -> int:
    """Run the proxy until it is told to stop; the exit code."""
    # Until there is a proxy that could read its settings again, what was just read is new enough.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    keep_freed_memory()
    gc.freeze()  # what is loaded stays: collecting need not look through it while the rest comes
    try:
        if settings.model.workers > 1:
            from proxy.app.workers import supervise

            return supervise(settings, loop_factory=event_loop())
        from proxy.app.start import serve as run

        with asyncio.Runner(loop_factory=event_loop()) as runner:
            runner.run(run(settings))
    except CannotStart as error:
        print(f"nomba-proxy: cannot start: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:  # a second signal
        return 1
    return 0


def event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Makes uvloop's event loop if it is installed (extra `uvloop`); None is asyncio's."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
