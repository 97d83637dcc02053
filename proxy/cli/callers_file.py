"""The callers file, as `nomba-proxy caller` changes it: locked, and replaced as a whole."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT

from proxy.cli.files import replace
from proxy.settings import Settings, SettingsError

_HEAD = "The callers of nomba-proxy, kept by `nomba-proxy caller`; a running proxy sees changes."


class Refused(Exception):
    """The command cannot be carried out; the text says why and what to do."""


@contextlib.contextmanager
def edited(settings: Settings, *, checked: bool = False) -> Iterator[Any]:
    """The callers file, to be changed and written whole.

    Args:
        settings: say where it is.
        checked: undo the change if it leaves a file that cannot be used. A caller can be
            disabled whatever else is wrong with the file.
    """
    path = settings.callers_file.resolve()  # a link stays one
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(path):
            document = _read(path)
            yield document
            _write(path, tomlkit.dumps(document), settings if checked else None)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(path.read_text("utf-8"))
    except FileNotFoundError:
        document = tomlkit.document()
        document.add(tomlkit.comment(_HEAD))
        return document
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is no valid TOML: {error}") from None


def _write(path: Path, text: str, settings: Settings | None) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    before = path.read_bytes() if path.exists() else None
    replace(path, text.encode(), mode=mode)
    if settings is None:
        return
    try:
        settings.read_callers()
    except SettingsError:
        if before is None:
            path.unlink()
        else:
            replace(path, before, mode=mode)
        raise


def find_entry(document: Any, name: str, settings: Settings) -> Any:
    """The entry of a caller in the file.

    Raises:
        Refused: there is none.
    """
    entries = document.get("caller", [])
    for entry in entries if isinstance(entries, AoT) else ():
        if entry.get("name") == name:
            return entry
    if any(one.name == name for one in settings.model.caller):
        raise Refused(f"caller {name} stands in the settings file; change it there")
    known = ", ".join(str(one.get("name")) for one in entries) or "none"
    raise Refused(f"there is no caller {name}; there are: {known}")
