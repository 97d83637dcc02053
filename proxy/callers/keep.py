"""What the doors of a house need kept: the signing key, made once and the same after a restart."""

import os
import secrets
from pathlib import Path

_FILE = "signing.key"


def signing_key(folder: Path) -> str:
    """The signing key kept in a folder; made if it is not there.

    Several processes may ask at once: all get the same.

    Raises:
        OSError: it can be neither read nor kept.
        ValueError: the file holds something else.
    """
    path = folder / _FILE
    try:
        return _read(path)
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = folder / f".{_FILE}.{secrets.token_hex(8)}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(fresh)
    except FileExistsError:  # another process was faster
        pass
    finally:
        fresh.unlink()
    return _read(path)


def _read(path: Path) -> str:
    if path.stat().st_mode & 0o007:
        raise ValueError(f"{path} is open to every user; remove it and a new one is made")
    text = path.read_text("utf-8").strip()
    if len(text) < 32:
        raise ValueError(f"{path} holds no signing key; remove it and a new one is made")
    return text
