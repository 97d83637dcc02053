"""What is counted, for Prometheus; docs/metrics.md is the table of it.

Labels come from closed sets, and where such a set is small its counters are there at 0 before
anything is counted: `increase()` does not see a series begin.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from proxy.core.exchange import Event, Exchange
from proxy.core.routes import changing_routes
from proxy.errors import Outcome, codes

METRICS_TYPE = CONTENT_TYPE_LATEST
# Methods that may be a label: a closed set, whatever the parser learns to accept.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Why a renewal failed of which the issuer knows nothing.
_NOT_ASKED = frozenset({"store", "sealed", "secret"})
# Events that somebody has to act on and that nothing else here counts.
ALARMS = (
    *("callers_not_reloaded", "certificate_not_reloaded", "internal_fault", "loop_fault"),
    *("revocation_not_stored", "revocations_dropped", "secret_not_reloaded", "server_fault"),
    *("store_odd", "token_in_reply"),
)
_WARNED = "refusal_remembered"  # looked for as well, and a warning
# Errors of the proxy's own that are no refusals: a reply under way was cut.
_CUT = frozenset({"caller_stalled", "cancelled"})
# What became of a connection beyond the limit, or of an idle one that made room for it.
CROWDED = ("made_room", "refused", "reset")
_ROOM = 256 * 1024  # bytes of each kind of metrics of a process
_KINDS = ("counter", "histogram", "gauge_mostrecent", "gauge_livesum", "gauge_livemin")
_UNKNOWN = Outcome.UNKNOWN  # Python 3.11 looks a member up by its name every time
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 90)

_Mode = Literal["mostrecent", "livesum", "livemin"]
_Labels = tuple[str, str, str, str, int, str]


@dataclass(frozen=True, slots=True)
class Shared:
    """What the metrics of several processes have in common.

    Attributes:
        folder: where all put theirs (`settings.share_metrics`).
        process: a name that no other living process has; its successor may, and counts on.
    """

    folder: Path
    process: str

    def reserve(self) -> None:
        """Have room on the disk: where there is none, writing to a mapped file is the end.

        Raises:
            OSError: there is none.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for kind in _KINDS:
            with (self.folder / f"{kind}_{self.process}.db").open("ab") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, _ROOM)

    def forget(self) -> None:
        """The process has ended: what it was doing nobody does; what it counted stays."""
        for kind in _KINDS:
            if kind.startswith("gauge_live"):
                with contextlib.suppress(OSError):
                    (self.folder / f"{kind}_{self.process}.db").unlink()


@dataclass(slots=True)
class _Bound:
    """What counts the exchanges of some labels.

    Attributes:
        count, time_taken: count one.
        seen: how many there were that `settle` has not counted yet. What can wait for it does, as
            each counter costs a request half a percent: envelopes, which nobody will miss a second
            of; and where there is no other process, everything, which is lost with this one anyway.
    """

    count: Callable[..., None]
    time_taken: Callable[[float], None]
    seen: int = 0


