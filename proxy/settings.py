"""Load and validate the settings; report all problems at once.

Order: flag over environment over file over default. This is the only reader of the
environment. Every value keeps its origin, so that `check --show` and every problem can
name it. Credentials come from the environment, from files the environment or the
settings file names, or from `$CREDENTIALS_DIRECTORY`; never from a flag, and never from
the settings file itself.
"""

import difflib
import ipaddress
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError
from yarl import URL

from proxy.core.origin import PRODUCTION, SANDBOX, WRONG_SANDBOX_HOSTS, Environment, Origin
from proxy.core.secret import Secret, mask

Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AdminSettings(_Section):
    """The admin listener."""

    listen: str = "127.0.0.1:9091"


class LogSettings(_Section):
    """What is written to stdout."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class CallerSettings(_Section):
    """Who may call."""

    anonymous: Literal["auto"] | bool = "auto"
    login_lifetime: Seconds = 3600.0
    idle_timeout: Seconds = 75.0


class BodySettings(_Section):
    """Request bodies."""

    # Bodies are held in memory, so there is a limit to the limit.
    limit: Annotated[ByteSize, Field(gt=0, le=64 * 1024 * 1024)] = ByteSize(1024 * 1024)
    stall_timeout: Seconds = 30.0
    total_timeout: Seconds = 300.0


class TokenSettings(_Section):
    """Nomba's session."""

    early: Seconds = 300.0
    call_timeout: Seconds = 10.0
    wait_limit: Seconds = 20.0
    gap: Seconds = 10.0
    revoke_at_shutdown: bool = False


class TimeoutSettings(_Section):
    """One attempt at the upstream."""

    connect: Seconds = 5.0
    tls: Seconds = 5.0
    first_byte: Seconds = 60.0
    between_bytes: Seconds = 30.0
    total: Seconds = 90.0


class DrainSettings(_Section):
    """Shutting down."""

    limit: Seconds = 25.0


class UpstreamSettings(_Section):
    """One entry of `[[upstream]]`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] = "nomba"
    environment: Literal["production", "sandbox"] | None = None
    base_url: str | None = None
    mount: str = "/"
    client_id: str | None = None
    client_secret_file: str | None = None
    account_id: str | None = None
    account_policy: Literal["override", "fill", "allow"] = "override"
    account_allow: tuple[str, ...] = ()
    account_override_money: bool = False
    ca_file: str | None = None


class SettingsModel(_Section):
    """Everything that can be set, with its default."""

    listen: str = "127.0.0.1:8080"
    simulate: Literal["auto"] | bool = False
    admin: AdminSettings = AdminSettings()
    log: LogSettings = LogSettings()
    callers: CallerSettings = CallerSettings()
    body: BodySettings = BodySettings()
    token: TokenSettings = TokenSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    drain: DrainSettings = DrainSettings()
    upstream: tuple[UpstreamSettings, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the settings.

    Attributes:
        key: the setting or variable.
        origin: where its value came from.
        text: what is wrong.
        hint: what to do.
    """

    key: str
    origin: str
    text: str
    hint: str = ""

    def __str__(self) -> str:
        """One line for people."""
        hint = f"\n      {self.hint}" if self.hint else ""
        return f"{self.key} ({self.origin}): {self.text}{hint}"


class SettingsError(Exception):
    """The settings cannot be used.

    Attributes:
        problems: all of them.
    """

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(one) for one in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        """`host:port`, with brackets around an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class ReadyUpstream:
    """One upstream, complete and checked.

    Attributes:
        anonymous: whether unknown callers may use it.
        mount: path prefix without a trailing slash; empty for the root.
    """

    name: str
    origin: Origin
    mount: str
    client_id: str
    client_secret: Secret
    account_id: str
    anonymous: bool
    options: UpstreamSettings


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective settings.

    Attributes:
        model: every key.
        listen, admin_listen: parsed addresses.
        upstreams: complete entries; empty when simulating.
        simulate: whether the built-in simulator is the upstream.
        warnings: what is unwise but works.
        origins: where each key's value came from; what is missing is a default.
    """

    model: SettingsModel
    listen: Address
    admin_listen: Address
    upstreams: tuple[ReadyUpstream, ...]
    simulate: bool
    warnings: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)


