"""Phantom tokens that ended before their time, remembered until they would have ended anyway.

Kept in a file that every worker appends to and looks at again when it has changed, so that
a revocation outlives a restart and holds in every process of this machine.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from proxy.callers.remembered import LIMIT, Remembered

_LOOK_EVERY = 1.0  # seconds
_LONGEST = 19  # digits of a time
_LINE = 64  # bytes that a token may take in the file on average before it is cleared; it takes 28


class Revocations(Protocol):
    """Knows which phantom tokens ended early."""

    def __contains__(self, token_id: str) -> bool:
        """Whether a token was revoked."""

    def add(self, token_id: str, *, expires: int) -> None:
        """Revoke a token, which need not be remembered after `expires` (epoch seconds).

        Raises:
            OSError: it holds in this process only.
        """

    async def settled(self) -> None:
        """Wait until it is known what was revoked before."""


class Revoked:
    """The ids of revoked tokens.

    Args:
        path: of the file; it and its folder are made when something is revoked.
        wall: epoch seconds.
        monotonic: seconds.
        limit: how many are remembered.
    """

    def __init__(
        self,
        path: Path,
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        limit: int = LIMIT,
    ) -> None:
        self._path = path
        self._wall = wall
        self._monotonic = monotonic
        self._limit = limit
        self._known = Remembered(limit)
        self._unkept: set[str] = set()
        self._seen: tuple[int, int, int] | None = None
        self._looked = monotonic()
        with contextlib.suppress(OSError):
            self._forget_what_is_over()
        self._look()

    def __contains__(self, token_id: str) -> bool:
        """Whether a token was revoked, by this process or, a second ago, by another."""
        return token_id in self.entries()

    async def settled(self) -> None:
        """As `Revocations`: the file was read in the beginning."""

    def entries(self) -> Mapping[str, int]:
        """What is remembered, and until when."""
        if self._monotonic() - self._looked >= _LOOK_EVERY:
            self._look()
        return self._known.ends

    def add(self, token_id: str, *, expires: int) -> None:
        """Revoke a token.

        Args:
            token_id: its id.
            expires: epoch seconds after which it need not be remembered.

        Raises:
            OSError: it holds in this process only: the file cannot be written.
        """
        if token_id in self._known.ends and token_id not in self._unkept:
            return
        self._known.learn({token_id: expires}, now=self._wall())
        if len(self._unkept) > self._limit:
            self._unkept.intersection_update(self._known.ends)
        self._unkept.add(token_id)
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, f"{token_id} {expires}\n".encode())
                size = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
        self._unkept.discard(token_id)
        if size > self._limit * _LINE:
            with contextlib.suppress(OSError):
                self._forget_what_is_over()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the file: the lock is another one, because the file may be replaced."""
        lock = self._path.with_name(f".{self._path.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _look(self) -> None:
        """Read the file if it is another one than before."""
        self._looked = self._monotonic()
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                seen = found.st_ino, found.st_mtime_ns, found.st_size
                if seen == self._seen:
                    return
                lines = file.read()
        except OSError:  # not there yet, or not to be read: what is known goes on
            return
        self._seen = seen
        now = self._wall()
        self._known.learn(dict(_entries(lines[: lines.rfind(b"\n") + 1])), now=now)
        self._known.forget(now)

    def _forget_what_is_over(self) -> None:
        if not self._path.exists():
            return
        now = self._wall()
        with self._locked():
            entries = list(_entries(self._path.read_bytes()))
            living = Remembered(self._limit)
            living.learn(dict(entries), now=now)
            living.forget(now)
            if len(living.ends) == len(entries):
                return
            fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            fresh.write_text("".join(f"{name} {end}\n" for name, end in living.ends.items()))
            fresh.chmod(0o600)
            fresh.replace(self._path)


def _entries(lines: bytes) -> Iterator[tuple[str, int]]:
    for line in lines.decode("ascii", "replace").splitlines():
        token_id, _, expires = line.partition(" ")
        if expires.isdecimal() and len(expires) <= _LONGEST:
            yield token_id, int(expires)
