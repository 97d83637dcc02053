"""Validate the merged values, complete the upstreams, and check what hangs together."""

import re
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from proxy.core.caller import Roster
from proxy.settings.addresses import Address, Listener, UnixSocket
from proxy.settings.callers import note_unasked, read_callers
from proxy.settings.credentials import any_credentials, read_admin_token, read_signing_key
from proxy.settings.effective import Problem, ReadyUpstream, Settings, SettingsError
from proxy.settings.explain import explain
from proxy.settings.listeners import (
    check_exposed,
    note_admin,
    read_admin,
    read_listeners,
    read_tls,
)
from proxy.settings.model import SettingsModel
from proxy.settings.shared_store import check_shared_store, is_shared, read_shared_store
from proxy.settings.sources import Report, read_sources
from proxy.settings.store import check_store, read_store
from proxy.settings.tracing import read_tracing
from proxy.settings.upstreams import (
    check_upstreams,
    complete_upstreams,
    read_address,
    read_hosts,
    simulated_credentials,
)
from proxy.simulator import Switches, parse_fault

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+(?::\d{1,5})?/?")


def load(
    *,
    environ: Mapping[str, str],
    config: str | None = None,
    flags: Mapping[str, str | list[str]] | None = None,
    credentials: bool = True,
    listeners: bool = True,
    callers: bool = True,
    again: bool = False,
) -> Settings:
    """The effective settings.

    Args:
        environ: the environment.
        config: path of the TOML file; else `NOMBA_PROXY_CONFIG`; else none.
        flags: dotted keys with their values from the command line.
        credentials: whether missing credentials are a problem.
        listeners: whether the proxy's own listeners are to be opened.
        callers: whether the callers are to be read.
        again: whether a proxy runs with earlier ones: then no pipe is waited for.

    Raises:
        SettingsError: with every problem found.
    """
    report = Report(again=again)
    path = config or environ.get("NOMBA_PROXY_CONFIG") or None
    values = read_sources(environ=environ, config=path, flags=flags or {}, report=report)
    model = _validate(values, report=report)
    listen = read_listeners(model.listen, report=report)
    local = all(one.local for one in listen)
    # Whoever asks a proxy that runs need not be able to read its key.
    serving = listeners and callers
    tls = read_tls(model.tls, listeners=listen, report=report) if serving else None
    admin = read_admin(model.admin.listen, report=report)
    admin_token = read_admin_token(model.admin.token_file, environ=environ, report=report)
    traces_to = read_tracing(model, environ=environ, report=report) if serving else None
    inspect_listen = read_address("inspect_listen", model.inspect_listen, report=report)
    in_file = any(one.client_id or one.client_secret_file for one in model.upstream)
    given = in_file or any_credentials(environ)
    simulate = model.simulate is True or (model.simulate == "auto" and not given)
    upstreams: tuple[ReadyUpstream, ...] = ()
    hosts = read_hosts(model.upstream, report=report)
    if not simulate:
        upstreams = complete_upstreams(
            model,
            environ=environ,
            required=credentials,
            here=local,
            hosts=hosts,
            report=report,
        )
    simulated: Mapping[str, str] = {}
    simulated_secret, simulator_listen, simulator_control_listen = None, None, None
    if simulate:
        simulated, simulated_secret = simulated_credentials(model, environ=environ, report=report)
        simulator_listen, simulator_control_listen = _simulator(model, report=report)
    state_dir = _state_dir(model, environ=environ)
    store_dir = read_store(model, state_dir=state_dir, report=report)
    shared_store = read_shared_store(model, environ=environ, report=report)
    callers_file = Path(model.callers.file) if model.callers.file else state_dir / "callers.toml"
    names = ["simulator"] if simulate else [one.name for one in upstreams]

    def roster() -> Roster:
        fresh = Report(again=True)
        found = read_callers(callers_file, entries=model.caller, upstreams=names, report=fresh)
        if fresh.problems:
            raise SettingsError(fresh.problems)
        return found

    known = Roster()
    if callers:
        known = read_callers(callers_file, entries=model.caller, upstreams=names, report=report)
    signing_key = read_signing_key(model.callers.signing_key_file, environ=environ, report=report)
    if is_shared(model):
        check_shared_store(model, simulate=simulate, key=signing_key, report=report)
    anonymous = model.callers.anonymous is True or (model.callers.anonymous == "auto" and local)
    doors = [anonymous] if simulate else [one.anonymous for one in upstreams]
    explicit = model.callers.anonymous is True
    open_door = any(doors) and (explicit or known.keeps_anonymous)
    if callers and model.callers.file and not _is_there(callers_file):
        # Without it the door that it closes could stand open.
        report.problem(
            "callers.file", f"{callers_file} is not there", hint="nomba-proxy caller add makes it"
        )
    _check_pages(model, report=report)
    _check_inspector(model, upstreams=upstreams, report=report)
    if listeners:
        _check_spool(model, report=report)
        if store_dir is not None:
            check_store(store_dir, report=report)
        _check_listeners(listen, admin=admin, inspect=inspect_listen, report=report)
        note_admin(admin, token=admin_token, report=report)
        check_exposed(listen, model=model, open_door=open_door, callers=known, report=report)
        client_ca = model.tls.client_ca_file is not None
        note_unasked(known, listeners=listen, client_ca=client_ca, report=report)
    check_upstreams(upstreams, listen=listen, report=report)
    if report.problems:
        raise SettingsError(report.problems)
    return Settings(
        model=model,
        listen=listen,
        tls=tls,
        admin_listen=admin,
        inspect_listen=inspect_listen,
        inspect=model.inspect is True or (model.inspect == "auto" and simulate),
        upstreams=upstreams,
        hosts=frozenset().union(*(one or () for one in hosts)),
        simulate=simulate,
        simulated_anonymous=anonymous,
        simulated=simulated,
        simulated_secret=simulated_secret,
        simulator_listen=simulator_listen,
        simulator_control_listen=simulator_control_listen,
        callers=known,
        callers_file=callers_file,
        read_callers=roster,
        state_dir=state_dir,
        store_dir=store_dir,
        shared_store=shared_store,
        signing_key=signing_key,
        admin_token=admin_token,
        traces_to=traces_to,
        warnings=tuple(report.warnings),
        origins=report.origins,
        again=partial(
            _again,
            environ=environ,
            config=config,
            flags=flags,
            credentials=credentials,
            listeners=listeners,
            callers=callers,
        ),
    )


