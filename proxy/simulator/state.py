"""The state file: what the simulator remembers beyond its own end."""

import fcntl
import json
import os
import tempfile
from pathlib import Path
from typing import Any

_VERSION = 1


class StateUnusable(Exception):
    """A state file cannot be used; the text says why and what to do."""


class StateFile:
    """A state on disk, for one process at a time.

    Args:
        path: the file; a symbolic link is followed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._lock: int | None = None

    def __str__(self) -> str:
        """The file's name."""
        return str(self._path)

    def claim(self) -> None:
        """Have it for oneself until `release`, or the end of the process.

        Raises:
            StateUnusable: another process has it, or its folder cannot be written.
        """
        if self._lock is not None:
            return
        if self._path.is_dir():
            raise StateUnusable(f"{self} cannot be read: Is a directory")
        beside = self._path.with_name(f"{self._path.name}.lock")
        try:
            self._lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            taken = isinstance(error, BlockingIOError)
            self.release()
            why = (
                "is in use by another simulator" if taken else f"cannot be locked: {error.strerror}"
            )
            raise StateUnusable(f"{self} {why}") from None

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> dict[str, Any] | None:
        """What was kept; None if there is no file yet.

        Raises:
            StateUnusable: it cannot be read, or is something else.
        """
        try:
            state = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateUnusable(f"{self} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise StateUnusable(f"{self} is no state of the simulator; move it away") from None
        if not isinstance(state, dict) or state.get("version") != _VERSION:
            raise StateUnusable(f"{self} is no state of this version's simulator; move it away")
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Keep a state: whole or not at all, readable by its owner only.

        Raises:
            StateUnusable: it cannot be written.
        """
        data = json.dumps({"version": _VERSION, **state}, separators=(",", ":")).encode()
        draft = ""
        try:
            descriptor, draft = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            Path(draft).replace(self._path)
        except OSError as error:
            if draft:
                Path(draft).unlink(missing_ok=True)
            raise StateUnusable(f"{self} cannot be written: {error.strerror}") from None
