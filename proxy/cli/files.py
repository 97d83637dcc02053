"""Files that are replaced at once."""

import os
import tempfile
from pathlib import Path


def replace(path: Path, data: bytes, *, mode: int) -> None:
    """Replace a file, or make it: whoever reads it sees the old one or the new one, whole.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    descriptor, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(fresh).chmod(mode)
        Path(fresh).replace(path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