def _again(**options: Any) -> Settings:
    """As `load`, for a proxy that runs: whatever it stumbles over must not end that.

    Raises:
        SettingsError: the settings cannot be used.
    """
    try:
        return load(**options, again=True)
    except SettingsError:
        raise
    except Exception as error:  # noqa: BLE001 - not foreseen, so nothing is known of it
        # Its type only: its text may repeat a value, and that may be a secret.
        text = f"could not be read: {type(error).__name__}, which is a fault of the proxy's"
        hint = "nomba-proxy check shows where; please report it."
        raise SettingsError([Problem("settings", "", text, hint)]) from None


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a folder that is not ours to look into
        return False


def _state_dir(model: SettingsModel, *, environ: Mapping[str, str]) -> Path:
    """Where the proxy keeps what has to outlive it."""
    if model.state_dir:
        return Path(model.state_dir)
    if given := environ.get("STATE_DIRECTORY"):  # systemd; several are separated by colons
        return Path(given.partition(":")[0])
    home = environ.get("XDG_STATE_HOME") or f"{environ.get('HOME') or '/nonexistent'}/.local/state"
    return Path(home) / "nomba-proxy"


# -- the model ---------------------------------------------------------------------------


def _validate(values: dict[str, Any], *, report: Report) -> SettingsModel:
    try:
        return SettingsModel.model_validate(values)
    except ValidationError as error:
        for found in error.errors(include_input=False, include_url=False):
            key, text, hint = explain(found["loc"], kind=found["type"], message=found["msg"])
            if all(one.key != key for one in report.problems):
                report.problem(key, text, hint=hint)
            _drop(values, found["loc"])
    try:  # once more without what is wrong, to find what else is
        return SettingsModel.model_validate(values)
    except ValidationError:
        return SettingsModel()


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


def _check_listeners(
    listen: tuple[Listener, ...],
    *,
    admin: Address | UnixSocket,
    inspect: Address,
    report: Report,
) -> None:
    taken = {one.at for one in listen}
    if admin in taken and (isinstance(admin, UnixSocket) or admin.port):
        report.problem("admin.listen", "is the same address as listen")
    if inspect in {*taken, admin} and inspect.port:
        report.problem("inspect_listen", "is the address of another listener")
    if not inspect.loopback:
        report.problem(
            "inspect_listen",
            f"{inspect} can be reached from other machines",
            hint="It shows every request: keep it on 127.0.0.1 or [::1], and reach it through ssh -L.",
        )


def _check_inspector(
    model: SettingsModel, *, upstreams: tuple[ReadyUpstream, ...], report: Report
) -> None:
    options = model.inspector
    for text in options.patterns:
        try:
            re.compile(text)
        except re.error as error:
            report.problem("inspector.patterns", f"{text!r} is no regular expression: {error}")
    for key in ("secret_names", "partial_names"):
        for name in getattr(options, key):
            if not re.search(r"[A-Za-z0-9]{2}", name):
                report.problem(f"inspector.{key}", f"{name!r} is no name")
    harmless = {"sandbox", "loopback"}  # another origin may be a way to production
    if options.reveal and any(one.origin.environment not in harmless for one in upstreams):
        report.problem(
            "inspector.reveal",
            "secrets are never shown unless the upstream is the sandbox or this machine",
            hint="Take it away, or use the sandbox or the simulator.",
        )


def _check_pages(model: SettingsModel, *, report: Report) -> None:
    for host in model.callers.hosts:
        if not _HOST.fullmatch(host):
            report.problem(
                "callers.hosts", f"{host!r} is no host name", hint="Names only: any port is meant."
            )
    for origin in model.callers.origins:
        if not _ORIGIN.fullmatch(origin):
            report.problem(
                "callers.origins",
                f"{origin!r} is no origin",
                hint="Write scheme://host or scheme://host:port, as a browser sends it.",
            )


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
        read_address(f"simulator.{key}", text, report=report) if text else None
        for key, text in (("listen", options.listen), ("control_listen", options.control_listen))
    )
    if control is not None and not control.loopback:
        report.warnings.append(
            f"simulator.control_listen: {control} can be reached from other machines, "
            "and whoever reaches it is in control of the simulator"
        )
    return listen, control
