"""What a process of the proxy is given, and what it is once it runs."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from proxy.app.listeners import Bound
from proxy.core.limits import Tally
from proxy.settings import (
    Address,
    Listener,
    ReadyUpstream,
)


async def _nothing() -> Mapping[str, object]:
    return {}


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that is up.

    Attributes:
        listeners, admin_listener: the addresses it got.
        upstreams: what it forwards to.
        faults: the address of the simulator's control API, if it is the upstream; else "".
        announce: says that the end is near, and goes on for `drain.delay`.
        drain: begins the end: once it returns nothing more is accepted. The rest happens
            when the stack is left.
        inspector: the address of the inspector with its key, or "".
        reload: reads the settings again, and the files that they name; what came of it.
    """

    listeners: tuple[Listener, ...]
    admin_listener: Listener
    upstreams: tuple[ReadyUpstream, ...]
    faults: str
    announce: Callable[[], Awaitable[None]]
    drain: Callable[[], Awaitable[None]]
    inspector: str = ""
    reload: Callable[[], Awaitable[Mapping[str, object]]] = _nothing

    @property
    def listen(self) -> Address | None:
        """The first address that callers reach with TCP, if there is one."""
        return next((one.at for one in self.listeners if isinstance(one.at, Address)), None)


@dataclass(frozen=True, slots=True)
class Place:
    """What one process of several is given, and a single one makes for itself.

    Attributes:
        traffic, admin: bound sockets, instead of the addresses that are set. They are closed in
            the end; what was not accepted by then is left to other holders of them.
        simulator: what is known of it, where it runs in another process (`known_of`).
        hub: where the inspector's process is told what happens.
        reload: has the settings read again, for all processes.
        marked: where word is left of what became of that.
        tally: where a caller is counted, for all processes.
        noted: told when other callers were read from their file.
    """

    traffic: tuple[Bound, ...] = ()
    admin: Bound | None = None
    simulator: Mapping[str, str] | None = None
    hub: Path | None = None
    reload: Callable[[], Awaitable[Mapping[str, object]]] | None = None
    marked: Path | None = None
    tally: Callable[[str], Tally] = lambda _: Tally()
    noted: Callable[[], object] = bool

    @property
    def alone(self) -> bool:
        """Whether there are no other processes."""
        return self.admin is None
