"""What is shown is what was measured, and who could not be measured is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from check import LIMIT, verdict
from lab import environment
from peers import Peer, Plan
from report import Group, Round, Series, table
from stage import Stage
from works import GET

BENCH = Path(__file__).parents[2] / "bench"
REST = {"rate": 1.0, "busy": 1.0, "others": 0.0, "p50": 1.0, "p90": 1.0, "p99": 1.0, "p999": 1.0}


def series(peer, *cpu, errors=(), missing=""):
    rounds = [Round(cpu=one, **REST) for one in cpu]
    return Series(peer=peer, rounds=rounds, errors=list(errors), missing=missing)


def shown(*found):
    group = Group(work="get", title="small GET", connections=32, series=list(found))
    lines = table([group])
    return {line.split()[0]: line for line in lines if line.startswith("  ") and line.strip()}


def test_the_table_has_medians_spread_and_ratio():
    lines = shown(series("nomba-proxy", 40.0, 20.0, 30.0), series("envoy", 61.0, 60.0, 90.0))
    assert lines["nomba-proxy"].split()[1:6] == ["30.0", "20.0", "to", "40.0", "1.00"]
    assert lines["envoy"].split()[1:6] == ["61.0", "60.0", "to", "90.0", "2.03"]


def test_who_is_missing_is_named_with_the_reason():
    lines = shown(series("nomba-proxy", 30.0), series("envoy", missing="not installed"))
    assert lines["envoy"].split(maxsplit=1)[1] == "MISSING: not installed"


def test_a_failed_round_is_shown():
    lines = shown(series("nomba-proxy", 30.0, 31.0, errors=["7 status errors"]))
    assert "1 of 3 rounds failed: 7 status errors" in lines["nomba-proxy"]


@pytest.mark.parametrize("ratio", [LIMIT * 0.5, LIMIT * 0.99])
def test_the_check_passes_below_its_limit(ratio):
    passed, text = verdict([(ratio * 100, 100.0)] * 5, limit=LIMIT)
    assert passed
    assert f"{ratio:.2f}" in text


def test_the_check_fails_above_its_limit_and_says_what_to_do():
    passed, text = verdict([(LIMIT * 101, 100.0)] * 5, limit=LIMIT)
    assert not passed
    assert "MORE THAN THE LIMIT" in text
    assert "bench/check.py" in text


def test_one_bad_round_fails_nothing():
    assert verdict([(100.0, 100.0)] * 4 + [(900.0, 100.0)], limit=1.2)[0]


def test_rounds_are_compared_with_their_neighbours():
    """A machine that is slow for a while is so for both."""
    assert not verdict([(150.0, 100.0), (300.0, 200.0), (160.0, 100.0)], limit=1.4)[0]
    assert verdict([(130.0, 100.0), (260.0, 200.0), (1300.0, 1000.0)], limit=1.4)[0]


def test_a_run_from_end_to_end_with_a_peer_that_is_not_there(whole_bench, tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only: THE BENCH is not tested")
    options = ["--quick", "--work", "get", "--only", "nginx,caddy", f"--plots={tmp_path}"]
    done = subprocess.run(
        [sys.executable, str(BENCH / "run.py"), *options, f"--json={tmp_path / 'result.json'}"],
        capture_output=True,
        text=True,
        env=environment(PEERS_VENV=str(tmp_path / "none")),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "MISSING: not installed: there is no caddy" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["missing"]) == ["caddy"]
    (work,) = result["works"]
    found = {one["peer"]: one for one in work["series"]}
    assert [len(one["rounds"]) for one in found.values()] == [1, 1, 0]
    assert all(one["errors"] == [] for one in found.values())
    # Nothing that forwards costs less than a microsecond, or more than all there is.
    for name in ("nomba-proxy", "nginx"):
        assert found[name]["median"]["cpu"] > 1
        assert 0 < found[name]["median"]["busy"] < 1.5


def test_a_proxy_that_does_less_is_no_peer(whole_bench, tmp_path):
    """What would forward without our pair, or another reply, is refused with the reason."""
    program = tmp_path / "lazy.py"
    program.write_text(LAZY)
    lazy = Peer(
        "lazy", lambda site: Plan(command=[sys.executable, str(program), str(site.port)]), str
    )
    with Stage() as stage:
        why = stage.absent(lazy, GET)
    assert "does not do the same work" in why
    assert "accountId is ''" in why
    assert "Authorization is not set" in why
    assert "connections to the origin are not kept" in why


LAZY = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Lazy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        seen = {"http": "HTTP/1.1", "cipher": "", "accountId": "", "authorization": "", "requests": "1"}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

HTTPServer(("127.0.0.1", int(sys.argv[1])), Lazy).serve_forever()
"""
