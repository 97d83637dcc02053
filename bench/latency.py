"""What a proxy adds to the latency of going directly, at half of what it can take."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import environment
from load import LoadFailed
from ours import ours
from peers import PEERS
from stage import PROBE, Stage, Standing, ask
from works import GET, RENEWING

MARKS = ("p50", "p99", "p999")
_COMPARED = ("envoy", "clientsession-no-log")
_CLIENT = Path(__file__).parent / "paced.py"


@dataclass(frozen=True, kw_only=True)
class Paced:
    """A proxy, and the way without it, at one rate.

    Attributes:
        peer: its name.
        rate: requests a second.
        through, directly: percentiles in milliseconds, of each round.
        errors: of rounds that failed.
    """

    peer: str
    rate: float
    through: list[dict[str, float]] = field(default_factory=list)
    directly: list[dict[str, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def median(self, way: str, mark: str) -> float:
        """Of a percentile, over the rounds of `through` or `directly`."""
        return statistics.median(one[mark] for one in getattr(self, way))

    def as_json(self) -> dict[str, Any]:
        """Medians, and every round."""
        shown: dict[str, Any] = {"peer": self.peer, "rate": round(self.rate)}
        for way in ("through", "directly"):
            rounds = getattr(self, way)
            if rounds:
                shown[way] = {mark: round(self.median(way, mark), 4) for mark in MARKS}
            shown[f"{way}_rounds"] = rounds
        return shown | {"errors": self.errors}


def measure(stage: Stage, *, only: list[str], rounds: int, seconds: int) -> list[Paced]:
    """Ours at rest, ours while its token is renewed, and the peers that are compared.

    Raises:
        LoadFailed: ours does not stand the load that tells its rate.
    """
    resting = ours()
    wanted = [one for one in PEERS if one.name in _COMPARED and one.name in only]
    peers = [one for one in (resting, RENEWING, *wanted) if not stage.absent(one, GET)]
    rates: dict[str, float] = {}
    for peer in peers:
        most = stage.measure(peer, GET, connections=GET.connections, seconds=2).rate
        rates[peer.name] = most / 2
    rates[RENEWING.name] = rates[resting.name]  # the one differs from the other in nothing else
    found = [Paced(peer=one.name, rate=rates[one.name]) for one in peers]
    for _ in range(rounds):
        for peer, paced in zip(peers, found, strict=True):
            up = stage.standing(peer, GET)
            token = _token(up)
            try:
                through = _ask_for(stage, up.port, up.headers, paced.rate, seconds)
                directly = _ask_for(stage, stage.origin.port, up.headers, paced.rate, seconds)
            except LoadFailed as error:
                paced.errors.append(str(error))
                continue
            if peer is RENEWING and _token(up) == token:
                paced.errors.append("the token was not renewed")
                continue
            paced.through.append(through)
            paced.directly.append(directly)
    return found


def _token(up: Standing) -> str:
    """What the origin gets from this proxy."""
    ((_, body),) = ask(up, [("GET", PROBE, 0)])
    return json.loads(body)["authorization"]


def _ask_for(
    stage: Stage, port: int, headers: tuple[str, ...], rate: float, seconds: int
) -> dict[str, float]:
    asked = {"port": port, "path": GET.path, "headers": headers, "rate": rate, "seconds": seconds}
    command = ["taskset", "--cpu-list", ",".join(map(str, stage.cores.load)), sys.executable]
    done = subprocess.run(
        [*command, str(_CLIENT), json.dumps(asked)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=seconds + 60,
        check=False,
    )
    said = json.loads(done.stdout or "{}")
    if wrong := said.get("error") or done.stderr.strip()[-200:]:
        raise LoadFailed(wrong)
    return {mark: said[mark] for mark in MARKS}


def table(found: list[Paced]) -> Iterator[str]:
    """Lines for a terminal."""
    yield ""
    yield "latency in ms at half of the most that each takes (small GET, open loop), and what is added"
    head = "".join(f" {mark:>9} {'added':>9}" for mark in ("p50", "p99", "p99.9"))
    yield f"  {'':<30} {'requests/s':>11}{head}"
    for one in found:
        if one.through:
            cells = ""
            for mark in MARKS:
                through = one.median("through", mark)
                cells += f" {through:>9.3f} {through - one.median('directly', mark):>+9.3f}"
            yield f"  {one.peer:<30} {one.rate:>11,.0f}{cells}"
        for text in sorted(set(one.errors)):
            yield f"  {one.peer:<30} {one.errors.count(text)} rounds failed: {text}"
