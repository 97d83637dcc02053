"""`nomba-proxy doctor`: what it says of the way to the upstream, and of this machine."""

import asyncio
import os
import socket
import ssl
import sys
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import aiohttp
import pytest
from alone import Dns, alone
from certificates import Authority
from cryptography import x509
from examining import examined, settings_of
from harness import LOST, reset, run
from valkeys import free_port

HTTP = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
STEPS = ("dns", "tcp", "tls", "http", "clock", "issue", "read", "refresh")


@asynccontextmanager
async def serving(answer, *, tls=None):
    """A server on loopback, which does `answer(reader, writer)`; its port."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def unauthorized(reader, writer):
    with suppress(*LOST):  # whoever only looks whether somebody is there
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HTTP)
        await writer.drain()
    writer.close()


async def ready(proxy):
    """Wait until a proxy has a token."""
    for _ in range(500):
        async with aiohttp.request("GET", f"{proxy.admin}/readyz") as reply:
            if reply.status == 200:
                return
        await asyncio.sleep(0.01)
    raise AssertionError("no token after 5 s")


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "a CA of tests")


@pytest.fixture
def owner(simulator, tmp_path):
    return settings_of(simulator, tmp_path)


def server(authority, **options):
    """A context with a certificate for localhost, or as the test wants it."""
    options.setdefault("alternatives", [x509.DNSName("localhost")])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue(**options))
    return context


async def met(owner, port, *, ca=None, **env):
    """Examine an https upstream at a port of this machine, without logging in."""
    trusted = {} if ca is None else {"NOMBA_PROXY_UPSTREAM_CA_FILE": str(ca)}
    base = {"NOMBA_BASE_URL": f"https://localhost:{port}", "NOMBA_PROXY_UPSTREAM_IPV4_ONLY": "true"}
    return await examined(owner | base | trusted | env, may_issue=False)


@pytest.fixture
def ca(authority, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.pem)
    return path


# -- TCP ------------------------------------------------------------------------------------


async def test_a_port_where_nobody_listens(owner):
    report = await examined(owner | {"NOMBA_BASE_URL": f"http://127.0.0.1:{free_port()}"})
    assert report.failed == ["tcp"]
    assert "refuses the connection" in report["tcp"].seen
    assert "firewall" in report["tcp"].next
    assert [report[name].ok for name in STEPS] == [True, False, *[None] * 6]
    assert [one.ok for one in report.all("listener")] == [True, True]


async def test_a_server_that_resets_is_no_http(owner):
    async def answer(reader, writer):
        with suppress(*LOST):
            await reader.readuntil(b"\r\n\r\n")
        reset(writer)

    async with serving(answer) as port:
        report = await examined(owner | {"NOMBA_BASE_URL": f"http://127.0.0.1:{port}"})
    assert report.failed == ["http"]
    assert report["issue"].ok is None


# -- TLS ------------------------------------------------------------------------------------


async def test_a_good_certificate_is_told_with_its_issuer_and_end(owner, authority, ca):
    async with serving(unauthorized, tls=server(authority)) as port:
        report = await met(owner, port, ca=ca)
    assert report.failed == []
    assert "TLSv1.3, a certificate for localhost by a CA of tests, until 20" in report["tls"].seen
    assert report["tls"].next == ""
    assert report["clock"].ok is None  # that server tells no time


async def test_a_certificate_that_ends_soon_is_good_with_advice(owner, authority, ca):
    soon = datetime.now(UTC) + timedelta(days=5)
    async with serving(unauthorized, tls=server(authority, until=soon)) as port:
        report = await met(owner, port, ca=ca)
    assert report["tls"].ok is True
    assert "ends soon" in report["tls"].next


async def test_a_certificate_that_has_expired(owner, authority, ca):
    past = datetime.now(UTC) - timedelta(days=1)
    async with serving(unauthorized, tls=server(authority, until=past)) as port:
        report = await met(owner, port, ca=ca)
    assert report.failed == ["tls"]
    assert f"has expired on {past:%Y-%m-%d} by this machine's clock" in report["tls"].seen
    assert "NTP" in report["tls"].next
    assert report["http"].ok is None


async def test_a_certificate_of_another_name(owner, authority, ca):
    other = [x509.DNSName("elsewhere.test")]
    async with serving(unauthorized, tls=server(authority, alternatives=other)) as port:
        report = await met(owner, port, ca=ca)
    assert report.failed == ["tls"]
    assert "is not for localhost, for elsewhere.test, by a CA of tests" in report["tls"].seen


async def test_a_network_that_looks_into_tls(owner, authority):
    async with serving(unauthorized, tls=server(authority)) as port:
        report = await met(owner, port)
    assert report.failed == ["tls"]
    assert "for localhost, by a CA of tests" in report["tls"].seen
    assert "upstream.ca_file" in report["tls"].next


async def test_a_server_that_speaks_no_tls(owner):
    async def plain(reader, writer):
        await reader.read(1)
        writer.write(HTTP)
        writer.close()

    async with serving(plain) as port:
        report = await met(owner, port)
    assert report.failed == ["tls"]
    assert "no TLS with localhost" in report["tls"].seen


async def test_a_handshake_that_does_not_end(owner):
    async with serving(unauthorized) as port:
        report = await met(owner, port, NOMBA_PROXY_TIMEOUTS_TLS="0.2")
    assert report.failed == ["tls"]
    assert "no end of the handshake" in report["tls"].seen


# -- through an HTTP proxy ------------------------------------------------------------------


async def test_a_connect_proxy_that_refuses(owner):
    async def refuse(reader, writer):
        with suppress(*LOST):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()

    bare = {"NOMBA_PROXY_UPSTREAM_IPV4_ONLY": "false"}
    async with serving(refuse) as port:
        way = {"NOMBA_PROXY_UPSTREAM_CONNECT_PROXY": f"127.0.0.1:{port}"}
        report = await met(owner, 1, **way, **bare)
    assert report.failed == ["tls"]
    assert [report[name].ok for name in ("dns", "tcp")] == [None, True]
    assert "HTTP/1.1 403 Forbidden" in report["tls"].seen
    assert "pass CONNECT to localhost:1" in report["tls"].next
    report = await met(owner, 1, **way, **bare)
    assert report.failed == ["tcp"]
    assert f"the proxy 127.0.0.1:{port} refuses" in report["tcp"].seen


# -- DNS: on a machine of its own ------------------------------------------------------------


async def at_nomba(*, dns, environ):
    """What is seen of api.nomba.com; nobody is there."""
    if dns is not None:
        await Dns.started(dns)
    report = await examined(environ | {"NOMBA_ENVIRONMENT": "production"}, may_issue=False)
    return {one.name: [one.ok, one.seen, one.next] for one in report.steps}


@pytest.fixture
def abroad(owner):
    """The same settings on a machine of its own, at Nomba's real name."""

    async def begin(*, dns, hosts="", **env):
        environ = {name: value for name, value in owner.items() if name != "NOMBA_BASE_URL"} | env
        return await alone(at_nomba, hosts=hosts, dns=dns, environ=environ)

    return begin


