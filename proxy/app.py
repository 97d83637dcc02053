"""The composition root: the only place where things are constructed and wired."""

import asyncio
import contextlib
import hmac
import os
import random
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from proxy import __version__
from proxy.admin import ControlFailed, SessionControls, build_admin
from proxy.body import Bodies, BodyLimits
from proxy.callers.keep import signing_key as kept_signing_key
from proxy.callers.login import Login
from proxy.callers.registry import Door, Registry
from proxy.callers.revoked import Revoked
from proxy.core.account import AccountRule
from proxy.core.browser import Pages
from proxy.core.caller import ANONYMOUS
from proxy.core.exchange import Emit, Event, Observe
from proxy.core.mounts import Mount
from proxy.core.origin import host_name
from proxy.core.phantom import Phantoms
from proxy.core.secret import SIGNING, SIMULATED, Secret, mask
from proxy.core.session import Limits as TokenLimits
from proxy.drain import Drain
from proxy.errors import ProxyError
from proxy.handler import Callers, Handler, Headers, Limits, Upstream
from proxy.inspector.exit import Exit
from proxy.inspector.redact import Redactor
from proxy.inspector.replay import Door as ReplayDoor
from proxy.inspector.replay import Preview, Replayer
from proxy.inspector.ring import Ring
from proxy.inspector.server import About, Inspector
from proxy.inspector.sessions import Sessions, SessionView
from proxy.server import QuietServer
from proxy.settings import (
    Address,
    ReadyUpstream,
    Settings,
    SettingsError,
    UpstreamSettings,
    is_loopback,
    parse_origin,
)
from proxy.simulator import (
    Received,
    Reply,
    Simulator,
    StateUnusable,
    Switches,
    parse_fault,
)
from proxy.simulator.control import Control
from proxy.telemetry import METRICS_TYPE, Telemetry
from proxy.tokens.file_store import FileStore
from proxy.tokens.manager import Clocks, Session
from proxy.tokens.nomba import Credentials, NombaAuth
from proxy.tokens.seal import Identity, Seal
from proxy.tokens.store import MemoryStore, StoreFailed
from proxy.upstream.dialler import Dialler, Timeouts, Way
from proxy.upstream.pool import PoolLimits

_Result = TypeVar("_Result")
_Told = TypeVar("_Told")
_REFRESH = 24  # lives of an access token that its refresh token lives
_LOOK_EVERY = 1.0  # seconds between two looks at the callers file
_ANY_PORT = Address("127.0.0.1", 0)
_BACKLOG = 1024  # callers that wait to be accepted, as between two proxies on one socket
_TICKET = 60.0  # seconds that a replay may take to begin
_SIMULATOR_MEMORY = 64 * 1024 * 1024  # bytes of requests that it remembers


class CannotStart(Exception):
    """The proxy cannot start; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that is up.

    Attributes:
        listen, admin_listen: the addresses it got.
        upstreams: what it forwards to.
        simulator: the control API of the built-in one, if it is the upstream.
        drain: begins the end: once it returns nothing more is accepted. The rest happens
            when the stack is left.
        inspector: the address of the inspector with its key, or "".
    """

    listen: Address
    admin_listen: Address
    upstreams: tuple[ReadyUpstream, ...]
    simulator: Control | None
    drain: Callable[[], Awaitable[None]]
    inspector: str = ""


