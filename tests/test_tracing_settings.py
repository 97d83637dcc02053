"""Where spans are sent, by the settings and by the variables that OpenTelemetry has for it."""

import re
from pathlib import Path

import pytest

from proxy.settings import SettingsError, describe, load
from proxy.settings import tracing as room

ENDPOINT, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
OURS = "NOMBA_PROXY_TRACING_OTLP_ENDPOINT"


def loaded(tmp_path, **environ):
    own = {"NOMBA_PROXY_SIMULATE": "true", "NOMBA_PROXY_STATE_DIR": str(tmp_path)}
    return load(environ=own | environ)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({OURS: "http://c:4318"}, "http://c:4318/v1/traces"),
        ({OURS: "http://c:4318/"}, "http://c:4318/v1/traces"),
        ({OURS: "https://c/otlp"}, "https://c/otlp/v1/traces"),
        ({OURS: "http://c:4318/v1/traces"}, "http://c:4318/v1/traces"),
        ({OURS: "http://[::1]:4318"}, "http://[::1]:4318/v1/traces"),
        ({ENDPOINT: "http://c:4318"}, "http://c:4318/v1/traces"),
        ({TRACES: "http://c:4318/in"}, "http://c:4318/in"),
        ({TRACES: "http://t/in", ENDPOINT: "http://c:4318"}, "http://t/in"),
        ({OURS: "http://o", TRACES: "http://t/in"}, "http://o/v1/traces"),
        ({ENDPOINT: ""}, None),
        ({ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_where_spans_are_sent(tmp_path, environ, expected):
    settings = loaded(tmp_path, **environ)
    assert settings.traces_to == expected
    [(shown, origin)] = [row[1:] for row in describe(settings) if row[0] == "tracing.otlp_endpoint"]
    assert shown == (expected or "")
    assert (origin == "default") == (expected is None)


@pytest.mark.parametrize(
    "value",
    [
        *("c:4318", "grpc://c:4317", "http://", "http://u:marked@c", "http://c:0"),
        *("http://c:99999", "http://c?x=marked", "http://c#x", "http://c d", "http://c\n"),
    ],
)
def test_what_is_no_address_is_a_problem_and_is_not_repeated(tmp_path, value):
    with pytest.raises(SettingsError) as told:
        loaded(tmp_path, **{OURS: value})
    [problem] = told.value.problems
    assert problem.key == "tracing.otlp_endpoint"
    assert "marked" not in str(told.value)


@pytest.fixture
def bare(monkeypatch):
    """An installation without the extra."""
    monkeypatch.setattr(room, "_NEEDED", ("opentelemetry.nothing_of_the_kind",))


def test_without_the_extra_the_setting_is_a_problem(tmp_path, bare):
    with pytest.raises(SettingsError, match=re.escape("pip install '.[otel]'")):
        loaded(tmp_path, **{OURS: "http://c:4318"})


def test_without_the_extra_the_variable_of_others_is_a_warning(tmp_path, bare):
    settings = loaded(tmp_path, **{ENDPOINT: "http://c:4318"})
    assert settings.traces_to is None
    [warning] = [one for one in settings.warnings if ENDPOINT in one]
    assert "'.[otel]'" in warning
    assert ".whl[otel]'" in warning  # whoever has the wheel has no folder


@pytest.mark.parametrize("key", ["TRACING_SAMPLE", "LOG_SAMPLE"])
@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "x"])
def test_a_share_is_from_0_to_1(tmp_path, key, value):
    with pytest.raises(SettingsError) as told:
        loaded(tmp_path, **{f"NOMBA_PROXY_{key}": value})
    assert [one.key for one in told.value.problems] == [key.lower().replace("_", ".")]


def test_every_attribute_of_a_span_is_in_the_table_and_no_other():
    root = Path(__file__).parents[1]
    code = (root / "proxy/tracing.py").read_text()
    used = set(re.findall(r'"((?:http|url|server|error|nomba_proxy)\.[a-z_.]+)"', code))
    listed = re.findall(r"(?m)^\| `([a-z_]+\.[a-z_.]+)` \|", (root / "docs/tracing.md").read_text())
    assert sorted(listed) == sorted(used)
