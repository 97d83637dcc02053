"""nginx and Envoy in front of two replicas, as the files say; and the compose file, which has nginx."""

import asyncio
import json
import os
import re
import socket
import ssl
import subprocess
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trustme
import yaml
from deploying import CALLER_KEY, DEPLOY, given_files, program, secrets_of
from harness import environ, read_reply, transfer_body
from processes import until
from replicas import Replica
from valkeys import ValkeyServer, free_port

from proxy.settings import load

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
SETTINGS = SERVICES["proxy-1"]["environment"]
DOC = (DEPLOY.parents[1] / "docs/deployment.md").read_text()
TRANSFER = "/v2/transfers/bank"
FRONTS = ("nginx", "envoy")
_NGINX = """
daemon off;
pid {folder}/nginx.pid;
{user}
error_log stderr error;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  include {folder}/upstream.conf;
  include {folder}/nomba-proxy.conf;
}}
"""


def nginx(folder, *, port, upstream, replace):
    """nginx with the files of this repository: only places are replaced."""
    for source, name in ((upstream, "upstream.conf"), ("nomba-proxy.conf", "nomba-proxy.conf")):
        text = (DEPLOY / "nginx" / source).read_text()
        for old, new in {
            **replace,
            "/etc/nomba-proxy": str(folder),
            "/var/log/nginx": str(folder),
            "8443": f"127.0.0.1:{port}",
        }.items():
            text = text.replace(old, new)
        (folder / name).write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, user=user))
    found = program("nginx", package="nginx-light")
    return [found, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def envoy(folder, *, port, addresses):
    """Envoy with the file of this repository: only places are replaced."""
    config = yaml.safe_load(
        (DEPLOY / "envoy.yaml").read_text().replace("/etc/nomba-proxy", str(folder))
    )
    config["static_resources"]["listeners"][0]["address"] = _at(port)
    [endpoints] = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"]
    endpoints["lb_endpoints"] = [{"endpoint": {"address": one}} for one in addresses]
    (folder / "envoy.yaml").write_text(json.dumps(config))
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return [program("envoy"), "-c", str(folder / "envoy.yaml"), *options]


def _at(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


@asynccontextmanager
async def running(command, *, port):
    """A front that listens at a port."""
    process = await asyncio.create_subprocess_exec(*command, env=environ())
    try:
        for _ in range(1000):
            assert process.returncode is None, "the front has ended"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 30)


class House:
    """Two replicas that share a session, and what is in front of them."""

    def __init__(self, replicas, *, port, tls):
        self.replicas = replicas
        self._port = port
        self._tls = tls

    async def ask(self, method, target, *headers, body=b""):
        """A request over TLS, as bytes; None if no reply came."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: localhost:{self._port}", *headers]
        lines += [f"X-Nomba-Proxy-Key: {CALLER_KEY}", "Connection: close"]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._tls, server_hostname="localhost"
        )
        try:
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            return await asyncio.wait_for(read_reply(reader), 30)
        finally:
            writer.close()

    def connected(self):
        """The replicas that somebody is connected with."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ports = {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "01"}
        return [one for one in self.replicas if one.port in ports]


@pytest.fixture(params=FRONTS)
async def house(request, simulator, tmp_path):
    """What the compose file describes, or Envoy in nginx's place."""
    authority = trustme.CA()
    secrets = secrets_of(simulator, authority, password="a-password")
    async with AsyncExitStack() as stack:
        folder = tmp_path / "valkey"
        folder.mkdir()
        valkey = ValkeyServer(folder, "--requirepass", secrets["valkey-password"])
        await valkey.start()
        stack.push_async_callback(valkey.kill)
        env = given_files(SETTINGS, tmp_path, secrets)
        del env["NOMBA_PROXY_LISTEN"], env["NOMBA_ENVIRONMENT"]
        env |= {"NOMBA_PROXY_STORE": valkey.url, "NOMBA_BASE_URL": simulator.origin}
        replicas = [
            Replica(tmp_path / name, **env) for name in SERVICES if name.startswith("proxy-")
        ]
        for one in replicas:
            await one.start()
            stack.push_async_callback(one.stop)
        front = tmp_path / "front"
        front.mkdir()
        for name in ("tls.crt", "tls.key"):
            (front / name).write_text(secrets[name])
        port = free_port()
        if request.param == "nginx":
            replace = {
                f"proxy-{at}:8080": f"127.0.0.1:{one.port}" for at, one in enumerate(replicas, 1)
            }
            command = nginx(front, port=port, upstream="upstream-replicas.conf", replace=replace)
        else:
            command = envoy(front, port=port, addresses=[_at(one.port) for one in replicas])
        await stack.enter_async_context(running(command, port=port))
        tls = ssl.create_default_context()
        authority.configure_trust(tls)
        yield House(replicas, port=port, tls=tls)


async def test_a_request_passes_as_it_is(house, simulator):
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    target = "/v1/accounts/a%2Fb//c%20d?x=%31&y"
    headers = (f"traceparent: {traceparent}", "X-Request-Id: from-the-caller", "X-caSe: kEpt")
    for method in ("GET", "PUT", "DELETE"):
        reply = await house.ask(
            method, target, *headers, body=b'{"a": 1}' if method == "PUT" else b""
        )
        assert reply.get("X-Request-Id") == "from-the-caller"
        assert reply.outcome == "answered", reply
        got = simulator.received[-1]
        assert (got.method, got.target) == (method, target.encode())
        assert ("X-caSe", "kEpt") in got.headers
        assert dict(got.headers)["traceparent"] == traceparent
    assert simulator.received[-2].body == b'{"a": 1}'
    reply = await house.ask("GET", "/v1/accounts/balance")
    assert reply.status == 200
    assert reply.get("X-Request-Id")  # the front's own
    assert len(simulator.calls("/v1/auth/token/issue")) == 1  # two replicas, one session


async def test_no_log_of_nginx_tells_paths(house, simulator, tmp_path):
    if not (tmp_path / "front/access.log").exists():
        return  # Envoy writes none
    target = "/v1/transactions/accounts/single?merchantTxRef=a-marked-reference"
    await house.ask("GET", target, "X-Request-Id: the-id-of-this-request")
    log, line = tmp_path / "front/access.log", "the-id-of-this-request GET 404"
    await until(lambda: line in log.read_text())  # it is written behind the reply
    line = log.read_text()
    assert line.endswith(" answered\n")
    assert "marked" not in line


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_nothing_is_repeated_when_a_replica_is_killed_half_way(house, simulator, method):
    with simulator.hold(TRANSFER) as hold:
        asking = asyncio.create_task(house.ask(method, TRANSFER, body=transfer_body()))
        await hold.caught(1)
        [busy] = house.connected()
        await busy.kill()
        reply = await asking
        assert reply.status in {502, 503}
        assert reply.outcome is None  # nobody knows: requery
    # Whatever was to come has come once others have been served.
    for _ in range(3):
        assert (await house.ask("GET", "/v1/accounts/balance")).status == 200
    assert simulator.count(TRANSFER) == 1


async def test_a_replica_that_is_gone_costs_no_request(house, simulator):
    assert (await house.ask("GET", "/v1/accounts/balance")).status == 200
    await house.replicas[0].kill()
    for at in range(6):
        reply = await house.ask("POST", TRANSFER, body=transfer_body(f"ref-{at}"))
        assert reply.status == 200
    assert simulator.count(TRANSFER) == 6


@contextmanager
def silent():
    """The port of a machine that takes no connection and refuses none, as one that has lost its power."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening, ExitStack() as stack:
        for _ in range(4):  # what the kernel takes by itself is full then
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@pytest.mark.parametrize("front", FRONTS)
async def test_a_replica_whose_machine_is_silent_costs_no_request(front, simulator, tmp_path):
    authority = trustme.CA()
    secrets = secrets_of(simulator, authority)
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text(secrets[name])
    port, other = free_port(), int(simulator.origin.rpartition(":")[2])
    with silent() as gone:
        if front == "nginx":
            replace = {"proxy-1:8080": f"127.0.0.1:{gone}", "proxy-2:8080": f"127.0.0.1:{other}"}
            replace["proxy_connect_timeout 5s"] = "proxy_connect_timeout 1s"
            command = nginx(tmp_path, port=port, upstream="upstream-replicas.conf", replace=replace)
        else:
            command = envoy(tmp_path, port=port, addresses=[_at(gone), _at(other)])
            file = tmp_path / "envoy.yaml"
            file.write_text(
                file.read_text().replace('"connect_timeout": "5s"', '"connect_timeout": "1s"')
            )
        async with running(command, port=port):
            tls = ssl.create_default_context()
            authority.configure_trust(tls)
            house = House([], port=port, tls=tls)
            for at in range(2):  # one of them meets the silent one first
                reply = await house.ask("POST", TRANSFER, body=transfer_body(f"ref-{at}"))
                assert reply.status == 401  # the simulator's: no proxy was there
    assert simulator.count(TRANSFER) == 2


# -- what the files say ------------------------------------------------------------------


def test_the_socket_of_systemd_is_what_the_fronts_connect_to():
    path = "/run/nomba-proxy.sock"
    assert f"ListenStream={path}\n" in (DEPLOY / "systemd/nomba-proxy.socket").read_text()
    assert f"server unix:{path} " in (DEPLOY / "nginx/upstream-socket.conf").read_text()
    config = yaml.safe_load((DEPLOY / "envoy.yaml").read_text())
    assert f"'path': '{path}'" in str(config["static_resources"]["clusters"])


def test_nginx_takes_the_socket_and_envoy_its_file(tmp_path, simulator):
    secrets = secrets_of(simulator, trustme.CA())
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text(secrets[name])
    checks = [
        [*nginx(tmp_path, port=1, upstream="upstream-socket.conf", replace={}), "-t"],
        [
            *envoy(tmp_path, port=1, addresses=[{"pipe": {"path": "/run/nomba-proxy.sock"}}]),
            "--mode",
            "validate",
        ],
    ]
    for command in checks:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_fronts_wait_longer_than_the_proxy_and_give_connections_up_sooner():
    model = load(environ={}, credentials=False).model
    longest = model.timeouts.total + model.token.wait_limit
    text = (DEPLOY / "nginx/nomba-proxy.conf").read_text()
    assert int(re.search(r"proxy_read_timeout (\d+)s", text)[1]) > longest
    assert re.search(r"client_max_body_size (\d+)m", text)[1] == str(model.body.limit // 2**20)
    for file in DEPLOY.glob("nginx/upstream-*.conf"):
        idle = re.search(r"keepalive_timeout (\d+)s", file.read_text())[1]
        assert int(idle) < model.callers.idle_timeout
    text = (DEPLOY / "envoy.yaml").read_text()
    assert float(re.search(r" timeout: (\d+)s", text)[1]) > longest
    assert float(re.search(r"stream_idle_timeout: (\d+)s", text)[1]) > longest
    assert float(re.search(r"{idle_timeout: (\d+)s}", text)[1]) < model.callers.idle_timeout
    assert f"max_active_downstream_connections: {model.callers.connections}\n" in text


def test_the_compose_file_is_one():
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, str(DEPLOY / "compose.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_compose_file_gives_an_intruder_little():
    for name, one in SERVICES.items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert "mem_limit" in one
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert SERVICES["valkey"]["networks"] == ["inside"]
    assert [one for one in SERVICES if "ports" in SERVICES[one]] == ["nginx"]


def test_the_settings_in_the_compose_file_are_good(simulator, tmp_path):
    secrets = secrets_of(simulator, trustme.CA(), password="a-password")
    state = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    settings = load(environ={**given_files(SETTINGS, tmp_path, secrets), **state})
    assert settings.warnings == ()
    drain = settings.model.drain
    assert (
        int(SERVICES["proxy-1"]["stop_grace_period"].removesuffix("s"))
        > drain.delay + drain.limit + 5
    )
    files = {value.rpartition("/")[2] for key, value in SETTINGS.items() if key.endswith("_FILE")}
    assert files == set(SERVICES["proxy-1"]["secrets"])
    assert set(COMPOSE["secrets"]) == files | {"valkey.conf", "tls.crt", "tls.key"}
    for name in COMPOSE["secrets"]:
        assert name in DOC, "the manual tells how to make it"


def test_the_logs_of_every_service_have_an_end():
    for name, service in SERVICES.items():
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_every_file_that_a_service_is_given_is_there():
    for one in SERVICES["nginx"]["volumes"]:
        assert (DEPLOY / one["source"]).exists()
    assert (DEPLOY / SERVICES["proxy-1"]["build"] / "Dockerfile").exists()
