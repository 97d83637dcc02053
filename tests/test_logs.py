"""docs/logs.md says of every line what it is, and `log.sample` leaves out only what nobody will miss."""

import ast
import asyncio
import json
import re
from pathlib import Path

import aiohttp
import pytest
from harness import Log, served

from proxy.core.exchange import Exchange
from proxy.errors import Outcome
from proxy.telemetry import Telemetry

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/logs.md").read_text()
EVERYTHING = {
    "envelope": "00",
    "trace": "t",
    "account_replaced": True,
    "error": "e",
    "detail": "d",
    "reference": "r",
}


def over(number=1, **fields):
    """An ordinary exchange that is over, but for what is said of it."""
    exchange = Exchange(f"id-{number}", 0.0, "GET", "app", "nomba", kind="read", status=200)
    exchange.outcome, exchange.attempts = Outcome.ANSWERED, 1
    for name, value in fields.items():
        setattr(exchange, name, value)
    return exchange


def written(*exchanges, **options):
    log = Log()
    telemetry = Telemetry("json", version="x", stream=log, **{"level": "info"} | options)
    for one in exchanges:
        telemetry.observe(one)
    return log.lines("exchange"), telemetry.metrics.render().decode()


# -- the line ------------------------------------------------------------------------------------


def fields():
    part = TEXT.partition("## The line")[2].partition("\n## ")[0]
    return {
        name: (kind, when)
        for name, kind, when in re.findall(r"(?m)^\| `(\w+)` \| (\w+) \| (.+?) \|", part)
    }


def test_every_field_of_the_line_is_documented_and_no_other():
    [[bare], _], [[full], _] = written(over()), written(over(**EVERYTHING))
    [[sampled], _] = written(over(1), sample=0.9)
    assert set(fields()) == set(full) | set(sampled)
    assert {name for name, (_, when) in fields().items() if when == "always"} == set(bare)


def test_the_types_are_the_documented_ones():
    types = {"text": str, "number": (int, float), "true": bool}
    [[full], _] = written(over(**EVERYTHING))
    for name, value in full.items():
        assert isinstance(value, types[fields()[name][0]]), name


# -- the events ----------------------------------------------------------------------------------


def emitted():
    """Every event in the code, with its levels; None for one that is decided on the way."""
    found = {}
    for path in (ROOT / "proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="Event"), args=[ast.Constant(value=name), *rest]):
                    match rest:
                        case []:
                            level = "info"
                        case [ast.Constant(value=level), *_]:
                            pass
                        case _:
                            level = None
                    found.setdefault(name, set()).add(level)
    return found


def documented():
    part = TEXT.partition("## Events")[2]
    rows = re.findall(r"(?m)^\| `(\w+)` \| ([a-z, ]+) \| (.+) \| (.+) \|$", part)
    return {name: set(levels.split(", ")) for name, levels, _, _ in rows}


def test_every_event_is_documented_with_its_level_and_no_other():
    told = {name: levels for name, levels in emitted().items() if None not in levels}
    assert set(documented()) == set(emitted())
    assert {name: documented()[name] for name in told} == told
    for name in set(emitted()) - set(told):
        assert len(documented()[name]) == 2


def test_the_events_are_in_order_each_once():
    names = re.findall(r"(?m)^\| `(\w+)` \|", TEXT.partition("## Events")[2])
    assert names == sorted(set(names))


# -- levels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "level"),
    [
        ({}, "info"),
        ({"status": 404}, "info"),
        ({"status": 403, "error": "caller_forbidden", "outcome": Outcome.NOT_SENT}, "info"),
        ({"status": 503}, "warning"),
        ({"status": 502, "outcome": Outcome.UNKNOWN}, "warning"),
        ({"status": 499, "outcome": Outcome.UNKNOWN}, "warning"),
        ({"status": 499, "outcome": Outcome.UNKNOWN, "kind": "write"}, "error"),
        ({"status": 502, "outcome": Outcome.UNKNOWN, "kind": "money"}, "error"),
        ({"status": 502, "outcome": Outcome.NOT_SENT, "kind": "money"}, "warning"),
    ],
)
def test_the_level_says_whether_somebody_has_to_act(changed, level):
    [[line], _] = written(over(**changed))
    assert line["level"] == level


def test_what_somebody_has_to_act_on_is_written_at_every_level():
    unknown = over(outcome=Outcome.UNKNOWN, kind="money", status=502)
    assert len(written(unknown, level="error")[0]) == 1


# -- fewer lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_so_many_ordinary_exchanges_are_written_and_all_are_counted(sample):
    lines, counted = written(*map(over, range(4000)), sample=sample)
    assert abs(len(lines) / 4000 - sample) < 0.03
    assert re.search(r"nomba_proxy_requests_total\{.*\} 4000\.0", counted)
    assert {line.get("sample") for line in lines} <= {sample if sample < 1 else None}


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "money"},
        {"kind": "login"},
        {"kind": "-"},
        {"status": 400},
        {"status": 404},
        {"status": 500},
        {"status": 499},
        {"status": 0},
        {"error": "overloaded"},
        {"outcome": Outcome.UNKNOWN},
        {"outcome": Outcome.REFUSED},
        {"outcome": Outcome.NOT_SENT},
        {"attempts": 2},
        {"account_replaced": True},
        {"envelope": "400"},
        {"envelope": "other"},
    ],
)
def test_what_is_not_ordinary_is_always_written(changed):
    lines, _ = written(*(over(number, **changed) for number in range(50)), sample=0.0)
    assert len(lines) == 50
    assert not any("sample" in line for line in lines)


@pytest.mark.parametrize("changed", [{}, {"kind": "write"}, {"status": 302}, {"envelope": "201"}])
def test_what_is_ordinary_need_not_be(changed):
    assert written(over(**changed), sample=0.0)[0] == []


def test_every_replica_writes_the_same_ones_and_more_of_them_where_more_are_wanted():
    def ids(sample):
        lines, _ = written(*map(over, range(300)), sample=sample)
        return {line["request_id"] for line in lines}

    assert ids(0.3) == ids(0.3)
    assert ids(0.1) < ids(0.3) < ids(0.8)


async def test_a_running_proxy_keeps_to_it(simulator):
    switches = simulator.switches
    account = {
        "NOMBA_CLIENT_ID": switches.client_id,
        "NOMBA_CLIENT_SECRET": switches.client_secret,
        "NOMBA_ACCOUNT_ID": switches.account_id,
        "NOMBA_BASE_URL": simulator.origin,
        "NOMBA_PROXY_LOG_SAMPLE": "0",
        "NOMBA_PROXY_LOG_FORMAT": "json",
    }
    async with served(**account) as proxy, aiohttp.ClientSession(f"http://{proxy.address}") as http:
        for _ in range(3):
            assert (await http.get("/v1/accounts/balance")).status == 200
        assert (await http.post("/v2/transfers/bank", json={})).status == 400
        proxy.process.terminate()
        out, _ = await asyncio.wait_for(proxy.process.communicate(), 30)
    lines = map(json.loads, out.splitlines())
    assert [line["kind"] for line in lines if line["event"] == "exchange"] == ["money"]


def test_people_get_fewer_lines_too():
    log = Log()
    telemetry = Telemetry("console", level="info", version="x", stream=log, sample=0.0)
    telemetry.observe(over())
    telemetry.observe(over(kind="money"))
    assert log.text.count("\n") == 1
    assert "money" in log.text