def alive_clock() -> Callable[[], float]:
    """Seconds on a clock that runs during sleep: CLOCK_BOOTTIME, monotonic elsewhere."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    if boottime is None:
        return time.monotonic
    clock: int = boottime
    return lambda: time.clock_gettime(clock)


async def start(
    settings: Settings,
    *,
    stack: AsyncExitStack,
    telemetry: Telemetry,
    sock: socket.socket | None = None,
) -> Running:
    """Bring the proxy up; leaving `stack` brings it down, listeners first.

    Args:
        settings: what it is to be.
        stack: takes what has to be undone.
        telemetry: is told what happens.
        sock: a bound socket to take requests from instead of `settings.listen`. It is closed
            in the end; what it has not accepted by then is left to other holders of it.

    Raises:
        CannotStart: an address cannot be had, or aiohttp lacks its compiled parser.
    """
    if HttpRequestParser is HttpRequestParserPy:
        raise CannotStart(
            "aiohttp runs on its pure-Python parser, which reads requests differently.\n"
            "Install a wheel of aiohttp with extensions, and unset AIOHTTP_NO_EXTENSIONS."
        )
    control = None
    upstreams = settings.upstreams
    if settings.simulate:
        simulator, control = await start_simulator(settings, stack=stack)
        upstreams = (_simulated(settings, simulator),)

    redactor = _redactor(settings)
    ring, sessions = _ring(settings, redactor), Sessions({})
    emit: Emit = telemetry.emit
    observe: Observe = telemetry.observe
    sharing = _sharing(upstreams)
    if ring is not None:
        emit = _both(telemetry.emit, _to_each(sessions.emit, sharing))
        observe = _both(telemetry.observe, ring.note)
    key = _signing_key(settings, emit=emit)
    # The same in every process that has the key, so a way round through another is seen too.
    via = b"1.1 nomba-proxy-%b" % hmac.digest(key, b"via", "sha256")[:4].hex().encode()
    diallers = {one.name: _dialler(one, settings=settings, via=via) for one in upstreams}
    for dialler in diallers.values():
        stack.callback(dialler.close)
    tokens = {
        one.name: _session(one, dialler=diallers[one.name], settings=settings, emit=emit)
        for one in upstreams
        if one.name in sharing
    }
    controls: dict[str, SessionControls] = {}
    for name, session in tokens.items():
        stack.push_async_callback(session.close, revoke=settings.model.token.revoke_at_shutdown)
        controls[name] = _controls(session, upstreams=sharing[name])
    lenders = {name: first for first, names in sharing.items() for name in names}
    wired = [
        _wire(one, dialler=diallers[one.name], session=tokens[lenders[one.name]])
        for one in upstreams
    ]

    draining = asyncio.Event()
    admin = web.ServerRunner(
        QuietServer(
            build_admin(
                controls,
                is_draining=draining.is_set,
                metrics=telemetry.metrics.render,
                metrics_type=METRICS_TYPE,
                is_loopback=is_loopback,
            ),
            observe=lambda _: None,  # probes are no exchanges
            emit=telemetry.emit,
            keepalive=settings.model.callers.idle_timeout,
        ),
        shutdown_timeout=1.0,  # an operator's request must not hold the drain up
    )
    admin_listen = await _listen(admin, settings.admin_listen, stack=stack, key="admin.listen")

    model = settings.model
    callers = _callers(settings, upstreams=upstreams, key=key, emit=telemetry.emit)
    watch = asyncio.create_task(
        _watch_callers(settings, registry=callers.registry, emit=telemetry.emit)
    )
    stack.push_async_callback(_end, watch)
    authorities: set[str] = set()
    handler = Handler(
        tuple(wired),
        limits=Limits(write_stall=model.callers.write_stall),
        bodies=Bodies(
            BodyLimits(
                size=int(model.body.limit),
                memory=int(model.body.memory),
                stall=model.body.stall_timeout,
                total=model.body.total_timeout,
                spool_dir=model.body.spool_dir,
                memory_budget=int(model.body.memory_budget),
                spool_budget=int(model.body.spool_budget),
            )
        ),
        callers=callers,
        headers=Headers(
            via=via,
            via_upstream=model.headers.via_upstream,
            keep_forwarded=model.headers.forwarded == "pass",
            rewrite_location=model.headers.rewrite_location,
        ),
        is_own_authority=lambda text: text in authorities or host_name(text) in settings.hosts,
        observe=telemetry.observe,
        emit=telemetry.emit,
        watch=ring.watch if ring is not None else None,
    )
    server = QuietServer(
        handler,
        observe=observe,
        emit=telemetry.emit,
        keepalive=model.callers.idle_timeout,
        is_draining=draining.is_set,
    )
    traffic = await _take_traffic(server, settings.listen, sock=sock)
    drain = Drain(traffic, server=server, begun=draining, limit=model.drain.limit)
    stack.push_async_exit(drain.end)
    listen = Address(*traffic.sockets[0].getsockname()[:2])
    authorities.update(_authorities(listen))
    inspector = ""
    if ring is not None:
        for one in upstreams:
            environment = one.origin.environment
            lender = controls[lenders[one.name]]
            sessions.views[one.name] = SessionView(
                "simulator" if settings.simulate else environment,
                status=lender.status,
                renew=lender.renew,
            )
        door = _replay_door(
            settings,
            listen=listen,
            handler=handler,
            registry=callers.registry,
            key=key,
            stack=stack,
        )
        inspector = await _inspect(
            settings,
            ring=ring,
            redactor=redactor,
            sessions=sessions,
            door=door,
            telemetry=telemetry,
            stack=stack,
        )
    stack.push_async_callback(drain.begin)  # at once, before the inspector takes its time
    # Last: a proxy that cannot listen must not have logged in, which would end the
    # session of the one that is running already.
    for session in tokens.values():
        session.start()
    return Running(listen, admin_listen, upstreams, control, drain.begin, inspector)


async def start_simulator(
    settings: Settings,
    *,
    stack: AsyncExitStack,
    listen: Address = _ANY_PORT,
    control_listen: Address = _ANY_PORT,
    observe: Callable[[Received, Reply | None], object] = lambda *_: None,
) -> tuple[Simulator, Control]:
    """Bring a simulator up, with its control API; leaving `stack` brings it down.

    Args:
        settings: with a section for the simulator.
        stack: takes what has to be undone.
        listen: where it listens unless `simulator.listen` says so.
        control_listen: the same for its control API.
        observe: told of each request and its reply.

    Raises:
        CannotStart: an address cannot be had, or the state file cannot be used.
    """
    options = settings.model.simulator
    switches = Switches(**options.switches())
    for name, value in settings.simulated.items():
        setattr(switches, name, value)
    if (secret := settings.simulated_secret) is not None:
        switches.client_secret = secret.reveal(to=SIMULATED)
    path = Path(options.state_file) if options.state_file else None
    simulator = Simulator(
        switches,
        seed=options.seed,
        state_file=path,
        memory=_SIMULATOR_MEMORY,
        observe=observe,
        trouble=lambda text: print(f"simulator: {text}", file=sys.stderr),  # noqa: T201
    )
    for text in options.faults:
        simulator.inject(parse_fault(text))
    control = Control(simulator)
    for key, server, address in (
        ("simulator.listen", simulator, settings.simulator_listen or listen),
        ("simulator.control_listen", control, settings.simulator_control_listen or control_listen),
    ):
        try:
            await server.start(host=address.host, port=address.port)
        except StateUnusable as error:
            raise CannotStart(f"simulator.state_file: {error}") from None
        except OSError as error:
            raise _taken(key, address=address, error=error) from None
        stack.push_async_callback(server.stop)
    return simulator, control


async def serve(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM; a second signal cuts what is under way.

    Raises:
        CannotStart: as `start`.
        asyncio.CancelledError: after a second signal.
    """
    model = settings.model
    telemetry = Telemetry(model.log.format, level=model.log.level, version=__version__)
    loop = asyncio.get_running_loop()
    stopping, aborting = asyncio.Event(), asyncio.Event()
    main = asyncio.current_task()
    assert main is not None  # noqa: S101 - a coroutine runs in a task

    def on_signal() -> None:
        if aborting.is_set():
            os._exit(1)
        if stopping.is_set():
            aborting.set()
            main.cancel()  # what is cut is still logged, as unknown
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    async with AsyncExitStack() as stack:
        running = await start(settings, stack=stack, telemetry=telemetry)
        print(banner(running, settings=settings), file=sys.stderr, flush=True)  # noqa: T201 - people read it
        await stopping.wait()
        telemetry.emit(Event("draining", fields={"limit_seconds": model.drain.limit}))


