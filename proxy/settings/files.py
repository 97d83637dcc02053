"""Files that are read again while the proxy runs, which is not to wait for what never comes."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_NO_FILE = (
    "it is no regular file now (a pipe, a terminal), and is read again while the proxy runs, which "
    "waits for none; put a regular file there, or start the proxy anew if it came by a pipe before"
)


def open_file(path: str | Path, *, waits: bool) -> BinaryIO:
    """Open a file to be read.

    Args:
        path: of the file.
        waits: whether it may be a pipe or a terminal, as `--config <(…)` is at start. Otherwise
            whoever reads it would wait for its writer, and with it a thread and the end of the
            process; and of what was read once it is empty.

    Raises:
        OSError: it cannot be had; or it may not be waited for, and would have to be.
        ValueError: no file can have that name.
    """
    if waits:
        return Path(path).open("rb")
    # Without O_NONBLOCK the opening itself waits for a writer (fifo(7)).
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    if (problem := _why_not(descriptor)) is not None:
        os.close(descriptor)
        raise problem
    return os.fdopen(descriptor, "rb")


def _why_not(descriptor: int) -> OSError | None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    # /dev/null may mean that there is none.
    if stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not os.isatty(descriptor)):
        return None
    return OSError(errno.EINVAL, _NO_FILE)
