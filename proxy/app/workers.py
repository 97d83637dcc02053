"""A proxy of several processes: workers that share listener and session, and what they share.

Beside the workers there is a process for the simulator, and one for the inspector, if there are
such. Each worker has a listening socket of its own on the one address (`SO_REUSEPORT`), which stays
open here while it is replaced: who waits in it meets the successor. Everything they have to agree
on lies in the store and in the state folder.
"""

import asyncio
import fcntl
import gc
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from proxy.admin import ControlFailed
from proxy.app.assembly import assemble, both, make_telemetry
from proxy.app.banner import banner, summary
from proxy.app.callers import callers_of_now, end_task, signing_key
from proxy.app.listeners import (
    Bound,
    CannotStart,
    authorities_of,
    bind,
)
from proxy.app.measuring import mark_reload
from proxy.app.notify import Manager
from proxy.app.process import see_to_loop, see_to_process
from proxy.app.reload import tell, tell_failed
from proxy.app.running import Place, Running
from proxy.app.start import drain_of, start
from proxy.callers.shared import Counts
from proxy.core.secret import SIGNING, Secret
from proxy.metrics import Shared
from proxy.settings import (
    Listener,
    ReadyUpstream,
    Settings,
    SettingsError,
    environment,
    parse_address,
    share_metrics,
    take_over,
)
from proxy.supervisor import CUT, ROOM, CannotRun, Link, Post, Supervisor
from proxy.telemetry import Telemetry

_MARKED = "reload"  # the file in which word is left of what became of one
LoopFactory = Callable[[], asyncio.AbstractEventLoop] | None
_Body = Callable[[Link, asyncio.Future[int], AsyncExitStack], Coroutine[Any, Any, None]]


