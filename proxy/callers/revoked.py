"""Phantom tokens that ended before their time, remembered until they would have ended anyway.

Kept in a file that every worker appends to and looks at again when it has changed, so that
a revocation outlives a restart and holds in every process of this machine.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_LOOK_EVERY = 1.0  # seconds
_LONGEST = 19  # digits of a time


class Revoked:
    """The ids of revoked tokens.

    Args:
        path: of the file; it and its folder are made when something is revoked.
        wall: epoch seconds.
        monotonic: seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._path = path
        self._wall = wall
        self._monotonic = monotonic
        self._ids: dict[str, int] = {}
        self._unkept: set[str] = set()
        self._seen: tuple[int, int, int] | None = None
        self._looked = monotonic()
        with contextlib.suppress(OSError):
            self._forget_what_is_over()
        self._look()

    def __contains__(self, token_id: str) -> bool:
        """Whether a token was revoked, by this process or, a second ago, by another."""
        if self._monotonic() - self._looked >= _LOOK_EVERY:
            self._look()
        return token_id in self._ids

    def add(self, token_id: str, *, expires: int) -> None:
        """Revoke a token.

        Args:
            token_id: its id.
            expires: epoch seconds after which it need not be remembered.

        Raises:
            OSError: it holds in this process only: the file cannot be written.
        """
        if token_id in self._ids and token_id not in self._unkept:
            return
        self._ids[token_id] = expires
        self._unkept.add(token_id)
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, f"{token_id} {expires}\n".encode())
            finally:
                os.close(descriptor)
        self._unkept.discard(token_id)

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
        known = self._ids | dict(_entries(lines[: lines.rfind(b"\n") + 1]))
        self._ids = {name: end for name, end in known.items() if end >= now}

    def _forget_what_is_over(self) -> None:
        if not self._path.exists():
            return
        now = self._wall()
        with self._locked():
            entries = list(_entries(self._path.read_bytes()))
            living = [(name, end) for name, end in entries if end >= now]
            if len(living) == len(entries):
                return
            fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            fresh.write_text("".join(f"{name} {end}\n" for name, end in living))
            fresh.chmod(0o600)
            fresh.replace(self._path)


def _entries(lines: bytes) -> Iterator[tuple[str, int]]:
    for line in lines.decode("ascii", "replace").splitlines():
        token_id, _, expires = line.partition(" ")
        if expires.isdecimal() and len(expires) <= _LONGEST:
            yield token_id, int(expires)
