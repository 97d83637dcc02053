"""Measure the proxy beside its peers, all on the same work in the same run.

    make bench                                     # a quarter of an hour
    make bench ARGS=--quick                        # three minutes, to see that it works
    make bench ARGS="--only envoy --work get,tls"  # ours is always there

The proxy under test has one core, its origin (nginx) and who calls (wrk) have the others. Rounds
are interleaved: each round asks every proxy once, so that what else happens on the machine meets
all of them. CPU time is that of the proxy's processes as the kernel accounts for it, so neither the
origin nor the load counts. Only ratios mean anything elsewhere: machines differ and are shared.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import latency
from conditions import conditions, lines
from lab import CannotMeasure, interruptible
from load import LoadFailed
from ours import OURS, ours
from peers import PEERS, Peer
from pictures import draw
from report import Group, Series, table
from stage import Stage
from works import CONNECTIONS, GET, USUAL, WORKS, Work

SWEEP, LATENCY = "sweep", "latency"
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """The exit code."""
    options = parse()
    print(f"{math.ceil(estimate(options))} minutes at most", file=sys.stderr)
    try:
        with interruptible(), Stage() as stage:
            told = conditions([ours(), *(one for one in PEERS if one.name in options.only)])
            print("\n".join(lines(told)), flush=True)
            result = {"conditions": told, "seconds": options.seconds, **everything(stage, options)}
    except CannotMeasure as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 1
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"\n{options.json}")
    return draw("plots.py", options.json, options.plots)


def everything(stage: Stage, options: argparse.Namespace) -> dict[str, object]:
    """Measure, print and return all that was asked for."""
    works = [(one, one.connections) for one in WORKS if one.name in options.work]
    groups = measure(stage, works, options, rounds=options.rounds)
    swept: list[Group] = []
    if SWEEP in options.work:
        # What the table has, is measured.
        had = [one for one in groups if one.work == GET.name]
        wanted = [(GET, count) for count in options.sweep if not had or count != USUAL]
        swept = had + measure(stage, wanted, options, rounds=options.sweep_rounds)
        swept.sort(key=lambda one: one.connections)
    shown = [*groups, *(one for one in swept if one not in groups)]
    print("\n".join(table(shown)), flush=True)
    paced: list[latency.Paced] = []
    if LATENCY in options.work:
        rounds, seconds = options.latency_rounds, options.latency_seconds
        paced = latency.measure(stage, only=options.only, rounds=rounds, seconds=seconds)
        print("\n".join(latency.table(paced)))
    return {
        "missing": {
            one.peer: one.missing for group in shown for one in group.series if one.missing
        },
        "works": [one.as_json() for one in groups],
        SWEEP: [one.as_json() for one in swept],
        LATENCY: [one.as_json() for one in paced],
    }


def parse() -> argparse.Namespace:
    """What was asked for; the usual where nothing was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [one.name for one in PEERS]
    every = [*(one.name for one in WORKS), SWEEP, LATENCY]
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement (whole ones)")
    parser.add_argument("--only", type=_of(names), default=names, metavar="PEER,...")
    parser.add_argument("--work", type=_of(every), default=every, metavar="WORK,...")
    parser.add_argument("--json", type=Path, default=RESULTS / "bench.json", metavar="FILE")
    parser.add_argument("--plots", type=Path, default=RESULTS, metavar="DIR", help="for pictures")
    parser.add_argument("--quick", action="store_true", help="one round of one second")
    options = parser.parse_args()
    options.sweep, options.latency_seconds = CONNECTIONS, 4
    if options.quick:
        options.rounds = options.seconds = options.latency_seconds = 1
        options.sweep = (CONNECTIONS[0], USUAL, CONNECTIONS[-1])
    options.sweep_rounds, options.latency_rounds = min(options.rounds, 2), min(options.rounds, 3)
    return options


def _of(known: list[str]):
    def names(text: str) -> list[str]:
        asked = text.split(",")
        if unknown := [one for one in asked if one not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there is {', '.join(known)}")
        return asked

    return names


def estimate(options: argparse.Namespace) -> float:
    """How many minutes it takes."""
    each = options.seconds + 0.5
    works = [one for one in WORKS if one.name in options.work]
    spent = sum(len(takes_part(one, options)) * (options.rounds * each + 2) for one in works)
    if SWEEP in options.work:
        spent += len(takes_part(GET, options)) * options.sweep_rounds * len(options.sweep) * each
    if LATENCY in options.work:
        spent += 4 * (3 + options.latency_rounds * 2 * (options.latency_seconds + 0.5))
    return spent / 60


def takes_part(work: Work, options: argparse.Namespace) -> list[Peer]:
    """Who is asked for it: ours always, peers if they are wanted."""
    return [one for one in work.peers if one.name.startswith(OURS) or one.name in options.only]


def measure(
    stage: Stage, wanted: list[tuple[Work, int]], options: argparse.Namespace, *, rounds: int
) -> list[Group]:
    """Works with so many connections each, in interleaved rounds."""
    groups = []
    for work, connections in wanted:
        peers = takes_part(work, options)
        series = [Series(peer=one.name, missing=stage.absent(one, work)) for one in peers]
        groups.append(
            Group(work=work.name, title=work.title, connections=connections, series=series)
        )
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for (work, _), group in zip(wanted, groups, strict=True):
            pairs = list(zip(takes_part(work, options), group.series, strict=True))
            # Each follows another one in every second round.
            for peer, series in pairs if number % 2 == 0 else reversed(pairs):
                if not series.missing:
                    once(stage, peer, work, group=group, series=series, seconds=options.seconds)
    return groups


def once(
    stage: Stage, peer: Peer, work: Work, *, group: Group, series: Series, seconds: int
) -> None:
    """Add one round."""
    try:
        series.rounds.append(
            stage.measure(peer, work, connections=group.connections, seconds=seconds)
        )
    except LoadFailed as error:
        series.errors.append(str(error))


if __name__ == "__main__":
    sys.exit(main())
