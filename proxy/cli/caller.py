"""`nomba-proxy caller add|list|rotate|enable|disable|remove`: keeps the callers file.

A running proxy takes the file over within a second or two; nothing has to be restarted.
"""

import argparse
import contextlib
import fcntl
import json
import math
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT

from proxy.core.caller import KEY_PREFIX, Caller, Digest
from proxy.settings import Settings, SettingsError

_HEAD = "The callers of nomba-proxy, kept by `nomba-proxy caller`; a running proxy sees changes."
_DAYS = re.compile(r"(\d{1,5})d")
_TWO = "its old key stays valid until `nomba-proxy caller rotate --finish`"


class _Refused(Exception):
    """The command cannot be carried out; the text says why and what to do."""


def caller(settings: Settings, arguments: argparse.Namespace) -> int:
    """Carry out a `caller` command; the exit code."""
    actions = {
        "add": _add,
        "list": _list,
        "rotate": _rotate,
        "enable": _enable,
        "disable": _disable,
        "remove": _remove,
    }
    try:
        return actions[arguments.action](settings, arguments)
    except _Refused as error:
        print(f"nomba-proxy: {error}", file=sys.stderr)
        return 1
    except SettingsError as error:
        for problem in error.problems:
            print(f"nomba-proxy: {problem}", file=sys.stderr)
        return 2


# -- the commands ------------------------------------------------------------------------


def _add(settings: Settings, arguments: argparse.Namespace) -> int:
    name = arguments.name
    anonymous = _ask(settings, arguments)
    secret, digest = _new_secret(name)
    with _edited(settings) as document:
        if any(one.name == name for one in settings.read_callers().callers):
            raise _Refused(f"there is a caller {name} already; `caller rotate` makes a new key")
        if anonymous is not None:
            document["anonymous"] = anonymous
        entry = tomlkit.table()
        entry["name"] = name
        entry["secrets"] = [str(digest)]
        for key, value in _options(arguments).items():
            entry[key] = value
        callers = document.setdefault("caller", tomlkit.aot())
        if not isinstance(callers, AoT):
            raise _Refused(f"{settings.callers_file}: `caller` is no list of tables")
        callers.append(entry)
    _told(settings, arguments, {"caller": name, "key": secret, "file": str(settings.callers_file)})
    if anonymous is False and settings.model.callers.anonymous is True:
        print(
            "note: callers.anonymous = true is set, and stays in force until it is removed",
            file=sys.stderr,
        )
    return 0


