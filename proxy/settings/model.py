"""Every key that can be set, with its type, limits and default."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    create_model,
)

from proxy.simulator import Switches

PREFIX = "NOMBA_PROXY_"
# An empty text is no value.
Text = Annotated[str | None, BeforeValidator(lambda value: value or None)]
# From the environment or a flag, a list is one text.
Texts = Annotated[tuple[str, ...], BeforeValidator(lambda value: _split(value, at=","))]
Lines = Annotated[tuple[str, ...], BeforeValidator(lambda value: _split(value, at="\n"))]
Uids = Annotated[tuple[str, ...], BeforeValidator(lambda value: _named(_split(value, at=",")))]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


def _split(value: object, *, at: str) -> object:
    if not isinstance(value, str):
        return value
    return [one.strip() for one in value.split(at) if one.strip()]


def _named(uids: object) -> object:
    """Users by number and by name, as texts."""
    if not isinstance(uids, list):
        return uids
    return [str(one) if type(one) is int else one for one in uids]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AdminSettings(_Section):
    """The admin listener."""

    listen: str = "127.0.0.1:9091"
    token_file: Text = None
    open_metrics: bool = False


class LogSettings(_Section):
    """What is written to stdout."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
    sample: Share = 1.0


class TracingSettings(_Section):
    """Spans for a collector that speaks OTLP over HTTP."""

    otlp_endpoint: Text = None
    sample: Share = 1.0


class TlsSettings(_Section):
    """Listeners that speak TLS."""

    cert_file: Text = None
    key_file: Text = None
    client_ca_file: Text = None
    client_required: bool = True


class CallerSettings(_Section):
    """Who may call."""

    anonymous: Literal["auto"] | bool = "auto"
    file: Text = None
    signing_key_file: Text = None
    accept_upstream_credentials: bool = True
    login_lifetime: Seconds = 3600.0
    login_failure: Annotated[Literal["401", "200"], BeforeValidator(str)] = "401"
    hosts: Texts = ()
    origins: Texts = ()
    head_timeout: Seconds = 15.0
    idle_timeout: Seconds = 75.0
    write_stall: Seconds = 60.0
    head_limit: Annotated[ByteSize, Field(ge=1024, le=1024 * 1024)] = ByteSize(64 * 1024)
    head_fields: Annotated[int, Field(ge=8, le=10_000)] = 128
    connections: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000


class BodySettings(_Section):
    """Request bodies."""

    limit: Annotated[ByteSize, Field(gt=0)] = ByteSize(64 * 1024 * 1024)
    memory: Annotated[ByteSize, Field(ge=0)] = ByteSize(1024 * 1024)
    spool_dir: Text = None
    memory_budget: Annotated[ByteSize, Field(gt=0)] = ByteSize(256 * 1024 * 1024)
    spool_budget: Annotated[ByteSize, Field(gt=0)] = ByteSize(2 * 1024 * 1024 * 1024)
    stall_timeout: Seconds = 30.0
    total_timeout: Seconds = 300.0


class TokenSettings(_Section):
    """Nomba's session."""

    early: Seconds = 300.0
    urgent: Seconds = 30.0
    call_timeout: Seconds = 10.0
    wait_limit: Seconds = 20.0
    gap: Seconds = 10.0
    memory: Seconds = 60.0
    budget: Annotated[int, Field(ge=1, le=100_000)] = 30
    lease: Seconds = 3.0
    renew_alone: bool = False
    revoke_at_shutdown: bool = False
    revoke_after_rotation: bool = False


class TimeoutSettings(_Section):
    """One attempt at the upstream."""

    connect: Seconds = 5.0
    tls: Seconds = 5.0
    write_stall: Seconds = 30.0
    first_byte: Seconds = 60.0
    between_bytes: Seconds = 30.0
    total: Seconds = 90.0


class PoolSettings(_Section):
    """Connections to one upstream."""

    size: Annotated[int, Field(ge=1, le=65536)] = 256
    queue: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    idle: Seconds = 15.0
    recent: Seconds = 3.0


class HeaderSettings(_Section):
    """Headers, beside what HTTP asks of a proxy."""

    via_upstream: bool = True
    forwarded: Literal["remove", "pass"] = "remove"
    rewrite_location: bool = True
    trace: Literal["pass", "start"] = "pass"
    server_timing: bool = False


class InspectorSettings(_Section):
    """The inspector, where `inspect` opens it."""

    memory: Annotated[ByteSize, Field(gt=0)] = ByteSize(64 * 1024 * 1024)
    body_limit: Annotated[ByteSize, Field(ge=0)] = ByteSize(256 * 1024)
    secret_names: Texts = ()
    partial_names: Texts = ()
    patterns: Lines = ()
    reveal: bool = False


class DrainSettings(_Section):
    """Shutting down."""

    delay: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 5.0
    limit: Seconds = 25.0


class _SimulatorSettings(_Section):
    """The built-in simulator, and `nomba-proxy simulate`."""

    listen: Text = None
    control_listen: Text = None
    seed: int = 1
    state_file: Text = None
    faults: Lines = ()

    def switches(self) -> Mapping[str, Any]:
        """The switches that can be set here, with their values."""
        return {name: getattr(self, name) for name in _SWITCHES}


# What the simulator can be told, it knows best itself; the account is the upstream's.
_SWITCHES: Mapping[str, Any] = {
    field.name: (Texts if field.name == "other_clients" else field.type, field.default)
    for field in fields(Switches)
    if field.name != "account_id"
}
if TYPE_CHECKING:
    SimulatorSettings = _SimulatorSettings
