"""What was measured, as values, as JSON and as a table."""

import dataclasses
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ours import OURS


@dataclass(frozen=True, kw_only=True)
class Round:
    """One measurement.

    Attributes:
        cpu: microseconds of user and system time per request, of the whole process tree.
        rate: requests a second.
        busy: the share of its cores that the proxy used.
        others: the share that others used. If both together are well below 1, the load was the limit.
        p50, p90, p99, p999: latency in milliseconds.
    """

    cpu: float
    rate: float
    busy: float
    others: float
    p50: float
    p90: float
    p99: float
    p999: float


@dataclass(frozen=True, kw_only=True)
class Series:
    """The rounds of one proxy with one work.

    Attributes:
        peer: its name.
        rounds: that went well.
        errors: what went wrong in the others.
        missing: why it took no part, if it did not.
    """

    peer: str
    rounds: list[Round] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    missing: str = ""

    def median(self, name: str) -> float:
        """Of a field of its rounds."""
        return statistics.median(getattr(one, name) for one in self.rounds)

    def spread(self, name: str) -> tuple[float, float]:
        """The least and the most."""
        values = [getattr(one, name) for one in self.rounds]
        return min(values), max(values)

    def as_json(self) -> dict[str, Any]:
        """Medians, the spread of the CPU time, and every round."""
        shown: dict[str, Any] = {"peer": self.peer}
        if self.rounds:
            names = [one.name for one in dataclasses.fields(Round)]
            shown["median"] = {name: round(self.median(name), 4) for name in names}
            shown["cpu_spread"] = [round(value, 4) for value in self.spread("cpu")]
        rounds = [dataclasses.asdict(one) for one in self.rounds]
        shown["rounds"] = [{name: round(value, 4) for name, value in one.items()} for one in rounds]
        return shown | {"errors": self.errors, "missing": self.missing}


@dataclass(frozen=True, kw_only=True)
class Group:
    """All proxies with one work.

    Attributes:
        work: its name.
        title: for people.
        connections: that callers held at a time.
        series: one each.
    """

    work: str
    title: str
    connections: int
    series: list[Series]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        head = {"work": self.work, "title": self.title, "connections": self.connections}
        return head | {"series": [one.as_json() for one in self.series]}


def ratio(series: Series, reference: Series) -> float:
    """How often the CPU time of the reference fits into that of the other, by their medians."""
    return series.median("cpu") / reference.median("cpu")


def table(groups: Iterable[Group]) -> Iterator[str]:
    """Lines for a terminal."""
    for group in groups:
        yield ""
        yield f"{group.title} · {group.connections} connections"
        yield (
            f"  {'':<30} {'CPU µs/request':>14} {'least to most':>17} {'ratio':>7}"
            f" {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8} {'busy':>5} {'others':>6}"
        )
        reference = next((one for one in group.series if one.peer == OURS and one.rounds), None)
        for one in group.series:
            yield from _row(one, reference)


def _row(one: Series, reference: Series | None) -> Iterator[str]:
    if one.missing:
        yield f"  {one.peer:<30} MISSING: {one.missing}"
    if one.rounds:
        least, most = one.spread("cpu")
        spread = f"{least:,.1f} to {most:,.1f}"
        times = f"{ratio(one, reference):.2f}" if reference else ""
        yield (
            f"  {one.peer:<30} {one.median('cpu'):>14,.1f} {spread:>17} {times:>7}"
            f" {one.median('rate'):>11,.0f} {one.median('p50'):>8.2f} {one.median('p99'):>8.2f}"
            f" {one.median('busy'):>5.0%} {one.median('others'):>6.0%}"
        )
    for text in sorted(set(one.errors)):
        count = f"{one.errors.count(text)} of {len(one.errors) + len(one.rounds)} rounds failed"
        yield f"  {one.peer:<30} {count}: {text}"
