"""Spans of exchanges, attempts and renewals, for a collector that speaks OTLP over HTTP.

Loaded only where it is on; the only importer of OpenTelemetry. Spans are handed to a thread that
sends them in batches. What it cannot take is dropped and counted: forwarding never waits for it, and
nothing of it reaches a caller. docs/tracing.md has every attribute.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace import Span as AnySpan

from proxy.core.capture import Capture
from proxy.core.exchange import Emit, Event, Exchange
from proxy.core.heads import Headers, RequestHead
from proxy.core.secret import Secret
from proxy.core.trace import TRACEPARENT, read_trace, trace_line
from proxy.errors import Outcome

_WAITING = 2048  # spans that are kept until they are sent
_FLUSH = 1.0  # seconds that the end waits for the last of them
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_RENEWALS = frozenset({"token_renewed", "token_refresh_failed", "token_renewal_failed"})

# How many spans were `exported` or `dropped`.
Count = Callable[..., None]


class Tracing:
    """Makes spans.

    Args:
        endpoint: where they are sent: the whole URL.
        sample: share of the traces that begin here which are recorded; those of callers are if
            their callers record them.
        version: of the proxy.
        addresses: host and port of each upstream, by its name.
        sessions: the names that sessions go by.
        count: is told how many spans were `exported` or `dropped`.
        emit: takes events.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        sample: float,
        version: str,
        addresses: Mapping[str, tuple[str, int]],
        sessions: frozenset[str],
        count: Count,
        emit: Emit,
    ) -> None:
        _hush()
        own = Resource({"service.name": "nomba-proxy", "service.version": version})
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=own.merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        for result in ("exported", "dropped"):
            count(result, count=0)
        told = _Told(count, emit, asyncio.get_running_loop())
        self._queue = _Queue(_Sender(OTLPSpanExporter(endpoint), told), told)
        provider.add_span_processor(self._queue)
        self._tracer = provider.get_tracer("nomba-proxy", version)
        self._addresses = addresses
        self._sessions = sessions

    def watch(self, exchange: Exchange, _: str, headers: Headers) -> Capture:
        """Begin the spans of an exchange (`core.capture.Watch`)."""
        found = [value for name, value in headers if name.lower() == TRACEPARENT]
        trace, context = read_trace(found), Context()
        if trace is not None:
            flags = TraceFlags(TraceFlags.SAMPLED if trace.sampled else TraceFlags.DEFAULT)
            theirs = SpanContext(
                int(trace.id, 16), int(trace.parent, 16), is_remote=True, trace_flags=flags
            )
            context = set_span_in_context(NonRecordingSpan(theirs), context)
        span = self._tracer.start_span("exchange", context, kind=SpanKind.SERVER)
        exchange.trace = f"{span.get_span_context().trace_id:032x}"
        return _Spans(exchange, span, tracer=self._tracer, addresses=self._addresses)

    def emit(self, event: Event) -> None:
        """Make a span of a renewal that is over: it serves many exchanges, so it is a trace of its own."""
        if event.name not in _RENEWALS or event.upstream not in self._sessions:
            return
        fields, now = event.fields, time.time_ns()
        seconds = float(str(fields.get("duration_seconds", 0.0)))
        refresh = event.name == "token_refresh_failed" or fields.get("grant") == "refresh"
        span = self._tracer.start_span(
            "renewal",
            Context(),
            kind=SpanKind.CLIENT,
            attributes={
                "nomba_proxy.upstream": event.upstream,
                "nomba_proxy.grant": "refresh" if refresh else "issue",
                "nomba_proxy.reason": str(fields.get("for", "")),
            },
            start_time=now - int(seconds * 1e9),
        )
        if event.name == "token_renewed":
            span.set_attribute("nomba_proxy.generation", int(str(fields["generation"])))
        else:
            span.set_attribute("error.type", str(fields["cause"]))
            span.set_status(StatusCode.ERROR)
        span.end(now)

    async def close(self) -> None:
        """Send what is left, for a second at most."""
        await asyncio.to_thread(self._queue.shutdown)


class _Spans(Capture):
    """The spans of one exchange: itself, and its attempts.

    Args:
        exchange: its record, which goes on changing.
        span: of the exchange.
        tracer: makes those of the attempts.
        addresses: host and port of each upstream, by its name.
    """

    __slots__ = ("_addresses", "_attempt", "_exchange", "_span", "_tracer")

    def __init__(
        self,
        exchange: Exchange,
        span: AnySpan,
        *,
        tracer: Tracer,
        addresses: Mapping[str, tuple[str, int]],
    ) -> None:
        self._exchange = exchange
        self._span = span
        self._tracer = tracer
        self._addresses = addresses
        self._attempt: AnySpan | None = None

    def attempt(
        self,
        head: RequestHead,
        *,
        account: str,  # noqa: ARG002 - whose request it is, no span says
        token: Secret,  # noqa: ARG002 - nor this
        generation: int,
        why: str,
    ) -> RequestHead:
        """A request is about to be sent: the upstream is told that this attempt is its parent."""
        self._over()
        exchange = self._exchange
        host, port = self._addresses.get(exchange.upstream, ("", 0))
        attributes: dict[str, str | int] = {
            "http.request.method": _method(exchange.method),
            "url.template": exchange.route,
            "server.address": host,
            "server.port": port,
            "nomba_proxy.reason": why,
            "nomba_proxy.generation": generation,
        }
        if exchange.attempts > 1:
            attributes["http.request.resend_count"] = exchange.attempts - 1
        span = self._tracer.start_span(
            _name(exchange),
            set_span_in_context(self._span, Context()),
            kind=SpanKind.CLIENT,
            attributes=attributes,
        )
        self._attempt = span
        own = span.get_span_context()
        trace, sampled = f"{own.trace_id:032x}", own.trace_flags.sampled
        return head.with_line(trace_line(trace, span=f"{own.span_id:016x}", sampled=sampled))

    def answered(self, status: int, *, reason: bytes, headers: Headers) -> None:  # noqa: ARG002
        """The head of a reply to it has come."""
        if self._attempt is not None:
            self._attempt.set_attribute("http.response.status_code", status)
            if status >= 400:
                self._attempt.set_attribute("error.type", str(status))
                self._attempt.set_status(StatusCode.ERROR)

    def failed(self, error: str) -> None:
        """The attempt, or its reply, came to a bad end."""
        if self._attempt is not None:
            self._attempt.set_attribute("error.type", error)
            self._attempt.set_status(StatusCode.ERROR)

    def end(self) -> None:
        """The exchange is over."""
        self._over()
        exchange, span = self._exchange, self._span
        if span.is_recording():
            span.update_name(_name(exchange))
            span.set_attributes(_attributes(exchange))
            if exchange.status >= 500 or not exchange.status or exchange.outcome is Outcome.UNKNOWN:
                span.set_status(StatusCode.ERROR)
        span.end()

    def _over(self) -> None:
        """The attempt before is over; its reply is read to the end, or will not be."""
        if self._attempt is not None:
            self._attempt.end()
            self._attempt = None


