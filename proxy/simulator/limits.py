"""How much Nomba takes: requests in a second, transfers to one recipient in a minute (D)."""

from collections import deque
from collections.abc import Callable

from proxy.simulator.messages import Headers, Reply, failure
from proxy.simulator.switches import Switches

_MINUTE = 60.0


def too_many() -> Reply:
    """HTTP 429 (D)."""
    return failure(429, description="Too many requests")


class Limits:
    """Counts and says no.

    Args:
        switches: the limits, read anew at each call.
        clock: unix seconds.
    """

    def __init__(self, switches: Switches, *, clock: Callable[[], float]) -> None:
        self._switches = switches
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._second, self._used = 0, 0
        self._transfers: dict[str, deque[float]] = {}

    def take(self) -> bool:
        """Count one request; whether it is within the limit of this second."""
        self._turn()
        self._used += 1
        return not self._switches.rate_limit or self._used <= self._switches.rate_limit

    def headers(self) -> Headers:
        """The rate headers that every reply has (D)."""
        self._turn()
        limit = self._switches.rate_limit or 40
        return (
            ("X-Rate-Limit-Limit", str(limit)),
            ("X-Rate-Limit-Remaining", str(max(0, limit - self._used))),
            ("X-Rate-Limit-Window", "1s"),
        )

    def may_receive(self, recipient: str) -> bool:
        """Whether a recipient may get one more transfer in this minute."""
        times = self._transfers.get(recipient, deque())
        while times and times[0] <= self._clock() - _MINUTE:
            times.popleft()
        return not self._switches.recipient_limit or len(times) < self._switches.recipient_limit

    def received(self, recipient: str) -> None:
        """Count a transfer."""
        self._transfers.setdefault(recipient, deque()).append(self._clock())

    def _turn(self) -> None:
        if int(self._clock()) != self._second:
            self._second, self._used = int(self._clock()), 0