async def test_a_name_that_nobody_knows(abroad):
    rows = await abroad(dns={})
    ok, seen, todo = rows["dns"]
    assert (ok, rows["tcp"][0]) == (False, None)
    assert "api.nomba.com has no address" in seen
    assert "resolv.conf" in todo


async def test_a_name_with_ipv6_only(abroad):
    ok, seen, todo = (await abroad(dns={"api.nomba.com AAAA": ["2001:db8::1"]}))["dns"]
    assert ok is False
    assert seen.endswith("2001:db8::1: IPv6 only")
    assert "IPv4" in todo


async def test_a_hosts_entry_that_leads_here_is_not_followed(abroad):
    hosts = "127.0.0.1 api.nomba.com"
    rows = await abroad(hosts=hosts, dns={"api.nomba.com A": ["203.0.113.9"]})
    ok, seen, _ = rows["dns"]
    assert ok is True
    assert seen.startswith("api.nomba.com is 203.0.113.9; a hosts entry says 127.0.0.1")
    assert rows["tcp"][0] is False
    ok, seen, todo = (await abroad(hosts=hosts, dns={}))["dns"]
    assert ok is False
    assert "leads api.nomba.com to this machine" in seen
    assert "upstream.addresses" in todo


# -- places to listen at --------------------------------------------------------------------