def _ask(settings: Settings, arguments: argparse.Namespace) -> bool | None:
    """Whether anonymous callers stay, asked with the first caller; None if it was settled."""
    if arguments.keep_anonymous or arguments.close_anonymous:
        return bool(arguments.keep_anonymous)
    roster = settings.callers
    if roster.callers or roster.anonymous is not None:
        return None
    if settings.model.callers.anonymous is False:
        return False
    if not sys.stdin.isatty():
        raise _Refused(
            "this is the first caller: say whether callers without a key are still let in\n"
            "where they are now (on this machine, where no real money moves):\n"
            "  --close-anonymous   only callers with a key from now on\n"
            "  --keep-anonymous    as before"
        )
    print(  # the key alone goes to stdout
        "This is the first caller. Callers without a key are let in where no real money moves\n"
        "(simulator, sandbox, loopback). Close that door? [Y/n] ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    return sys.stdin.readline().strip().lower() in {"n", "no"}


def _list(settings: Settings, arguments: argparse.Namespace) -> int:
    roster = settings.callers
    rows = [_described(one) for one in roster.callers]
    if arguments.json:
        print(json.dumps({"callers": rows, "anonymous": roster.keeps_anonymous}, indent=2))
        return 0
    for row in rows:
        print(f"{row['name']:<20} {', '.join(_words(row))}")
    if not rows:
        print("no callers yet: nomba-proxy caller add NAME")
    return 0


def _described(one: Caller) -> dict[str, Any]:
    expires = None
    if one.expires != math.inf:
        expires = datetime.fromtimestamp(one.expires, UTC).isoformat().replace("+00:00", "Z")
    return {
        "name": one.name,
        "enabled": one.enabled,
        "secrets": [digest.id for digest in one.secrets],
        "expires": expires,
        "role": str(one.role),
        "upstreams": sorted(one.upstreams),
        "accounts": sorted(one.accounts),
        "rules": [rule.text for rule in one.rules],
        "observe": one.observe,
        "rate": one.rate,
        "burst": one.burst,
        "concurrent": one.concurrent,
        "body_limit": one.body_limit,
    }


def _words(row: dict[str, Any]) -> Iterator[str]:
    yield row["role"]
    yield f"{len(row['secrets'])} valid secret{'' if len(row['secrets']) == 1 else 's'}"
    if not row["enabled"]:
        yield "DISABLED"
    if row["expires"]:
        yield f"until {row['expires']}"
    for key in ("upstreams", "accounts"):
        if row[key]:
            yield f"{key}: {' '.join(row[key])}"
    if row["rules"]:
        yield f"{len(row['rules'])} rules{', observed only' if row['observe'] else ''}"
    if row["rate"]:
        yield f"{row['rate']:g}/s"
    if row["concurrent"]:
        yield f"{row['concurrent']} at a time"


def _rotate(settings: Settings, arguments: argparse.Namespace) -> int:
    name = arguments.name
    secret, digest = _new_secret(name)
    with _edited(settings) as document:
        entry = _entry(document, name, settings)
        known = [str(one) for one in entry.get("secrets", [])]
        if arguments.finish:
            if len(known) < 2:
                raise _Refused(f"caller {name} has one secret only: there is nothing to finish")
            entry["secrets"] = known[-1:]
        else:
            entry["secrets"] = [*known[-1:], str(digest)]
    if arguments.finish:
        told: dict[str, str] = {"caller": name, "done": "left with its newest key"}
    else:
        told = {"caller": name, "key": secret, "note": _TWO if known else ""}
    _told(settings, arguments, told)
    return 0


def _enable(settings: Settings, arguments: argparse.Namespace) -> int:
    return _switch(settings, arguments, on=True)


def _disable(settings: Settings, arguments: argparse.Namespace) -> int:
    return _switch(settings, arguments, on=False)


def _switch(settings: Settings, arguments: argparse.Namespace, *, on: bool) -> int:
    with _edited(settings) as document:
        _entry(document, arguments.name, settings)["enabled"] = on
    done = "enabled" if on else "disabled"
    _told(settings, arguments, {"caller": arguments.name, "done": done})
    return 0


def _remove(settings: Settings, arguments: argparse.Namespace) -> int:
    with _edited(settings) as document:
        entry = _entry(document, arguments.name, settings)
        callers = document["caller"]
        callers.remove(entry)
        if not callers:
            del document["caller"]
            # Who closed the door to strangers did not ask for it to open again.
            document.setdefault("anonymous", False)
    _told(settings, arguments, {"caller": arguments.name, "done": "removed"})
    return 0


# -- the file ----------------------------------------------------------------------------


def _new_secret(name: str) -> tuple[str, Digest]:
    secret = f"{KEY_PREFIX}{name}_{secrets.token_urlsafe(32)}"
    return secret, Digest.of(secret, salt=secrets.token_hex(8))


@contextlib.contextmanager
def _edited(settings: Settings) -> Iterator[Any]:
    """The callers file, to be changed; written whole, or not at all if it would be unusable."""
    path = settings.callers_file
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(path):
            document = _read(path)
            yield document
            _write(path, tomlkit.dumps(document), settings)
    except OSError as error:
        raise _Refused(f"{path}: {error.strerror or error}") from None


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
        raise _Refused(f"{path} is no valid TOML: {error}") from None


def _write(path: Path, text: str, settings: Settings) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    before = path.read_bytes() if path.exists() else None
    _replace(path, text.encode(), mode)
    try:
        settings.read_callers()
    except SettingsError:
        if before is None:
            path.unlink()
        else:
            _replace(path, before, mode)
        raise


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Replace a file at once: whoever reads it sees the old one or the new one."""
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


def _entry(document: Any, name: str, settings: Settings) -> Any:
    for entry in document.get("caller", []):
        if entry.get("name") == name:
            return entry
    if any(one.name == name for one in settings.callers.callers):
        raise _Refused(f"caller {name} stands in the settings file; change it there")
    known = ", ".join(one.name for one in settings.callers.callers) or "none"
    raise _Refused(f"there is no caller {name}; there are: {known}")


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said on the command line of a new caller, as the file has it."""
    said: dict[str, Any] = {}
    for key in ("role", "rate", "burst", "concurrent", "body_limit"):
        if (value := getattr(arguments, key)) is not None:
            said[key] = value
    for key, flag in (("upstreams", "upstream"), ("accounts", "account"), ("rules", "rule")):
        if value := getattr(arguments, flag):
            said[key] = value
    if arguments.observe:
        said["observe"] = True
    if arguments.expires:
        said["expires"] = _moment(arguments.expires)
    return said


def _moment(text: str) -> datetime:
    if days := _DAYS.fullmatch(text):
        return (datetime.now(UTC) + timedelta(days=int(days[1]))).replace(microsecond=0)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _Refused(f"--expires {text!r}: write 30d, 2027-01-31 or a time with one") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _told(settings: Settings, arguments: argparse.Namespace, said: dict[str, str]) -> None:
    if arguments.json:
        print(json.dumps({key: value for key, value in said.items() if value}, indent=2))
        return
    name = said["caller"]
    if "key" not in said:
        print(f"caller {name} is {said['done']}")
        return
    print(said["key"])
    print(f"This is the key of {name}; it is shown once. Ways to use it:", file=sys.stderr)
    print(f"  X-Nomba-Proxy-Key: {KEY_PREFIX}{name}_…", file=sys.stderr)
    print(f"  an app that logs in: client_id {name}, client_secret the key", file=sys.stderr)
    print(f"  HTTP Basic: user {name}, password the key", file=sys.stderr)
    if said.get("note"):
        print(f"note: {said['note']}", file=sys.stderr)
    print(f"It is kept as a digest in {settings.callers_file}", file=sys.stderr)
