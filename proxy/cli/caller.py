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

from proxy.core.caller import KEY_PREFIX, Caller, Digest, Roster
from proxy.settings import Settings, SettingsError

_HEAD = "The callers of nomba-proxy, kept by `nomba-proxy caller`; a running proxy sees changes."
_DAYS = re.compile(r"(\d{1,5})d")


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
        code = actions[arguments.action](settings, arguments)
        return code or _usable(settings)
    except _Refused as error:
        print(f"nomba-proxy: {error}", file=sys.stderr)
        return 1
    except SettingsError as error:
        for problem in error.problems:
            print(f"nomba-proxy: {problem}", file=sys.stderr)
        return 2


def _usable(settings: Settings) -> int:
    """Whether a running proxy can take the file over; said if not."""
    try:
        settings.read_callers()
    except SettingsError as error:
        print(
            "nomba-proxy: the change is kept, but a running proxy does not take it over until "
            "this is mended:",
            file=sys.stderr,
        )
        for problem in error.problems:
            print(f"  - {problem}", file=sys.stderr)
        return 1
    return 0


# -- the commands ------------------------------------------------------------------------


def _add(settings: Settings, arguments: argparse.Namespace) -> int:
    name = arguments.name
    expires = _moment(arguments.expires) if arguments.expires else None
    anonymous = _ask(settings, settings.read_callers(), arguments)
    secret, digest = _new_secret(name)
    with _edited(settings, checked=True) as document:
        if any(one.name == name for one in settings.read_callers().callers):
            raise _Refused(f"there is a caller {name} already; `caller rotate` makes a new key")
        if anonymous is not None:
            document["anonymous"] = anonymous
        entry = tomlkit.table()
        entry["name"] = name
        entry["secrets"] = [str(digest)]
        for key, value in _options(arguments).items():
            entry[key] = value
        if expires is not None:
            entry["expires"] = expires
        callers = document.setdefault("caller", tomlkit.aot())
        if not isinstance(callers, AoT):
            raise _Refused(f"{settings.callers_file}: `caller` is no list of tables")
        callers.append(entry)
    try:
        said = {"caller": name, "key": secret, "file": str(settings.callers_file)}
        _told(settings, arguments, said)
        sys.stdout.flush()
    except OSError:  # nobody saw the key
        with _edited(settings) as document:
            document["caller"].remove(_entry(document, name, settings))
        raise
    here = {one.name for one in settings.upstreams} or {"simulator"}
    if elsewhere := sorted(set(arguments.upstream or ()) - here):
        told = (
            f"{', '.join(elsewhere)} is no upstream of these settings ({', '.join(sorted(here))})"
        )
        print(f"note: {told}", file=sys.stderr)
    if anonymous is False and settings.model.callers.anonymous is True:
        print(
            "note: callers.anonymous = true is set, and stays in force until it is removed",
            file=sys.stderr,
        )
    return 0


def _ask(settings: Settings, roster: Roster, arguments: argparse.Namespace) -> bool | None:
    """Whether anonymous callers stay, asked with the first caller; None if it was settled."""
    if arguments.keep_anonymous or arguments.close_anonymous:
        return bool(arguments.keep_anonymous)
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
    answer = sys.stdin.readline()
    if not answer:
        raise _Refused("no answer: nothing was changed")
    return answer.strip().lower() in {"n", "no"}


def _list(settings: Settings, arguments: argparse.Namespace) -> int:
    roster = settings.read_callers()
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
        over = datetime.fromisoformat(row["expires"]) <= datetime.now(UTC)
        yield f"{'EXPIRED' if over else 'until'} {row['expires']}"
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
        elif len(known) > 1:
            raise _Refused(
                f"caller {name} has two keys already; end the older one first:\n"
                f"  nomba-proxy caller rotate {name} --finish"
            )
        else:
            entry["secrets"] = [*known, str(digest)]
    if arguments.finish:
        told: dict[str, str] = {"caller": name, "done": "left with its newest key"}
    else:
        note = f"its old key stays valid until: nomba-proxy caller rotate {name} --finish"
        told = {"caller": name, "key": secret, "note": note if known else ""}
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
def _edited(settings: Settings, *, checked: bool = False) -> Iterator[Any]:
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


def _write(path: Path, text: str, settings: Settings | None) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    before = path.read_bytes() if path.exists() else None
    _replace(path, text.encode(), mode)
    if settings is None:
        return
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
    entries = document.get("caller", [])
    for entry in entries if isinstance(entries, AoT) else ():
        if entry.get("name") == name:
            return entry
    if any(one.name == name for one in settings.model.caller):
        raise _Refused(f"caller {name} stands in the settings file; change it there")
    known = ", ".join(str(one.get("name")) for one in entries) or "none"
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
    return said


def _moment(text: str) -> datetime:
    if days := _DAYS.fullmatch(text):
        return (datetime.now(UTC) + timedelta(days=int(days[1]))).replace(microsecond=0)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _Refused(f"--expires {text!r}: write 30d, 2027-01-31 or a time with one") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= datetime.now(UTC):
        raise _Refused(f"--expires {text!r} is over already")
    return moment


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
