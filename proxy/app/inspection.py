"""The inspector, with what it shows and the way back to the front door."""

import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from proxy import __version__
from proxy.app.assembly import Assembly
from proxy.app.listeners import ANY_PORT, CannotStart, bind, listen_on, reached
from proxy.core.caller import ANONYMOUS
from proxy.core.exchange import Event
from proxy.core.phantom import Phantoms
from proxy.errors import UpstreamUnreachable
from proxy.inspector.exit import Exit
from proxy.inspector.hub import Clock
from proxy.inspector.redact import Redactor
from proxy.inspector.replay import Door as ReplayDoor
from proxy.inspector.replay import Preview, Replayer
from proxy.inspector.ring import Ring
from proxy.inspector.server import About, Inspector
from proxy.inspector.sessions import Sessions, SessionView
from proxy.quiet import QuietServer
from proxy.settings import (
    Address,
    Listener,
    ReadyUpstream,
    Settings,
    is_loopback,
    parse_origin,
)
from proxy.telemetry import Telemetry
from proxy.upstream.dialler import Dialler, Timeouts

_TICKET = 60.0  # seconds that a replay may take to begin


def make_redactor(settings: Settings) -> Redactor:
    """What knows secrets by their names and looks."""
    options = settings.model.inspector
    return Redactor(
        secret=options.secret_names,
        partial=options.partial_names,
        patterns=options.patterns,
        reveal=options.reveal,
    )


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the inspector shows, before it is open.

    Attributes:
        ring: the exchanges.
        sessions: the sessions.
        redactor: what knows secrets.
        clock: of ring and sessions; turned back where they are told by other processes.
    """

    ring: Ring
    sessions: Sessions
    redactor: Redactor
    clock: Clock

    @classmethod
    def of(cls, settings: Settings) -> "Inspection":
        """An empty one."""
        options, clock, redactor = settings.model.inspector, Clock(), make_redactor(settings)
        ring = Ring(
            budget=int(options.memory),
            body_limit=int(options.body_limit),
            is_secret=redactor.is_secret,
            wall=clock.wall,
            monotonic=clock.monotonic,
        )
        return cls(ring, Sessions({}, wall=clock.wall), redactor, clock)

    async def open(
        self,
        settings: Settings,
        upstreams: tuple[ReadyUpstream, ...],
        *,
        made: Assembly,
        listeners: tuple[Listener, ...],
        telemetry: Telemetry,
        stack: AsyncExitStack,
        token: str = "",
    ) -> str:
        """Open the inspector; its address, with its key.

        Args:
            settings: where it listens.
            upstreams: whose sessions are shown.
            made: the proxy.
            listeners: where callers connect.
            telemetry: is told what happens.
            stack: takes what has to be undone.
            token: the key, if it is to be this one.
        """
        for one in upstreams:
            environment = "simulator" if settings.simulate else one.origin.environment
            lender = made.controls[made.lenders[one.name]]
            view = SessionView(environment, status=lender.status, renew=lender.renew)
            self.sessions.views[one.name] = view
        door = _replay_door(settings, listeners=listeners, made=made, stack=stack)
        inspector = Inspector(
            self.ring,
            Exit(self.redactor),
            self.sessions,
            Replayer(self.ring, door),
            About(
                __version__,
                f"http://{door.authority}",
                lambda caller: caller not in {ANONYMOUS, "-"},
            ),
            is_loopback,
        )
        inspector.token = token or inspector.token
        addresses = [settings.inspect_listen]
        if "inspect_listen" not in settings.origins and settings.model.inspect == "auto":
            # Nobody asked for it there: what it must not do is keep the proxy from starting.
            addresses.append(ANY_PORT)
        for address in addresses:
            try:
                bound = bind(Listener(address), key="inspect_listen")[0]
                break
            except CannotStart:
                if address is addresses[-1]:
                    raise
        server = QuietServer(
            inspector.answer, observe=lambda _: None, emit=telemetry.emit, keepalive=75.0
        )
        await listen_on(web.ServerRunner(server, shutdown_timeout=1.0), bound, stack=stack)
        stack.callback(inspector.close)
        url = f"{bound.listener.url}/?token={inspector.token}"
        path = settings.inspector_file(bound.sock.getsockname()[1])
        try:
            _keep_private(path, url)
        except OSError as error:
            fields: dict[str, object] = {"reason": f"{path}: {error.strerror}"}
            fields["hint"] = "name its address yourself: nomba-proxy tail --url …"
            telemetry.emit(Event("inspector_address_not_kept", "warning", fields=fields))
        else:
            stack.callback(path.unlink, missing_ok=True)
        return url


def _replay_door(
    settings: Settings, *, listeners: tuple[Listener, ...], made: Assembly, stack: AsyncExitStack
) -> ReplayDoor:
    """The way from the inspector to the proxy's own traffic listener."""
    model = settings.model
    plain = [one.at for one in listeners if isinstance(one.at, Address) and not one.tls]
    patience = model.token.wait_limit * 2 + model.timeouts.total
    dialler = None
    if plain:
        dialler = Dialler(
            parse_origin(f"http://{reached(plain[0])}"),
            timeouts=Timeouts(first_byte=patience, total=2 * patience),
        )
        stack.callback(dialler.close)
    phantoms = Phantoms(made.key, lifetime=_TICKET, refresh_lifetime=_TICKET)

    def preview(method: str, target: bytes) -> Preview:
        name, kind = made.handler.preview(method, target)
        return Preview(name, kind, settings.simulate)

    async def send(head: bytes, body: bytes, head_only: bool) -> None:  # noqa: FBT001 - `Door.send`
        if dialler is None:
            raise UpstreamUnreachable(
                "A replay goes in by a listener for plain HTTP over TCP, and there is none.",
                hint="Add one: --listen 127.0.0.1:8080",
            )
        parts = (body,) if body else ()
        reply = await dialler.send(head, body=parts, head_only=head_only, fresh=True)
        try:
            async for _ in reply.parts():
                pass
        finally:
            reply.close()

    def ticket(caller: str, upstream: str) -> str:
        secret = made.callers.registry.secret_of(caller, upstream=upstream)
        if secret is None:
            return ""
        chance = os.urandom(56)
        pair = phantoms.issue(
            caller, upstream=upstream, secret=secret, now=made.wall(), chance=chance
        )
        return pair.access

    authority = "localhost" if dialler is None else dialler.origin.authority
    return ReplayDoor(authority, preview=preview, send=send, ticket=ticket)


def _keep_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)  # of one that ended without a word
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
