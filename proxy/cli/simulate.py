"""`nomba-proxy simulate`: the simulator alone, for whoever builds against Nomba."""

import asyncio
import contextlib
import json
import signal
import sys
from contextlib import AsyncExitStack

from proxy import __version__
from proxy.app.listeners import CannotStart
from proxy.app.simulated import start_simulator
from proxy.settings import Address, Settings
from proxy.simulator import Received, Reply, Switches
from proxy.simulator.simulator import Simulator
from proxy.simulator.state import StateUnusable

_LISTEN = Address("127.0.0.1", 8090)
_CONTROL = Address("127.0.0.1", 8091)


def simulate(settings: Settings) -> int:
    """Run the simulator until it is told to stop; the exit code."""
    try:
        asyncio.run(_simulate(settings))
    except CannotStart as error:
        print(f"nomba-proxy: cannot start: {error}", file=sys.stderr)
        return 1
    except StateUnusable as error:  # at the end
        print(f"nomba-proxy: simulator.state_file: {error}", file=sys.stderr)
        return 1
    return 0


async def _simulate(settings: Settings) -> None:
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        simulator, control = await start_simulator(
            settings, stack=stack, listen=_LISTEN, control_listen=_CONTROL, observe=_tell
        )
        for warning in settings.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(_banner(simulator, control=control.origin), file=sys.stderr, flush=True)
        await stopping.wait()


def _banner(simulator: Simulator, *, control: str) -> str:
    switches = simulator.switches
    own = switches.client_secret != Switches().client_secret
    secret = "…" if own else switches.client_secret  # whoever chose one knows it
    issue = json.dumps(
        {
            "grant_type": "client_credentials",
            "client_id": switches.client_id,
            "client_secret": secret,
        }
    )
    return f"""\
nomba-proxy {__version__}: a simulated Nomba (no real money)
  listening  {simulator.origin}
  control    {control}  (faults, switches, what was received; docs/simulator.md)

  for an app:
    export NOMBA_BASE_URL={simulator.origin}
    export NOMBA_CLIENT_ID={switches.client_id}
    export NOMBA_CLIENT_SECRET={secret}
    export NOMBA_ACCOUNT_ID={switches.account_id}

  try it:
    curl -s {simulator.origin}/v1/auth/token/issue -H 'accountId: {switches.account_id}' -d '{issue}'
"""


def _tell(request: Received, reply: Reply | None) -> None:
    """One line for each request."""
    what = "no reply"
    if reply is not None:
        what = str(reply.status)
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            what += f" code {json.loads(reply.body).get('code', '-')}"
    with contextlib.suppress(OSError):  # whoever read our output left
        print(f"{request.number:>5} {request.method} {request.path} -> {what}", flush=True)
