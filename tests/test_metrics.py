"""What is counted, and that it is there before it happens."""

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from exposed import families, happen, samples

from proxy.app.measuring import measure
from proxy.core.exchange import Event, Exchange
from proxy.core.judge import CODES
from proxy.errors import Outcome, codes
from proxy.metrics import ALARMS, CROWDED, Metrics
from proxy.server import TrafficServer

ROOT = Path(__file__).parents[1]
CODE = "\n".join(path.read_text() for path in (ROOT / "proxy").rglob("*.py"))


@pytest.fixture
def metrics():
    return Metrics(version="x")


def over(**fields):
    exchange = Exchange("id", 0.0, "GET", "app", "nomba", "other", status=200)
    exchange.outcome = Outcome.ANSWERED
    for name, value in fields.items():
        setattr(exchange, name, value)
    return exchange


def value(metrics, line):
    """The value of a sample, None if it is not shown."""
    found = re.search(rf"(?m)^{re.escape(line)} (\S+)$", metrics.render().decode())
    return None if found is None else float(found[1])


def test_the_table_is_what_is_exposed(metrics):
    rows = re.findall(
        r"(?m)^\| `(nomba_proxy_\w+)` \| (\w+) \| ([\w, ]*)\|",
        (ROOT / "docs/metrics.md").read_text(),
    )
    happen(metrics)
    text = metrics.render().decode()
    assert {name: kind for name, kind, _ in rows} == families(text)
    labels = samples(text)
    for name, kind, documented in rows:
        shown = labels[name + ("_count" if kind == "histogram" else "")]
        assert shown == set(filter(None, documented.strip().split(", "))), name


@pytest.mark.parametrize(
    "line",
    [
        'nomba_proxy_unknown_outcomes_total{route="other",upstream="nomba"}',
        'nomba_proxy_unknown_outcomes_total{route="/v2/transfers/bank",upstream="nomba"}',
        'nomba_proxy_auth_replays_total{result="unknown",upstream="nomba"}',
        'nomba_proxy_token_renewals_total{grant="refresh",result="failure",upstream="nomba"}',
        'nomba_proxy_session_rivals_total{upstream="nomba"}',
        'nomba_proxy_secrets_refused_total{upstream="nomba"}',
        'nomba_proxy_resends_total{upstream="nomba"}',
        *(f'nomba_proxy_errors_total{{error="{one}"}}' for one in sorted(codes())),
        *(f'nomba_proxy_events_total{{event="{one}",level="error"}}' for one in ALARMS),
        *(f'nomba_proxy_caller_connections_crowded_total{{result="{one}"}}' for one in CROWDED),
    ],
)
def test_what_alerts_look_at_is_there_before_it_happens(metrics, line):
    assert value(metrics, line) is None
    metrics.expect(["nomba"], sessions=["nomba"], workers=1)
    assert value(metrics, line) == 0


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_is_an_event_that_there_is(name):
    assert re.search(rf'Event\(\s*"{name}",\s*"error"', CODE)


def test_what_is_off_is_not_shown(metrics):
    for name in ("store_up", "certificate", "spans", "reload_success_timestamp"):
        assert name not in metrics.render().decode()


@pytest.mark.parametrize("name", ["store_reached", "store_lost"])
def test_a_shared_store_is_up_or_not(metrics, name):
    metrics.emit(Event(name))
    assert value(metrics, "nomba_proxy_store_up") == (name == "store_reached")


@pytest.mark.parametrize(
    ("fields", "replays", "resends"),
    [
        ({"attempts": 1}, None, None),
        ({"attempts": 2}, None, 1),
        ({"attempts": 2, "replayed": True}, 1, None),
        ({"attempts": 3, "replayed": True}, 1, 1),
        ({"attempts": 1, "replayed": True}, None, None),  # the renewal failed: it never was
    ],
)
def test_a_resend_is_no_replay(metrics, fields, replays, resends):
    metrics.observe(over(**fields))
    line = 'nomba_proxy_auth_replays_total{result="answered",upstream="nomba"}'
    assert value(metrics, line) == replays
    assert value(metrics, 'nomba_proxy_resends_total{upstream="nomba"}') == resends