async def test_a_port_that_another_process_has_is_told_with_its_holder(owner):
    async with serving(unauthorized) as port:
        report = await examined(
            owner | {"NOMBA_PROXY_LISTEN": f"127.0.0.1:{port}"}, may_issue=False
        )
    assert report.failed == ["listener"]
    (traffic, admin) = report.all("listener")
    assert (traffic.ok, admin.ok) == (False, True)
    assert f"127.0.0.1:{port}: taken by " in traffic.seen
    assert f"process {os.getpid()}" in traffic.seen
    assert report["proxy"].ok is None  # it is no proxy of ours


async def test_who_has_a_port_and_does_not_answer_may_be_a_proxy(owner):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        report = await examined(owner | {"NOMBA_PROXY_LISTEN": f"127.0.0.1:{port}"})
    assert report["proxy"].ok is False
    assert "Run the doctor as its user" in report["proxy"].next
    traffic, _ = report.all("listener")
    assert f"process {os.getpid()} has it, and does not answer" in traffic.seen
    assert report["issue"].ok is None


async def test_something_else_at_the_admin_listener_is_no_proxy(owner):
    async with serving(unauthorized) as port:
        env = {"NOMBA_PROXY_ADMIN_LISTEN": f"127.0.0.1:{port}"}
        report = await examined(owner | env, may_issue=False)
    assert report.failed == ["listener"]
    assert report["proxy"].ok is None


async def test_an_address_that_this_machine_has_not(owner):
    env = {"NOMBA_PROXY_LISTEN": "127.0.0.1:0", "NOMBA_PROXY_ADMIN_LISTEN": "192.0.2.1:9091"}
    report = await examined(owner | env, may_issue=False)
    traffic, admin = report.all("listener")
    assert (traffic.ok, admin.ok) == (None, False)
    assert "192.0.2.1" in admin.seen


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, ": free"),
        (lambda path: path.parent.rmdir(), "its folder is not there"),
        (lambda path: path.write_text("no socket"), "which is no socket"),
    ],
)
async def test_the_folder_of_a_unix_socket(owner, tmp_path, make, text):
    path = tmp_path / "run" / "proxy.sock"
    path.parent.mkdir()
    make(path)
    report = await examined(owner | {"NOMBA_PROXY_LISTEN": f"unix://{path}"}, may_issue=False)
    traffic, _ = report.all("listener")
    assert text in traffic.seen
    assert traffic.ok is ("free" in text)
    assert not path.is_socket()  # nothing was made by the trial


async def test_a_running_proxy_at_a_unix_socket_is_asked_there(owner, start_proxy, tmp_path):
    listen = f"unix://{tmp_path}/proxy.sock"
    proxy = await start_proxy(env={"NOMBA_PROXY_LISTEN": listen})
    await ready(proxy)
    env = {
        "NOMBA_PROXY_LISTEN": listen,
        "NOMBA_PROXY_ADMIN_LISTEN": str(proxy.running.admin_listener),
    }
    report = await examined(owner | env)
    assert report.failed == []
    assert report["read"].ok is True
    assert [one.ok for one in report.all("listener")] == [True, True]


def left_behind(proxy):
    """What the proxy accounted for, but for the read that the doctor sends as a caller would."""
    lines = [(one["method"], one["status"]) for one in proxy.log.lines("exchange")]
    counted = proxy.telemetry.metrics.render().decode()
    return [one for one in lines if one[0] != "GET"], 'code_class="4xx"' in counted


