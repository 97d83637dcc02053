"""What the processes of a proxy have in common: everything but the listeners."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from proxy import __version__
from proxy.admin import SessionControls
from proxy.app.callers import (
    end_task,
    make_callers,
    make_pages,
    make_revoked,
    signing_key,
    watch_callers,
)
from proxy.app.listeners import CannotStart
from proxy.app.secret_files import SecretFiles, Told
from proxy.app.sessions import (
    controls_of,
    limits_of,
    make_dialler,
    make_session,
    make_valkey,
    share,
    to_each,
    wire,
)
from proxy.body import Bodies, BodyLimits
from proxy.callers.registry import Registry
from proxy.core.capture import Watch
from proxy.core.exchange import Emit
from proxy.core.limits import Tally
from proxy.core.origin import host_name
from proxy.core.secret import Secret
from proxy.gate import Callers, Headers
from proxy.handler import Handler, Limits
from proxy.metrics import Shared
from proxy.settings import (
    ReadyUpstream,
    Settings,
    SettingsModel,
)
from proxy.telemetry import Telemetry
from proxy.tokens.manager import Session

_Told = TypeVar("_Told")


@dataclass(slots=True)
class Assembly:
    """What the processes of a proxy have in common, be they to forward or to watch.

    Attributes:
        settings: in force.
        sessions: by the name of the upstream that each goes by.
        controls: of each.
        lenders: whose session an upstream uses.
        handler: answers requests.
        callers: who may call.
        authorities: what this proxy is called; to be completed once that is known.
        key: that phantom tokens are signed with.
        reread: reads the client secrets again, and tries them.
        catch_up: reads them once, in a process that takes another's place, before it begins.
        change: has other settings in force, and another handler.
        wall: epoch seconds that they are measured by.
        settled: returns once it is known which of them were revoked.
    """

    settings: Settings
    sessions: Mapping[str, Session]
    controls: Mapping[str, SessionControls]
    lenders: Mapping[str, str]
    handler: Handler
    callers: Callers
    authorities: set[str]
    key: bytes
    reread: Callable[[], None]
    catch_up: Callable[[], Awaitable[None]]
    change: Callable[[Settings, tuple[ReadyUpstream, ...]], None]
    wall: Callable[[], float]
    settled: Callable[[], Awaitable[None]]


def assemble(
    settings: Settings,
    upstreams: tuple[ReadyUpstream, ...],
    *,
    stack: AsyncExitStack,
    telemetry: Telemetry,
    tell: Emit | None = None,
    watch: Watch | None = None,
    revoke: bool = False,
    tally: Callable[[str], Tally] = lambda _: Tally(),
    noted: Callable[[], object] = bool,
) -> Assembly:
    """Wire everything but the listeners.

    Args:
        settings: what it is to be.
        upstreams: what it forwards to.
        stack: takes what has to be undone.
        telemetry: is told what happens.
        tell: is told too what happens to sessions, for each upstream that uses one.
        watch: captures exchanges.
        revoke: whether tokens are revoked in the end.
        tally: where a caller is counted.
        noted: told when other callers were read from their file.

    Raises:
        CannotStart: what is kept cannot be used.
    """
    if HttpRequestParser is HttpRequestParserPy:
        raise CannotStart(
            "aiohttp runs on its pure-Python parser, which reads requests differently.\n"
            "Install a wheel of aiohttp with extensions, and unset AIOHTTP_NO_EXTENSIONS."
        )
    model = settings.model
    sharing = share(upstreams)
    emit = telemetry.emit if tell is None else both(telemetry.emit, to_each(tell, sharing))
    key = signing_key(settings, emit=telemetry.emit)
    # The same in every process that has the key, so a way round through another is seen too.
    via = b"1.1 nomba-proxy-%b" % hmac.digest(key, b"via", "sha256")[:4].hex().encode()
    diallers = {
        one.name: make_dialler(one, settings=settings, via=via, emit=telemetry.emit)
        for one in upstreams
    }
    for dialler in diallers.values():
        stack.callback(dialler.close)
    valkey = None
    if settings.shared_store is not None:
        valkey = make_valkey(settings.shared_store, emit=telemetry.emit)
        stack.push_async_callback(valkey.close)
    sessions = {
        one.name: make_session(
            one, dialler=diallers[one.name], settings=settings, valkey=valkey, emit=emit
        )
        for one in upstreams
        if one.name in sharing
    }
    controls: dict[str, SessionControls] = {}
    for name, session in sessions.items():
        stack.push_async_callback(session.close, revoke=revoke)
        controls[name] = controls_of(session, upstreams=sharing[name])
    lenders = {name: first for first, names in sharing.items() for name in names}
    wall = time.time if valkey is None else valkey.wall(time.time)
    revoked = make_revoked(
        settings, key=key, valkey=valkey, wall=wall, stack=stack, emit=telemetry.emit
    )
    callers = make_callers(
        settings,
        upstreams=upstreams,
        key=key,
        revoked=revoked,
        wall=wall,
        emit=telemetry.emit,
        tally=tally,
    )
    if valkey is not None:
        valkey.start()
    told = {
        name: _telling(session, callers.registry, sharing[name])
        for name, session in sessions.items()
    }
    secrets = SecretFiles(upstreams, told=told, emit=emit)
    authorities: set[str] = set()
    bodies = Bodies(_body_limits(model))

    def make_handler(settings: Settings, upstreams: tuple[ReadyUpstream, ...]) -> Handler:
        model = settings.model
        return Handler(
            tuple(
                wire(one, dialler=diallers[one.name], session=sessions[lenders[one.name]])
                for one in upstreams
            ),
            limits=Limits(
                head=int(model.callers.head_limit), write_stall=model.callers.write_stall
            ),
            bodies=bodies,
            callers=replace(callers, pages=make_pages(settings)),
            headers=Headers(
                via=via,
                via_upstream=model.headers.via_upstream,
                keep_forwarded=model.headers.forwarded == "pass",
                rewrite_location=model.headers.rewrite_location,
                trace="continue" if settings.traces_to else model.headers.trace,
                server_timing=model.headers.server_timing,
            ),
            is_own_authority=lambda text: text in authorities or host_name(text) in settings.hosts,
            observe=telemetry.observe,
            emit=telemetry.emit,
            watch=watch,
        )

    def change(settings: Settings, upstreams: tuple[ReadyUpstream, ...]) -> None:
        made.settings, made.handler = settings, make_handler(settings, upstreams)
        bodies.limits = _body_limits(settings.model)
        for dialler in diallers.values():
            dialler.change(**limits_of(settings))
        if settings.callers != callers.registry.roster:
            callers.registry.replace(settings.callers)

    made = Assembly(
        settings,
        sessions,
        controls,
        lenders,
        make_handler(settings, upstreams),
        callers,
        authorities,
        key,
        secrets.ask,
        secrets.catch_up,
        change,
        wall,
        revoked.settled,
    )
    for watch_it in (
        watch_callers(
            lambda: made.settings, registry=callers.registry, noted=noted, emit=telemetry.emit
        ),
        secrets.watch(),
    ):
        stack.push_async_callback(end_task, asyncio.create_task(watch_it))
    return made


def _body_limits(model: SettingsModel) -> BodyLimits:
    return BodyLimits(
        size=int(model.body.limit),
        memory=int(model.body.memory),
        stall=model.body.stall_timeout,
        total=model.body.total_timeout,
        spool_dir=model.body.spool_dir,
        memory_budget=_part(model.body.memory_budget, model.body.memory, model.workers),
        spool_budget=_part(model.body.spool_budget, model.body.limit, model.workers),
    )


def make_telemetry(settings: Settings, *, shared: Shared | None = None) -> Telemetry:
    """What a process is watched by.

    Args:
        settings: how.
        shared: if its metrics are to be added to those of others.

    Raises:
        OSError: there is no room for those.
    """
    log = settings.model.log
    return Telemetry(
        log.format, level=log.level, version=__version__, sample=log.sample, shared=shared
    )


def _telling(session: Session, registry: Registry, upstreams: tuple[str, ...]) -> Told:
    """What is told of the client secrets: a session, and who knows those that log in with them."""

    def told(current: Secret, following: Secret | None, *, again: bool) -> None:
        session.given(current, following, again=again)
        for name in upstreams:
            registry.given(name, tuple(filter(None, (following, current))))

    return told


def _part(budget: int, one: int, workers: int) -> int:
    """What each worker has of a budget: room for one body at least, if there is so much."""
    return max(int(budget) // workers, min(int(budget), int(one)) if workers > 1 else 0)


def both(
    one: Callable[[_Told], object], other: Callable[[_Told], object]
) -> Callable[[_Told], None]:
    """Tell two."""

    def told(what: _Told) -> None:
        one(what)
        other(what)

    return told
