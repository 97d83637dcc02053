"""Settings that can be used, and what is said of those that cannot."""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proxy.core.caller import Roster
from proxy.core.origin import Origin
from proxy.core.secret import Secret, mask
from proxy.settings.addresses import Address, Listener, UnixSocket
from proxy.settings.files import open_file
from proxy.settings.model import SettingsModel, UpstreamSettings, keys


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the settings.

    Attributes:
        key: the setting or variable.
        origin: where its value came from; empty if there is none.
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
        origin = f" ({self.origin})" if self.origin else ""
        return f"{self.key}{origin}: {self.text}{hint}"


class SettingsError(Exception):
    """The settings cannot be used.

    Attributes:
        problems: all of them.
    """

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(one) for one in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class ReadyUpstream:
    """One upstream, complete and checked.

    Attributes:
        client_secret: the one that is set.
        next_secret: the one that is to replace it, if there is one already.
        read_secrets: reads both again; raises `SettingsError`. None if they never change.
        anonymous: whether the settings let callers nobody knows use it.
        mount: path prefix without a trailing slash; empty for the root.
        hosts: names (`core.origin.host_name`) it is reached by; empty for every other.
        connect_proxy: host and port of the HTTP proxy to go through, if any.
    """

    name: str
    origin: Origin
    mount: str
    client_id: str
    client_secret: Secret
    account_id: str
    anonymous: bool
    options: UpstreamSettings
    hosts: frozenset[str] = frozenset()
    connect_proxy: tuple[str, int] | None = None
    next_secret: Secret | None = None
    read_secrets: Callable[[], tuple[Secret, Secret | None]] | None = None

    @property
    def session(self) -> tuple[str, ...]:
        """What Nomba's session is one for: upstreams of the same share it."""
        scope = (self.account_id.lower(),) if self.options.session_scope == "account" else ()
        return (self.origin.text, self.client_id, *scope)


@dataclass(frozen=True, slots=True)
class Tls:
    """What listeners speak TLS with.

    Attributes:
        files: that it is read from.
        make: reads them anew; raises `ValueError` with what is wrong with them.
        expires: when the certificate does that is there now, in epoch seconds; None if nobody knows.
        required: whether callers have to show a certificate.
    """

    files: tuple[Path, ...]
    make: Callable[[], ssl.SSLContext]
    expires: Callable[[], float | None] = lambda: None
    required: bool = False

    def contents(self) -> tuple[bytes | None, ...]:
        """What is in the files now; None for one that cannot be had, or would have to be waited for."""
        return tuple(map(_content, self.files))


def _content(path: Path) -> bytes | None:
    try:
        with open_file(path, waits=False) as file:
            return file.read()
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class SharedStore:
    """A Valkey or Redis server that replicas share.

    Attributes:
        host, port: of the server.
        tls: whether to speak TLS with it.
        user: of its access control list, or "".
        password: pinned to `core.secret.STORE`; None for none.
        database: its number.
        ca_file: certificates that its own is checked with, instead of the system's.
        reread: reads the password again; None if it cannot change.
    """

    host: str
    port: int = 6379
    tls: bool = False
    user: str = ""
    password: Secret | None = None
    database: int = 0
    ca_file: str | None = None
    reread: Callable[[], Secret | None] | None = None

    def read_password(self) -> Secret | None:
        """The password as it is now; the one that was read first, if there is none any more."""
        return (self.reread and self.reread()) or self.password

    def __str__(self) -> str:
        """As `store` says it, without the password."""
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        number = f"/{self.database}" if self.database else ""
        return f"valkey{'s' if self.tls else ''}://{user}{host}:{self.port}{number}"


