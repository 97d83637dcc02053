"""`nomba-proxy simulate`: the simulator alone, for whoever builds against Nomba."""

import asyncio
import contextlib
import json
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import Field, fields

from proxy import __version__
from proxy.settings import Address, Settings
from proxy.simulator import KINDS, Kind, Received, Reply, Switches, choices
from proxy.simulator.simulator import Simulator
from proxy.simulator.state import StateUnusable

_LISTEN = Address("127.0.0.1", 8090)
_CONTROL = Address("127.0.0.1", 8091)


def simulate(settings: Settings) -> int:
    """Run the simulator until it is told to stop; the exit code."""
    from proxy.app import CannotStart

    try:
        asyncio.run(_simulate(settings))
    except CannotStart as error:
        print(f"nomba-proxy: cannot start: {error}", file=sys.stderr)
        return 1
    except StateUnusable as error:  # at the end
        print(f"nomba-proxy: simulator.state_file: {error}", file=sys.stderr)
        return 1
    return 0


def epilog() -> str:
    """What `--help` says beyond the flags: the faults and the switches."""
    faults = "\n".join(_fault(name, kind) for name, kind in KINDS.items())
    switches = "\n".join(_switch(one) for one in fields(Switches) if one.name != "account_id")
    return f"""\
faults, for --fault 'NAME path=/v2/transfers/* method=POST times=2 probability=0.1':
{faults}
  path and method choose the requests (* stands for anything), times=always never ends.
  A JSON body wants quotes of its own: --fault 'reply body='"'"'{{"code": "01"}}'"'"
  The control API takes the same ones at any time: curl -s http://{_CONTROL}/

switches (--set simulator.KEY=VALUE, or NOMBA_PROXY_SIMULATOR_KEY, or the settings file);
(D) is documented by Nomba, (O) observed by others, (A) an assumption:
{switches}
  the account is NOMBA_ACCOUNT_ID, if that is set.

examples:
  nomba-proxy simulate
  nomba-proxy simulate --fault 'lose-reply path=/v2/transfers/bank' --set simulator.lifetime=60
  nomba-proxy simulate --state nomba.json --seed 7
"""


def _fault(name: str, kind: Kind) -> str:
    options = [f"{key}={_written(value) or '…'}" for key, value in kind.options.items()]
    return f"  {name:<20}{kind.about}" + (f"  [{' '.join(options)}]" if options else "")


def _switch(one: "Field[object]") -> str:
    default = _written(one.default) or "none"
    known = f"{choices(one.type)}; default {default}"
    return f"  {one.name:<24}{one.metadata['about']}\n{'':<26}{known}"


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else ("" if value == () else str(value))


async def _simulate(settings: Settings) -> None:
    from proxy.app import start_simulator

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
