"""Measure what the cost of a request grows with: a curve each.

    make bench-growth                          # three minutes
    make bench-growth ARGS="--curve rules"

It is the small GET of `make bench` but for one thing that grows; CPU time per request, rounds
interleaved over all points of all curves.
"""

import argparse
import contextlib
import http.client
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conditions import conditions, lines
from lab import CannotMeasure, interruptible
from load import LoadFailed
from origin import KIB
from ours import OURS, ours
from peers import Peer
from pictures import draw
from report import Series, ratio
from run import RESULTS
from stage import Stage, Standing
from works import GET, Work

_FEW = 4  # connections, where a request is large


@dataclass(frozen=True, kw_only=True)
class Point:
    """One of a curve.

    Attributes:
        value: what grows, so far.
        peer: how ours is run.
        work: what is asked for.
        idle: connections that are held open meanwhile.
    """

    value: int
    peer: Peer
    work: Work = GET
    idle: int = 0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One of them.

    Attributes:
        name: for options and JSON.
        title: what grows, for people.
        points: from the smallest.
    """

    name: str
    title: str
    points: tuple[Point, ...]


def _headers(count: int) -> Point:
    # Host and the caller's key are two of them.
    added = tuple(f"X-Header-{at:03}: a value of some length {at:03}" for at in range(count - 2))
    return Point(value=count, peer=ours(), work=replace(GET, headers=added))


def _body(size: int) -> Point:
    work = Work(
        name=f"up-{size}",
        title="POST",
        path="/v1/checkout/order",  # the origin reads all of it before it answers
        method="POST",
        up=size,
        connections=GET.connections if size < 256 * KIB else _FEW,
    )
    return Point(value=size, peer=ours(), work=work)


def _named(curve: str, value: int, **options: object) -> Point:
    return Point(value=value, peer=ours(f"{OURS}, {value} {curve}", **options))


def _idle(count: int) -> Point:
    return replace(_named("idle", count), idle=count)


CURVES = (
    Curve(
        name="headers",
        title="headers of the request",
        points=tuple(map(_headers, (5, 10, 20, 50, 100))),
    ),
    Curve(
        name="body",
        title="bytes of request body",
        points=tuple(_body(KIB * size) for size in (1, 16, 64, 256, 1024, 2048, 8192)),
    ),
    Curve(
        name="callers",
        title="callers in callers.toml",
        points=tuple(_named("callers", n, callers=n - 1) for n in (1, 100, 10_000)),
    ),
    Curve(
        name="rules",
        title="rules of the caller, the last fits",
        points=tuple(_named("rules", n, rules=n) for n in (0, 10, 100, 1000)),
    ),
    Curve(
        name="idle",
        title="idle connections held open",
        points=tuple(map(_idle, (0, 500, 5000))),
    ),
)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [one.name for one in CURVES]
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1, help="of each measurement (whole ones)")
    parser.add_argument("--curve", choices=names, action="append", help="repeatable")
    parser.add_argument("--json", type=Path, default=RESULTS / "growth.json", metavar="FILE")
    parser.add_argument("--plots", type=Path, default=RESULTS, metavar="DIR", help="for pictures")
    options = parser.parse_args()
    curves = [one for one in CURVES if one.name in (options.curve or names)]
    try:
        with interruptible(), Stage() as stage:
            told = conditions([ours()])
            print("\n".join(lines(told)), flush=True)
            found = measure(stage, curves, rounds=options.rounds, seconds=options.seconds)
    except CannotMeasure as error:
        print(f"bench-growth: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench-growth: interrupted", file=sys.stderr)
        return 1
    shown = [_as_json(curve, found) for curve in curves]
    print("\n".join(line for curve in curves for line in table(curve, found)))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"conditions": told, "curves": shown}, indent=1) + "\n")
    print(f"\n{options.json}")
    return draw("growth_plots.py", options.json, options.plots)


Found = dict[tuple[str, int], Series]


def measure(stage: Stage, curves: list[Curve], *, rounds: int, seconds: int) -> Found:
    """A series for each point, by the names of its curve and its value.

    Raises:
        CannotMeasure: ours does not start, or does not hold the connections.
    """
    wanted = [(curve.name, point) for curve in curves for point in curve.points]
    found = {(name, one.value): Series(peer=one.peer.name) for name, one in wanted}
    with contextlib.ExitStack() as held:
        for _, point in wanted:
            if why := stage.absent(point.peer, point.work):
                raise CannotMeasure(f"{point.peer.name}: {why}")
            up = stage.standing(point.peer, point.work)
            for _ in range(point.idle):
                held.enter_context(contextlib.closing(connected(up)))
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for name, one in wanted if number % 2 == 0 else reversed(wanted):
                series = found[name, one.value]
                try:
                    many = one.work.connections
                    series.rounds.append(
                        stage.measure(one.peer, one.work, connections=many, seconds=seconds)
                    )
                except LoadFailed as error:
                    series.errors.append(str(error))
    return found


def connected(up: Standing) -> http.client.HTTPConnection:
    """A connection that has carried one request, as an app's pool holds it.

    Raises:
        CannotMeasure: it cannot be had.
    """
    connection = http.client.HTTPConnection("127.0.0.1", up.port, timeout=20)
    try:
        connection.request("GET", GET.path, headers=dict(one.split(": ", 1) for one in up.headers))
        connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise CannotMeasure(f"an idle connection: {error!r}") from None
    return connection


def table(curve: Curve, found: Found) -> Iterator[str]:
    """Lines for a terminal."""
    yield ""
    yield f"{curve.title}"
    yield f"  {'':>10} {'CPU µs/request':>14} {'least to most':>19} {'of the first':>12} {'busy':>5}"
    first = found[curve.name, curve.points[0].value]
    for point in curve.points:
        one = found[curve.name, point.value]
        if one.rounds:
            least, most = one.spread("cpu")
            times = f"{ratio(one, first):.2f}" if first.rounds else ""
            yield (
                f"  {point.value:>10,} {one.median('cpu'):>14,.1f}"
                f" {f'{least:,.1f} to {most:,.1f}':>19} {times:>12} {one.median('busy'):>5.0%}"
            )
        for text in sorted(set(one.errors)):
            yield f"  {point.value:>10,} {one.errors.count(text)} rounds failed: {text}"


def _as_json(curve: Curve, found: Found) -> dict[str, Any]:
    points = [
        {"value": one.value, **found[curve.name, one.value].as_json()} for one in curve.points
    ]
    return {"curve": curve.name, "title": curve.title, "points": points}


if __name__ == "__main__":
    sys.exit(main())