@pytest.mark.parametrize("unix", [False, True])
async def test_our_own_listener_is_recognised_without_a_trace(owner, start_proxy, tmp_path, unix):
    where = {"NOMBA_PROXY_LISTEN": f"unix://{tmp_path}/proxy.sock"} if unix else {}
    proxy = await start_proxy(env=where)
    await ready(proxy)
    (listener,) = proxy.running.listeners
    env = {
        "NOMBA_PROXY_LISTEN": str(listener),
        "NOMBA_PROXY_ADMIN_LISTEN": str(proxy.running.admin_listener),
    }
    report = await examined(owner | env)
    assert report.failed == []
    assert [one.ok for one in report.all("listener")] == [True, True]
    assert "the running proxy has it" in report.all("listener")[0].seen
    assert left_behind(proxy) == ([], False)


async def test_where_no_admin_listener_says_who_it_is_the_traffic_listener_is_asked(
    owner, start_proxy
):
    proxy = await start_proxy()
    await ready(proxy)
    report = await examined(owner | {"NOMBA_PROXY_LISTEN": str(proxy.running.listen)})
    assert "none answers on its admin listener" in report["proxy"].seen
    assert left_behind(proxy) == ([("TRACE", 405)], True)


@pytest.mark.parametrize("unix", [False, True])
async def test_what_another_process_has_is_not_the_proxys(owner, start_proxy, tmp_path, unix):
    proxy = await start_proxy()
    await ready(proxy)
    path = tmp_path / "other.sock"
    other = f"('{path}', family=socket.AF_UNIX)" if unix else "(('127.0.0.1', 0))"
    program = (
        f"import socket; s = socket.create_server{other}; print(s.getsockname()[1], flush=True)\n"
        "while True: s.accept()[0].close()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    try:
        port = (await process.stdout.readline()).decode().strip()
        where = f"unix://{path}" if unix else f"127.0.0.1:{port}"
        env = {
            "NOMBA_PROXY_LISTEN": where,
            "NOMBA_PROXY_ADMIN_LISTEN": str(proxy.running.admin_listener),
        }
        report = await examined(owner | env)
    finally:
        process.kill()
        await process.wait()
    traffic = report.all("listener")[0]
    assert traffic.ok is False
    assert f"process {process.pid}" in traffic.seen


async def test_a_running_proxy_behind_tls_is_asked_there(owner, start_proxy, authority):
    file = authority.issue(alternatives=[x509.IPAddress(ip_address("127.0.0.1"))])
    files = {"NOMBA_PROXY_TLS_CERT_FILE": str(file), "NOMBA_PROXY_TLS_KEY_FILE": str(file)}
    proxy = await start_proxy(env=files | {"NOMBA_PROXY_LISTEN": "https://127.0.0.1:0"})
    await ready(proxy)
    env = {
        "NOMBA_PROXY_LISTEN": f"https://{proxy.running.listen}",
        "NOMBA_PROXY_ADMIN_LISTEN": str(proxy.running.admin_listener),
    }
    report = await examined(owner | files | env)
    assert report.failed == []
    assert report["read"].ok is True
    assert "for 127.0.0.1, by a CA of tests" in report["listener tls"].seen


async def test_the_certificate_of_a_listener_that_has_expired(owner, authority):
    file = authority.issue(
        alternatives=[x509.DNSName("localhost")], until=datetime.now(UTC) - timedelta(days=1)
    )
    env = {
        "NOMBA_PROXY_LISTEN": f"https://127.0.0.1:{free_port()}",
        "NOMBA_PROXY_TLS_CERT_FILE": str(file),
        "NOMBA_PROXY_TLS_KEY_FILE": str(file),
    }
    report = await examined(owner | env, may_issue=False)
    assert report.failed == ["listener tls"]
    assert "expired on" in report["listener tls"].seen


async def test_files_of_a_listener_that_are_not_there(owner, tmp_path):
    gone = str(tmp_path / "gone.pem")
    env = {
        "NOMBA_PROXY_LISTEN": f"https://127.0.0.1:{free_port()}",
        "NOMBA_PROXY_TLS_CERT_FILE": gone,
        "NOMBA_PROXY_TLS_KEY_FILE": gone,
    }
    code, out, _ = await run("doctor", "--no-issue", PYTHONIOENCODING="utf-8", **(owner | env))
    assert code == 1
    assert "gone.pem: No such file" in out
