"""How fast and how many at a time: a token bucket and a counter, with time as an argument."""

import math


class Tally:
    """What has been counted of one caller: by this process, unless a subclass shares it.

    Attributes:
        level, filled: of the bucket: how many may pass, and when that was so; 0 before the first.
        under_way: requests of this process.
    """

    __slots__ = ("filled", "level", "under_way")

    def __init__(self) -> None:
        self.level = self.filled = 0.0
        self.under_way = 0

    @property
    def elsewhere(self) -> int:
        """Requests under way in other processes."""
        return 0


class Limiter:
    """What one caller is let through.

    Args:
        rate: requests a second; 0 is no limit.
        burst: how many at once after a pause, at least 1.
        concurrent: requests at a time; 0 for no limit.
        now: seconds on a monotonic clock.
        tally: what has been counted already.
    """

    __slots__ = ("_limits", "_tally")

    def __init__(
        self, rate: float, burst: int, concurrent: int, *, now: float, tally: Tally | None = None
    ) -> None:
        self._tally = tally or Tally()
        self._limits = (rate, burst, concurrent)
        if not self._tally.filled:
            self._fill(now)

    def change(self, rate: float, burst: int, concurrent: int, *, now: float) -> None:
        """Other limits; what is under way still counts."""
        limits = (rate, burst, concurrent)
        if limits != self._limits:
            self._limits = limits
            self._fill(now)

    def enter(self, now: float) -> int:
        """Let a request in; 0, or the whole seconds after which to try again."""
        rate, _, concurrent = self._limits
        tally = self._tally
        if concurrent and tally.under_way + tally.elsewhere >= concurrent:
            return 1
        if rate and (wait := self._take(now)):
            return math.ceil(wait)
        tally.under_way += 1
        return 0

    def leave(self) -> None:
        """A request that was let in has ended."""
        self._tally.under_way -= 1

    def _fill(self, now: float) -> None:
        self._tally.level, self._tally.filled = float(self._limits[1]), now

    def _take(self, now: float) -> float:
        """Take one from the bucket; 0.0 if there was one, else the seconds until there is."""
        rate, burst, _ = self._limits
        tally = self._tally
        level = min(burst, tally.level + max(0.0, now - tally.filled) * rate)
        tally.filled = now
        if level >= 1.0:
            tally.level = level - 1.0
            return 0.0
        tally.level = level
        return (1.0 - level) / rate
