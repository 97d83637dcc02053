"""Complete each upstream: its origin, its credentials, its mount, the way to it."""

import ipaddress
import re
from collections.abc import Callable, Mapping

from yarl import URL

from proxy.core.origin import PRODUCTION, SANDBOX, Origin
from proxy.core.secret import SIMULATED, Secret
from proxy.settings.addresses import (
    Address,
    Listener,
    parse_address,
    parse_host_name,
    parse_origin,
)
from proxy.settings.credentials import (
    CREDENTIAL_VARIABLES,
    check_ca_file,
    read_credentials,
    read_secret_file,
)
from proxy.settings.effective import ReadyUpstream, SettingsError
from proxy.settings.model import SettingsModel, UpstreamSettings
from proxy.settings.sources import Report

_MISSING_HINT = (
    "Set NOMBA_CLIENT_ID, NOMBA_CLIENT_SECRET (or NOMBA_CLIENT_SECRET_FILE) and "
    "NOMBA_ACCOUNT_ID, or try it without any: nomba-proxy serve --simulate"
)
_IDENTIFIER = re.compile(r"[\x21-\x7e]{1,256}")
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, never bound


def complete_upstreams(
    model: SettingsModel,
    *,
    environ: Mapping[str, str],
    required: bool,
    here: bool,
    hosts: tuple[frozenset[str] | None, ...],
    report: Report,
) -> tuple[ReadyUpstream, ...]:
    """The upstreams that can be completed; what is wrong with the others is a problem.

    Args:
        model: validated settings.
        environ: the environment, for credentials.
        required: whether missing credentials are a problem.
        here: whether only this machine can reach the listener.
        hosts: of each entry (`read_hosts`).
        report: takes problems, and where credentials came from.
    """
    entries = model.upstream or (UpstreamSettings(),)
    outside = read_credentials(environ, report=report)
    if outside and len(entries) > 1:
        report.problem(
            ", ".join(CREDENTIAL_VARIABLES[key][0] for key in outside),
            "is set for several upstreams at once",
            hint="Put client_id, client_secret_file and account_id into each [[upstream]] entry.",
            origin="environment",
        )
        outside = {}
    ready = []
    for at, entry in enumerate(entries):
        check_ca_file(f"upstream.{at}.ca_file", entry.ca_file, report=report)
        origin = _origin(f"upstream.{at}", entry, report=report)
        mount = _mount(f"upstream.{at}", entry, report=report)
        connect_proxy = _way(f"upstream.{at}", entry, origin=origin, report=report)
        found = _credentials(
            at,
            entry,
            outside=outside,
            alone=len(entries) == 1,
            required=required,
            report=report,
        )
        names = hosts[at] if hosts else frozenset()
        if origin is None or mount is None or names is None:
            continue
        anonymous = model.callers.anonymous
        if anonymous == "auto":
            anonymous = here and origin.environment in {"loopback", "sandbox"}
        one = ReadyUpstream(
            name=entry.name,
            origin=origin,
            mount=mount,
            client_id=found["client_id"],
            client_secret=Secret(found["client_secret"], origin=origin.text),
            account_id=found["account_id"],
            anonymous=anonymous,
            options=entry,
            hosts=names,
            connect_proxy=connect_proxy,
            next_secret=_next(found, origin=origin.text),
            read_secrets=_reader(
                at, entry, environ=environ, entries=len(entries), origin=origin.text
            )
            if _in_files(entry, environ=environ)
            else None,
        )
        ready.append(one)
    return tuple(ready)


def _next(found: Mapping[str, str], *, origin: str) -> Secret | None:
    text = found["client_secret_next"]
    return Secret(text, origin=origin) if text and text != found["client_secret"] else None


def _in_files(entry: UpstreamSettings, *, environ: Mapping[str, str]) -> bool:
    """Whether the client secrets of an entry are in files, and so can change."""
    names = CREDENTIAL_VARIABLES["client_secret"] + CREDENTIAL_VARIABLES["client_secret_next"]
    inside = entry.client_secret_file or entry.client_secret_next_file
    outside = any(environ.get(f"{name}_FILE") for name in names)
    return bool(inside or outside or environ.get("CREDENTIALS_DIRECTORY"))


def _reader(
    at: int, entry: UpstreamSettings, *, environ: Mapping[str, str], entries: int, origin: str
) -> Callable[[], tuple[Secret, Secret | None]]:
    """What reads the client secrets of an entry again, from wherever they come."""

    def read() -> tuple[Secret, Secret | None]:
        report = Report(again=True)
        names = ("client_secret", "client_secret_next")
        outside = read_credentials(environ, report=report, only=names) if entries == 1 else {}
        found = _credentials(
            at, entry, outside=outside, alone=entries == 1, required=False, report=report
        )
        if not found["client_secret"]:
            report.problem(CREDENTIAL_VARIABLES["client_secret"][0], "is not set any more")
        if report.problems:
            raise SettingsError(report.problems)
        current = Secret(found["client_secret"], origin=origin)
        return current, _next(found, origin=origin)

    return read


