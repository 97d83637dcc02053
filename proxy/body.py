"""Request bodies: held whole, in memory while they are small and on disk beyond, within a budget.

A body can be gone through again, so a request of any size can be replayed with flat memory.
A spooled body lives in a file without a name: it goes with its request, or with the process.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from proxy.errors import BodyTooLarge, Overloaded

_PART = 256 * 1024


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What a request body may cost.

    Attributes:
        size: bytes of one body.
        memory: bytes of it that are held in memory; a larger one is spooled.
        stall: seconds without a byte of a body that is still to come.
        total: seconds the whole body may take.
        spool_dir: where larger ones go; None for the system's temporary folder.
        memory_budget, spool_budget: bytes of all bodies together.
    """

    size: int = 64 * 1024 * 1024
    memory: int = 1024 * 1024
    stall: float = 30.0
    total: float = 300.0
    spool_dir: str | None = None
    memory_budget: int = 256 * 1024 * 1024
    spool_budget: int = 2 * 1024 * 1024 * 1024


class Bodies:
    """Makes the bodies of one listener, and knows what they take together.

    Args:
        limits: of each, and of all.

    Attributes:
        memory, spooled: bytes in use.
    """

    def __init__(self, limits: BodyLimits) -> None:
        self.limits = limits
        self.memory = 0
        self.spooled = 0

    def begin(self, size: int | None = None, *, most: int | None = None) -> "Body":
        """An empty body.

        Args:
            size: bytes that are announced, or None if nobody knows.
            most: bytes it may have, if that is less than everybody's limit.

        Raises:
            BodyTooLarge: more are announced than it may have.
        """
        limit = self.limits.size if most is None else min(most, self.limits.size)
        body = Body(self, limit=limit)
        body.check(size or 0)
        return body


class Body:
    """One body; going through it gives its parts, as often as wanted.

    Args:
        bodies: whose budget it uses.
        limit: bytes it may have.

    Attributes:
        size: bytes so far.
    """

    __slots__ = ("_bodies", "_file", "_limit", "_limits", "_memory", "_spooled", "size")

    def __init__(self, bodies: Bodies, *, limit: int) -> None:
        self._bodies = bodies
        self._limit = limit
        self._limits = bodies.limits
        # Most come in one piece, which is kept as it is.
        self._memory: bytes | bytearray = b""
        self._file: IO[bytes] | None = None
        self._spooled = 0
        self.size = 0

    def add(self, data: bytes) -> None:
        """Append what has come.

        Raises:
            BodyTooLarge: the body is larger than one may be.
            Overloaded: all together are, or the disk is full.
        """
        size = self.size + len(data)
        self.check(size)
        if self._file is None and size <= self._limits.memory:
            self._reserve_memory(len(data))
            if not self._memory:
                self._memory = data
            elif isinstance(self._memory, bytearray):
                self._memory += data
            else:
                self._memory = bytearray().join((self._memory, data))
        else:
            self._spool(data)
        self.size = size

    def check(self, size: int) -> None:
        """Refuse more bytes than it may have.

        Raises:
            BodyTooLarge: it would.
        """
        if size > self._limit:
            raise BodyTooLarge(
                f"The body is larger than {self._limit} bytes.",
                hint="Nomba's calls are small JSON; body.limit, or body_limit of a caller, "
                "raises the limit.",
                close=True,
            )

    def __iter__(self) -> Iterator[bytes]:
        """The parts, none of them empty."""
        if self._file is not None:
            return self._read(self._file.fileno())
        return iter((bytes(self._memory),) if self._memory else ())

    @staticmethod
    def _read(descriptor: int) -> Iterator[bytes]:
        at = 0
        while part := os.pread(descriptor, _PART, at):
            at += len(part)
            yield part

    def close(self) -> None:
        """Let go of it; safe to call twice."""
        self._bodies.memory -= len(self._memory)
        self._bodies.spooled -= self._spooled
        self._memory, self._spooled, self.size = b"", 0, 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _reserve_memory(self, more: int) -> None:
        if self._bodies.memory + more > self._limits.memory_budget:
            raise _overloaded("body.memory_budget")
        self._bodies.memory += more

    def _spool(self, data: bytes) -> None:
        """Go on in a file; what is in memory goes there first."""
        more = len(self._memory) + len(data)
        if self._bodies.spooled + more > self._limits.spool_budget:
            raise _overloaded("body.spool_budget")
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(  # noqa: SIM115 - `close` closes it
                    dir=self._limits.spool_dir, buffering=0
                )
            _write(self._file, b"".join((self._memory, data)))
        except OSError as error:
            raise _overloaded(f"body.spool_dir ({error.strerror})") from None
        self._bodies.memory -= len(self._memory)
        self._memory = b""
        self._bodies.spooled += more
        self._spooled += more


def _write(file: IO[bytes], data: bytes | bytearray) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _overloaded(what: str) -> Overloaded:
    return Overloaded(
        "The proxy holds as many request bodies as it takes on; nothing was sent.",
        hint=f"Send fewer or smaller ones at a time. The limit is {what}.",
        retry_after=1,
        close=True,
    )
