"""Sessions with the upstreams, and the way there."""

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

from proxy.admin import ControlFailed, SessionControls
from proxy.app.listeners import CannotStart
from proxy.core.account import AccountRule
from proxy.core.exchange import Emit, Event
from proxy.core.mounts import Mount
from proxy.core.reply import CallUpstream
from proxy.core.session import Limits as TokenLimits
from proxy.errors import ProxyError
from proxy.gate import Upstream
from proxy.settings import (
    ReadyUpstream,
    Settings,
    SharedStore,
)
from proxy.tokens.asking import Clocks
from proxy.tokens.keyring import Keyring
from proxy.tokens.known import Known
from proxy.tokens.manager import Session
from proxy.tokens.nomba import Credentials, NombaAuth
from proxy.tokens.store import MemoryStore, Store, StoreFailed
from proxy.upstream.dialler import Dialler, Timeouts
from proxy.upstream.pool import PoolLimits
from proxy.upstream.way import Way

if TYPE_CHECKING:
    from proxy.tokens.file_store import FileStore
    from proxy.tokens.valkey_store import ValkeyStore
    from proxy.valkey import Valkey

_Result = TypeVar("_Result")
_ASKS_DNS = (
    "the hosts file leads to this machine, so DNS is asked for the upstream's address instead; "
    "to decide it yourself, set upstream.addresses"
)


def alive_clock() -> Callable[[], float]:
    """Seconds on a clock that runs during sleep: CLOCK_BOOTTIME, monotonic elsewhere."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    if boottime is None:
        return time.monotonic
    clock: int = boottime
    return lambda: time.clock_gettime(clock)


def share(upstreams: tuple[ReadyUpstream, ...]) -> dict[str, tuple[str, ...]]:
    """Which upstreams share which session: their names, by the name of the first of them.

    A session goes by that name, and logs in as that upstream: with its account, and by its way.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for one in upstreams:
        found.setdefault(one.session, []).append(one.name)
    return {names[0]: tuple(names) for names in found.values()}


def to_each(emit: Emit, sharing: Mapping[str, tuple[str, ...]]) -> Emit:
    """Tell what happens to a session for each upstream that shares it."""

    def told(event: Event) -> None:
        for name in sharing.get(event.upstream, ()):
            emit(replace(event, upstream=name))

    return told


def make_dialler(one: ReadyUpstream, *, settings: Settings, via: bytes, emit: Emit) -> Dialler:
    """The way to an upstream."""
    model = settings.model

    def ignored(addresses: tuple[str, ...]) -> None:
        fields: dict[str, object] = {"host": one.origin.host, "addresses": ", ".join(addresses)}
        emit(Event("hosts_entry_ignored", "warning", one.name, fields | {"hint": _ASKS_DNS}))

    return Dialler(
        one.origin,
        way=Way(
            ca_file=one.options.ca_file,
            addresses=one.options.addresses,
            ipv4_only=one.options.ipv4_only,
            proxy=one.connect_proxy,
        ),
        **limits_of(settings),
        via=via if model.headers.via_upstream else b"",
        ignored=ignored,
    )


class _Limits(TypedDict):
    timeouts: Timeouts
    limits: PoolLimits


def limits_of(settings: Settings) -> _Limits:
    """What holds for requests on the way to every upstream."""
    model = settings.model
    return {
        "timeouts": Timeouts(**model.timeouts.model_dump()),
        "limits": PoolLimits(**model.pool.model_dump()),
    }


def make_session(
    one: ReadyUpstream,
    *,
    dialler: Dialler,
    settings: Settings,
    valkey: "Valkey | None",
    emit: Emit,
) -> Session:
    """The session of an upstream, and of those that share it."""
    model = settings.model
    keyring = Keyring(one.client_secret, one.next_secret)
    known = Known(
        one.name,
        keyring=keyring,
        store=make_store(one, keyring=keyring, settings=settings, valkey=valkey, emit=emit),
        clocks=Clocks(alive=alive_clock(), wall=time.time, random=random.random),
        emit=emit,
    )
    return Session(
        known,
        auth=make_auth(one, call=dialler.call, settings=settings),
        limits=TokenLimits(
            early=model.token.early,
            urgent=model.token.urgent,
            wait_limit=model.token.wait_limit,
            gap=model.token.gap,
            memory=model.token.memory,
            budget=model.token.budget,
            alone=model.token.renew_alone,
            revoke_old=model.token.revoke_after_rotation,
        ),
    )