def simulated_credentials(
    model: SettingsModel, *, environ: Mapping[str, str], report: Report
) -> tuple[dict[str, str], Secret | None]:
    """Account, client id and secret of the simulator: those that are set.

    So an app can keep its own; what is set in `[simulator]` wins. It stands where the first
    upstream would, under the same policies, and needs none of what that needs.
    """
    entry = model.upstream[0] if model.upstream else UpstreamSettings()
    _mount("upstream.0", entry, report=report)
    aside = Report(origins=report.origins, again=report.again)
    found = _credentials(
        0,
        entry,
        outside=read_credentials(environ, report=aside),
        alone=True,
        required=False,
        report=aside,
    )
    report.problems += [one for one in aside.problems if "account" in one.key.lower()]
    plain = {
        name: found[name]
        for name in ("account_id", "client_id")
        if found[name] and f"simulator.{name}" not in report.origins
    }
    secret = found["client_secret"]
    if not secret or "simulator.client_secret" in report.origins:
        return plain, None
    return plain, Secret(secret, origin=SIMULATED)


def _credentials(
    at: int,
    entry: UpstreamSettings,
    *,
    outside: Mapping[str, tuple[str, str]],
    alone: bool,
    required: bool,
    report: Report,
) -> dict[str, str]:
    """The three credentials of an entry; what is missing is empty, and a problem."""
    origins = report.origins
    found: dict[str, str] = {}
    before = len(report.problems)
    for key in CREDENTIAL_VARIABLES:
        name = f"upstream.{at}.{key}"
        secret = key.startswith("client_secret")
        if secret:
            own, file = None, getattr(entry, f"{key}_file")
            if key not in outside and file:
                file_key = f"{name}_file"
                own = read_secret_file(
                    file, key=file_key, origin=origins.get(file_key, "default"), report=report
                )
                origins[name] = f"file {file}"
        else:
            own = getattr(entry, key)
        if own is not None and origins.get(name) == "flag":
            found[key] = own
        elif key in outside:
            found[key], origins[name] = outside[key]
        else:
            found[key] = own or ""
        if secret and not _is_utf8(found[key]):
            text = "is no UTF-8 text"
            report.problem(CREDENTIAL_VARIABLES[key][0], text, origin=origins.get(name))
        if not secret and found[key] and not _IDENTIFIER.fullmatch(found[key]):
            from_outside = key in outside and origins.get(name) == outside[key][1]
            report.problem(
                CREDENTIAL_VARIABLES[key][0] if from_outside else name,
                "is no plain ASCII without spaces",
                hint="Write your own where … stands." if "…" in found[key] else "",
                origin=origins.get(name),
            )
    told = {one.key for one in report.problems if one.origin}
    for key, names in CREDENTIAL_VARIABLES.items():
        name = f"upstream.{at}.{key}"
        settable = f"{name}_file" if key == "client_secret" else name
        related = {name, f"{name}_file", *names, *(f"{one}_FILE" for one in names)}
        if required and key != "client_secret_next" and not found[key] and not told & related:
            report.problem(
                names[0] if alone else settable,
                "is not set" if alone else f"is not set (upstream {entry.name})",
                hint=_MISSING_HINT if alone and len(report.problems) == before else "",
                origin="",
            )
    return found


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _origin(prefix: str, entry: UpstreamSettings, *, report: Report) -> Origin | None:
    named = {"production": PRODUCTION, "sandbox": SANDBOX}
    try:
        origin = parse_origin(entry.base_url or named[entry.environment or "production"])
    except ValueError as error:
        report.problem(f"{prefix}.base_url", str(error))
        return None
    if entry.base_url and entry.environment and origin.text != named[entry.environment]:
        report.problem(
            f"{prefix}.environment",
            f"says {entry.environment}, but base_url is {origin.text}",
            hint="Remove one of the two.",
        )
    return origin


def _way(
    prefix: str, entry: UpstreamSettings, *, origin: Origin | None, report: Report
) -> tuple[str, int] | None:
    """Check how the upstream is to be reached; the proxy to CONNECT through, if any."""
    plain = origin is not None and not origin.tls
    for text in entry.addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            report.problem(f"{prefix}.addresses", f"{text!r} is no IP address")
            continue
        if plain and not address.is_loopback:
            report.problem(f"{prefix}.addresses", f"{text}: plain http is for loopback only")
        if entry.ipv4_only and address.version != 4:
            report.problem(f"{prefix}.addresses", f"{text} is IPv6, and ipv4_only is set")
    if entry.connect_proxy is None:
        return None
    key = f"{prefix}.connect_proxy"
    if plain:
        report.problem(key, "is for https origins: a proxy would see the token")
    if entry.addresses or entry.ipv4_only:
        report.problem(
            key,
            "dials by itself: addresses and ipv4_only mean nothing beside it",
            hint="Set one or the other.",
        )
    proxy = read_address(key, entry.connect_proxy, report=report)
    return proxy.host, proxy.port