def supervise(settings: Settings, *, loop_factory: LoopFactory) -> int:
    """Run the workers until SIGINT or SIGTERM; the exit code.

    SIGHUP reads the settings again, and restarts one worker after another with them. A second signal to stop cuts what is under way.

    Raises:
        CannotStart: an address cannot be had, or a process could not start.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nomba-proxy-")))
        share_metrics(folder)
        stack.enter_context(_kept(folder))
        # Without shared metrics: they lie in files, and what fails there must not end everything.
        model = settings.model
        telemetry = make_telemetry(settings)
        see_to_process(settings, emit=telemetry.emit)
        if settings.signing_key is None:  # one that is given stays what it is for other replicas
            key = signing_key(settings, emit=telemetry.emit).decode("latin-1")
            settings = replace(settings, signing_key=Secret(key, origin=SIGNING))
        if settings.simulate and settings.model.store is None:  # nothing of it outlives it
            settings = replace(settings, store_dir=folder / "sessions")
        first = [one for listener in settings.listen for one in bind(listener, shared=True)]
        for one in first:
            stack.callback(one.leave)
        others = range(settings.model.workers - 1)
        traffic = [first, *([one.again() for one in first] for _ in others)]
        [admin, *rest] = bind(Listener(settings.admin_listen), key="admin.listen")
        for one in rest:
            one.sock.close()
        stack.callback(admin.leave)
        listeners = tuple(one.listener for one in first)
        settings = replace(
            settings, listen=listeners, admin_listen=admin.listener.at or settings.admin_listen
        )
        _load(settings)
        try:
            hub = _hub(folder) if settings.inspect else None
        except OSError as error:
            raise CannotStart(f"{folder}: {error.strerror}") from None
        manager = Manager.of(environment(), emit=telemetry.emit)
        supervisor = stack.enter_context(
            Supervisor(
                emit=both(telemetry.emit, lambda event: manager.hear(event, status=house.status)),
                limit=model.drain.delay + model.drain.limit,
                told=lambda number: drain_of(model, by=number),
                reload=lambda: house.reload(telemetry, supervisor),
                awake=manager.alive,
                awake_every=manager.every,
            )
        )
        gc.freeze()  # what is there now stays shared with the processes
        counts = Counts(settings.model.workers * ROOM)
        house = _House(settings, folder, loop_factory, traffic, admin, hub, counts, manager)
        try:
            return house.run(supervisor)
        except CannotRun as error:
            raise CannotStart(str(error)) from None


@dataclass(slots=True)
class _House:
    """The processes and what they are given.

    Attributes:
        settings: complete, addresses and keys included.
        folder: what they share while they run.
        traffic: the sockets of each worker.
        hub: where the inspector is told.
        counts: of callers, in all workers.
        manager: is told once everything runs.
        known: the simulator, once it runs.
        token: opens the inspector; the same after it was restarted.
        status: what it is, in a line.
    """

    settings: Settings
    folder: Path
    loop_factory: LoopFactory
    traffic: list[list[Bound]]
    admin: Bound
    hub: socket.socket | None
    counts: Counts
    manager: Manager
    known: Mapping[str, str] | None = None
    token: str = ""
    status: str = ""

    def run(self, supervisor: Supervisor) -> int:
        """Start everything, say so, and keep it running."""
        self.token = secrets.token_urlsafe(24)
        settings = self.settings
        if settings.simulate:
            [said] = supervisor.fill(Post("simulator", self._target(self._simulate), last=True))
            # It keeps its addresses: those who know it know it by them.
            self.known = said
            self.settings = settings = replace(
                settings,
                simulator_listen=parse_address(said["origin"].removeprefix("http://")),
                simulator_control_listen=parse_address(said["control"].removeprefix("http://")),
            )
        inspector = ""
        if self.hub is not None:
            [said] = supervisor.fill(
                Post("inspector", self._target(self._inspect, keeps=self._hub), last=True)
            )
            inspector = said["url"]
            found = parse_address(inspector.removeprefix("http://").partition("/")[0])
            self.settings = settings = replace(settings, inspect_listen=found)
        supervisor.fill(*(self._worker(at) for at in range(len(self.traffic))))
        faults = self.known["control"] if self.known else ""
        running = Running(
            settings.listen,
            self.admin.listener,
            self._upstreams(),
            faults,
            announce=_nothing,
            drain=_nothing,
            inspector=inspector,
        )
        print(banner(running, settings=settings), file=sys.stderr, flush=True)  # noqa: T201
        self.status = summary(running)
        self.manager.ready(self.status)
        code = supervisor.run()
        if settings.model.token.revoke_at_shutdown:
            supervisor.finish(Post("revocation", self._target(self._revoke)))
        return code

    def reload(self, telemetry: Telemetry, supervisor: Supervisor) -> bool:
        """Read the settings for the processes to come; whether they can be used."""
        try:
            new = self.settings.again()
        except SettingsError as error:
            tell_failed(error, emit=telemetry.emit)
            mark_reload(self.folder / _MARKED, successful=False)
            self.manager.reloading()  # it may wait to hear of an end
            self.manager.ready(self.status)
            return False
        found = take_over(self.settings, new)
        self.settings = found.settings
        model = found.settings.model
        supervisor.limit = model.drain.delay + model.drain.limit
        telemetry.set_level(model.log.level, sample=model.log.sample)
        mark_reload(self.folder / _MARKED, successful=True)
        tell(found, emit=telemetry.emit)
        return True

    def _hub(self) -> tuple[socket.socket, ...]:
        return (self.hub,) if self.hub is not None else ()

    def _upstreams(self) -> tuple[ReadyUpstream, ...]:
        if self.known is None:
            return self.settings.upstreams
        from proxy.app.simulated import simulated

        return (simulated(self.settings, self.known),)

    # -- what the processes do ------------------------------------------------------------------

    def _target(
        self, body: _Body, *, keeps: Callable[[], tuple[socket.socket, ...]] = tuple
    ) -> Callable[[Link], int]:
        """What a process does.

        Args:
            body: its work.
            keeps: the sockets it is given. It has no copy of others: whoever waits in one that
                nobody accepts from waits for ever.
        """

        def target(link: Link) -> int:
            kept = keeps()
            traffic = [one.sock for every in self.traffic for one in every]
            for sock in (*traffic, self.admin.sock, *filter(None, (self.hub,))):
                if sock not in kept:
                    sock.close()
            try:
                with asyncio.Runner(loop_factory=self.loop_factory) as runner:
                    runner.run(_life(link, body))
            except CannotStart as error:
                link.say(failed=str(error))
                return 1
            except asyncio.CancelledError:  # a second signal
                return 1
            return 0

        return target

    def _worker(self, at: int) -> Post:
        async def work(link: Link, stopping: asyncio.Future[int], stack: AsyncExitStack) -> None:
            # Another name than that of those who still drain, and before long the same again: what
            # a name has counted goes on.
            telemetry = _telemetry(self.settings, self.folder, named(link.place))
            telemetry.metrics.restarts(name, again=link.after)

            async def reload() -> Mapping[str, object]:
                try:
                    new = await asyncio.to_thread(self.settings.again)
                except SettingsError as error:
                    tell_failed(error, emit=telemetry.emit)
                    mark_reload(self.folder / _MARKED, successful=False)
                    raise ControlFailed(str(error), status=400) from None
                link.say(reload=True)  # which the supervisor does for all
                return take_over(self.settings, new).told

            place = Place(
                reload=reload,
                marked=self.folder / _MARKED,
                traffic=tuple(self.traffic[at]),
                admin=self.admin,
                simulator=self.known,
                hub=self.folder / "hub" if self.hub is not None else None,
                tally=partial(self.counts.tally, column=column(link.place)),
                noted=lambda: link.say(noted=True),
            )
            see_to_loop(emit=telemetry.emit)
            settings = await asyncio.to_thread(callers_of_now, self.settings)
            running = await start(settings, stack=stack, telemetry=telemetry, place=place)
            link.say(up={})
            gc.freeze()  # as `serve` does
            if await stopping == signal.SIGTERM:
                await running.announce()
            await running.drain()
            link.say(draining=True)

        def named(place: int) -> str:
            return f"worker-{at + 1}-{place}"

        def column(place: int) -> int:
            return at * ROOM + place

        def ended(place: int) -> None:
            self.counts.forget(column(place))
            Shared(self.folder, named(place)).forget()

        def missing() -> None:
            for one in self.traffic[at]:
                if one.shareable:  # others answer those who come
                    one.sock.close()

        def prepare() -> None:
            self.traffic[at] = [
                one.again() if one.sock.fileno() < 0 else one for one in self.traffic[at]
            ]

        def noted() -> None:
            self.settings = callers_of_now(self.settings)

        name = f"worker {at + 1}"
        target = self._target(
            work, keeps=lambda: (*(one.sock for one in self.traffic[at]), self.admin.sock)
        )
        return Post(name, target, prepare=prepare, missing=missing, ended=ended, noted=noted)

    async def _inspect(
        self, link: Link, stopping: asyncio.Future[int], stack: AsyncExitStack
    ) -> None:
        from proxy.app.inspection import Inspection
        from proxy.inspector.hub import Hub

        assert self.hub is not None  # noqa: S101 - it is why this runs
        settings, upstreams = self.settings, self._upstreams()
        telemetry = _telemetry(settings, self.folder, "inspector")
        telemetry.metrics.restarts("inspector", again=link.after)
        shown = Inspection.of(settings)
        hub = Hub(shown.ring, shown.sessions, clock=shown.clock)
        made = assemble(
            settings, upstreams, stack=stack, telemetry=telemetry, tell=shown.sessions.emit
        )
        await made.catch_up()
        made.authorities.update(*map(authorities_of, settings.listen))
        serving = asyncio.create_task(hub.serve(self.hub))
        stack.push_async_callback(end_task, serving)
        url = await shown.open(
            settings,
            upstreams,
            made=made,
            listeners=settings.listen,
            telemetry=telemetry,
            stack=stack,
            token=self.token,
        )
        link.say(up={"url": url})
        await stopping

    async def _simulate(
        self, link: Link, stopping: asyncio.Future[int], stack: AsyncExitStack
    ) -> None:
        from proxy.app.simulated import known_of, start_simulator

        link.say(up=known_of(*await start_simulator(self.settings, stack=stack)))
        await stopping

    async def _revoke(self, _: Link, __: asyncio.Future[int], stack: AsyncExitStack) -> None:
        telemetry = _telemetry(self.settings, self.folder, "revocation")
        made = assemble(
            self.settings, self._upstreams(), stack=stack, telemetry=telemetry, revoke=True
        )
        await made.catch_up()


async def _life(link: Link, body: _Body) -> None:
    """Be a process until a signal or the supervisor's end says stop.

    A signal may come twice, from the supervisor and from whoever stops a whole group of processes
    (systemd does): only the supervisor says that work is to be cut.
    """
    loop = asyncio.get_running_loop()
    stopping, main = loop.create_future(), asyncio.current_task()
    assert main is not None  # noqa: S101 - a coroutine runs in a task

    def told() -> None:
        try:
            data = link.sock.recv(64)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if CUT in data:
            main.cancel()
        elif not data:
            loop.remove_reader(link.sock)
        stop(0)

    def stop(number: int) -> None:
        if not stopping.done():
            stopping.set_result(number)

    async def give_signs() -> None:
        while True:
            await asyncio.sleep(link.every)
            link.say(alive=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    link.sock.setblocking(False)
    loop.add_reader(link.sock, told)
    signs = asyncio.create_task(give_signs())
    try:
        async with AsyncExitStack() as stack:
            await body(link, stopping, stack)
    finally:
        signs.cancel()
        loop.remove_reader(link.sock)


def _load(settings: Settings) -> None:
    """Load what the processes need before there are any: once, and shared by all."""
    import proxy.tokens.file_store

    if settings.shared_store is not None:
        import proxy.tokens.valkey_store
    if settings.simulate:
        import proxy.app.simulated
    if settings.inspect:
        import proxy.app.inspection
    if settings.traces_to is not None:
        import proxy.app.tracing  # noqa: F401


def _hub(folder: Path) -> socket.socket:
    from proxy.inspector.hub import listen

    return listen(folder / "hub")


async def _nothing() -> None:
    """Nothing drains here."""


def _telemetry(settings: Settings, folder: Path, process: str) -> Telemetry:
    try:
        return make_telemetry(settings, shared=Shared(folder, process))
    except OSError as error:
        raise CannotStart(f"metrics cannot be kept in {folder}: {error.strerror}") from None


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Keep what cleans up temporary folders away: it leaves those alone that are locked."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)
