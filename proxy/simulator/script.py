"""What was asked for: the faults that wait for their requests, and requests held back."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from proxy.simulator.faults import Fault


class Hold:
    """Keeps requests to one path unanswered until released; a context that releases at its end.

    Attributes:
        path: the path held.
        before: hold before the work is done; False holds the finished reply.
        held: how many requests are being held now.
    """

    def __init__(self, path: str, *, before: bool) -> None:
        self.path = path
        self.before = before
        self.held = 0
        self._released = asyncio.Event()
        self._caught = asyncio.Event()

    def release(self) -> None:
        """Let the held requests go on, and hold no more."""
        self._released.set()

    async def caught(self, count: int = 1) -> None:
        """Wait until `count` requests are being held."""
        while self.held < count:
            await self._caught.wait()

    async def wait(self) -> None:
        """Be held: called by the simulator for a request."""
        if self._released.is_set():
            return
        self.held += 1
        self._caught.set()
        self._caught.clear()  # wakes everyone who waits now, and only those
        try:
            await self._released.wait()
        finally:
            self.held -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(slots=True)
class Waiting:
    """A fault that waits.

    Attributes:
        fault: as asked for.
        left: how often it is still due; None for always.
    """

    fault: Fault
    left: int | None


class Script:
    """The faults and holds asked for.

    Args:
        seed: the dice of faults with a probability fall the same way for the same seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng = random.Random(seed)  # noqa: S311 - these dice guard nothing
        self.waiting: list[Waiting] = []
        self._holds: list[Hold] = []

    def add(self, fault: Fault) -> None:
        """Append a fault; of several that match a request the oldest is taken."""
        self.waiting.append(Waiting(fault, fault.times))

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that a request gets, used up by asking."""
        if not self.waiting:
            return None
        return self._take(lambda one: one.drop != "accept" and one.matches(method, path))

    def take_connection(self) -> bool:
        """Whether a new connection is to be reset, used up by asking."""
        return self._take(lambda one: one.drop == "accept") is not None

    def _take(self, wanted: Callable[[Fault], bool]) -> Fault | None:
        for at, one in enumerate(self.waiting):
            if not wanted(one.fault):
                continue
            if one.fault.probability < 1 and self._rng.random() >= one.fault.probability:
                continue
            if one.left is not None:
                one.left -= 1
                if not one.left:
                    del self.waiting[at]
            return one.fault
        return None

    def hold(self, path: str, *, before: bool) -> Hold:
        """Hold requests to a path from now on."""
        hold = Hold(path, before=before)
        self._holds.append(hold)
        return hold

    async def pause(self, path: str, *, before: bool) -> None:
        """Wait for every hold on a path that is set at this point."""
        for hold in [h for h in self._holds if h.path == path and h.before == before]:
            await hold.wait()

    def clear(self) -> None:
        """Forget the faults, release the holds, and begin the dice anew."""
        self._rng = random.Random(self._seed)  # noqa: S311 - as above
        self.waiting.clear()
        for hold in self._holds:
            hold.release()
        self._holds.clear()
