"""Bring up a process that forwards: a whole proxy, or one of its workers."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from aiohttp import web

from proxy.admin import Guard, build_admin
from proxy.app.assembly import assemble, both, make_telemetry
from proxy.app.banner import banner, summary
from proxy.app.callers import end_task
from proxy.app.certificates import CertificateFiles, Certificates
from proxy.app.listeners import Bound, CannotStart, authorities_of, bind, listen_on, take_traffic
from proxy.app.measuring import measure
from proxy.app.notify import Manager
from proxy.app.presence import present
from proxy.app.process import see_to_loop, see_to_process
from proxy.app.reload import Reload, quietly
from proxy.app.running import Place, Running
from proxy.core.capture import Watch
from proxy.core.exchange import Emit, Event, Observe
from proxy.drain import Drain
from proxy.metrics import METRICS_TYPE
from proxy.quiet import QuietServer
from proxy.server import CallerLimits, TrafficServer
from proxy.settings import Listener, Reloaded, Settings, SettingsModel, environment, is_loopback
from proxy.telemetry import Telemetry

if TYPE_CHECKING:  # imported where it is on
    from proxy.app.inspection import Inspection

_RELAYED = 8 * 1024 * 1024  # bytes that wait for the inspector's process at most
# Of the admin listener, which strangers may reach: they must take neither memory nor descriptors.
_ADMIN_ROOM, _ADMIN_LINE = 64, 8 * 1024
_SETTLING = 1.0  # seconds that nobody is accepted for lack of what a shared store knows


async def start(
    settings: Settings,
    *,
    stack: AsyncExitStack,
    telemetry: Telemetry,
    place: Place = Place(),  # noqa: B008 - it is frozen
) -> Running:
    """Bring the proxy up; leaving `stack` brings it down, listeners first.

    Args:
        settings: what it is to be.
        stack: takes what has to be undone.
        telemetry: is told what happens.
        place: what it is given, as one process of several.

    Raises:
        CannotStart: an address cannot be had, or aiohttp lacks its compiled parser.
    """
    model = settings.model
    upstreams, faults = settings.upstreams, ""
    known: Mapping[str, str] = {}
    if settings.simulate:
        from proxy.app.simulated import known_of, simulated, start_simulator

        known = place.simulator or known_of(*await start_simulator(settings, stack=stack))
        upstreams, faults = (simulated(settings, known),), known["control"]

    observe: Observe = telemetry.observe
    tell: Emit | None = None
    watch: Watch | None = None
    shown: Inspection | None = None
    if place.hub is not None:
        from proxy.app.inspection import make_redactor
        from proxy.inspector.relay import Relay, connect_to

        relay = Relay(
            connect_to(place.hub),
            is_secret=make_redactor(settings).is_secret,
            body_limit=int(model.inspector.body_limit),
            emit=telemetry.emit,
            budget=max(_RELAYED, 12 * int(model.inspector.body_limit)),
        )
        stack.push_async_callback(relay.close)
        tell, watch, observe = relay.emit, relay.watch, both(telemetry.observe, relay.note)
    elif settings.inspect and place.alone:
        from proxy.app import inspection

        shown = inspection.Inspection.of(settings)
        tell, watch = shown.sessions.emit, shown.ring.watch
        observe = both(telemetry.observe, shown.ring.note)

    if settings.traces_to is not None:
        from proxy.app.tracing import trace

        watch, tell = trace(
            settings, upstreams, telemetry=telemetry, watch=watch, tell=tell, stack=stack
        )

    made = assemble(
        settings,
        upstreams,
        stack=stack,
        telemetry=telemetry,
        tell=tell,
        watch=watch,
        revoke=model.token.revoke_at_shutdown and place.alone,
        tally=place.tally,
        noted=place.noted,
    )
    if not place.alone:
        await made.catch_up()

    def apply(found: Reloaded) -> None:
        new = found.settings
        made.change(new, (simulated(new, known),) if known else new.upstreams)
        server.change(made.handler, limits=_caller_limits(new.model))
        drain.change(delay=new.model.drain.delay, limit=new.model.drain.limit)
        telemetry.set_level(new.model.log.level, sample=new.model.log.sample)
        made.reread()
        if files is not None and new.tls is not None:
            files.use(new.tls)

    reload = place.reload or Reload(
        settings,
        roster=lambda: made.callers.registry.roster,
        apply=apply,
        emit=telemetry.emit,
    )

    with contextlib.suppress(TimeoutError):  # a server that is away does not keep us from starting
        async with asyncio.timeout(_SETTLING):
            await made.settled()
    announced, draining = asyncio.Event(), asyncio.Event()
    admin = web.ServerRunner(
        QuietServer(
            build_admin(
                made.controls,
                is_draining=announced.is_set,
                metrics=telemetry.metrics.render,
                metrics_type=METRICS_TYPE,
                reload=reload,
                guard=lambda: Guard(
                    local=Listener(settings.admin_listen).local,
                    token=made.settings.admin_token,
                    open_metrics=model.admin.open_metrics,
                    is_loopback=is_loopback,
                ),
            ),
            observe=lambda _: None,  # probes are no exchanges
            emit=telemetry.emit,
            keepalive=model.callers.idle_timeout,
            line=_ADMIN_LINE,
            room=_ADMIN_ROOM,
        ),
        shutdown_timeout=1.0,  # an operator's request must not hold the drain up
    )
    admin_bound = place.admin or _bind_admin(settings, stack=stack)
    await listen_on(admin, admin_bound, stack=stack)
    if not settings.simulate:  # whose session is nobody else's
        stack.enter_context(present(settings.state_dir, admin=str(admin_bound.listener)))
    server = TrafficServer(
        made.handler,
        observe=observe,
        emit=telemetry.emit,
        limits=_caller_limits(model),
        is_draining=draining.is_set,
        crowded=telemetry.metrics.crowded,
    )
    telemetry.metrics.expect(
        [one.name for one in upstreams], sessions=made.sessions, workers=model.workers
    )
    measure(telemetry.metrics, server=server, settings=settings, stack=stack, marked=place.marked)
    bound = place.traffic or _bind(settings, stack=stack)
    patience = model.callers.head_timeout
    tls, files = _tls(
        settings, stack=stack, emit=telemetry.emit, crowds=server.crowds, patience=patience
    )
    traffic = [await take_traffic(server, one, tls=tls, handshake=patience) for one in bound]
    drain = Drain(
        traffic,
        server=server,
        announced=announced,
        begun=draining,
        delay=model.drain.delay,
        limit=model.drain.limit,
        beginning=lambda: tls is not None and tls.beginning,
    )
    stack.push_async_exit(drain.end)
    listeners = tuple(one.listener for one in bound)
    made.authorities.update(*map(authorities_of, listeners))
    inspector = ""
    if shown is not None:
        inspector = await shown.open(
            settings, upstreams, made=made, listeners=listeners, telemetry=telemetry, stack=stack
        )
    if not place.alone:  # others answer there
        stack.push_async_callback(admin.cleanup)
    stack.push_async_callback(drain.begin)  # at once, before the inspector takes its time
    # Last: a proxy that cannot listen must not have logged in, which would end the
    # session of the one that is running already.
    for session in made.sessions.values():
        session.start()
    return Running(
        listeners,
        admin_bound.listener,
        upstreams,
        faults,
        drain.announce,
        drain.begin,
        inspector,
        reload,
    )


def _caller_limits(model: SettingsModel) -> CallerLimits:
    return CallerLimits(
        idle=model.callers.idle_timeout,
        head_time=model.callers.head_timeout,
        head_size=int(model.callers.head_limit),
        head_fields=model.callers.head_fields,
        connections=-(-model.callers.connections // model.workers),
    )


def _bind_admin(settings: Settings, *, stack: AsyncExitStack) -> Bound:
    [bound, *others] = bind(Listener(settings.admin_listen), key="admin.listen")
    for one in others:  # probes ask one address
        one.sock.close()
    stack.callback(bound.leave)
    return bound


def _bind(settings: Settings, *, stack: AsyncExitStack) -> tuple[Bound, ...]:
    """Take every place that the settings name."""
    bound: list[Bound] = []
    for listener in settings.listen:
        for one in bind(listener):
            stack.callback(one.sock.close)
            stack.callback(one.leave)
            bound.append(one)
    return tuple(bound)


def _tls(
    settings: Settings,
    *,
    stack: AsyncExitStack,
    emit: Emit,
    crowds: Callable[[int], bool],
    patience: float,
) -> tuple[Certificates | None, CertificateFiles | None]:
    """What TLS begins with, if there is any; and what looks at its files."""
    if settings.tls is None:
        return None, None
    try:
        certificates = Certificates.of(settings.tls, emit=emit, crowds=crowds, patience=patience)
    except ValueError as error:  # it was good a moment ago
        raise CannotStart(f"tls: {error}") from None
    files = CertificateFiles(settings.tls, certificates=certificates, emit=emit)
    stack.push_async_callback(end_task, asyncio.create_task(files.watch()))
    return certificates, files


async def serve(settings: Settings) -> None:
    """Run until SIGTERM, which is announced, or SIGINT; a second one cuts what is under way.

    SIGHUP reads the settings again, and the files that they name.

    Raises:
        CannotStart: as `start`.
        asyncio.CancelledError: after a second signal.
    """
    model = settings.model
    telemetry = make_telemetry(settings)
    stopping = stop_signals()
    see_to_process(settings, emit=telemetry.emit)
    see_to_loop(emit=telemetry.emit)
    manager = Manager.of(environment(), emit=telemetry.emit)
    async with AsyncExitStack() as stack:
        signs = asyncio.create_task(manager.give_signs())  # to the last
        stack.push_async_callback(end_task, signs)
        running = await start(settings, stack=stack, telemetry=telemetry)
        print(banner(running, settings=settings), file=sys.stderr, flush=True)  # noqa: T201 - people read it
        tasks: set[asyncio.Task[None]] = set()

        async def reload() -> None:
            manager.reloading()
            await quietly(running.reload)
            if not stopping.done():
                manager.ready(summary(running))

        def hang_up() -> None:
            if stopping.done():
                return  # there is nothing to take over for
            task = asyncio.create_task(reload())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)
        gc.freeze()  # all of this stays: no collection that callers wait for looks through it
        manager.ready(summary(running))
        asked = await stopping
        manager.stopping()
        telemetry.emit(Event("draining", fields=drain_of(model, by=asked)))
        if asked == signal.SIGTERM:
            await running.announce()


def drain_of(model: SettingsModel, *, by: int) -> dict[str, object]:
    """How long the end may take that a signal asks for: somebody waits for that of a Ctrl-C."""
    delay = model.drain.delay if by == signal.SIGTERM else 0.0
    return {"delay_seconds": delay, "limit_seconds": model.drain.limit}


def stop_signals() -> asyncio.Future[int]:
    """Brings SIGINT or SIGTERM; a second one cancels the present task, a third ends it all."""
    loop = asyncio.get_running_loop()
    stopping, aborting = loop.create_future(), asyncio.Event()
    main = asyncio.current_task()
    assert main is not None  # noqa: S101 - a coroutine runs in a task

    def on_signal(number: int) -> None:
        if aborting.is_set():
            os._exit(1)
        if stopping.done():
            aborting.set()
            main.cancel()  # what is cut is still logged, as unknown
        else:
            stopping.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    return stopping
