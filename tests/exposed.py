"""Every metric there is, with its labels: of a proxy to which everything has happened."""

from proxy.core.exchange import Event, Exchange
from proxy.errors import Outcome


def happen(metrics):
    """Have everything happen that is counted."""
    metrics.expect(["nomba"], sessions=["nomba"], workers=2)
    metrics.restarts("worker 1", again=True)
    metrics.busy(requests=1, connections=2, limit=3)
    metrics.certificate_expires(4e9)
    metrics.reloaded(at=4e9)
    metrics.spans("exported", count=1)
    told = {"grant": "issue", "expires_at": 4e9, "generation": 1, "skew_seconds": 0.5}
    metrics.emit(Event("token_renewed", "info", "nomba", told))
    metrics.emit(Event("store_reached"))
    exchange = Exchange("id", 0.0, "GET", "app", "nomba", "/v1/accounts/balance", status=200)
    exchange.outcome, exchange.envelope = Outcome.ANSWERED, "00"
    metrics.observe(exchange)


def samples(text):
    """The names of the samples in an exposition, each with the names of its labels."""
    from prometheus_client.parser import text_string_to_metric_families

    found = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            found.setdefault(one.name, set()).update(one.labels)
    return found


def families(text):
    """The names and types of the metrics in an exposition."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        one.name + ("_total" if one.type == "counter" else ""): one.type
        for one in text_string_to_metric_families(text)
    }
