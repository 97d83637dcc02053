"""The callers: from `[[caller]]` in the settings, and from the file that `caller add` keeps."""

import io
import math
import pwd
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from proxy.core.caller import RESERVED, Caller, Digest, Role, Roster, Rule, parse_rule
from proxy.core.certificate import CertificatePattern, parse_pattern
from proxy.core.peer import OVERFLOW_UID, KnownPeers
from proxy.settings.addresses import Address, Listener
from proxy.settings.explain import explain
from proxy.settings.files import open_file
from proxy.settings.model import CallerEntry, CallersFile
from proxy.settings.sources import Report

_MOST = 2**32 - 2  # (uid_t)-1 is no user's


def read_callers(
    path: Path, *, entries: tuple[CallerEntry, ...], upstreams: Iterable[str], report: Report
) -> Roster:
    """Every configured caller.

    Args:
        path: of the callers file, which need not be there.
        entries: `[[caller]]` of the settings.
        upstreams: names that there are.
        report: takes problems.
    """
    kept = _file(path, report=report)
    known = frozenset(upstreams)
    found: dict[str, Caller] = {}
    origins: dict[str, str] = {}
    given = report.origins.get("caller", "settings")
    for origin, several in ((given, entries), (f"file {path}", kept.caller)):
        for entry in several:
            key = f"caller {entry.name}"
            if entry.name in RESERVED:
                report.problem(key, "is a name of the proxy's own", origin=origin)
            elif entry.name in found:
                report.problem(key, "is there twice", origin=origin)
            found[entry.name] = _caller(entry, known=known, origin=origin, report=report)
            origins[entry.name] = origin
    _check_peers(found, origins=origins, report=report)
    return Roster(tuple(found.values()), kept.anonymous)


def note_unasked(
    roster: Roster, *, listeners: Iterable[Listener], client_ca: bool, report: Report
) -> None:
    """Warn of what callers are known by where no listener asks for it.

    Args:
        roster: the callers.
        listeners: where they connect.
        client_ca: whether TLS asks for certificates.
        report: takes warnings.
    """
    every = tuple(listeners)
    by_certificate = [one.name for one in roster.callers if one.certificates]
    if by_certificate and not (client_ca and any(one.tls for one in every)):
        report.warnings.append(
            f"certificates of {_some(by_certificate)} are of no use: no listener asks for any "
            "(listen = https://…, tls.client_ca_file)"
        )
    by_uid = [one.name for one in roster.callers if one.uids]
    if by_uid and all(isinstance(one.at, Address) for one in every):
        report.warnings.append(
            f"uids of {_some(by_uid)} are of no use: no listener is a Unix socket "
            "(listen = unix:///…)"
        )


def _some(names: list[str]) -> str:
    rest = len(names) - 3
    more = f" and {rest} more" if rest > 0 else ""
    return f"caller{'s' if len(names) > 1 else ''} {', '.join(names[:3])}{more}"


def _file(path: Path, *, report: Report) -> CallersFile:
    origin = f"file {path}"
    try:
        with io.TextIOWrapper(open_file(path, waits=not report.again), "utf-8") as file:
            values = tomllib.loads(file.read())
    except FileNotFoundError:
        return CallersFile()
    except OSError as error:
        report.problem("callers.file", f"cannot be read: {error.strerror}", origin=origin)
        return CallersFile()
    except (ValueError, RecursionError) as error:
        report.problem("callers.file", f"is no valid TOML: {error}", origin=origin)
        return CallersFile()
    try:
        return CallersFile.model_validate(values)
    except ValidationError as error:
        for one in error.errors(include_input=False, include_url=False):
            key, text, hint = explain(
                one["loc"], kind=one["type"], message=one["msg"], top=CallersFile.model_fields
            )
            report.problem(key, text, hint=hint, origin=origin)
        return CallersFile()


