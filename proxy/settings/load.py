"""Validate the merged values, complete the upstreams, and check what hangs together."""

import difflib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from proxy.settings.addresses import Address
from proxy.settings.credentials import (
    any_credentials,
)
from proxy.settings.effective import ReadyUpstream, Settings, SettingsError
from proxy.settings.model import ALLOWED, SettingsModel, keys
from proxy.settings.sources import Report, read_sources
from proxy.settings.upstreams import (
    check_upstreams,
    complete_upstreams,
    read_address,
    simulated_account,
)
from proxy.simulator import Switches, parse_fault


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
    listen = read_address("listen", model.listen, report=report)
    admin = read_address("admin.listen", model.admin.listen, report=report)
    in_file = any(one.client_id or one.client_secret_file for one in model.upstream)
    given = in_file or any_credentials(environ)
    simulate = model.simulate is True or (model.simulate == "auto" and not given)
    upstreams: tuple[ReadyUpstream, ...] = ()
    if not simulate:
        upstreams = complete_upstreams(model, environ=environ, required=credentials, report=report)
    account, simulator_listen, simulator_control_listen = "", None, None
    if simulate:
        account = simulated_account(model, environ=environ, report=report)
        simulator_listen, simulator_control_listen = _simulator(model, report=report)
    open_door = any(one.anonymous for one in upstreams)
    if simulate:
        open_door = model.callers.anonymous is not False
    if listeners:
        _check_spool(model, report=report)
        _check_listeners(listen, admin=admin, open_door=open_door, report=report)
    check_upstreams(upstreams, listen=listen, report=report)
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
