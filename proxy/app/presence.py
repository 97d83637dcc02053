"""That a proxy runs with a state directory: whoever would log in beside it has to know."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

_FILE = "running"  # locked while one runs; in it, where its operators ask
_TRIES, _PAUSE = 1000, 0.001


@contextlib.contextmanager
def present(folder: Path, *, admin: str) -> Iterator[None]:
    """Be seen, by as many as run with it; where nothing can be written, nobody is.

    Args:
        folder: the state directory.
        admin: the admin listener.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, file)
            for _ in range(_TRIES):
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:  # somebody looks, which takes a moment
                    time.sleep(_PAUSE)
                else:
                    break
            os.truncate(file, 0)
            os.pwrite(file, admin.encode(), 0)
        yield


def who_is_present(folder: Path) -> str | None:
    """The admin listener of a proxy that runs with this state directory; None if none does."""
    try:
        file = os.open(folder / _FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(file, 1000, 0).decode(errors="replace")
    except OSError:
        return None
    finally:
        os.close(file)
    return None