def _check_peers(
    callers: Mapping[str, Caller], *, origins: Mapping[str, str], report: Report
) -> None:
    """Whoever comes by a certificate or a uid must not be several callers."""
    peers = KnownPeers(callers.values())
    earlier: set[str] = set()
    for name, caller in callers.items():
        for one in caller.certificates:
            for other, whose in peers.fitting(one.names):
                if whose is caller or (one.names == other.names and whose.name not in earlier):
                    continue
                same = one.names == other.names
                report.problem(
                    f"caller {name}: certificates",
                    f"{one.text!r} is a pattern of caller {whose.name} too"
                    if same
                    else f"what fits {one.text!r} fits {other.text!r} of caller {whose.name} too",
                    hint="A certificate has to tell who is calling: name more of it, or take one "
                    "away.",
                    origin=origins[name],
                )
        for uid in sorted(caller.uids):
            for whose in peers.with_uid(uid):
                if whose.name in earlier:
                    report.problem(
                        f"caller {name}: uids",
                        f"{uid} is a uid of caller {whose.name} too",
                        hint="A uid has to tell who is calling.",
                        origin=origins[name],
                    )
        earlier.add(name)


def _caller(entry: CallerEntry, *, known: frozenset[str], origin: str, report: Report) -> Caller:
    key = f"caller {entry.name}"

    def problem(name: str, text: str, hint: str = "") -> None:
        report.problem(f"{key}: {name}", text, hint=hint, origin=origin)

    secrets: list[Digest] = []
    for text in entry.secrets:
        try:
            secrets.append(Digest.parse(text))
        except ValueError as error:
            problem("secrets", str(error), "A secret itself does not belong into a file.")
    if len(secrets) > 2:
        problem("secrets", "are more than two", "nomba-proxy caller rotate NAME --finish")
    certificates: list[CertificatePattern] = []
    for text in entry.certificates:
        try:
            certificates.append(parse_pattern(text))
        except ValueError as error:
            problem("certificates", f"{text!r}: {error}")
    uids: set[int] = set()
    for text in entry.uids:
        try:
            uids.add(_uid(text))
        except ValueError as error:
            problem("uids", f"{text!r}: {error}")
    rules: list[Rule] = []
    for text in entry.rules:
        try:
            rules.append(parse_rule(text))
        except ValueError as error:
            problem("rules", f"{text!r}: {error}")
    if unknown := sorted(set(entry.upstreams) - known):  # it opens nothing: no harm is done
        report.warnings.append(
            f"{key} ({origin}): upstreams: there is no {', '.join(unknown)} here; "
            f"there is: {', '.join(sorted(known))}"
        )
    if "" in entry.accounts:
        problem("accounts", "an empty id is none")
    if entry.burst and not entry.rate:
        problem("burst", "is of no use without rate")
    return Caller(
        entry.name,
        secrets=tuple(secrets),
        certificates=tuple(certificates),
        uids=frozenset(uids),
        enabled=entry.enabled,
        expires=math.inf if entry.expires is None else entry.expires.timestamp(),
        upstreams=frozenset(entry.upstreams),
        accounts=frozenset(one.lower() for one in entry.accounts),
        role=Role(entry.role),
        rules=tuple(rules),
        observe=entry.observe,
        rate=entry.rate,
        burst=entry.burst or max(1, math.ceil(entry.rate)),
        concurrent=entry.concurrent,
        body_limit=int(entry.body_limit),
    )


def _uid(text: str) -> int:
    """The number of a user.

    Raises:
        ValueError: there is none, or it stands for several.
    """
    if text.isascii() and text.isdigit():
        uid = int(text) if len(text) <= len(str(_MOST)) else _MOST + 1
    else:
        try:
            uid = pwd.getpwnam(text).pw_uid
        except (KeyError, ValueError):  # a name with a NUL, or with what is no text
            raise ValueError("no user of this machine has that name; give its number") from None
    if uid == OVERFLOW_UID:
        raise ValueError(
            "this is whom every user of another user namespace looks like, so anybody could be it"
        )
    if uid > _MOST:
        raise ValueError(f"uids end at {_MOST}")
    return uid