class Metrics:
    """The metrics.

    Args:
        version: for `build_info`.
        shared: if they are to be added to those of other processes.
    """

    def __init__(self, *, version: str, shared: Shared | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._shared = shared
        if shared is not None:
            shared.reserve()
            values.ValueClass = values.MultiProcessValue(lambda: shared.process)  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        # What counts an exchange, by its labels: looking those up costs more than counting.
        self._bound: dict[_Labels, _Bound] = {}
        self._measure: Callable[[], None] = _nothing
        self._make_exchanges()
        self._make_sessions()
        self._make_process(version)

    def _make_exchanges(self) -> None:
        counter, gauge = self._counter, self._gauge
        labels = "caller upstream route method code_class"
        self._requests = counter("requests", "Requests answered.", labels)
        self._duration = Histogram(
            "nomba_proxy_request_duration_seconds",
            "From the request's head to the end of the reply.",
            ["upstream"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        text = "Replies of the upstream by the code in their envelope."
        self._envelope = counter("envelope", text, "upstream route code")
        text = "Exchanges that ended with an error of the proxy's own."
        self._errors = counter("errors", text, "error")
        text = "Requests sent to the upstream of which nobody knows what they did."
        self._unknown = counter("unknown_outcomes", text, "upstream route")
        text = "Requests sent once more after an auth refusal, by what the caller got."
        self._replays = counter("auth_replays", text, "upstream result")
        text = "Requests sent once more over a new connection."
        self._resends = counter("resends", text, "upstream")
        text = "Requests that are being answered."
        self._in_flight = gauge("requests_in_flight", text, mode="livesum")
        text = "Connections of callers that are open."
        self._connections = gauge("caller_connections", text, mode="livesum")
        text = "Connections of callers there may be."
        self._connections_limit = gauge("caller_connections_limit", text, mode="livesum")
        text = "Connections beyond the limit, and idle ones that were closed to make room."
        self._crowded = counter("caller_connections_crowded", text, "result")

    def _make_sessions(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._renewals = counter("token_renewals", "Token renewals.", "upstream grant result")
        text = "When the present token dies, by our wall clock."
        self._expiry = gauge("token_expiry_timestamp_seconds", text, "upstream")
        text = "Generation of the newest token."
        self._generation = gauge("token_generation", text, "upstream")
        text = "Times that the issuer refused a client secret."
        self._secrets = counter("secrets_refused", text, "upstream")
        text = "Times that somebody else seemed to log in with our credentials."
        self._rivals = counter("session_rivals", text, "upstream")
        self._skew = gauge("clock_skew_seconds", "The issuer's clock minus ours.", "upstream")

    def _make_process(self, version: str) -> None:
        counter, gauge = self._counter, self._gauge
        self._events = counter("events", "Events in the log, by name.", "event level")
        text = "Processes that took the place of one that ended without being told to."
        self._restarted = counter("processes_restarted", text, "process")
        self._workers = gauge("workers", "Processes that answer callers.", mode="livesum")
        text = "Processes that are to answer callers."
        self._workers_wanted = gauge("workers_configured", text)
        text = "Whether the settings were taken over when they were last read."
        self._reloaded = gauge("config_last_reload_successful", text, mode="livemin")
        self._reloaded.set(1)
        gauge("build_info", "Always 1.", "version").labels(version).set(1)

    # What has no labels is shown from the moment it is made: these only where they tell something.

    @cached_property
    def _store(self) -> Gauge:
        text = "Whether the server that replicas share could be reached when it was last asked."
        return self._gauge("store_up", text)

    @cached_property
    def _certificate(self) -> Gauge:
        text = "When the certificate that callers are shown expires."
        return self._gauge("certificate_expiry_timestamp_seconds", text)

    @cached_property
    def _reloaded_at(self) -> Gauge:
        text = "When a running proxy last took its settings over."
        return self._gauge("config_last_reload_success_timestamp_seconds", text)

    @cached_property
    def _spans(self) -> Counter:
        return self._counter("spans", "Spans by what became of them.", "result")

    def _counter(self, name: str, text: str, labels: str) -> Counter:
        return Counter(f"nomba_proxy_{name}", text, labels.split(), registry=self._registry)

    def _gauge(
        self, name: str, text: str, labels: str = "", *, mode: _Mode = "mostrecent"
    ) -> Gauge:
        return Gauge(
            f"nomba_proxy_{name}",
            text,
            labels.split(),
            multiprocess_mode=mode,
            registry=self._registry,
        )

    # -- what is there before it is counted ---------------------------------------------

    def expect(self, upstreams: Iterable[str], *, sessions: Iterable[str], workers: int) -> None:
        """Say what will be counted in a process that answers callers.

        Args:
            upstreams: their names.
            sessions: the names that their sessions go by.
            workers: how many such processes there are to be.
        """
        self._workers.set(1)
        self._workers_wanted.set(workers)
        for one in upstreams:
            self._duration.labels(one)
            self._resends.labels(one)
            for result in Outcome:
                self._replays.labels(one, str(result))
            for route in changing_routes():
                self._unknown.labels(one, route)
        for one in sessions:
            self._secrets.labels(one)
            self._rivals.labels(one)
            for grant in ("issue", "refresh"):
                for ending in ("success", "failure"):
                    self._renewals.labels(one, grant, ending)
        for error in codes() | _CUT:
            self._errors.labels(error)
        for event in ALARMS:
            self._events.labels(event, "error")
        self._events.labels(_WARNED, "warning")
        for what in CROWDED:
            self._crowded.labels(what)

    def measure_by(self, measure: Callable[[], None]) -> None:
        """Have something measured right before the metrics are shown."""
        self._measure = measure

    # -- what happens -----------------------------------------------------------------------

    def observe(self, exchange: Exchange) -> None:
        """Count an exchange."""
        labels = (
            exchange.caller,
            exchange.upstream,
            exchange.route,
            exchange.method,
            exchange.status // 100,
            exchange.envelope,
        )
        bound = self._bound.get(labels)
        if bound is None:
            bound = self._bind(labels)
        bound.seen += 1
        if self._shared is not None:
            bound.count()
        bound.time_taken(exchange.seconds)
        if exchange.error:
            self._errors.labels(exchange.error).inc()
        if exchange.outcome is _UNKNOWN:
            self._unknown.labels(exchange.upstream, exchange.route).inc()
        if exchange.attempts > 1:
            if exchange.replayed:
                self._replays.labels(exchange.upstream, str(exchange.outcome)).inc()
            if exchange.attempts > 1 + exchange.replayed:
                self._resends.labels(exchange.upstream).inc()

    def _bind(self, labels: _Labels) -> _Bound:
        caller, upstream, route, method, hundreds, _ = labels
        code_class = f"{hundreds}xx" if hundreds else "none"
        known = method in _METHODS
        label = method if known else "other"
        bound = _Bound(
            self._requests.labels(caller, upstream, route, label, code_class).inc,
            self._duration.labels(upstream).observe,
        )
        if known:
            self._bound[labels] = bound
        else:  # such methods are not a closed set, so nothing of them is kept
            self._settle(labels, bound, 1)
        return bound

    def settle(self) -> None:
        """Count what was left for later."""
        for labels, bound in self._bound.items():
            if bound.seen:
                self._settle(labels, bound, bound.seen)
                bound.seen = 0

    def _settle(self, labels: _Labels, bound: _Bound, seen: int) -> None:
        _, upstream, route, *_, envelope = labels
        if self._shared is None:
            bound.count(seen)
        if envelope:
            self._envelope.labels(upstream, route, envelope).inc(seen)

    def emit(self, event: Event) -> None:
        """Count an event."""
        name, upstream, fields = event.name, event.upstream, event.fields
        self._events.labels(name, event.level).inc()
        if name == "token_renewed":
            self._renewals.labels(upstream, str(fields["grant"]), "success").inc()
            self._expiry.labels(upstream).set(float(str(fields["expires_at"])))
            self._generation.labels(upstream).set(int(str(fields["generation"])))
            if "skew_seconds" in fields:
                self._skew.labels(upstream).set(float(str(fields["skew_seconds"])))
        elif name == "secret_refused" or (
            name == "token_renewal_failed" and fields["cause"] not in _NOT_ASKED
        ):
            self._renewals.labels(upstream, "issue", "failure").inc()
            if name == "secret_refused" or fields["cause"] == "credentials":
                self._secrets.labels(upstream).inc()
        elif name == "token_refresh_failed":
            self._renewals.labels(upstream, "refresh", "failure").inc()
        elif name in {"store_reached", "store_lost"}:
            self._store.set(name == "store_reached")
        elif name == "certificate_reloaded" and "expires_at" in fields:
            self._certificate.set(float(str(fields["expires_at"])))
        elif name in {"reloaded", "reload_failed"}:
            self.reloaded(at=time.time() if name == "reloaded" else None)
        elif name == "session_rival":
            self._rivals.labels(upstream).inc()
        elif name in {"token_refused", "token_revoked"}:
            self._expiry.labels(upstream).set(0)

    def restarts(self, process: str, *, again: bool) -> None:
        """A process has started, or (`again`) taken the place of one that was not told to end."""
        self._restarted.labels(process).inc(1 if again else 0)

    def crowded(self, result: str) -> None:
        """A connection of a caller was one too many (one of `CROWDED`)."""
        self._crowded.labels(result).inc()

    def busy(self, *, requests: int, connections: int, limit: int) -> None:
        """How much this process has to do at the moment."""
        self._in_flight.set(requests)
        self._connections.set(connections)
        self._connections_limit.set(limit)

    def certificate_expires(self, at: float) -> None:
        """When the certificate that callers are shown expires, in epoch seconds."""
        self._certificate.set(at)

    def reloaded(self, *, at: float | None) -> None:
        """The settings were read again and taken over, at that time; or were not (None)."""
        self._reloaded.set(at is not None)
        if at is not None:
            self._reloaded_at.set(at)

    def spans(self, result: str, *, count: int) -> None:
        """So many spans were `exported`, or `dropped`."""
        self._spans.labels(result).inc(count)

    def render(self) -> bytes:
        """The exposition text (`METRICS_TYPE`), of all processes if they are shared."""
        self.settle()
        self._measure()
        if self._shared is None or not self._shared.folder.is_dir():
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together, path=str(self._shared.folder))  # type: ignore[no-untyped-call]
        return generate_latest(together)


def _nothing() -> None:
    """Nothing is measured."""