def _both(
    one: Callable[[_Told], object], other: Callable[[_Told], object]
) -> Callable[[_Told], None]:
    def told(what: _Told) -> None:
        one(what)
        other(what)

    return told


def _redactor(settings: Settings) -> Redactor:
    options = settings.model.inspector
    return Redactor(
        secret=options.secret_names,
        partial=options.partial_names,
        patterns=options.patterns,
        reveal=options.reveal,
    )


def _ring(settings: Settings, redactor: Redactor) -> Ring | None:
    if not settings.inspect:
        return None
    options = settings.model.inspector
    return Ring(
        budget=int(options.memory),
        body_limit=int(options.body_limit),
        is_secret=redactor.is_secret,
    )


def _replay_door(
    settings: Settings,
    *,
    listen: Address,
    handler: Handler,
    registry: Registry,
    key: bytes,
    stack: AsyncExitStack,
) -> ReplayDoor:
    """The way from the inspector to the proxy's own traffic listener."""
    model = settings.model
    here = _reached(listen)
    patience = model.token.wait_limit * 2 + model.timeouts.total
    dialler = Dialler(
        parse_origin(f"http://{here}"),
        timeouts=Timeouts(first_byte=patience, total=2 * patience),
    )
    stack.callback(dialler.close)
    phantoms = Phantoms(key, lifetime=_TICKET, refresh_lifetime=_TICKET)

    def preview(method: str, target: bytes) -> Preview:
        name, kind = handler.preview(method, target)
        return Preview(name, kind, settings.simulate)

    async def send(head: bytes, body: bytes, head_only: bool) -> None:  # noqa: FBT001 - `Door.send`
        parts = (body,) if body else ()
        reply = await dialler.send(head, body=parts, head_only=head_only, fresh=True)
        try:
            async for _ in reply.parts():
                pass
        finally:
            reply.close()

    def ticket(caller: str, upstream: str) -> str:
        secret = registry.secret_of(caller, upstream=upstream)
        if secret is None:
            return ""
        chance = os.urandom(56)
        pair = phantoms.issue(
            caller, upstream=upstream, secret=secret, now=time.time(), chance=chance
        )
        return pair.access

    return ReplayDoor(str(here), preview=preview, send=send, ticket=ticket)


