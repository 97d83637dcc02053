"""What a proxy holds while it runs, and whether that grows."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import tree
from startup import memory

MIB = 1024 * 1024
_EVERY = 2.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look.

    Attributes:
        at: seconds since the run began.
        calm: whether all processes were there, and nothing was done to them at that moment.
        memory: PSS in bytes of each process; the supervisor's first.
        files: open descriptors of each.
        connections: of callers.
    """

    at: float
    calm: bool
    memory: tuple[int, ...]
    files: tuple[int, ...]
    connections: int


class Watch:
    """Looks every few seconds.

    Args:
        pid: of the supervisor.
        calm: whether nothing is being done to the processes.
        connections: how many callers' there are.
        began: when the run did.
    """

    def __init__(
        self, pid: int, *, calm: Callable[[], bool], connections: Callable[[], int], began: float
    ) -> None:
        self._pid, self._calm, self._connections, self._began = pid, calm, connections, began
        self.samples: list[Sample] = []

    async def run(self, *, workers: int) -> None:
        """Look until cancelled."""
        while True:
            before = self._calm()
            pids = [self._pid, *sorted(tree(self._pid) - {self._pid})]
            with contextlib.suppress(OSError):  # a process has ended meanwhile
                self.samples.append(
                    Sample(
                        at=time.monotonic() - self._began,
                        calm=before and len(pids) == workers + 1,
                        memory=tuple(memory(one)["pss"] for one in pids),
                        files=tuple(len(list(Path(f"/proc/{one}/fd").iterdir())) for one in pids),
                        connections=self._connections(),
                    )
                )
            await asyncio.sleep(_EVERY)


def growth(points: Sequence[tuple[float, float]]) -> float:
    """By how much a straight line through the points rises from the first to the last.

    Least squares, so that a single odd point does not decide.
    """
    if len(points) < 3:
        return 0.0
    middle = sum(at for at, _ in points) / len(points)
    mean = sum(value for _, value in points) / len(points)
    spread = sum((at - middle) ** 2 for at, _ in points)
    slope = sum((at - middle) * (value - mean) for at, value in points) / spread
    return slope * (points[-1][0] - points[0][0])