def make_auth(one: ReadyUpstream, *, call: CallUpstream, settings: Settings) -> NombaAuth:
    """The calls that bring an upstream's tokens."""
    credentials = Credentials(one.origin.text, one.client_id, one.account_id)
    return NombaAuth(credentials, call=call, timeout=settings.model.token.call_timeout)


def wire(one: ReadyUpstream, *, dialler: Dialler, session: Session) -> Upstream:
    """An upstream as the handler knows it."""
    prefix = one.mount.encode("ascii")
    return Upstream(
        name=one.name,
        mount=Mount(prefix, hosts=one.hosts, strip=one.options.strip_mount),
        dialler=dialler,
        session=session,
        account=AccountRule(
            one.account_id,
            policy=one.options.account_policy,
            allowed=frozenset(name.lower() for name in one.options.account_allow),
            override_money=one.options.account_override_money,
        ),
    )


def make_valkey(server: SharedStore, *, emit: Emit) -> "Valkey":
    """The server that replicas share; it is connected to once it is started."""
    from proxy.valkey import Valkey  # an extra, and slow to import

    return Valkey(
        server.host,
        port=server.port,
        tls=server.tls,
        ca_file=server.ca_file,
        user=server.user,
        password=server.read_password,
        database=server.database,
        shown=str(server),
        alive=alive_clock(),
        random=random.random,
        emit=emit,
    )


def make_store(
    one: ReadyUpstream,
    *,
    keyring: Keyring,
    settings: Settings,
    valkey: "Valkey | None",
    emit: Emit,
) -> Store:
    """Where a session is kept.

    Raises:
        CannotStart: its folder cannot be used.
    """

    def warn(text: str) -> None:
        emit(Event("stored_session_ignored", "warning", one.name, {"reason": text}))

    if valkey is not None:
        return _on_server(valkey, one, keyring=keyring, settings=settings, warn=warn)
    if settings.store_dir is not None:
        return _in_folder(settings.store_dir, one, keyring=keyring, warn=warn)
    return MemoryStore()


# What is kept is encrypted. It is imported where something is: cryptography is 7 MiB.


def _in_folder(
    folder: Path, one: ReadyUpstream, *, keyring: Keyring, warn: Callable[[str], object]
) -> "FileStore":
    from proxy.tokens.file_store import FileStore, MachineClock
    from proxy.tokens.seal import Identity, Seal

    identity = Identity(*one.session)
    seal = Seal(identity, keyring=keyring)
    clock = MachineClock(_boot(), alive=alive_clock(), wall=time.time)
    try:
        return FileStore(folder, identity=identity, seal=seal, clock=clock, warn=warn)
    except StoreFailed as error:
        raise CannotStart(f"store: {error}") from None


def _on_server(
    valkey: "Valkey",
    one: ReadyUpstream,
    *,
    keyring: Keyring,
    settings: Settings,
    warn: Callable[[str], object],
) -> "ValkeyStore":
    from proxy.tokens.seal import Identity, Seal
    from proxy.tokens.valkey_store import ValkeyStore

    identity = Identity(*one.session)
    return ValkeyStore(
        valkey,
        identity=identity,
        seal=Seal(identity, keyring=keyring),
        lease=settings.model.token.lease,
        alive=alive_clock(),
        wall=time.time,
        random=random.random,
        warn=warn,
    )


def _boot() -> str:
    """Names this boot of the machine; "" where it has no name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def controls_of(session: Session, *, upstreams: tuple[str, ...]) -> SessionControls:
    """What operators can do with a session."""

    async def told(work: Awaitable[_Result]) -> _Result:
        try:
            return await work
        except ProxyError as error:
            more = f" {problem}" if (problem := session.status().last_error) else ""
            raise ControlFailed(error.description + more) from error

    def status() -> Mapping[str, object]:
        shown = {
            key: round(value, 1) if isinstance(value, float) else value
            for key, value in asdict(session.status()).items()
        }
        return {"upstreams": upstreams, **shown}

    return SessionControls(
        ready=lambda: session.ready,
        upstreams=upstreams,
        status=status,
        renew=lambda: told(session.renew_now()),
        revoke=lambda stop: told(session.revoke(stop=stop)),
    )
