"""Spans, where they are on."""

from contextlib import AsyncExitStack

from proxy import __version__
from proxy.app.assembly import both
from proxy.app.sessions import share
from proxy.core.capture import Capture, Together, Watch
from proxy.core.exchange import Emit, Exchange
from proxy.core.heads import Headers
from proxy.settings import ReadyUpstream, Settings
from proxy.telemetry import Telemetry
from proxy.tracing import Tracing


def trace(
    settings: Settings,
    upstreams: tuple[ReadyUpstream, ...],
    *,
    telemetry: Telemetry,
    watch: Watch | None,
    tell: Emit | None,
    stack: AsyncExitStack,
) -> tuple[Watch, Emit]:
    """Make spans of what happens.

    Args:
        settings: where they are sent.
        upstreams: what is forwarded to.
        telemetry: is told how that goes.
        watch: captures exchanges already.
        tell: is told already what happens to sessions, for each upstream that uses one.
        stack: takes what has to be undone.

    Returns:
        What captures exchanges from now on, and what is told.
    """
    tracing = Tracing(
        settings.traces_to or "",
        sample=settings.model.tracing.sample,
        version=__version__,
        addresses={one.name: (one.origin.host, one.origin.port) for one in upstreams},
        sessions=frozenset(share(upstreams)),
        count=telemetry.metrics.spans,
        emit=telemetry.emit,
    )
    stack.push_async_callback(tracing.close)
    if watch is None:
        return tracing.watch, tracing.emit if tell is None else both(tell, tracing.emit)
    watcher = watch

    def watch_both(exchange: Exchange, start: str, headers: Headers) -> Capture:
        return Together(tracing.watch(exchange, start, headers), watcher(exchange, start, headers))

    return watch_both, tracing.emit if tell is None else both(tell, tracing.emit)