def _never() -> "Settings":
    raise SettingsError([Problem("settings", "", "were not read from anywhere")])


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective settings.

    Attributes:
        model: every key.
        listen: where callers connect.
        tls: what listeners speak TLS with, if there are such.
        admin_listen, inspect_listen: parsed addresses.
        inspect: whether the inspector is open.
        upstreams: complete entries; empty when simulating.
        hosts: names of upstreams, by which the proxy is called.
        simulate: whether the built-in simulator is the upstream.
        simulated_anonymous: as `ReadyUpstream.anonymous`, for it.
        simulated: `account_id` and `client_id` it stands in for, where it has not its own.
        simulated_secret: the client secret to those.
        simulator_listen, simulator_control_listen: where it listens, if that is set.
        callers: the configured callers.
        callers_file: where `nomba-proxy caller` keeps them.
        read_callers: reads them again; raises `SettingsError`.
        state_dir: where the proxy keeps what has to outlive it.
        store_dir: the folder it keeps sessions in, or None.
        shared_store: the server it keeps them in, or None; with neither, they are in its memory.
        signing_key: of phantom tokens, if one is given.
        admin_token: what opens the admin listener's routes that change something, if one is given.
        traces_to: the URL that spans are sent to, or None.
        warnings: what is unwise but works.
        origins: where each key's value came from; what is missing is a default.
        again: reads everything again; raises `SettingsError`.
    """

    model: SettingsModel
    listen: tuple[Listener, ...]
    tls: Tls | None
    admin_listen: Address | UnixSocket
    inspect_listen: Address
    inspect: bool
    upstreams: tuple[ReadyUpstream, ...]
    simulate: bool
    callers: Roster
    callers_file: Path
    read_callers: Callable[[], Roster]
    state_dir: Path
    store_dir: Path | None = None
    shared_store: SharedStore | None = None
    hosts: frozenset[str] = frozenset()
    signing_key: Secret | None = None
    admin_token: Secret | None = None
    traces_to: str | None = None
    simulated_anonymous: bool = False
    simulated: Mapping[str, str] = field(default_factory=dict)
    simulated_secret: Secret | None = None
    simulator_listen: Address | None = None
    simulator_control_listen: Address | None = None
    warnings: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    # It holds the environment, and that secrets.
    again: "Callable[[], Settings]" = field(default=_never, repr=False, compare=False)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the listeners."""
        return all(one.local for one in self.listen)

    def inspector_file(self, port: int) -> Path:
        """Where `tail` and `export` find the address of an inspector that runs."""
        return self.state_dir / f"inspector-{port}.url"


# The simulator's secrets guard nothing, but somebody may give it real ones.
_HIDDEN = {"simulator.client_secret", "simulator.other_clients"}


def describe(settings: Settings) -> list[tuple[str, str, str]]:
    """Every effective setting as (key, value, origin), secrets masked."""
    rows: list[tuple[str, str, str]] = []

    def row(key: str, value: object) -> None:
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        if value is None or isinstance(value, tuple):
            shown = "; ".join(value or ())
        rows.append((key, shown, settings.origins.get(key, "default")))

    kept = "memory" if settings.store_dir is None else f"file:{settings.store_dir}"
    if settings.shared_store is not None:
        kept = str(settings.shared_store)
    in_force = {
        "state_dir": settings.state_dir,
        "store": kept,
        "callers.file": settings.callers_file,
        "tracing.otlp_endpoint": settings.traces_to or "",
    }
    for key in keys():
        if key.startswith("upstream."):
            continue
        if key in in_force:
            row(key, in_force[key])
            continue
        section, _, name = key.rpartition(".")
        holder = getattr(settings.model, section) if section else settings.model
        value = getattr(holder, name)
        row(key, "***" if key in _HIDDEN and value else value)
    if settings.simulate:  # what acts on the simulator
        entry = settings.model.upstream[0] if settings.model.upstream else UpstreamSettings()
        for name in ("account_id", "client_id"):
            row(f"upstream.0.{name}", mask(settings.simulated.get(name, "")))
        row("upstream.0.client_secret", "***" if settings.simulated_secret else "")
        for name in ("mount", "strip_mount", "account_policy", "account_override_money"):
            row(f"upstream.0.{name}", getattr(entry, name))
        row("upstream.0.hosts", ", ".join(entry.hosts))
        row("upstream.0.account_allow", ", ".join(map(mask, entry.account_allow)))
    shared = settings.shared_store
    row("store_password", "***" if shared and shared.password else "")
    row("callers.signing_key", "***" if settings.signing_key else "")
    row("caller", ", ".join(one.name for one in settings.callers.callers))
    for at, one in enumerate(settings.upstreams):
        prefix = f"upstream.{at}"
        for name in UpstreamSettings.model_fields:
            value = getattr(one.options, name)
            if name == "base_url":
                value = one.origin.text
            elif name in {"client_id", "account_id"}:
                value = mask(getattr(one, name))
            elif name == "hosts":
                value = ", ".join(sorted(one.hosts))
            elif isinstance(value, tuple):
                value = ", ".join(mask(item) for item in value)
            row(f"{prefix}.{name}", "" if value is None else value)
        row(f"{prefix}.client_secret", "***" if one.client_secret else "")
        row(f"{prefix}.client_secret_next", "***" if one.next_secret else "")
    return rows
