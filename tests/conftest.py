"""A running proxy in front of a running simulator, over real sockets."""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from harness import Log, Proxy, ScriptedUpstream, spawned
from hypothesis import settings as hypothesis_settings
from processes import Workers
from valkeys import ValkeyServer
from watching import Inspector

from proxy.app.listeners import Bound
from proxy.app.running import Place
from proxy.app.start import start
from proxy.settings import Address, Listener, Settings, load
from proxy.simulator import Switches
from proxy.simulator.simulator import Simulator
from proxy.telemetry import Telemetry

# A deadline would be an assertion on the wall clock, and fail on a busy machine. What is decorated
# before this is loaded has one, so it stands here.
hypothesis_settings.register_profile("proxy", deadline=None)
hypothesis_settings.load_profile("proxy")


def pytest_asyncio_loop_factories(config, item):
    """`LOOP=uvloop` runs the tests on uvloop, but for those that move asyncio's own time."""
    if os.environ.get("LOOP") == "uvloop" and "tokens" not in item.path.parts:
        import uvloop

        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


def _place(sock: socket.socket | None) -> Place:
    if sock is None:
        return Place()
    return Place((Bound(sock, Listener(Address(*sock.getsockname()[:2]))),))


@pytest.fixture
async def simulator():
    async with Simulator(Switches(rate_limit=0, recipient_limit=0)) as running:
        yield running


@pytest.fixture
async def start_proxy(simulator, tmp_path):
    """Start proxies in front of the simulator; keyword arguments are settings.

    `base_url` sends it elsewhere. `env` adds variables, and None takes one away. `sock` is what
    it takes requests from. `adapt` makes other settings of those that were read. Each is stopped
    by its own stack.
    """
    async with AsyncExitStack() as stack:

        async def begin(
            *,
            base_url: str | None = None,
            env: Mapping[str, str | None] | None = None,
            sock: socket.socket | None = None,
            adapt: Callable[[Settings], Settings] = lambda one: one,
            **settings: object,
        ) -> Proxy:
            switches = simulator.switches
            environ = {
                "NOMBA_CLIENT_ID": switches.client_id,
                "NOMBA_CLIENT_SECRET": switches.client_secret,
                "NOMBA_ACCOUNT_ID": switches.account_id,
                "NOMBA_BASE_URL": base_url or simulator.origin,
                "NOMBA_PROXY_LISTEN": "127.0.0.1:0",
                "NOMBA_PROXY_ADMIN_LISTEN": "127.0.0.1:0",
                "NOMBA_PROXY_STATE_DIR": str(tmp_path / "state"),
                **(env or {}),
            }
            environ = {name: value for name, value in environ.items() if value is not None}
            flags = {key.replace("__", "."): str(value) for key, value in settings.items()}
            flags = {key.replace("upstream.", "upstream.0."): value for key, value in flags.items()}
            log = Log()
            telemetry = Telemetry("json", level="debug", version="test", stream=log)
            loaded = adapt(load(environ=environ, flags=flags))
            own = await stack.enter_async_context(AsyncExitStack())
            running = await start(loaded, stack=own, telemetry=telemetry, place=_place(sock))
            return Proxy(running, log, telemetry, own)

        yield begin


@pytest.fixture
async def proxy(start_proxy):
    return await start_proxy()


@pytest.fixture
async def valkey(tmp_path):
    """A running server that keeps nothing."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    server = ValkeyServer(folder)
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
async def upstream():
    scripted = ScriptedUpstream()
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
async def inspect(start_proxy):
    async with AsyncExitStack() as stack:

        async def begin(**options):
            env = {"NOMBA_PROXY_INSPECT_LISTEN": "127.0.0.1:0", **options.pop("env", {})}
            proxy = await start_proxy(inspect="true", env=env, **options)
            inspector = Inspector(proxy)
            stack.push_async_callback(inspector.http.close)
            return inspector

        yield begin


@pytest.fixture
def workers(simulator, tmp_path):
    """Start a proxy of several processes in front of the simulator of this test."""

    @asynccontextmanager
    async def begin(*arguments, count=3, **env):
        switches = simulator.switches
        credentials = {
            "NOMBA_CLIENT_ID": switches.client_id,
            "NOMBA_CLIENT_SECRET": switches.client_secret,
            "NOMBA_ACCOUNT_ID": switches.account_id,
            "NOMBA_BASE_URL": simulator.origin,
            "NOMBA_PROXY_STATE_DIR": str(tmp_path / "state"),
            "NOMBA_PROXY_LOG_FORMAT": "json",
        }
        flags = ("--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", f"--workers={count}")
        with (tmp_path / "log").open("ab") as log:
            options = {"stdout": log, **credentials, **env}
            async with spawned("serve", *flags, *arguments, **options) as (process, banner):
                yield Workers(process, banner)

    return begin
