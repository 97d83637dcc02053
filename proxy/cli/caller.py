"""`nomba-proxy caller add|list|rotate|enable|disable|remove`: keeps the callers file.

A running proxy takes the file over within a second or two; nothing has to be restarted.
"""

import argparse
import json
import math
import re
import secrets
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import tomlkit
from tomlkit.items import AoT

from proxy.cli.callers_file import Refused, edited, find_entry
from proxy.core.caller import KEY_PREFIX, Caller, Digest, Roster
from proxy.settings import Settings, SettingsError

_DAYS = re.compile(r"(\d{1,5})d")


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
    except Refused as error:
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
    if arguments.no_key and not (arguments.certificate or arguments.uid):
        raise Refused("--no-key leaves nothing to know it by: say --certificate or --uid as well")
    anonymous = _ask(settings, settings.read_callers(), arguments)
    secret, digest = _new_secret(name)
    with edited(settings, checked=True) as document:
        if any(one.name == name for one in settings.read_callers().callers):
            raise Refused(f"there is a caller {name} already; `caller rotate` makes a new key")
        if anonymous is not None:
            document["anonymous"] = anonymous
        entry = tomlkit.table()
        entry["name"] = name
        entry["secrets"] = [] if arguments.no_key else [str(digest)]
        for key, value in _options(arguments).items():
            entry[key] = value
        if expires is not None:
            entry["expires"] = expires
        callers = document.setdefault("caller", tomlkit.aot())
        if not isinstance(callers, AoT):
            raise Refused(f"{settings.callers_file}: `caller` is no list of tables")
        callers.append(entry)
    try:
        said = {"caller": name, "file": str(settings.callers_file)}
        said |= {"done": "added"} if arguments.no_key else {"key": secret}
        _told(settings, arguments, said)
        sys.stdout.flush()
    except OSError:  # nobody saw the key
        with edited(settings) as document:
            document["caller"].remove(find_entry(document, name, settings))
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
        raise Refused(
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
        raise Refused("no answer: nothing was changed")
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
    print(f"note: {_of_strangers(settings, roster)}", file=sys.stderr)
    return 0


def _of_strangers(settings: Settings, roster: Roster) -> str:
    """Whether callers nobody knows get in, and what would change that."""
    said = settings.model.callers.anonymous
    if said != "auto":
        return f"callers.anonymous = {str(said).lower()} is set, for callers without a key"
    if roster.keeps_anonymous:
        now, other = "let in where no real money moves", "false refuses them"
    else:
        now, other = "refused", "true lets them in where no real money moves"
    return f"callers without a key are {now}; anonymous = {other}, in {settings.callers_file}"


def _described(one: Caller) -> dict[str, Any]:
    expires = None
    if one.expires != math.inf:
        expires = datetime.fromtimestamp(one.expires, UTC).isoformat().replace("+00:00", "Z")
    return {
        "name": one.name,
        "enabled": one.enabled,
        "secrets": [digest.id for digest in one.secrets],
        "certificates": [pattern.text for pattern in one.certificates],
        "uids": sorted(one.uids),
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
    if row["secrets"] or not (row["certificates"] or row["uids"]):
        yield f"{len(row['secrets'])} valid secret{'' if len(row['secrets']) == 1 else 's'}"
    if row["certificates"]:
        yield f"certificates: {' or '.join(row['certificates'])}"
    if row["uids"]:
        yield f"uids: {' '.join(map(str, row['uids']))}"
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
    with edited(settings) as document:
        entry = find_entry(document, name, settings)
        known = [str(one) for one in entry.get("secrets", [])]
        if not known and not arguments.finish and (entry.get("certificates") or entry.get("uids")):
            raise Refused(
                f"caller {name} has no key: it is known by its certificates or uids alone\n"
                "For a key beside them remove it, and add it without --no-key."
            )
        if arguments.finish:
            if len(known) < 2:
                raise Refused(f"caller {name} has no second secret: there is nothing to finish")
            entry["secrets"] = known[-1:]
        elif len(known) > 1:
            raise Refused(
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
    with edited(settings) as document:
        find_entry(document, arguments.name, settings)["enabled"] = on
    done = "enabled" if on else "disabled"
    _told(settings, arguments, {"caller": arguments.name, "done": done})
    return 0


def _remove(settings: Settings, arguments: argparse.Namespace) -> int:
    with edited(settings) as document:
        entry = find_entry(document, arguments.name, settings)
        callers = document["caller"]
        callers.remove(entry)
        if not callers:
            del document["caller"]
            # Who closed the door to strangers did not ask for it to open again.
            document.setdefault("anonymous", False)
    _told(settings, arguments, {"caller": arguments.name, "done": "removed"})
    return 0


# -- what they are made of ---------------------------------------------------------------


def _new_secret(name: str) -> tuple[str, Digest]:
    secret = f"{KEY_PREFIX}{name}_{secrets.token_urlsafe(32)}"
    return secret, Digest.of(secret, salt=secrets.token_hex(8))


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said on the command line of a new caller, as the file has it."""
    said: dict[str, Any] = {}
    for key in ("role", "rate", "burst", "concurrent", "body_limit"):
        if (value := getattr(arguments, key)) is not None:
            said[key] = value
    for key, flag in (("upstreams", "upstream"), ("accounts", "account"), ("rules", "rule")):
        if value := getattr(arguments, flag):
            said[key] = value
    if arguments.certificate:
        said["certificates"] = arguments.certificate
    if arguments.uid:
        said["uids"] = [
            int(one) if re.fullmatch(r"[0-9]{1,10}", one) else one for one in arguments.uid
        ]
    if arguments.observe:
        said["observe"] = True
    return said


def _moment(text: str) -> datetime:
    if days := _DAYS.fullmatch(text):
        return (datetime.now(UTC) + timedelta(days=int(days[1]))).replace(microsecond=0)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(f"--expires {text!r}: write 30d, 2027-01-31 or a time with one") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= datetime.now(UTC):
        raise Refused(f"--expires {text!r} is over already")
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
