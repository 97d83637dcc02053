"""The composition root: the only place where things are constructed and wired."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from proxy import __version__
from proxy.admin import ControlFailed, SessionControls, build_admin
from proxy.body import Bodies, BodyLimits
from proxy.core.account import AccountRule
from proxy.core.exchange import Event
from proxy.core.secret import Secret, mask
from proxy.errors import ProxyError
from proxy.handler import Handler, Headers, Limits, Upstream
from proxy.server import QuietServer
from proxy.settings import (
    Address,
    ReadyUpstream,
    Settings,
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
from proxy.tokens.manager import Clocks, Session, TokenSettings
from proxy.tokens.nomba import Credentials, NombaAuth
from proxy.upstream.dialler import Dialler, Timeouts, Way
from proxy.upstream.pool import PoolLimits

_Result = TypeVar("_Result")
_ANY_PORT = Address("127.0.0.1", 0)
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
    """

    listen: Address
    admin_listen: Address
    upstreams: tuple[ReadyUpstream, ...]
    simulator: Control | None


def alive_clock() -> Callable[[], float]:
    """Seconds on a clock that runs during sleep: CLOCK_BOOTTIME, monotonic elsewhere."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    if boottime is None:
        return time.monotonic
    clock: int = boottime
    return lambda: time.clock_gettime(clock)


async def start(settings: Settings, *, stack: AsyncExitStack, telemetry: Telemetry) -> Running:
    """Bring the proxy up; leaving `stack` brings it down, listeners first.

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

    via = b"1.1 nomba-proxy-%b" % os.urandom(4).hex().encode()
    wired = []
    controls: dict[str, SessionControls] = {}
    for one in upstreams:
        upstream = _wire(one, settings=settings, telemetry=telemetry, via=via)
        revoke = settings.model.token.revoke_at_shutdown
        stack.callback(upstream.dialler.close)
        stack.push_async_callback(upstream.session.close, revoke=revoke)
        wired.append(upstream)
        controls[one.name] = _controls(upstream.session)

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
    authorities: set[str] = set()
    handler = Handler(
        tuple(wired),
        limits=Limits(
            login_lifetime=model.callers.login_lifetime, write_stall=model.callers.write_stall
        ),
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
        headers=Headers(
            via=via,
            via_upstream=model.headers.via_upstream,
            keep_forwarded=model.headers.forwarded == "pass",
            rewrite_location=model.headers.rewrite_location,
        ),
        is_own_authority=authorities.__contains__,
        observe=telemetry.observe,
        emit=telemetry.emit,
    )
    server = QuietServer(
        handler,
        observe=telemetry.observe,
        emit=telemetry.emit,
        keepalive=model.callers.idle_timeout,
    )
    # aiohttp waits twice as long as it is told: for the handler, then for its connection.
    traffic = web.ServerRunner(server, shutdown_timeout=model.drain.limit / 2)
    listen = await _listen(traffic, settings.listen, stack=stack, key="listen")
    authorities.update(_authorities(listen))
    stack.callback(draining.set)
    # Last: a proxy that cannot listen must not have logged in, which would end the
    # session of the one that is running already.
    for upstream in wired:
        upstream.session.start()
    return Running(listen, admin_listen, upstreams, control)


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
    if settings.simulated_account:
        switches.account_id = settings.simulated_account
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


def _wire(one: ReadyUpstream, *, settings: Settings, telemetry: Telemetry, via: bytes) -> Upstream:
    model = settings.model
    dialler = Dialler(
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
    credentials = Credentials(one.origin.text, one.client_id, one.client_secret, one.account_id)
    session = Session(
        one.name,
        auth=NombaAuth(credentials, call=dialler.call, timeout=model.token.call_timeout),
        settings=TokenSettings(
            early=model.token.early, wait_limit=model.token.wait_limit, gap=model.token.gap
        ),
        clocks=Clocks(alive=alive_clock(), wall=time.time, random=random.random),
        emit=telemetry.emit,
    )
    return Upstream(
        name=one.name,
        mount=one.mount.encode("ascii"),
        dialler=dialler,
        session=session,
        account=AccountRule(
            one.account_id,
            policy=one.options.account_policy,
            allowed=frozenset(one.options.account_allow),
            override_money=one.options.account_override_money,
        ),
        anonymous=one.anonymous,
    )


def _simulated(settings: Settings, simulator: Simulator) -> ReadyUpstream:
    """The simulator as an upstream, with the policies that are set for the real one."""
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
        anonymous=settings.model.callers.anonymous is not False,
        options=options,
    )


def _controls(session: Session) -> SessionControls:
    async def told(work: Awaitable[_Result]) -> _Result:
        try:
            return await work
        except ProxyError as error:
            raise ControlFailed(error.description) from error

    def status() -> Mapping[str, object]:
        return {
            key: round(value, 1) if isinstance(value, float) else value
            for key, value in asdict(session.status()).items()
        }

    return SessionControls(
        ready=lambda: session.ready,
        status=status,
        renew=lambda: told(session.renew_now()),
        revoke=lambda stop: told(session.revoke(stop=stop)),
    )


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
    for one in running.upstreams:
        what = (
            "SIMULATOR (built in, no real money)" if running.simulator else one.origin.environment
        )
        lines += [
            f"  upstream   {one.name}: {what}, {one.origin.text}, mounted at {one.mount or '/'}",
            f"  account    {mask(one.account_id)}",
        ]
        if one.anonymous:
            lines.append("  callers    anybody on this machine (callers.anonymous)")
        else:
            lines.append("  callers    nobody yet: anonymous callers are refused here;")
            lines.append("             allow them explicitly: NOMBA_PROXY_CALLERS_ANONYMOUS=true")
    if running.simulator is not None:
        lines.append(f"  faults     {running.simulator.origin}  (docs/simulator.md)")
    lines += [f"  warning    {one}" for one in settings.warnings]
    url = f"http://{running.listen}"
    first = running.upstreams[0]
    lines += [
        f"  listening  {url}  (admin http://{running.admin_listen})",
        "",
        "  try it:" if first.anonymous else "  try it (it answers 401 until callers are allowed):",
        f"    curl -s {url}{first.mount}/v1/accounts/balance",
        "",
    ]
    return "\n".join(lines)
