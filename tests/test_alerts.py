"""The rules and the dashboard in config/ speak of metrics and labels that there are."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from exposed import happen, samples

from proxy.metrics import ALARMS, Metrics

ROOT = Path(__file__).parents[1]
RULES = (ROOT / "config/alerts.yml").read_text()
BOARD = (ROOT / "config/grafana-dashboard.json").read_text()
SCRAPED = {"job", "instance"}  # Prometheus adds them
_NAME = re.compile(r"\bnomba_proxy_\w+")
_SELECTOR = re.compile(r"\b(nomba_proxy_\w+)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)(?:=~|!~|!=|=)"[^"]*"')


@pytest.fixture(scope="module")
def exposed():
    """Names of the samples, each with its labels."""
    metrics = Metrics(version="x")
    happen(metrics)
    return samples(metrics.render().decode())


def rules():
    """Each rule by its name: its expression, and the whole of it."""
    found = {}
    for rule in RULES.split("- alert: ")[1:]:
        name, _, rest = rule.partition("\n")
        expression = re.search(r"expr: (?:>-\n)?(.*?)\n\s+(?:for|labels): ", rest, re.DOTALL)[1]
        found[name] = (expression, rest)
    return found


def queries():
    """Each query of the dashboard, with how its lines are called."""
    return [
        (target["expr"], target["legendFormat"])
        for panel in json.loads(BOARD)["panels"]
        for target in panel["targets"]
    ]


def wrong(expression, exposed):
    """What an expression speaks of that there is not."""
    names = set(_NAME.findall(expression))
    found = sorted(names - set(exposed))
    known = SCRAPED.union(*(exposed.get(name, set()) for name in names))
    for name, inside in _SELECTOR.findall(expression):
        assert _MATCHER.sub("", inside).strip(", ") == "", inside
        found += sorted(set(dict.fromkeys(_MATCHER.findall(inside))) - exposed[name] - SCRAPED)
    for inside in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        found += sorted(set(inside.split(", ")) - known)
    return found


def kept(expression, exposed):
    """The labels that are left of an expression's result."""
    by = [set(one.split(", ")) for one in re.findall(r"\bby \(([^)]*)\)", expression)]
    if by:
        return set.union(*by)
    return SCRAPED.union(*(exposed[name] for name in _NAME.findall(expression)))


@pytest.mark.parametrize("name", rules())
def test_a_rule_speaks_of_what_there_is_and_says_what_to_do(name, exposed):
    expression, rest = rules()[name]
    assert wrong(expression, exposed) == []
    assert set(_NAME.findall(rest)) <= set(exposed) | {"nomba_proxy_request_duration_seconds"}
    told = dict(re.findall(r"(?m)^          (\w+): \"(.+)\"$", rest))
    assert set(told) == {"summary", "description", "runbook"}
    assert all(len(text) > 20 for text in told.values())
    assert set(re.findall(r"\$labels\.(\w+)", rest)) <= kept(expression, exposed)
    assert re.search(r"severity: (page|ticket) ", rest)


@pytest.mark.parametrize(("expression", "legend"), queries())
def test_a_query_of_the_dashboard_speaks_of_what_there_is(expression, legend, exposed):
    assert wrong(expression, exposed) == []
    assert set(re.findall(r"{{(\w+)}}", legend)) <= kept(expression, exposed)
    assert "$job" in expression
    assert "$instance" in expression


def test_the_dashboard_shows_every_metric(exposed):
    shown = {re.sub(r"_bucket$", "", name) for name in _NAME.findall(BOARD)}
    every = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed}
    assert every - shown == {"nomba_proxy_config_last_reload_success_timestamp_seconds"}


def test_the_panels_do_not_lie_upon_each_other():
    places = set()
    for panel in json.loads(BOARD)["panels"]:
        at = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & places, panel["title"]
        places |= taken
        assert at["x"] + at["w"] <= 24


def test_the_rule_for_faults_names_every_alarm():
    expression, _ = rules()["NombaProxyFault"]
    assert set(re.search(r'event=~"(.+?)"', expression)[1].split("|")) == set(ALARMS)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("nomba_proxy_workers < 1", []),
        ("nomba_proxy_worker < 1", ["nomba_proxy_worker"]),
        ('rate(nomba_proxy_requests_total{status="2xx"}[5m])', ["status"]),
        ("sum by (path) (nomba_proxy_requests_total)", ["path"]),
        ("sum by (job, route) (nomba_proxy_requests_total)", []),
    ],
)
def test_what_there_is_not_is_found(exposed, expression, expected):
    assert wrong(expression, exposed) == expected


@pytest.fixture
def promtool():
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("NOT CHECKED: promtool is missing (Debian's package prometheus has it)")
    return found


def test_prometheus_takes_the_rules(promtool):
    command = (promtool, "check", "rules", str(ROOT / "config/alerts.yml"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(rules())} rules found" in done.stdout


def test_prometheus_takes_the_metrics(promtool):
    metrics = Metrics(version="x")
    happen(metrics)
    command = (promtool, "check", "metrics")
    done = subprocess.run(command, input=metrics.render(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_the_rules_fire_when_they_should_and_only_then(promtool):
    command = (promtool, "test", "rules", str(ROOT / "tests/alerts.yml"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_job_of_the_manual(promtool, tmp_path):
    text = (ROOT / "docs/metrics.md").read_text()
    (job,) = re.findall(r"(?s)```yaml\n(.+?)```", text)
    (tmp_path / "token").write_text("x")
    file = tmp_path / "prometheus.yml"
    file.write_text(re.sub(r"(?m)(credentials_file:) .+$", rf"\1 {tmp_path}/token", job))
    command = (promtool, "check", "config", str(file))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (name,) = re.findall(r"job_name: (\S+)", job)
    (pattern,) = re.findall(r'up\{job=~"(.+?)"\}', rules()["NombaProxyDown"][0])
    assert re.fullmatch(pattern, name)
