"""Fail if a request costs too much CPU time, as a ratio to the obvious proxy in the same run.

    make bench-check

The yardstick is bench/baseline.py without its access log, on the same event loop; ours has all that
is usual on. A small GET, rounds interleaved, and never a time: a machine may be slow or busy.
"""

import statistics
import sys

from lab import CannotMeasure, interruptible
from load import LoadFailed
from ours import ours
from peers import PEERS
from stage import Stage
from works import GET

# The largest ratio that passes: what was measured (0.38 to 0.42), and a third for what else machines do.
LIMIT = 0.55
STARTS = 3  # of both: one process is dearer than the next by chance, by how it lies in memory
ROUNDS = 3  # of each start
YARDSTICK = "clientsession-no-log"


def main() -> int:
    """The exit code."""
    pairs: list[tuple[float, float]] = []
    try:
        with interruptible():
            for _ in range(STARTS):
                with Stage() as stage:
                    pairs += measure(stage)
    except (CannotMeasure, LoadFailed) as error:
        print(f"bench-check: NOT MEASURED: {error}", file=sys.stderr)
        return 1
    passed, text = verdict(pairs, limit=LIMIT)
    print(f"bench-check: {text}", file=sys.stdout if passed else sys.stderr)
    return 0 if passed else 1


def measure(stage: Stage) -> list[tuple[float, float]]:
    """CPU time per request of ours and of the yardstick, a pair a round.

    Raises:
        CannotMeasure: one of them does not start.
        LoadFailed: one of them does not answer everything well.
    """
    both = [ours(), next(one for one in PEERS if one.name == YARDSTICK)]
    for peer in both:
        if why := stage.absent(peer, GET):
            raise CannotMeasure(f"{peer.name}: {why}")
    rounds = []
    for number in range(ROUNDS):
        # Each goes first in every second round.
        order = both if number % 2 == 0 else both[::-1]
        used = {
            peer.name: stage.measure(peer, GET, connections=GET.connections, seconds=1).cpu
            for peer in order
        }
        rounds.append((used[both[0].name], used[both[1].name]))
    return rounds


def verdict(rounds: list[tuple[float, float]], *, limit: float) -> tuple[bool, str]:
    """Whether the ratio is within the limit, and that in words.

    Args:
        rounds: CPU time per request of ours and of the yardstick, in microseconds.
        limit: of the median of their ratios.
    """
    ratios = sorted(mine / theirs for mine, theirs in rounds)
    ratio = statistics.median(ratios)
    mine, theirs = (statistics.median(side) for side in zip(*rounds, strict=True))
    passed = ratio <= limit
    text = (
        f"a request costs {ratio:.2f} of what it costs the plain ClientSession proxy "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(rounds)} rounds; "
        f"{mine:.0f} and {theirs:.0f} µs of CPU time)"
    )
    if passed:
        return True, f"{text}; the limit is {limit:.2f}"
    return False, (
        f"{text}: MORE THAN THE LIMIT of {limit:.2f}. Something on the way of a request has become "
        f"dearer; `make bench ARGS='--work get'` says more. If that has to be, set LIMIT in "
        f"bench/check.py and say why."
    )


if __name__ == "__main__":
    sys.exit(main())