def _attributes(exchange: Exchange) -> dict[str, str | int | float]:
    """What is said of an exchange: nothing that a caller wrote but its request id, and no path."""
    said: dict[str, str | int | float] = {
        "http.request.method": _method(exchange.method),
        "http.route": exchange.route,
        "http.request.body.size": exchange.body_bytes,
        "http.response.body.size": exchange.reply_bytes,
        "nomba_proxy.request_id": exchange.request_id,
        "nomba_proxy.caller": exchange.caller,
        "nomba_proxy.upstream": exchange.upstream,
        "nomba_proxy.kind": str(exchange.kind),
        "nomba_proxy.outcome": str(exchange.outcome),
        "nomba_proxy.attempts": exchange.attempts,
    }
    if exchange.status:
        said["http.response.status_code"] = exchange.status
    if exchange.waited:
        said["nomba_proxy.token_wait_seconds"] = exchange.waited
    if exchange.envelope:
        said["nomba_proxy.envelope"] = exchange.envelope
    if exchange.error or exchange.status >= 500:
        said["error.type"] = exchange.error or str(exchange.status)
    return said


def _name(exchange: Exchange) -> str:
    return f"{_method(exchange.method)} {exchange.route}"


def _method(method: str) -> str:
    return method if method in _METHODS else "_OTHER"


class _Told:
    """What the thread that sends spans says; it may not touch the event loop.

    Args:
        count: is told how many spans were `exported` or `dropped`.
        emit: takes events.
        loop: in which they are to happen.
    """

    def __init__(self, count: Count, emit: Emit, loop: asyncio.AbstractEventLoop) -> None:
        self._count = count
        self._emit = emit
        self._loop = loop
        self._fails = False

    def sent(self, size: int, *, good: bool) -> None:
        """So many spans were sent, or could not be."""
        self._count("exported" if good else "dropped", count=size)
        if good == self._fails:
            self._fails = not good
            self._tell(Event("spans_exported") if good else _not_exported(size))

    def lost(self, size: int) -> None:
        """There was no room, or no time, for so many spans."""
        self._count("dropped", count=size)

    def _tell(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._emit, event)


def _not_exported(size: int) -> Event:
    told: dict[str, object] = {
        "dropped": size,
        "hint": "The collector that tracing.otlp_endpoint names did not take them. Requests are not "
        "concerned; nothing more is said until it takes some again.",
    }
    return Event("spans_not_exported", "warning", fields=told)


class _Sender(SpanExporter):
    """Sends batches, and tells what became of them.

    Args:
        exporter: sends.
        told: is told.

    Attributes:
        gone: how many spans were sent, or could not be.
    """

    def __init__(self, exporter: SpanExporter, told: _Told) -> None:
        self._exporter = exporter
        self._told = told
        self.gone = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """OpenTelemetry: send some."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self.gone += len(spans)
            self._told.sent(len(spans), good=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """OpenTelemetry: nothing more comes."""
        self._exporter.shutdown()


class _Queue(SpanProcessor):
    """Hands spans to the thread that sends them, as many as there is room for.

    Args:
        sender: sends them.
        told: is told of those that there was no room for.
    """

    def __init__(self, sender: _Sender, told: _Told) -> None:
        self._sender = sender
        self._told = told
        self._come = 0
        self._batches = BatchSpanProcessor(sender, max_queue_size=_WAITING)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """OpenTelemetry: nothing is done yet."""

    def on_end(self, span: ReadableSpan) -> None:
        """OpenTelemetry: one is over."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._come - self._sender.gone >= _WAITING:
            self._told.lost(1)
            return
        self._come += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        """Send what is left, for a second at most; what is left then is lost."""
        # OpenTelemetry's own waits longer, and a thread of asyncio's is waited for at the end.
        ending = threading.Thread(target=self._batches.shutdown, daemon=True)
        ending.start()
        ending.join(_FLUSH)
        if ending.is_alive():
            self._sender.shutdown()
        if left := self._come - self._sender.gone:
            self._told.lost(left)


def _hush() -> None:
    """Have OpenTelemetry write no log of its own: what it would say, an event says once."""
    for name in ("opentelemetry", "urllib3"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
