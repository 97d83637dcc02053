"""Identifiers that are the same for the same seed, and whose state is one number."""

import hashlib
import uuid


class Ids:
    """A source of identifiers: the nth one depends on the seed and n alone.

    Args:
        seed: which sequence.
        purpose: keeps sequences of one seed apart.

    Attributes:
        count: how many have been given; set it to go on where another left off.
    """

    def __init__(self, seed: int, *, purpose: str) -> None:
        self._prefix = f"{seed}:{purpose}:"
        self.count = 0

    def octets(self, size: int) -> bytes:
        """The next `size` bytes."""
        self.count += 1
        return hashlib.shake_256(f"{self._prefix}{self.count}".encode()).digest(size)

    def uuid(self) -> str:
        """The next one in the form of a random UUID, 36 characters."""
        return str(uuid.UUID(bytes=self.octets(16), version=4))

    def digits(self, size: int) -> str:
        """The next one as `size` decimal digits."""
        return f"{int.from_bytes(self.octets(size)) % 10**size:0{size}}"
