"""How fast and how many at a time: a token bucket and a counter, with time as an argument."""

import math


class Bucket:
    """Lets `rate` requests a second through, and `burst` at once after a pause.

    Args:
        rate: requests a second, more than nothing.
        burst: how many at once, at least 1.
        now: seconds on a monotonic clock.
    """

    __slots__ = ("_burst", "_filled", "_level", "_rate")

    def __init__(self, rate: float, *, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = float(burst)
        self._filled = now

    def take(self, now: float) -> float:
        """Take one; 0.0 if there was one, else the seconds until there is."""
        self._level = min(self._burst, self._level + (now - self._filled) * self._rate)
        self._filled = now
        if self._level >= 1.0:
            self._level -= 1.0
            return 0.0
        return (1.0 - self._level) / self._rate


class Limiter:
    """What one caller is let through.

    Args:
        rate, burst: as for `Bucket`; a rate of 0 is no limit.
        concurrent: requests at a time; 0 for no limit.
        now: seconds on a monotonic clock.
    """

    __slots__ = ("_bucket", "_concurrent", "_limits", "_under_way")

    def __init__(self, rate: float, burst: int, concurrent: int, *, now: float) -> None:
        self._under_way = 0
        self.change(rate, burst, concurrent, now=now)

    def change(self, rate: float, burst: int, concurrent: int, *, now: float) -> None:
        """Other limits; what is under way still counts."""
        limits = (rate, burst, concurrent)
        if getattr(self, "_limits", None) == limits:
            return
        self._limits = limits
        self._bucket = Bucket(rate, burst=burst, now=now) if rate else None
        self._concurrent = concurrent

    def enter(self, now: float) -> int:
        """Let a request in; 0, or the whole seconds after which to try again."""
        if self._concurrent and self._under_way >= self._concurrent:
            return 1
        if self._bucket is not None and (wait := self._bucket.take(now)):
            return math.ceil(wait)
        self._under_way += 1
        return 0

    def leave(self) -> None:
        """A request that was let in has ended."""
        self._under_way -= 1