def _mount(prefix: str, entry: UpstreamSettings, *, report: Report) -> str | None:
    mount = entry.mount.rstrip("/")
    try:
        plain = mount == "" or (mount[0] == "/" and URL(mount).raw_path == mount)
    except ValueError:
        plain = False
    if not plain or re.search(r"[?#;%\s]|//|/\.{1,2}(/|$)", mount):
        report.problem(f"{prefix}.mount", f"{entry.mount!r} is no plain path prefix such as /nomba")
        return None
    return mount


def read_hosts(
    entries: tuple[UpstreamSettings, ...], *, report: Report
) -> tuple[frozenset[str] | None, ...]:
    """The names by which each entry is reached; a problem, and None, where one is no name."""
    read: list[frozenset[str] | None] = []
    for at, entry in enumerate(entries):
        names = set()
        sound = True
        for text in entry.hosts:
            try:
                names.add(parse_host_name(text))
            except ValueError as error:
                sound = False
                report.problem(
                    f"upstream.{at}.hosts",
                    f"{text!r} {error}",
                    hint="Names only, such as live.localhost: any port is meant.",
                )
        read.append(frozenset(names) if sound else None)
    return tuple(read)


def check_upstreams(
    upstreams: tuple[ReadyUpstream, ...], *, listen: tuple[Listener, ...], report: Report
) -> None:
    """Check that the upstreams go together, and that none is a listener of ours."""
    own = [one.at for one in listen if isinstance(one.at, Address)]
    names: set[str] = set()
    mounts: set[tuple[str, str]] = set()
    for one in upstreams:
        key = f"upstream {one.name}"
        origin = one.origin
        if any(_leads_to(origin, one) for one in own):
            report.problem(key, "is the proxy itself", hint="Check NOMBA_BASE_URL and listen.")
        if one.anonymous and origin.environment in {"production", "custom"}:
            report.warnings.append(
                f"anybody on this machine may use {origin.text} "
                "through the proxy (callers.anonymous = true)"
            )
        if one.name in names:
            report.problem(key, "has the same name as another upstream")
        mine = {(host, one.mount) for host in one.hosts or {""}}
        if taken := sorted(host for host, _ in mine & mounts):
            where = f" for {', '.join(taken)}" if one.hosts else ""
            report.problem(
                key,
                f"has the same mount as another upstream{where}",
                hint="Give it another mount, or hosts of its own.",
            )
        names.add(one.name)
        mounts |= mine
    _check_sessions(upstreams, report=report)


def _leads_to(origin: Origin, listen: Address) -> bool:
    here = listen.loopback or listen.host in _WILDCARDS
    return origin.port == listen.port and (
        origin.host == listen.host or (here and origin.environment == "loopback")
    )


def _check_sessions(upstreams: tuple[ReadyUpstream, ...], *, report: Report) -> None:
    """Check that upstreams of one client agree on whether they share a session, and on its secret."""
    clients: dict[tuple[str, str], ReadyUpstream] = {}
    sessions: dict[tuple[str, ...], ReadyUpstream] = {}
    for one in upstreams:
        if not one.client_id:
            continue
        client = clients.setdefault((one.origin.text, one.client_id), one)
        sharing = sessions.setdefault(one.session, one)
        two = one is not sharing and one.client_secret and sharing.client_secret
        if client.options.session_scope != one.options.session_scope:
            report.problem(
                f"upstream {one.name}",
                f"has the same origin and client_id as {client.name}, but another session_scope",
                hint="Whether they share a session has to be said the same way in both.",
            )
        elif two and (
            one.client_secret != sharing.client_secret or one.next_secret != sharing.next_secret
        ):
            report.problem(
                f"upstream {one.name}",
                f"shares the session of {sharing.name}, but has another client_secret",
                hint="A client has one secret: name the same file in both.",
            )


def read_address(key: str, text: str, *, report: Report) -> Address:
    """The address in a setting; a problem, and any free port, if it is none."""
    try:
        return parse_address(text)
    except ValueError as error:
        if "@" in text or "//" in text:  # there may be a password in it
            report.problem(key, "is more than host:port: leave out scheme, user and password")
        else:
            report.problem(key, f"{text!r}: {error}")
        return Address("127.0.0.1", 0)
