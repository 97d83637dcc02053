"""What is measured now and then, rather than counted when it happens: that costs a request nothing."""

import asyncio
import contextlib
from contextlib import AsyncExitStack
from pathlib import Path

from proxy.app.callers import end_task
from proxy.metrics import Metrics
from proxy.server import TrafficServer
from proxy.settings import Settings

_EVERY = 1.0  # seconds


def mark_reload(file: Path, *, successful: bool) -> None:
    """Leave word, for processes that live and others to come, of what became of a reload."""
    with contextlib.suppress(OSError):
        file.write_text("1" if successful else "0")


def measure(
    metrics: Metrics,
    *,
    server: TrafficServer,
    settings: Settings,
    stack: AsyncExitStack,
    marked: Path | None = None,
) -> None:
    """Keep the metrics up to date on what a process that answers callers has to do.

    That is measured when the metrics are shown, and every second besides: another process may be the
    one that shows them.

    Args:
        metrics: told.
        server: of the callers' connections.
        settings: with the certificate that callers are shown, if there is one.
        stack: takes what has to be undone.
        marked: where another process leaves word of reloads (`mark_reload`).
    """

    def take() -> None:
        here = server.unfinished
        metrics.busy(
            requests=sum(one.busy for one in here), connections=len(here), limit=server.most
        )
        if marked is not None:
            with contextlib.suppress(OSError):  # there has been none
                text, at = marked.read_text(), marked.stat().st_mtime
                metrics.reloaded(at=at if text == "1" else None)

    async def keep_on() -> None:
        while True:
            take()
            metrics.settle()
            await asyncio.sleep(_EVERY)

    if settings.tls is not None and (at := settings.tls.expires()) is not None:
        metrics.certificate_expires(at)
    metrics.measure_by(take)
    stack.callback(metrics.settle)
    stack.push_async_callback(end_task, asyncio.create_task(keep_on()))