async def _inspect(
    settings: Settings,
    *,
    ring: Ring,
    redactor: Redactor,
    sessions: Sessions,
    door: ReplayDoor,
    telemetry: Telemetry,
    stack: AsyncExitStack,
) -> str:
    """Open the inspector; its address, with its key."""
    inspector = Inspector(
        ring,
        Exit(redactor),
        sessions,
        Replayer(ring, door),
        About(
            __version__,
            f"http://{door.authority}",
            lambda caller: caller not in {ANONYMOUS, "-"},
        ),
        is_loopback,
    )
    addresses = [settings.inspect_listen]
    if "inspect_listen" not in settings.origins and settings.model.inspect == "auto":
        # Nobody asked for it there: what it must not do is keep the proxy from starting.
        addresses.append(_ANY_PORT)
    for address in addresses:
        server = QuietServer(
            inspector.answer, observe=lambda _: None, emit=telemetry.emit, keepalive=75.0
        )
        runner = web.ServerRunner(server, shutdown_timeout=1.0)
        try:
            listen = await _listen(runner, address, stack=stack, key="inspect_listen")
            break
        except CannotStart:
            if address is addresses[-1]:
                raise
    stack.callback(inspector.close)
    url = f"http://{listen}/?token={inspector.token}"
    path = inspector_file(settings.state_dir, listen.port)
    try:
        _keep_private(path, url)
    except OSError as error:
        fields: dict[str, object] = {"reason": f"{path}: {error.strerror}"}
        fields["hint"] = "name its address yourself: nomba-proxy tail --url …"
        telemetry.emit(Event("inspector_address_not_kept", "warning", fields=fields))
    else:
        stack.callback(path.unlink, missing_ok=True)
    return url


