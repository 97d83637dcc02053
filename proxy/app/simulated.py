"""The simulator, alone or as the upstream."""

import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from proxy.app.listeners import ANY_PORT, CannotStart, taken
from proxy.core.secret import SIMULATED, Secret
from proxy.settings import (
    Address,
    ReadyUpstream,
    Settings,
    UpstreamSettings,
    parse_origin,
)
from proxy.simulator import Received, Reply, Switches, parse_fault
from proxy.simulator.control import Control
from proxy.simulator.simulator import Simulator
from proxy.simulator.state import StateUnusable

_SIMULATOR_MEMORY = 64 * 1024 * 1024  # bytes of requests that it remembers


async def start_simulator(
    settings: Settings,
    *,
    stack: AsyncExitStack,
    listen: Address = ANY_PORT,
    control_listen: Address = ANY_PORT,
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
            raise taken(key, address=address, error=error) from None
        stack.push_async_callback(server.stop)
    return simulator, control


def simulated(settings: Settings, known: Mapping[str, str]) -> ReadyUpstream:
    """The simulator as an upstream, with the policies that are set for the real one.

    It is the only one, so it answers by every name.

    Args:
        settings: say what the policies are.
        known: `origin`, `client_id`, `client_secret` and `account_id` (`known_of`).
    """
    origin = parse_origin(known["origin"])
    entry = settings.model.upstream[0] if settings.model.upstream else UpstreamSettings()
    way = {"ca_file": None, "addresses": (), "ipv4_only": False, "connect_proxy": None}
    options = entry.model_copy(update={"name": "simulator", **way})
    return ReadyUpstream(
        name="simulator",
        origin=origin,
        mount=options.mount.rstrip("/"),
        client_id=known["client_id"],
        client_secret=Secret(known["client_secret"], origin=origin.text),
        account_id=known["account_id"],
        anonymous=settings.simulated_anonymous,
        options=options,
    )


def known_of(simulator: Simulator, control: Control) -> dict[str, str]:
    """Where a simulator is, and what it knows a caller by."""
    switches = simulator.switches
    return {
        "origin": simulator.origin,
        "control": control.origin,
        "client_id": switches.client_id,
        "client_secret": switches.client_secret,
        "account_id": switches.account_id,
    }