# Environment names that integrators already have (facts, section 5), by upstream key.
_CREDENTIALS = {
    "client_id": ("NOMBA_CLIENT_ID",),
    "client_secret": ("NOMBA_CLIENT_SECRET", "NOMBA_PRIVATE_KEY"),
    "account_id": ("NOMBA_ACCOUNT_ID", "NOMBA_PARENT_ACCOUNT_ID"),
}
_PLAIN = {"base_url": "NOMBA_BASE_URL", "environment": "NOMBA_ENVIRONMENT"}
_OWN = "NOMBA_PROXY_"
# A Kubernetes Service named nomba-proxy injects these.
_INJECTED = re.compile(r"NOMBA_PROXY_(?:PORT|SERVICE_.*|PORT_.*)")
_MISSING_HINT = (
    "Set NOMBA_CLIENT_ID, NOMBA_CLIENT_SECRET (or NOMBA_CLIENT_SECRET_FILE) and "
    "NOMBA_ACCOUNT_ID, or try it without any: nomba-proxy serve --simulate"
)


def load(
    *,
    environ: Mapping[str, str],
    config: str | None = None,
    flags: Mapping[str, str] | None = None,
    credentials: bool = True,
) -> Settings:
    """The effective settings.

    Args:
        environ: the environment.
        config: path of the TOML file; else `NOMBA_PROXY_CONFIG`; else none.
        flags: dotted keys with their values from the command line.
        credentials: whether missing credentials are a problem.

    Raises:
        SettingsError: with every problem found.
    """
    return _Loader(environ, config, flags or {}, credentials=credentials).load()


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(text: str) -> Address:
    """Parse `host:port` (an IPv6 host in brackets).

    Raises:
        ValueError: it is none.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("write an IPv6 address in brackets: [::1]:8080")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected host:port, for example 127.0.0.1:8080")
    return Address(host, int(port))


def parse_origin(text: str) -> Origin:
    """Parse and check an upstream's origin.

    Raises:
        ValueError: it cannot be used; the text says why and what to write.
    """
    try:
        url = URL(text)
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    host = (url.host or "").rstrip(".").lower()
    if url.scheme not in {"http", "https"} or not host or url.port is None:
        raise ValueError(f"expected an origin such as {PRODUCTION}")
    if host in WRONG_SANDBOX_HOSTS:
        raise ValueError(f"{host} does not exist; Nomba's sandbox is {SANDBOX}")
    if url.user is not None or url.password is not None:
        raise ValueError("credentials do not belong into a URL")
    if url.path not in {"", "/"} or url.query_string or url.fragment:
        raise ValueError("give the origin only, without path: callers send /v1/… themselves")
    loopback = is_loopback(host)
    if url.scheme == "http" and not loopback:
        raise ValueError("plain http is for loopback origins only; write https://")
    default = url.port == (443 if url.scheme == "https" else 80)
    shown = f"[{host}]" if ":" in host else host
    authority = shown if default else f"{shown}:{url.port}"
    origin = f"{url.scheme}://{authority}"
    environment: Environment = "loopback" if loopback else "custom"
    if origin == PRODUCTION:
        environment = "production"
    elif origin == SANDBOX:
        environment = "sandbox"
    return Origin(origin, host, url.port, url.scheme == "https", authority, environment)


class _Loader:
    """Collects values, origins, warnings and problems on the way to `Settings`."""

    def __init__(
        self,
        environ: Mapping[str, str],
        config: str | None,
        flags: Mapping[str, str],
        *,
        credentials: bool,
    ) -> None:
        self.environ = environ
        self.config = config or environ.get("NOMBA_PROXY_CONFIG")
        self.flags = flags
        self.want_credentials = credentials
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.origins: dict[str, str] = {}
        self.values: dict[str, Any] = {}

    def load(self) -> Settings:
        self._read_file()
        self._read_environment()
        self._read_flags()
        model = self._validate()
        listen = self._address("listen", model.listen)
        admin = self._address("admin.listen", model.admin.listen)
        simulate = model.simulate is True or (
            model.simulate == "auto" and not self._any_credentials(model)
        )
        upstreams = () if simulate else self._upstreams(model)
        self._check_listeners(listen, admin, upstreams, model, simulate=simulate)
        if self.problems:
            raise SettingsError(self.problems)
        return Settings(
            model=model,
            listen=listen,
            admin_listen=admin,
            upstreams=upstreams,
            simulate=simulate,
            warnings=tuple(self.warnings),
            origins=self.origins,
        )

    def _problem(self, key: str, text: str, hint: str = "", origin: str | None = None) -> None:
        self.problems.append(Problem(key, origin or self.origins.get(key, "default"), text, hint))

    # -- sources -----------------------------------------------------------------------

    def _read_file(self) -> None:
        if self.config is None:
            return
        try:
            with Path(self.config).open("rb") as file:
                self.values = tomllib.load(file)
        except OSError as error:
            self._problem("config", f"cannot be read: {error.strerror}", origin=self.config)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            self._problem("config", f"is no valid TOML: {error}", origin=self.config)
        origin = f"file {self.config}"
        for key, value in self.values.items():
            if isinstance(value, dict):
                self.origins |= dict.fromkeys((f"{key}.{one}" for one in value), origin)
            elif key == "upstream" and isinstance(value, list):
                for at, entry in enumerate(value):
                    if isinstance(entry, dict):
                        keys = (f"upstream.{at}.{one}" for one in entry)
                        self.origins |= dict.fromkeys(keys, origin)
            else:
                self.origins[key] = origin

    def _read_environment(self) -> None:
        known = {_variable(key): key for key in _keys()}
        for name, value in self.environ.items():
            if not name.startswith(_OWN) or name == "NOMBA_PROXY_CONFIG" or _INJECTED.match(name):
                continue
            key = known.get(name)
            if key is None:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                self.warnings.append(f"{name} in the environment is no setting{hint}")
            else:
                self._set(key, value, origin=f"environment {name}")
        for field_name, name in _PLAIN.items():
            if name in self.environ:
                self._set(
                    f"upstream.0.{field_name}", self.environ[name], origin=f"environment {name}"
                )

    def _read_flags(self) -> None:
        for key, value in self.flags.items():
            if key not in _keys():
                near = difflib.get_close_matches(key, _keys(), n=1)
                hint = (
                    f"Did you mean {near[0]}?" if near else "nomba-proxy check --show lists them."
                )
                self._problem(key, "is no setting", hint, origin="flag")
            else:
                self._set(key, value, origin="flag")

    def _set(self, key: str, value: object, *, origin: str) -> None:
        self.origins[key] = origin
        path = key.split(".")
        if path[0] == "upstream":
            entries = self.values.setdefault("upstream", [{}])
            if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
                return  # validation names it
            if len(entries) > 1:
                self._problem(
                    key,
                    f"there are {len(entries)} upstreams, so one value for all is ambiguous",
                    "Put it into the [[upstream]] entries of the settings file.",
                )
                return
            if path[2] == "account_allow" and isinstance(value, str):
                value = [one.strip() for one in value.split(",") if one.strip()]
            entries[0][path[2]] = value
        elif len(path) == 1:
            self.values[path[0]] = value
        else:
            section = self.values.setdefault(path[0], {})
            if isinstance(section, dict):
                section[path[1]] = value

    # -- validation --------------------------------------------------------------------

    def _validate(self) -> SettingsModel:
        try:
            return SettingsModel.model_validate(self.values)
        except ValidationError as error:
            for one in error.errors():
                self._explain(one["loc"], one["type"], one["msg"])
                _drop(self.values, one["loc"])
        try:  # once more without what is wrong, to find what else is
            return SettingsModel.model_validate(self.values)
        except ValidationError:
            return SettingsModel()

    def _explain(self, loc: tuple[int | str, ...], kind: str, message: str) -> None:
        # A union's branches are no part of the key.
        parts = [str(one) for one in loc if not str(one).startswith(("literal", "bool"))]
        key = ".".join(parts)
        if any(one.key == key for one in self.problems):
            return
        if kind == "extra_forbidden":
            if parts[-1] == "client_secret":
                self._problem(
                    key,
                    "secrets do not belong into the settings file",
                    "Put it into a file of its own and name that as client_secret_file.",
                )
                return
            siblings = [one for one in _keys() if one.count(".") == key.count(".")]
            generic = re.sub(r"^upstream\.\d+", "upstream.0", key)
            near = difflib.get_close_matches(generic, siblings, n=1)
            hint = f"Did you mean {near[0].replace('.0.', '.')}?" if near else ""
            self._problem(key, "is no setting", hint)
        else:
            allowed = _ALLOWED.get(re.sub(r"^upstream\.\d+\.", "upstream.0.", key))
            text = f"must be {allowed}" if allowed else message[:1].lower() + message[1:]
            self._problem(key, text)

    def _address(self, key: str, text: str) -> Address:
        try:
            return parse_address(text)
        except ValueError as error:
            self._problem(key, f"{text!r}: {error}")
            return Address("127.0.0.1", 0)

    def _check_listeners(
        self,
        listen: Address,
        admin: Address,
        upstreams: tuple[ReadyUpstream, ...],
        model: SettingsModel,
        *,
        simulate: bool,
    ) -> None:
        if listen == admin and listen.port:
            self._problem("admin.listen", "is the same address as listen")
        if not admin.loopback:
            self._problem(
                "admin.listen",
                f"{admin} can be reached from other machines",
                "It can renew and revoke tokens without a password: keep it on 127.0.0.1 or [::1].",
            )
        anonymous = model.callers.anonymous is not False if simulate else False
        if not listen.loopback and (anonymous or any(one.anonymous for one in upstreams)):
            self._problem(
                "listen",
                f"{listen} can be reached from other machines, and anybody may call",
                "Listen on 127.0.0.1, or close the door: callers.anonymous = false",
            )
        for one in upstreams:
            if one.origin.host in {listen.host, "localhost"} and one.origin.port == listen.port:
                self._problem(
                    f"upstream {one.name}", "is the proxy itself", "Check NOMBA_BASE_URL."
                )
            if one.anonymous and one.origin.environment in {"production", "custom"}:
                self.warnings.append(
                    f"anybody on this machine may use {one.origin.text} through the proxy "
                    "(callers.anonymous = true)"
                )

    # -- upstreams and their credentials -----------------------------------------------

    def _any_credentials(self, model: SettingsModel) -> bool:
        directory = self.environ.get("CREDENTIALS_DIRECTORY")
        for names in _CREDENTIALS.values():
            for name in names:
                if self.environ.get(name) or self.environ.get(f"{name}_FILE"):
                    return True
                if directory and (Path(directory) / name).exists():
                    return True
        return any(one.client_id or one.client_secret_file for one in model.upstream)

    def _upstreams(self, model: SettingsModel) -> tuple[ReadyUpstream, ...]:
        entries = model.upstream or (UpstreamSettings(),)
        shared = self._shared_credentials(single=len(entries) == 1)
        ready = []
        for at, entry in enumerate(entries):
            one = self._upstream(at, entry, shared if len(entries) == 1 else {}, model)
            if one is not None:
                ready.append(one)
        self._check_unique(ready)
        return tuple(ready)

    def _check_unique(self, ready: list[ReadyUpstream]) -> None:
        for what, of in (
            ("name", lambda one: one.name),
            ("mount", lambda one: one.mount or "/"),
            ("origin and client_id", lambda one: (one.origin.text, one.client_id)),
        ):
            seen: dict[object, str] = {}
            for one in ready:
                value = of(one)
                if value in seen:
                    why = (
                        "Nomba keeps one session per client: they would end each other's."
                        if "origin" in what
                        else ""
                    )
                    text = f"has the same {what} as another upstream"
                    self._problem(f"upstream {one.name}", text, why)
                seen[value] = one.name

    def _upstream(
        self, at: int, entry: UpstreamSettings, shared: Mapping[str, str], model: SettingsModel
    ) -> ReadyUpstream | None:
        prefix = f"upstream.{at}"
        origin = self._origin(prefix, entry)
        mount = self._mount(prefix, entry)
        secret = shared.get("client_secret")
        if secret is None and entry.client_secret_file:
            secret = self._secret_file(f"{prefix}.client_secret_file", entry.client_secret_file)
        found = {
            "client_id": shared.get("client_id") or entry.client_id,
            "client_secret": secret,
            "account_id": shared.get("account_id") or entry.account_id,
        }
        missing = [key for key, value in found.items() if not value]
        for key in missing:
            if self.want_credentials and not any(
                _CREDENTIALS[key][0] in str(one) for one in self.problems
            ):
                self._problem(
                    _CREDENTIALS[key][0],
                    f"is not set, and {prefix.replace('.0', '')}.{key} is not either",
                    _MISSING_HINT if key == missing[-1] else "",
                    origin="nowhere",
                )
        for key in ("client_id", "account_id"):
            value = found[key]
            if value and not re.fullmatch(r"[\x21-\x7e]{1,256}", value):
                self._problem(_CREDENTIALS[key][0], "contains a space or a control character")
        if origin is None or mount is None:
            return None
        return ReadyUpstream(
            name=entry.name,
            origin=origin,
            mount=mount,
            client_id=found["client_id"] or "",
            client_secret=Secret(found["client_secret"] or "", origin=origin.text),
            account_id=found["account_id"] or "",
            anonymous=self._anonymous(model, origin),
            options=entry,
        )

    @staticmethod
    def _anonymous(model: SettingsModel, origin: Origin) -> bool:
        if model.callers.anonymous == "auto":
            return origin.environment in {"loopback", "sandbox"}
        return model.callers.anonymous

    def _origin(self, prefix: str, entry: UpstreamSettings) -> Origin | None:
        named = {"production": PRODUCTION, "sandbox": SANDBOX}
        text = entry.base_url or named[entry.environment or "production"]
        try:
            origin = parse_origin(text)
        except ValueError as error:
            self._problem(f"{prefix}.base_url", str(error))
            return None
        if entry.base_url and entry.environment and origin.text != named[entry.environment]:
            self._problem(
                f"{prefix}.environment",
                f"says {entry.environment}, but base_url is {origin.text}",
                "Set one of the two.",
            )
        return origin

    def _mount(self, prefix: str, entry: UpstreamSettings) -> str | None:
        mount = entry.mount.rstrip("/")
        plain = mount == "" or (
            mount.startswith("/") and URL(mount).raw_path == mount and "//" not in mount
        )
        if not plain or re.search(r"[?#;%\s]|/\.{1,2}(/|$)", mount):
            self._problem(
                f"{prefix}.mount", f"{entry.mount!r} is no plain path prefix such as /nomba"
            )
            return None
        return mount

    def _shared_credentials(self, *, single: bool) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, names in _CREDENTIALS.items():
            given: dict[str, str] = {}
            for name in names:
                given |= self._credential(name)
            if len(set(given.values())) > 1:
                self._problem(
                    names[0],
                    f"differs between {' and '.join(given)}",
                    "Set one of them.",
                    "several",
                )
            if given:
                found[key] = next(iter(given.values()))
                self.origins[f"upstream.0.{key}"] = next(iter(given))
        if found and not single:
            self._problem(
                ", ".join(_CREDENTIALS[key][0] for key in found),
                "is set for several upstreams at once",
                "Put client_id, client_secret_file and account_id into each [[upstream]] entry.",
                "environment",
            )
        return found

    def _credential(self, name: str) -> dict[str, str]:
        """The value of one variable by its origin, at most one entry."""
        plain, file = self.environ.get(name), self.environ.get(f"{name}_FILE")
        if plain and file:
            self._problem(name, f"is set together with {name}_FILE", "Set one.", "environment")
        if plain:
            return {f"environment {name}": plain}
        if file:
            text = self._secret_file(f"{name}_FILE", file)
            return {} if text is None else {f"file {file}": text}
        directory = self.environ.get("CREDENTIALS_DIRECTORY")
        if directory and (Path(directory) / name).exists():
            text = self._secret_file(name, str(Path(directory) / name))
            return {} if text is None else {f"credential {name}": text}
        return {}

    def _secret_file(self, key: str, path: str) -> str | None:
        try:
            text = Path(path).read_text("utf-8")
            mode = Path(path).stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            self._problem(key, f"{path} cannot be read: {why}")
            return None
        if mode & stat.S_IROTH:
            self.warnings.append(f"{path} ({key}) can be read by every user: chmod 600 {path}")
        text = text.removesuffix("\n")
        if not text:
            self._problem(key, f"{path} is empty")
            return None
        if text != text.strip():
            self.warnings.append(f"the value in {path} ({key}) begins or ends with white space")
        return text


_ALLOWED = {
    "simulate": "true, false or auto",
    "callers.anonymous": "true, false or auto",
    "log.format": "auto, json or console",
    "log.level": "debug, info, warning or error",
    "upstream.0.environment": "production or sandbox",
    "upstream.0.account_policy": "override, fill or allow",
    "upstream.0.name": "a short lower-case name (letters, digits, - and _)",
}


def _keys() -> list[str]:
    """Every key that can be set, dotted; `upstream.0.` stands for the only entry."""
    keys = []
    for name, info in SettingsModel.model_fields.items():
        if name == "upstream":
            keys += [f"upstream.0.{one}" for one in UpstreamSettings.model_fields]
        elif isinstance(info.default, BaseModel):
            keys += [f"{name}.{one}" for one in type(info.default).model_fields]
        else:
            keys.append(name)
    return keys


def _variable(key: str) -> str:
    return _OWN + key.replace(".0.", ".").replace(".", "_").upper()


def _drop(values: Any, loc: tuple[int | str, ...]) -> None:
    """Remove what a validation error points at, as far as it is there."""
    for at, part in enumerate(loc):
        inside = isinstance(values, dict) and part in values
        if not inside and not (isinstance(values, list) and isinstance(part, int)):
            return
        deeper = at + 1 < len(loc) and isinstance(values[part], dict | list)
        if not deeper:
            if isinstance(values, dict):
                del values[part]
            return
        values = values[part]


def describe(settings: Settings) -> list[tuple[str, str, str]]:
    """Every effective setting as (key, value, origin), secrets masked."""
    rows: list[tuple[str, str, str]] = []

    def row(key: str, value: object) -> None:
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        rows.append((key, shown, settings.origins.get(key, "default")))

    for key in _keys():
        if key.startswith("upstream."):
            continue
        section, _, name = key.rpartition(".")
        holder = getattr(settings.model, section) if section else settings.model
        row(key, getattr(holder, name))
    for at, one in enumerate(settings.upstreams):
        prefix = f"upstream.{at}"
        for name in UpstreamSettings.model_fields:
            value = getattr(one.options, name)
            if name == "base_url":
                value = one.origin.text
            elif name in {"client_id", "account_id"}:
                value = mask(getattr(one, name))
            elif isinstance(value, tuple):
                value = ", ".join(mask(item) for item in value)
            row(f"{prefix}.{name}", "" if value is None else value)
        row(f"{prefix}.client_secret", "***" if one.client_secret else "")
    return rows


def environment() -> Mapping[str, str]:
    """The process environment; nothing else in the proxy reads it."""
    return os.environ