def inspector_file(state_dir: Path, port: int) -> Path:
    """Where `nomba-proxy tail` and `export` find the address of a running inspector."""
    return state_dir / f"inspector-{port}.url"


def _keep_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)  # of one that ended without a word
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")


def _reached(listen: Address) -> Address:
    """How this machine reaches a listener."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked for, not listened on
    return Address(everywhere.get(listen.host, listen.host), listen.port)


def _sharing(upstreams: tuple[ReadyUpstream, ...]) -> dict[str, tuple[str, ...]]:
    """Which upstreams share which session: their names, by the name of the first of them.

    A session goes by that name, and logs in as that upstream: with its account, and by its way.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for one in upstreams:
        found.setdefault(one.session, []).append(one.name)
    return {names[0]: tuple(names) for names in found.values()}


def _to_each(emit: Emit, sharing: Mapping[str, tuple[str, ...]]) -> Emit:
    """Tell what happens to a session for each upstream that shares it."""

    def told(event: Event) -> None:
        for name in sharing.get(event.upstream, ()):
            emit(replace(event, upstream=name))

    return told


def _dialler(one: ReadyUpstream, *, settings: Settings, via: bytes) -> Dialler:
    model = settings.model
    return Dialler(
        one.origin,
        timeouts=Timeouts(**model.timeouts.model_dump()),
        way=Way(
            ca_file=one.options.ca_file,
            addresses=one.options.addresses,
            ipv4_only=one.options.ipv4_only,
            proxy=one.connect_proxy,
        ),
        limits=PoolLimits(**model.pool.model_dump()),
        via=via if model.headers.via_upstream else b"",
    )


def _session(one: ReadyUpstream, *, dialler: Dialler, settings: Settings, emit: Emit) -> Session:
    model = settings.model
    credentials = Credentials(one.origin.text, one.client_id, one.client_secret, one.account_id)
    return Session(
        one.name,
        auth=NombaAuth(credentials, call=dialler.call, timeout=model.token.call_timeout),
        store=_store(one, credentials=credentials, settings=settings, emit=emit),
        limits=TokenLimits(
            early=model.token.early,
            urgent=model.token.urgent,
            wait_limit=model.token.wait_limit,
            gap=model.token.gap,
            memory=model.token.memory,
            budget=model.token.budget,
        ),
        clocks=Clocks(alive=alive_clock(), wall=time.time, random=random.random),
        emit=emit,
    )


def _wire(one: ReadyUpstream, *, dialler: Dialler, session: Session) -> Upstream:
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


def _store(
    one: ReadyUpstream, *, credentials: Credentials, settings: Settings, emit: Emit
) -> MemoryStore | FileStore:
    """Where a session is kept.

    Raises:
        CannotStart: its folder cannot be used.
    """
    if settings.store_dir is None:
        return MemoryStore()

    def warn(text: str) -> None:
        emit(Event("stored_session_ignored", "warning", one.name, {"reason": text}))

    identity = Identity(*one.session)
    seal = Seal(identity, credentials=credentials, boot=_boot(), alive=alive_clock())
    try:
        return FileStore(settings.store_dir, identity=identity, seal=seal, warn=warn)
    except StoreFailed as error:
        raise CannotStart(f"store: {error}") from None


