"""Phantom tokens that ended before their time, remembered until they would have ended anyway.

Kept in a file that every worker appends to and looks at again when it has grown, so that
a revocation outlives a restart and holds in every process of this machine.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

_LOOK_EVERY = 1.0  # seconds


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
        self._read = 0
        self._looked = monotonic()
        with contextlib.suppress(OSError):
            self._forget_all_if_over(path)
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
        self._ids[token_id] = expires
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, f"{token_id} {expires}\n".encode())
        finally:
            os.close(descriptor)

    def _look(self) -> None:
        """Read what has been appended since."""
        self._looked = self._monotonic()
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._read:
                    self._read = 0
                file.seek(self._read)
                lines = file.read()
        except OSError:  # not there yet, or not to be read: what is known goes on
            return
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode("ascii", "replace").splitlines():
            token_id, _, expires = line.partition(" ")
            if expires.isdigit():
                self._ids[token_id] = int(expires)

    def _forget_all_if_over(self, path: Path) -> None:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            ends = [line.split()[-1] for line in file.read().splitlines() if line.split()]
            if all(one.isdigit() and int(one) < self._wall() for one in ends):
                file.truncate(0)
