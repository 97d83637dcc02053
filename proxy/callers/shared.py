"""What the workers count together, so that a caller's limits are those of all of them.

Memory that is inherited by `fork`, without a lock, which a killed holder would keep for ever: two
workers that count at the same moment can let one request more through.
"""

import mmap
from hashlib import blake2b

from proxy.core.limits import Tally

_CALLERS = 1024
_NAME, _LEVEL, _FILLED, _WORDS = 0, 1, 2, 3  # of eight bytes each


class Counts:
    """The counts of all callers, in memory of all processes that are forked from this one.

    Args:
        columns: processes that may count at the same time.
    """

    def __init__(self, columns: int) -> None:
        self._size = 8 * _WORDS + 2 * columns + -2 * columns % 8
        self._memory = memoryview(mmap.mmap(-1, _CALLERS * self._size))

    def tally(self, name: str, *, column: int) -> Tally:
        """A caller's, for the process that counts in a column; its own if there is no room."""
        number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) or 1
        for at in range(_CALLERS):
            row = self._row((number + at) % _CALLERS)
            names = row[: 8 * _WORDS].cast("Q")
            if names[_NAME] in {0, number}:
                names[_NAME] = number
                return SharedTally(row, column=column)
        return Tally()

    def forget(self, column: int) -> None:
        """The process that counted there has ended, and with it its requests."""
        for at in range(_CALLERS):
            self._row(at)[8 * _WORDS :].cast("H")[column] = 0

    def _row(self, at: int) -> memoryview:
        return self._memory[at * self._size : (at + 1) * self._size]


class SharedTally(Tally):
    """As `Tally`, in a row of `Counts`."""

    __slots__ = ("_column", "_counts", "_numbers")

    def __init__(self, row: memoryview, *, column: int) -> None:
        self._numbers = row[: 8 * _WORDS].cast("d")
        self._counts = row[8 * _WORDS :].cast("H")
        self._column = column

    @property
    def level(self) -> float:
        """As `Tally`."""
        return self._numbers[_LEVEL]

    @level.setter
    def level(self, value: float) -> None:
        self._numbers[_LEVEL] = value

    @property
    def filled(self) -> float:
        """As `Tally`."""
        return self._numbers[_FILLED]

    @filled.setter
    def filled(self, value: float) -> None:
        self._numbers[_FILLED] = value

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