def _boot() -> str:
    """Names this boot of the machine; "" where it has no name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _signing_key(settings: Settings, *, emit: Emit) -> bytes:
    """What phantom tokens are signed with: given, else kept, else for this process only."""
    if settings.signing_key is not None:
        return settings.signing_key.reveal(to=SIGNING).encode()
    try:
        return kept_signing_key(settings.state_dir).encode()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        fields: dict[str, object] = {
            "reason": f"{settings.state_dir}: {why}",
            "hint": "phantom tokens end with this process; set state_dir, or "
            "NOMBA_PROXY_CALLERS_SIGNING_KEY",
        }
        emit(Event("signing_key_not_kept", "warning", fields=fields))
        return secrets.token_bytes(32)


def _callers(
    settings: Settings, *, upstreams: tuple[ReadyUpstream, ...], key: bytes, emit: Emit
) -> Callers:
    options = settings.model.callers
    accepted = options.accept_upstream_credentials and settings.listen.loopback
    doors = {
        one.name: Door(
            one.anonymous,
            explicit=options.anonymous is True,
            client_id=one.client_id,
            client_secret=one.client_secret if accepted else None,
            # The simulator has another port whenever it starts.
            realm="simulator" if settings.simulate else one.origin.text,
        )
        for one in upstreams
    }
    phantoms = Phantoms(
        key, lifetime=options.login_lifetime, refresh_lifetime=_REFRESH * options.login_lifetime
    )
    revoked = Revoked(settings.state_dir / "revoked", wall=time.time, monotonic=time.monotonic)
    registry = Registry(
        settings.callers,
        doors=doors,
        phantoms=phantoms,
        revoked=revoked,
        wall=time.time,
        monotonic=time.monotonic,
    )
    login = Login(
        registry,
        phantoms=phantoms,
        revoked=revoked,
        wall=time.time,
        emit=emit,
        fails_in_200=options.login_failure == "200",
    )
    hosts = (*options.hosts, *settings.hosts)
    return Callers(registry, login, Pages.of(hosts=hosts, origins=options.origins))


async def _watch_callers(settings: Settings, *, registry: Registry, emit: Emit) -> None:
    """Take over the callers file whenever it changes; a bad one changes nothing."""

    def look() -> tuple[int, int, int] | None:
        try:
            found = settings.callers_file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    seen: object = ()  # whatever happened since the settings were read is seen at the first look
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        if (now := look()) == seen:
            continue
        if now is None:  # who is known stays known, and the door as it is
            if seen != () or settings.callers.callers:
                gone: dict[str, object] = {"reason": f"{settings.callers_file} is gone"}
                emit(Event("callers_not_reloaded", "error", fields=gone))
            seen = now
            continue
        seen = now
        try:
            roster = await asyncio.to_thread(settings.read_callers)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next change is looked at
            first = str(error.problems[0]) if isinstance(error, SettingsError) else repr(error)
            emit(Event("callers_not_reloaded", "error", fields={"reason": first}))
            continue
        if roster != registry.roster:
            registry.replace(roster)
            emit(Event("callers_reloaded", fields={"callers": len(roster.callers)}))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _simulated(settings: Settings, simulator: Simulator) -> ReadyUpstream:
    """The simulator as an upstream, with the policies that are set for the real one.

    It is the only one, so it answers by every name.
    """
    origin = parse_origin(simulator.origin)
    switches = simulator.switches
    entry = settings.model.upstream[0] if settings.model.upstream else UpstreamSettings()
    way = {"ca_file": None, "addresses": (), "ipv4_only": False, "connect_proxy": None}
    options = entry.model_copy(update={"name": "simulator", **way})
    return ReadyUpstream(
        name="simulator",
        origin=origin,
        mount=options.mount.rstrip("/"),
        client_id=switches.client_id,
        client_secret=Secret(switches.client_secret, origin=origin.text),
        account_id=switches.account_id,
        anonymous=settings.simulated_anonymous,
        options=options,
    )


def _controls(session: Session, *, upstreams: tuple[str, ...]) -> SessionControls:
    async def told(work: Awaitable[_Result]) -> _Result:
        try:
            return await work
        except ProxyError as error:
            raise ControlFailed(error.description) from error

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


async def _take_traffic(
    server: QuietServer, address: Address, *, sock: socket.socket | None
) -> asyncio.Server:
    """Listen without a runner of aiohttp's, whose way of stopping loses requests."""
    where = {"host": address.host, "port": address.port} if sock is None else {"sock": sock}
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(server, **where, backlog=_BACKLOG)
    except OSError as error:
        raise _taken("listen", address=address, error=error) from None