else:
    SimulatorSettings = create_model(
        "SimulatorSettings", __base__=_SimulatorSettings, __module__=__name__, **_SWITCHES
    )


class UpstreamSettings(_Section):
    """One entry of `[[upstream]]`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] = "nomba"
    # People write Sandbox and PRODUCTION.
    environment: Annotated[
        Literal["production", "sandbox"] | None,
        BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    ] = None
    base_url: Text = None
    mount: str = "/"
    strip_mount: bool = True
    hosts: Texts = ()
    session_scope: Literal["client", "account"] = "client"
    client_id: Text = None
    client_secret_file: Text = None
    client_secret_next_file: Text = None
    account_id: Text = None
    account_policy: Literal["override", "fill", "allow"] = "override"
    account_allow: Texts = ()
    account_override_money: bool = False
    ca_file: Text = None
    addresses: Texts = ()
    ipv4_only: bool = False
    connect_proxy: Text = None


def _moment(value: object) -> object:
    """A date is the beginning of that day; a time without a zone is UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime) and value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    if isinstance(value, datetime) and not 2000 <= value.year < 9999:
        raise ValueError("no year that a clock shows")
    return value


def _rate(value: float) -> float:
    if 0 < value < 0.001:
        raise ValueError("a rate is 0 for no limit, or at least 0.001 a second")
    return value


class CallerEntry(_Section):
    """One entry of `[[caller]]`, in the settings or in `callers.file`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    secrets: tuple[str, ...] = ()
    certificates: Lines = ()
    uids: Uids = ()
    enabled: bool = True
    expires: Annotated[datetime | None, BeforeValidator(_moment)] = None
    upstreams: Texts = ()
    accounts: Texts = ()
    role: Literal["full", "no-money", "read-only"] = "full"
    rules: Lines = ()
    observe: bool = False
    rate: Annotated[
        float, Field(ge=0, le=1_000_000, allow_inf_nan=False), AfterValidator(_rate)
    ] = 0.0
    burst: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    concurrent: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    body_limit: Annotated[ByteSize, Field(ge=0)] = ByteSize(0)


class CallersFile(_Section):
    """The file that `nomba-proxy caller` keeps."""

    anonymous: bool | None = None
    caller: tuple[CallerEntry, ...] = ()


class SettingsModel(_Section):
    """Everything that can be set, with its default."""

    listen: Texts = ("127.0.0.1:8080",)
    insecure_plain_http: bool = False
    state_dir: Text = None
    store: Text = None
    store_password_file: Text = None
    store_ca_file: Text = None
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    simulate: Literal["auto"] | bool = False
    inspect: Literal["auto"] | bool = "auto"
    inspect_listen: str = "127.0.0.1:4040"
    admin: AdminSettings = AdminSettings()
    tls: TlsSettings = TlsSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    callers: CallerSettings = CallerSettings()
    body: BodySettings = BodySettings()
    token: TokenSettings = TokenSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    pool: PoolSettings = PoolSettings()
    headers: HeaderSettings = HeaderSettings()
    inspector: InspectorSettings = InspectorSettings()
    drain: DrainSettings = DrainSettings()
    simulator: SimulatorSettings = SimulatorSettings()
    upstream: tuple[UpstreamSettings, ...] = ()
    caller: tuple[CallerEntry, ...] = ()


# What a key with few values takes, in words.
ALLOWED = {
    "simulate": "true, false or auto",
    "inspect": "true, false or auto",
    "workers": "a number of processes, from 1 to 64",
    "inspector.memory": "a size such as 64MiB, more than nothing",
    "inspector.body_limit": "a size such as 256KiB",
    "callers.anonymous": "true, false or auto",
    "listen": "one place or several: host:port, https://host:port, unix:///path or fd:3",
    "callers.login_failure": "401 or 200",
    "callers.head_limit": "a size from 1KiB to 1MiB",
    "caller.0.name": "a short lower-case name (letters, digits and -)",
    "caller.0.role": "full, no-money or read-only",
    "caller.0.expires": "a date such as 2027-01-31, or a time with one",
    "caller.0.body_limit": "a size such as 1MiB",
    "caller.0.uids": "a list of numbers and names of users",
    "body.limit": "a size such as 64MiB, more than nothing",
    "body.memory": "a size such as 1MiB",
    "body.memory_budget": "a size such as 256MiB, more than nothing",
    "body.spool_budget": "a size such as 2GiB, more than nothing",
    "headers.forwarded": "remove or pass",
    "headers.trace": "pass or start",
    "log.format": "auto, json or console",
    "log.level": "debug, info, warning or error",
    "log.sample": "a share from 0 to 1",
    "tracing.sample": "a share from 0 to 1",
    "upstream.0.environment": "production or sandbox",
    "upstream.0.account_policy": "override, fill or allow",
    "upstream.0.session_scope": "client or account",
    "upstream.0.name": "a short lower-case name (letters, digits, - and _)",
}


def keys() -> list[str]:
    """Every key that can be set, dotted; `upstream.0.` stands for the only entry."""
    found = []
    for name, info in SettingsModel.model_fields.items():
        if name == "caller":
            continue  # in a file only
        if name == "upstream":
            found += [f"upstream.0.{one}" for one in UpstreamSettings.model_fields]
        elif isinstance(info.default, BaseModel):
            found += [f"{name}.{one}" for one in type(info.default).model_fields]
        else:
            found.append(name)
    return found


def variable(key: str) -> str:
    """The environment variable of a key."""
    return PREFIX + key.replace(".0.", ".").replace(".", "_").upper()