def test_envelopes_and_errors_are_counted(metrics):
    for fields in ({"envelope": "00"}, {"envelope": "00"}, {"envelope": "other"}, {}):
        metrics.observe(over(**fields))
    metrics.observe(over(error="overloaded", status=503))
    line = 'nomba_proxy_envelope_total{{code="{}",route="other",upstream="nomba"}}'
    assert value(metrics, line.format("00")) == 2
    assert value(metrics, line.format("other")) == 1
    assert metrics.render().decode().count("nomba_proxy_envelope_total{") == 2
    assert value(metrics, 'nomba_proxy_errors_total{error="overloaded"}') == 1


@pytest.mark.parametrize(("method", "label"), [("GET", "GET"), ("REPORT", "other"), ("-", "other")])
def test_each_exchange_is_counted_once_whatever_its_method(metrics, method, label):
    for _ in range(3):
        metrics.observe(over(method=method, envelope="00"))
    metrics.render()
    labels = f'caller="app",code_class="2xx",method="{label}",route="other",upstream="nomba"'
    assert value(metrics, f"nomba_proxy_requests_total{{{labels}}}") == 3
    assert value(metrics, 'nomba_proxy_request_duration_seconds_count{upstream="nomba"}') == 3
    line = 'nomba_proxy_envelope_total{code="00",route="other",upstream="nomba"}'
    assert value(metrics, line) == 3


def test_the_codes_of_envelopes_are_a_small_set():
    assert len(CODES) < 32
    assert all(re.fullmatch(r"\d{2,3}", one) for one in CODES)


@pytest.mark.parametrize("ending", [False, True])
async def test_envelopes_are_counted_by_themselves_and_at_the_end(metrics, ending):
    """Another process may be the one that shows them."""
    server = TrafficServer(None, observe=print, emit=print)
    async with AsyncExitStack() as stack:
        measure(metrics, server=server, settings=SimpleNamespace(tls=None), stack=stack)
        await asyncio.sleep(0)  # it has measured once
        metrics.observe(over(envelope="00"))
        labels = {"upstream": "nomba", "route": "other", "code": "00"}
        assert metrics._registry.get_sample_value("nomba_proxy_envelope_total", labels) is None
        if ending:
            await stack.aclose()
        else:
            for _ in range(500):
                if metrics._registry.get_sample_value("nomba_proxy_envelope_total", labels):
                    break
                await asyncio.sleep(0.02)
        assert metrics._registry.get_sample_value("nomba_proxy_envelope_total", labels) == 1


@pytest.mark.parametrize(
    ("event", "refused"),
    [
        (Event("secret_refused", "error", "nomba"), 1),
        (Event("token_renewal_failed", "error", "nomba", {"cause": "credentials"}), 1),
        (Event("token_renewal_failed", "error", "nomba", {"cause": "unreachable"}), None),
        (Event("token_renewal_failed", "error", "nomba", {"cause": "store"}), None),
    ],
)
def test_a_secret_that_was_refused_is_counted(metrics, event, refused):
    metrics.emit(event)
    assert value(metrics, 'nomba_proxy_secrets_refused_total{upstream="nomba"}') == refused
    line = f'nomba_proxy_events_total{{event="{event.name}",level="error"}}'
    assert value(metrics, line) == 1


def test_a_reload_that_failed_is_told_until_one_succeeds(metrics):
    line = "nomba_proxy_config_last_reload_successful"
    assert value(metrics, line) == 1
    metrics.emit(Event("reload_failed", "error"))
    assert value(metrics, line) == 0
    assert value(metrics, "nomba_proxy_config_last_reload_success_timestamp_seconds") is None
    metrics.emit(Event("reloaded"))
    assert value(metrics, line) == 1
    assert value(metrics, "nomba_proxy_config_last_reload_success_timestamp_seconds") > 1.7e9


def test_a_new_certificate_has_a_new_expiry(metrics):
    metrics.certificate_expires(4.0e9)
    metrics.emit(Event("certificate_reloaded"))
    assert value(metrics, "nomba_proxy_certificate_expiry_timestamp_seconds") == 4.0e9
    metrics.emit(Event("certificate_reloaded", fields={"expires_at": 4.1e9}))
    assert value(metrics, "nomba_proxy_certificate_expiry_timestamp_seconds") == 4.1e9
