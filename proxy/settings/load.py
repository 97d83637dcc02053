"""Validate the merged values, complete the upstreams, and check what hangs together."""

import difflib
import ipaddress
import re
import ssl
import tempfile
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from yarl import URL

from proxy.core.origin import PRODUCTION, SANDBOX, Origin
from proxy.core.secret import Secret
from proxy.settings.addresses import Address, parse_address, parse_origin
from proxy.settings.credentials import (
    CREDENTIAL_VARIABLES,
    any_credentials,
    read_credentials,
    read_secret_file,
)
from proxy.settings.effective import ReadyUpstream, Settings, SettingsError
from proxy.settings.model import ALLOWED, SettingsModel, UpstreamSettings, keys
from proxy.settings.sources import Report, read_sources
from proxy.simulator import Switches, parse_fault

_MISSING_HINT = (
    "Set NOMBA_CLIENT_ID, NOMBA_CLIENT_SECRET (or NOMBA_CLIENT_SECRET_FILE) and "
    "NOMBA_ACCOUNT_ID, or try it without any: nomba-proxy serve --simulate"
)
_IDENTIFIER = re.compile(r"[\x21-\x7e]{1,256}")
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, never bound


def load(
    *,
    environ: Mapping[str, str],
    config: str | None = None,
    flags: Mapping[str, str | list[str]] | None = None,
    credentials: bool = True,
    listeners: bool = True,
) -> Settings:
    """The effective settings.

    Args:
        environ: the environment.
        config: path of the TOML file; else `NOMBA_PROXY_CONFIG`; else none.
        flags: dotted keys with their values from the command line.
        credentials: whether missing credentials are a problem.
        listeners: whether the proxy's own listeners are to be opened.

    Raises:
        SettingsError: with every problem found.
    """
    report = Report()
    path = config or environ.get("NOMBA_PROXY_CONFIG") or None
    values = read_sources(environ=environ, config=path, flags=flags or {}, report=report)
    model = _validate(values, report=report)
    listen = _address("listen", model.listen, report=report)
    admin = _address("admin.listen", model.admin.listen, report=report)
    in_file = any(one.client_id or one.client_secret_file for one in model.upstream)
    given = in_file or any_credentials(environ)
    simulate = model.simulate is True or (model.simulate == "auto" and not given)
    upstreams: tuple[ReadyUpstream, ...] = ()
    if not simulate:
        upstreams = _upstreams(model, environ=environ, required=credentials, report=report)
    account, simulator_listen, simulator_control_listen = "", None, None
    if simulate:
        account = _simulated(model, environ=environ, report=report)
        simulator_listen, simulator_control_listen = _simulator(model, report=report)
    open_door = any(one.anonymous for one in upstreams)
    if simulate:
        open_door = model.callers.anonymous is not False
    if listeners:
        _check_spool(model, report=report)
        _check_listeners(listen, admin=admin, open_door=open_door, report=report)
    _check_upstreams(upstreams, listen=listen, report=report)
    if report.problems:
        raise SettingsError(report.problems)
    return Settings(
        model=model,
        listen=listen,
        admin_listen=admin,
        upstreams=upstreams,
        simulate=simulate,
        simulated_account=account,
        simulator_listen=simulator_listen,
        simulator_control_listen=simulator_control_listen,
        warnings=tuple(report.warnings),
        origins=report.origins,
    )


# -- the model ---------------------------------------------------------------------------


def _validate(values: dict[str, Any], *, report: Report) -> SettingsModel:
    try:
        return SettingsModel.model_validate(values)
    except ValidationError as error:
        for one in error.errors(include_input=False, include_url=False):
            _explain(one["loc"], kind=one["type"], message=one["msg"], report=report)
            _drop(values, one["loc"])
    try:  # once more without what is wrong, to find what else is
        return SettingsModel.model_validate(values)
    except ValidationError:
        return SettingsModel()


