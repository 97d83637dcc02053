"""What the workers count together, so that a caller's limits are those of all of them.

Memory that is inherited by `fork`, without a lock, which a killed holder would keep for ever: two
workers that count at the same moment can let one request more through.
"""

import mmap
from hashlib import blake2b

from proxy.core.limits import Tally

_CALLERS = 8192  # there ever were, by name


class Counts:
    """The counts of all callers, in memory of all processes that are forked from this one.

    Args:
        columns: processes that may count at the same time.
    """

    def __init__(self, columns: int) -> None:
        words = 3 * 8 * _CALLERS
        memory = memoryview(mmap.mmap(-1, words + 2 * columns * _CALLERS))
        numbers = memory[:words]
        self._names = numbers[: 8 * _CALLERS].cast("Q")
        self._numbers = numbers[8 * _CALLERS :].cast("d")  # level and filled, of each
        self._counts = memory[words:].cast("H")  # of all callers in the first column, and so on

    def tally(self, name: str, *, column: int) -> Tally:
        """A caller's, for the process that counts in a column; its own if there is no room."""
        number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) or 1
        for step in range(_CALLERS):
            at = (number + step) % _CALLERS
            if self._names[at] in {0, number}:
                self._names[at] = number
                numbers = self._numbers[2 * at : 2 * at + 2]
                return SharedTally(numbers, self._counts[at::_CALLERS], column=column)
        return Tally()

    def forget(self, column: int) -> None:
        """The process that counted there has ended, and with it its requests."""
        begin = column * _CALLERS
        self._counts[begin : begin + _CALLERS] = memoryview(bytes(2 * _CALLERS)).cast("H")


class SharedTally(Tally):
    """As `Tally`, in memory of `Counts`."""

    __slots__ = ("_column", "_counts", "_numbers")

    def __init__(
        self, numbers: "memoryview[float]", counts: "memoryview[int]", *, column: int
    ) -> None:
        self._numbers = numbers
        self._counts = counts
        self._column = column

    @property
    def level(self) -> float:
        """As `Tally`."""
        return self._numbers[0]

    @level.setter
    def level(self, value: float) -> None:
        self._numbers[0] = value

    @property
    def filled(self) -> float:
        """As `Tally`."""
        return self._numbers[1]

    @filled.setter
    def filled(self, value: float) -> None:
        self._numbers[1] = value

    @property
    def under_way(self) -> int:
        """As `Tally`."""
        return self._counts[self._column]

    @under_way.setter
    def under_way(self, value: int) -> None:
        self._counts[self._column] = max(0, min(value, 0xFFFF))

    @property
    def elsewhere(self) -> int:
        """As `Tally`."""
        return sum(self._counts) - self.under_way
