"""Write the tables of docs/performance.md anew, and README's figures, from the JSON files.

    make bench ARGS="--json docs/performance/bench.json --plots docs/performance"
    make bench-growth ARGS="--json docs/performance/growth.json --plots docs/performance"
    make bench-page
    make soak                        # writes docs/soak.md as well, of docs/performance/soak.json

A table stands between two comments that name it; a test compares it with the files.
"""

import json
import re
import statistics
from pathlib import Path

import soak_report

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (DOCS / "performance.md", DOCS / "soak.md", DOCS.parent / "README.md")
FOLDER = DOCS / "performance"
_TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MIB = 1024 * 1024
OURS = "nomba-proxy"
SHORT = {
    "get": "small GET",
    "unlike": "GET, each unlike",
    "post": "POST 1 KiB",
    "100k": "reply of 100 KiB",
    "10m": "reply of 10 MiB",
    "tls": "GET, TLS upstream",
}


def load(name: str) -> dict:
    """What was measured."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def rows(head: list[str], body: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---", *("--:" for _ in head[1:])], *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def number(value: float) -> str:
    """Three digits that say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def costs(work: str) -> dict[str, float]:
    """Median CPU time of a request, in µs, by proxy."""
    (found,) = (one for one in load("bench")["works"] if one["work"] == work)
    return {
        one["peer"]: one["median"]["cpu"]
        for one in found["series"]
        if one.get("median", {}).get("cpu")
    }


def conditions() -> str:
    """What it was measured on."""
    said = load("bench")["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    return (
        f"{said['date'][:10]}, commit {said['commit']}: {said['cpu']}, {said['cores']} cores, "
        f"{said['system']}, Python {said['python']}, load average before the run "
        f"{said['load_average'][0]:.2f}; {versions}.\n"
    )


def headline() -> str:
    """What to say of all that in a sentence."""
    found = costs("get")
    envoy, caddy, plain = (found[OURS] / found[one] for one in ("envoy", "caddy", "clientsession"))
    return (
        f"A small GET costs {envoy:.2f} of Envoy's CPU time, {caddy:.2f} of Caddy's and {plain:.2f} of an "
        "aiohttp + ClientSession proxy's,\nmeasured in one run on one core with log, metrics and the "
        "check of callers on: [docs/performance.md](docs/performance.md).\n"
    )


def compare() -> str:
    """CPU time of a request, and how often ours that is."""
    found = {work: costs(work) for work in SHORT}
    peers = list(dict.fromkeys(peer for costs in found.values() for peer in costs))
    body = [
        [
            f"**{peer}**" if peer == OURS else peer,
            *(_cell(found[work], peer) for work in SHORT),
        ]
        for peer in peers
    ]
    return rows(["CPU µs a request (times ours)", *SHORT.values()], body)


def _cell(costs: dict[str, float], peer: str) -> str:
    if peer not in costs:
        return "–"
    ratio = "" if peer == OURS else f" ({costs[peer] / costs[OURS]:.2f})"
    return f"{number(costs[peer])}{ratio}"


def variants() -> str:
    """Ours in other ways, beside ours in the same rounds."""
    found = costs("variants")
    body = [
        [peer.removeprefix(f"{OURS}, "), number(cost), f"{cost / found[OURS]:.2f}"]
        for peer, cost in found.items()
    ]
    return rows(["small GET", "CPU µs a request", "times the first"], body)


def latency() -> str:
    """What a proxy adds, at half the rate that ours can take."""
    body = []
    for one in load("bench")["latency"]:
        added = (one["through"][mark] - one["directly"][mark] for mark in ("p50", "p99", "p999"))
        body.append([one["peer"], f"{one['rate']:,}", *(f"{value:.2f}" for value in added)])
    return rows(["added latency, ms", "requests/s", "p50", "p99", "p99.9"], body)


def growth() -> str:
    """CPU time of a request along each curve."""
    body = []
    for curve in load("growth")["curves"]:
        points = [
            f"{_size(one['value'], curve['curve'])}: {number(one['median']['cpu'])}"
            for one in curve["points"]
        ]
        body.append([curve["title"], " · ".join(points)])
    return rows(["what grows", "CPU µs a request"], body)


def _size(value: int, curve: str) -> str:
    if curve != "body":
        return f"{value:,}"
    return f"{value // _MIB} MiB" if value >= _MIB else f"{value // 1024} KiB"


def instructions() -> str:
    """Instructions of a request."""
    said = load("instructions")
    body = [
        [work, f"{statistics.median(one['each'] for one in runs) / 1000:,.0f},000"]
        for work, runs in said["works"].items()
    ]
    return rows([f"{said['loop']}, Python {said['python']}", "instructions a request"], body)


def startup() -> str:
    """Time until it answers, and memory."""
    said = load("startup")
    body = []
    for name, found in said["seconds"].items():
        wall, cpu = (statistics.median(found[kind]) for kind in ("wall", "cpu"))
        held = said["bytes"].get(name, {}).get("idle")
        cells = ["–", "–"]
        if held:
            cells = [f"{held[-1][kind] / _MIB:.0f}" for kind in ("rss", "pss")]
        body.append([f"`{name}`", f"{wall:.2f}", f"{cpu:.2f}", *cells])
    return rows(["", "wall s", "CPU s", "RSS MiB", "PSS MiB"], body)


def soak() -> str:
    """What ten minutes under everything that happens have shown."""
    return soak_report.tables(load("soak"))


TABLES = {
    one.__name__: one
    for one in (
        *(conditions, headline, compare, variants, latency, growth, instructions, startup),
        soak,
    )
}


def filled(text: str) -> str:
    """The page with its tables as the files have them."""
    return _TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def write() -> None:
    """Every page."""
    for page in PAGES:
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    write()
