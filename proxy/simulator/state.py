"""The state file: what the simulator remembers beyond its own end."""

import json
import os
from pathlib import Path
from typing import Any

_VERSION = 1


class StateUnusable(Exception):
    """A state file cannot be used; the text says why and what to do."""


def read_state(path: Path) -> dict[str, Any] | None:
    """What was kept; None if there is no file yet.

    Raises:
        StateUnusable: it cannot be read, or is something else.
    """
    try:
        state = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateUnusable(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise StateUnusable(f"{path} is no state of the simulator; move it away") from None
    if not isinstance(state, dict) or state.get("version") != _VERSION:
        raise StateUnusable(f"{path} is no state of this version's simulator; move it away")
    return state


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Keep a state: whole or not at all, readable by its owner only.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump({"version": _VERSION, **state}, file, separators=(",", ":"))
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