async def _listen(
    runner: web.BaseRunner, address: Address, *, stack: AsyncExitStack, key: str
) -> Address:
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, address.host, address.port).start()
    except OSError as error:
        raise _taken(key, address=address, error=error) from None
    host, port = runner.addresses[0][:2]
    return Address(host, port)


def _taken(key: str, *, address: Address, error: OSError) -> CannotStart:
    return CannotStart(
        f"{key} = {address}: {error.strerror}.\n"
        f"Another process may be listening there; choose another address for {key}."
    )


def _authorities(listen: Address) -> set[str]:
    names = {str(listen), f"localhost:{listen.port}", f"127.0.0.1:{listen.port}"}
    names.add(f"[::1]:{listen.port}")
    return names | ({"localhost", "127.0.0.1", "[::1]"} if listen.port == 80 else set())


def banner(running: Running, *, settings: Settings) -> str:
    """What a human needs at start: where it listens, what it forwards to, how to call it."""
    lines = [f"nomba-proxy {__version__}"]
    lenders = {
        name: first for first, names in _sharing(running.upstreams).items() for name in names
    }
    for one in running.upstreams:
        what = (
            "SIMULATOR (built in, no real money)" if running.simulator else one.origin.environment
        )
        at = one.mount or "/"
        kept = "" if one.options.strip_mount or not one.mount else " (kept)"
        names = f", for Host {', '.join(sorted(one.hosts))}" if one.hosts else ""
        lender = lenders[one.name]
        shared = "" if lender == one.name else f", session shared with {lender}"
        lines += [
            f"  upstream   {one.name}: {what}, {one.origin.text}, mounted at {at}{kept}{names}",
            f"  account    {mask(one.account_id)}{shared}",
        ]
    lines += _who_may_call(running, settings=settings)
    if running.simulator is not None:
        lines.append(f"  faults     {running.simulator.origin}  (docs/simulator.md)")
    lines += [f"  warning    {one}" for one in settings.warnings]
    url = f"http://{running.listen}"
    first = running.upstreams[0]
    called = "".join(f"-H 'Host: {_bracketed(name)}' " for name in sorted(first.hosts)[:1])
    key = "" if _is_open(first, settings) else _WITH_KEY
    lines += [
        f"  listening  {url}  (admin http://{running.admin_listen})",
        *([f"  inspector  {running.inspector}"] if running.inspector else []),
        "",
        "  try it:",
        f"    curl -s {called}{key}{url}{first.mount}/v1/accounts/balance",
        "",
    ]
    return "\n".join(lines)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


_WITH_KEY = "-H 'X-Nomba-Proxy-Key: …' "


def _is_open(one: ReadyUpstream, settings: Settings) -> bool:
    """Whether callers nobody knows may use an upstream, as the proxy starts."""
    explicit = settings.model.callers.anonymous is True
    return one.anonymous and (explicit or settings.callers.keeps_anonymous)


def _who_may_call(running: Running, *, settings: Settings) -> list[str]:
    names = [one.name for one in settings.callers.callers]
    said = []
    opened = [one.name for one in running.upstreams if _is_open(one, settings)]
    if opened:
        where = "" if len(opened) == len(running.upstreams) else f", for {', '.join(opened)} only"
        said.append(f"anybody on this machine{where} (callers.anonymous)")
    if names:
        said.append(", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else ""))
    if settings.model.callers.accept_upstream_credentials and settings.listen.loopback:
        said.append("apps that log in with the upstream's own client id and secret")
    if not names and not opened:
        said.append("add one with a key of its own: nomba-proxy caller add NAME")
    return [f"  {'' if at else 'callers':<9}  {one}" for at, one in enumerate(said)]