def _explain(loc: tuple[int | str, ...], *, kind: str, message: str, report: Report) -> None:
    # The branches of a union are no part of the key.
    parts = [str(one) for one in loc if not str(one).startswith(("literal", "bool"))]
    key = ".".join(parts)
    if any(one.key == key for one in report.problems):
        return
    generic = re.sub(r"^upstream\.\d+\.", "upstream.0.", key)
    if kind == "extra_forbidden" and parts[-1] == "client_secret":
        report.problem(
            key,
            "secrets do not belong into the settings file",
            hint="Put it into a file of its own and name that as client_secret_file.",
        )
    elif kind == "extra_forbidden":
        siblings = [one for one in keys() if one.count(".") == generic.count(".")]
        if "." not in key:
            siblings += SettingsModel.model_fields
        near = difflib.get_close_matches(generic, siblings, n=1)
        hint = f"Did you mean {near[0].replace('.0.', '.')}?" if near else ""
        report.problem(key, "is no setting", hint=hint)
    else:
        allowed = ALLOWED.get(generic)
        report.problem(key, f"must be {allowed}" if allowed else message[:1].lower() + message[1:])


def _drop(values: Any, loc: tuple[int | str, ...]) -> None:
    """Remove what a validation error points at, as far as it is there."""
    for part, deeper in zip(loc, (*loc[1:], None), strict=True):
        if isinstance(values, dict) and part in values:
            if deeper is None or not isinstance(values[part], dict | list):
                del values[part]
                return
        elif not (isinstance(values, list) and isinstance(part, int)):
            return
        values = values[part]


def _address(key: str, text: str, *, report: Report) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        report.problem(key, f"{text!r}: {error}")
        return Address("127.0.0.1", 0)


# -- upstreams ---------------------------------------------------------------------------


def _upstreams(
    model: SettingsModel, *, environ: Mapping[str, str], required: bool, report: Report
) -> tuple[ReadyUpstream, ...]:
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
        _check_ca_file(f"upstream.{at}.ca_file", entry.ca_file, report=report)
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
        if origin is None or mount is None:
            continue
        anonymous = model.callers.anonymous
        if anonymous == "auto":
            anonymous = origin.environment in {"loopback", "sandbox"}
        one = ReadyUpstream(
            name=entry.name,
            origin=origin,
            mount=mount,
            client_id=found["client_id"],
            client_secret=Secret(found["client_secret"], origin=origin.text),
            account_id=found["account_id"],
            anonymous=anonymous,
            options=entry,
            connect_proxy=connect_proxy,
        )
        ready.append(one)
    return tuple(ready)


def _simulated(model: SettingsModel, *, environ: Mapping[str, str], report: Report) -> str:
    """The account of the simulator: the one that is set, so that an app can keep its own.

    It stands where the first upstream would, under the same policies.
    """
    entry = model.upstream[0] if model.upstream else UpstreamSettings()
    _mount("upstream.0", entry, report=report)
    key = "upstream.0.account_id"
    account = entry.account_id or ""
    outside = read_credentials(environ, report=report, only=["account_id"])
    if outside and not (account and report.origins.get(key) == "flag"):
        account, report.origins[key] = outside["account_id"]
    if account and not _IDENTIFIER.fullmatch(account):
        report.problem(key, "contains a space or a control character")
    return account


def _simulator(model: SettingsModel, *, report: Report) -> tuple[Address | None, Address | None]:
    """Check what the simulator is told; where it and its control API listen, if that is set."""
    options = model.simulator
    for name, value in options.switches().items():
        try:
            Switches().change({name: value})
        except ValueError as error:
            report.problem(f"simulator.{name}", str(error))
    for text in options.faults:
        try:
            parse_fault(text)
        except ValueError as error:
            report.problem("simulator.faults", str(error))
    listen, control = (
        _address(f"simulator.{key}", text, report=report) if text else None
        for key, text in (("listen", options.listen), ("control_listen", options.control_listen))
    )
    if control is not None and not control.loopback:
        report.warnings.append(
            f"simulator.control_listen: {control} can be reached from other machines, "
            "and whoever reaches it is in control of the simulator"
        )
    return listen, control


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
        if key == "client_secret":
            own = None
            if key not in outside and entry.client_secret_file:
                file_key = f"{name}_file"
                own = read_secret_file(
                    entry.client_secret_file,
                    key=file_key,
                    origin=origins.get(file_key, "default"),
                    report=report,
                )
                origins[name] = f"file {entry.client_secret_file}"
        else:
            own = getattr(entry, key)
        if own is not None and origins.get(name) == "flag":
            found[key] = own
        elif key in outside:
            found[key], origins[name] = outside[key]
        else:
            found[key] = own or ""
        if key == "client_secret" and not _is_utf8(found[key]):
            text = "is no UTF-8 text"
            report.problem(CREDENTIAL_VARIABLES[key][0], text, origin=origins.get(name))
        if key != "client_secret" and found[key] and not _IDENTIFIER.fullmatch(found[key]):
            text = "contains a space or a control character"
            report.problem(CREDENTIAL_VARIABLES[key][0], text, origin=origins.get(name))
    told = {one.key for one in report.problems if one.origin}
    for key, names in CREDENTIAL_VARIABLES.items():
        name = f"upstream.{at}.{key}"
        settable = f"{name}_file" if key == "client_secret" else name
        related = {name, f"{name}_file", *names, *(f"{one}_FILE" for one in names)}
        if required and not found[key] and not told & related:
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
            hint="Set one of the two.",
        )
    return origin


def _check_ca_file(key: str, path: str | None, *, report: Report) -> None:
    if path is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:  # an OSError and a ValueError, so it comes first
        report.problem(key, f"{path} holds no certificates in PEM format")
    except OSError as error:
        report.problem(key, f"{path} cannot be read: {error.strerror}")
    except ValueError:  # a NUL in it
        report.problem(key, f"{path!r} is no file name")


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
    proxy = _address(key, entry.connect_proxy, report=report)
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


# -- what hangs together -----------------------------------------------------------------


def _check_spool(model: SettingsModel, *, report: Report) -> None:
    body = model.body
    if body.limit <= body.memory:
        return
    try:
        tempfile.TemporaryFile(dir=body.spool_dir).close()
    except (OSError, ValueError) as error:
        report.problem(
            "body.spool_dir",
            f"{body.spool_dir or 'the temporary folder'} cannot be written: "
            f"{getattr(error, 'strerror', None) or error}",
            hint="Name a writable folder (in a container, a tmpfs), or set body.limit = body.memory.",
        )


def _check_listeners(listen: Address, *, admin: Address, open_door: bool, report: Report) -> None:
    if listen == admin and listen.port:
        report.problem("admin.listen", "is the same address as listen")
    if not admin.loopback:
        report.problem(
            "admin.listen",
            f"{admin} can be reached from other machines",
            hint="It renews and revokes tokens without a password: keep it on 127.0.0.1 or [::1].",
        )
    if open_door and not listen.loopback:
        report.problem(
            "listen",
            f"{listen} can be reached from other machines, and anybody may call",
            hint="Listen on 127.0.0.1, or close the door: callers.anonymous = false",
        )


def _check_upstreams(
    upstreams: tuple[ReadyUpstream, ...], *, listen: Address, report: Report
) -> None:
    here = listen.loopback or listen.host in _WILDCARDS
    names: set[str] = set()
    mounts: set[str] = set()
    sessions: set[tuple[str, str]] = set()
    for one in upstreams:
        key = f"upstream {one.name}"
        origin = one.origin
        if origin.port == listen.port and (
            origin.host == listen.host or (here and origin.environment == "loopback")
        ):
            report.problem(key, "is the proxy itself", hint="Check NOMBA_BASE_URL and listen.")
        if one.anonymous and origin.environment in {"production", "custom"}:
            report.warnings.append(
                f"anybody on this machine, web pages included, may use {origin.text} "
                "through the proxy (callers.anonymous = true)"
            )
        if one.name in names:
            report.problem(key, "has the same name as another upstream")
        if one.mount in mounts:
            report.problem(key, "has the same mount as another upstream")
        if one.client_id and (origin.text, one.client_id) in sessions:
            report.problem(
                key,
                "has the same origin and client_id as another upstream",
                hint="Nomba keeps one session per client: they would end each other's.",
            )
        names.add(one.name)
        mounts.add(one.mount)
        sessions.add((origin.text, one.client_id))
