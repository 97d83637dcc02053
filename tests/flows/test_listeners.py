"""Where callers connect: TCP, Unix sockets, inherited ones, with TLS or without, several at once."""

import asyncio
import contextlib
import errno
import gc
import hashlib
import os
import socket
import ssl
import stat
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trustme
from harness import environ, read_reply, run, spawned
from processes import until

from proxy.app.listeners import CannotStart, bind, taken
from proxy.settings import Address
from proxy.settings.addresses import parse_listener

PORTS = ("--admin-listen=127.0.0.1:0", "--inspect=false")
BALANCE = "/v1/accounts/balance"
GET = f"GET {BALANCE} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


class Authority:
    """A certificate authority of the test's, and files of its certificates."""

    def __init__(self, folder, name="ca"):
        self.ca = trustme.CA()
        self.folder = folder
        self.file = str(folder / f"{name}.pem")
        self.ca.cert_pem.write_to_path(self.file)

    def issue(self, *names, to="server"):
        """Write a new certificate and its key; their paths."""
        made = self.ca.issue_cert(*names)
        key, cert = self.folder / f"{to}-key.pem", self.folder / f"{to}-cert.pem"
        made.private_key_pem.write_to_path(str(key))
        cert.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
        return str(cert), str(key)

    def trusting(self, *certificate):
        context = ssl.create_default_context(cafile=self.file)
        if certificate:
            context.load_cert_chain(*certificate)
        return context


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def tls(authority):
    """Settings of a proxy that speaks TLS."""
    cert, key = authority.issue("localhost")
    return {
        "NOMBA_PROXY_LISTEN": "https://127.0.0.1:0",
        "NOMBA_PROXY_TLS_CERT_FILE": cert,
        "NOMBA_PROXY_TLS_KEY_FILE": key,
    }


@asynccontextmanager
async def connected(listener, context=None):
    if isinstance(listener, str):
        reader, writer = await asyncio.open_unix_connection(listener)
    else:
        name = "localhost" if context else None
        reader, writer = await asyncio.open_connection(
            listener.at.host, listener.at.port, ssl=context, server_hostname=name
        )
    try:
        yield reader, writer
    finally:
        writer.close()


async def ask(listener, context=None, request=GET):
    async with connected(listener, context) as (reader, writer):
        writer.write(request)
        return await asyncio.wait_for(read_reply(reader), 20)


async def shown(listener, context):
    """The serial number of the certificate that a listener shows."""
    async with connected(listener, context) as (_, writer):
        return writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]


# -- several, and Unix sockets -----------------------------------------------------------


async def test_several_listeners_are_one_proxy(start_proxy, tls, authority, tmp_path):
    path = tmp_path / "proxy.sock"
    several = f"127.0.0.1:0,https://127.0.0.1:0,unix://{path}?mode=0660,[::1]:0"
    proxy = await start_proxy(env={**tls, "NOMBA_PROXY_LISTEN": several})
    plain, secure, unix, six = proxy.running.listeners
    assert [one.tls for one in proxy.running.listeners] == [False, True, False, False]
    for one in (plain, str(path), six):
        assert (await ask(one)).status == 200
    assert (await ask(secure, authority.trusting())).status == 200
    assert unix.url == f"unix://{path}"
    assert len(await proxy.exchanges(4)) == 4
    await proxy.stack.aclose()
    for one in (plain, six):
        with pytest.raises(ConnectionError):
            await ask(one)


@pytest.mark.parametrize(("option", "mode"), [("", 0o600), ("?mode=0660", 0o660)])
async def test_a_unix_socket_has_its_mode_and_goes_with_the_proxy(
    start_proxy, tmp_path, option, mode
):
    path = tmp_path / "proxy.sock"
    proxy = await start_proxy(env={"NOMBA_PROXY_LISTEN": f"unix://{path}{option}"})
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert (await ask(str(path))).status == 200
    await proxy.stack.aclose()
    assert not path.exists()


async def test_a_unix_socket_that_was_left_behind_is_taken_over(start_proxy, tmp_path):
    path = tmp_path / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    await start_proxy(env={"NOMBA_PROXY_LISTEN": f"unix://{path}"})
    assert (await ask(str(path))).status == 200


async def test_a_unix_socket_of_somebody_else_is_left_alone(start_proxy, tmp_path):
    path = tmp_path / "proxy.sock"
    env = {"NOMBA_PROXY_LISTEN": f"unix://{path}"}
    await start_proxy(env=env)
    code, _, err = await run("serve", "--simulate", *PORTS, "--listen", f"unix://{path}")
    assert code == 1
    assert f"unix://{path}: somebody listens there" in err
    assert (await ask(str(path))).status == 200


async def test_a_unix_socket_at_which_nobody_is_accepted_is_left_alone(tmp_path):
    path = str(tmp_path / "s")
    with contextlib.ExitStack() as stack:
        hung = stack.enter_context(socket.socket(socket.AF_UNIX))
        hung.bind(path)
        hung.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            full = waiting.connect_ex(path)
        assert full
        code, _, err = await run(
            "serve", "--simulate", "--admin-listen=127.0.0.1:0", f"--listen=unix://{path}"
        )
        assert code == 1
        assert f"unix://{path}: somebody listens there" in err


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "precious"
    path.write_text("text")
    code, _, err = await run("serve", "--simulate", *PORTS, "--listen", f"unix://{path}")
    assert (code, path.read_text()) == (1, "text")
    assert "cannot start" in err


@pytest.mark.parametrize(
    ("listen", "hint"),
    [
        ("unix:///proc/none/proxy.sock", "The folder of a Unix socket has to be there"),
        ("198.51.100.1:8080", "This machine has no such address"),
    ],
)
def test_why_a_listener_cannot_be_had_is_said(listen, hint):
    with pytest.raises(CannotStart, match=hint) as caught:
        bind(parse_listener(listen))
    assert "Another process" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "a port below 1024 is root's"),
        (socket.gaierror(socket.EAI_NONAME, "not known"), "leads to no address"),
        (OSError(errno.EADDRINUSE, "in use"), "Another process may be listening"),
        (OSError(errno.EADDRINUSE, "in use"), "ss -ltnp shows it"),
    ],
)
def test_what_this_machine_may_not_show_is_said_too(error, hint):
    assert hint in str(taken("listen", address=Address("127.0.0.1", 443), error=error))


async def test_the_socket_of_a_successor_is_not_taken_away(start_proxy, tmp_path):
    path = tmp_path / "proxy.sock"
    env = {"NOMBA_PROXY_LISTEN": f"unix://{path}"}
    first = await start_proxy(env=env)
    path.unlink()
    await start_proxy(env=env)
    await first.stack.aclose()
    assert (await ask(str(path))).status == 200


async def test_a_caller_at_a_unix_socket_that_reads_nothing_is_cut_off(
    start_proxy, upstream, tmp_path
):
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n" + b"x" * 8_000_000
    upstream.answer = upstream.reply_with(big)
    path = tmp_path / "proxy.sock"
    env = {"NOMBA_PROXY_LISTEN": f"unix://{path}"}
    proxy = await start_proxy(env=env, base_url=upstream.origin, callers__write_stall="0.4")
    async with connected(str(path)) as (_, writer):
        writer.transport.pause_reading()
        writer.write(GET)
        [line] = await proxy.exchanges(1)
    assert line["error"] == "caller_stalled"


# -- inherited ---------------------------------------------------------------------------


async def inheriting(*listening, workers):
    """A proxy process that is given sockets from 3 on."""
    code = (
        "import fcntl, os, sys; fds = [int(one) for one in sys.argv[1].split(',')]; "
        "high = [fcntl.fcntl(one, fcntl.F_DUPFD, 100) for one in fds]; "
        "[os.dup2(one, at, True) for at, one in enumerate(high, 3)]; "
        "os.execv(sys.executable, [sys.executable, '-m', 'proxy', *sys.argv[2:]])"
    )
    numbers = [one.fileno() for one in listening]
    where = ",".join(f"fd:{at}" for at in range(3, 3 + len(numbers)))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, ",".join(map(str, numbers)), "serve", "--simulate"),
        *(f"--listen={where}", "--admin-listen=127.0.0.1:0", f"--workers={workers}"),
        env=environ(NOMBA_PROXY_INSPECT="false"),
        pass_fds=numbers,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    lines = []
    while not lines or b"curl" not in lines[-1]:
        lines.append(await asyncio.wait_for(process.stderr.readline(), 30))
        assert lines[-1], lines
    return process, b"".join(lines).decode()


@pytest.mark.parametrize("workers", ["1", "3"])
async def test_inherited_sockets_are_listened_on_and_outlive_the_proxy(tmp_path, workers):
    path = tmp_path / "given.sock"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        port = tcp.getsockname()[1]
        process, banner = await inheriting(tcp, unix, workers=workers)
        assert f"http://127.0.0.1:{port}" in banner
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        assert (await read_reply(reader)).status == 200
        writer.close()
        assert (await ask(str(path))).status == 200
        process.terminate()
        await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0
        assert path.exists()
        waiting = socket.create_connection(("127.0.0.1", port))  # in the queue, for whoever is next
        waiting.close()


async def test_a_descriptor_that_is_no_listening_socket_is_refused():
    code, _, err = await run("serve", "--simulate", *PORTS, "--listen", "fd:9")
    assert code == 1
    assert "fd:9: that descriptor is no listening socket" in err
    assert "systemd" in err


async def test_an_inherited_socket_that_others_can_reach_needs_callers():
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        sock.listen()
        code = "import os, sys; os.dup2(int(sys.argv[1]), 3, True); os.execv(sys.executable, [sys.executable, '-m', 'proxy', 'serve', '--simulate', '--listen=fd:3'])"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, str(sock.fileno())),
            env=environ(),
            pass_fds=[sock.fileno()],
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert b"fd:3 can be reached from other machines" in err


# -- TLS ---------------------------------------------------------------------------------


async def test_a_tls_listener_is_verified_and_speaks_http_1_1(start_proxy, tls, authority):
    proxy = await start_proxy(env=tls)
    [listener] = proxy.running.listeners
    context = authority.trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with connected(listener, context) as (reader, writer):
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        for _ in range(2):
            writer.write(GET)
            assert (await read_reply(reader)).status == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        await ask(listener, ssl.create_default_context())


async def test_plain_http_on_a_tls_listener_gets_nothing(start_proxy, tls, authority):
    proxy = await start_proxy(env=tls)
    [listener] = proxy.running.listeners
    async with connected(listener) as (reader, writer):
        writer.write(GET)
        assert not (await reader.read()).startswith(b"HTTP")
    assert (await ask(listener, authority.trusting())).status == 200
    [line] = proxy.log.lines("handshake_failed")
    assert line["reason"] == "the caller spoke plain HTTP"
    assert "https://" in line["hint"]


async def test_a_caller_that_does_not_trust_the_certificate_is_logged(start_proxy, tls):
    proxy = await start_proxy(env=tls)
    [listener] = proxy.running.listeners

    def call():  # asyncio's own callers go without an alert
        at = (listener.at.host, listener.at.port)
        with socket.create_connection(at, timeout=20) as sock:
            ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")

    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.to_thread(call)
    await until(lambda: proxy.log.lines("handshake_failed"))
    [line] = proxy.log.lines("handshake_failed")
    assert line["reason"] == "the caller does not trust the proxy's certificate"
    assert "hard-coded-hosts.md" in line["hint"]


async def test_a_handshake_that_does_not_end_is_cut_off(start_proxy, tls):
    proxy = await start_proxy(env=tls, callers__head_timeout="0.3")
    [listener] = proxy.running.listeners
    async with connected(listener) as (reader, writer):
        writer.write(bytes.fromhex("1603010200"))
        assert await asyncio.wait_for(reader.read(), 20) == b""
    assert proxy.log.lines("handshake_failed") == []  # a port that is only looked at is no news


async def answered(listener, context):
    """Whether one who comes anew is served; else it is cut off."""
    try:
        reply = await ask(listener, context)
    except (OSError, asyncio.IncompleteReadError):
        return False
    return reply.status == 200


async def test_handshakes_have_a_limit_and_those_that_come_to_nothing_make_room(
    start_proxy, tls, authority
):
    proxy = await start_proxy(env=tls, callers__connections="3")
    [listener] = proxy.running.listeners
    context = authority.trusting()
    rendered = proxy.telemetry.metrics.render
    async with AsyncExitStack() as ended:  # handshakes that have ended do not count
        for _ in range(3):
            await ended.enter_async_context(connected(listener, context))
        assert await answered(listener, context)
    # They still count as connections until their end has come, which takes uvloop a moment.
    await until(lambda: b"\nnomba_proxy_caller_connections 0.0" in rendered())
    async with connected(listener, context) as (reader, writer), AsyncExitStack() as begun:
        for _ in range(3):
            _, begins = await begun.enter_async_context(connected(listener))
            begins.write(bytes.fromhex("1603010200"))
        async with asyncio.timeout(20):  # they may be accepted a moment later
            while await answered(listener, context):
                pass
        writer.write(GET)  # who is in already is served
        assert (await asyncio.wait_for(read_reply(reader), 20)).status == 200
        assert b'caller_connections_crowded_total{result="reset"} 1.0' in rendered()
    async with asyncio.timeout(20):
        while not await answered(listener, context):
            pass


async def test_a_handshake_that_is_over_makes_room_whatever_still_knows_of_it(
    start_proxy, tls, authority
):
    """asyncio leaves one that came to nothing to the garbage collector, which may not come."""
    proxy = await start_proxy(env=tls, callers__connections="3", callers__head_timeout="3")
    [listener] = proxy.running.listeners
    context = authority.trusting()
    gc.disable()
    try:
        async with AsyncExitStack() as begun:
            for _ in range(3):
                await begun.enter_async_context(connected(listener))
            async with asyncio.timeout(20):
                while await answered(listener, context):
                    pass
        async with asyncio.timeout(20):
            while not await answered(listener, context):
                await asyncio.sleep(0.05)
    finally:
        gc.enable()


async def test_large_bodies_pass_through_tls_unchanged(start_proxy, tls, authority, upstream):
    data = os.urandom(3_000_000)
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    )
    proxy = await start_proxy(env=tls, base_url=upstream.origin)
    [listener] = proxy.running.listeners
    head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data)
    reply = await ask(listener, authority.trusting(), head + data)
    assert hashlib.sha256(reply.body).digest() == hashlib.sha256(data).digest()
    assert hashlib.sha256(upstream.requests[0][1]).digest() == hashlib.sha256(data).digest()


async def test_a_caller_that_reads_nothing_over_tls_is_cut_off(
    start_proxy, tls, authority, upstream
):
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 9_000_000
    upstream.answer = upstream.reply_with(big)
    proxy = await start_proxy(env=tls, base_url=upstream.origin, callers__write_stall="0.4")
    [listener] = proxy.running.listeners
    async with connected(listener, authority.trusting()) as (_, writer):
        writer.transport.pause_reading()
        writer.write(GET)
        [line] = await proxy.exchanges(1)
    assert line["error"] == "caller_stalled"


async def test_a_reply_cut_over_tls_is_seen_to_be_cut(start_proxy, tls, authority, upstream):
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nonly some of it"
    )
    proxy = await start_proxy(env=tls, base_url=upstream.origin)
    [listener] = proxy.running.listeners
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await ask(listener, authority.trusting())


async def test_who_begins_with_tls_while_the_proxy_stops_is_answered(
    start_proxy, tls, authority, upstream
):
    proxy = await start_proxy(env=tls, base_url=upstream.origin)
    with socket.create_connection(proxy.address) as sock:
        sock.setblocking(False)
        await asyncio.sleep(0.1)  # it is accepted
        closing = asyncio.create_task(proxy.stack.aclose())
        await asyncio.sleep(0.3)
        context = authority.trusting()
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=context, server_hostname="localhost"
        )
        writer.write(GET)
        reply = await asyncio.wait_for(read_reply(reader), 20)
        writer.close()
        await closing
    assert (reply.status, reply.get("Connection")) == (200, "close")


async def test_who_never_begins_with_tls_does_not_hold_the_end_up(start_proxy, tls):
    proxy = await start_proxy(env=tls, callers__head_timeout="60", drain__limit="60")
    with socket.create_connection(proxy.address):
        await asyncio.sleep(0.1)
        await asyncio.wait_for(proxy.stack.aclose(), 20)


async def test_a_drain_over_tls_ends_every_connection(start_proxy, tls, authority):
    proxy = await start_proxy(env=tls)
    [listener] = proxy.running.listeners
    async with connected(listener, authority.trusting()) as (reader, writer):
        writer.write(GET)
        assert (await read_reply(reader)).get("Connection") is None
        await proxy.running.drain()
        stopping = asyncio.create_task(proxy.stack.aclose())
        writer.write(GET)
        assert (await read_reply(reader)).get("Connection") == "close"
        assert await asyncio.wait_for(reader.read(), 20) == b""
        await asyncio.wait_for(stopping, 20)


async def test_a_new_certificate_is_taken_over_and_nobody_is_cut_off(start_proxy, tls, authority):
    proxy = await start_proxy(env=tls)
    [listener] = proxy.running.listeners
    context = authority.trusting()
    before = await shown(listener, context)
    async with connected(listener, context) as (reader, writer):
        authority.issue("localhost")
        await until(lambda: proxy.log.lines("certificate_reloaded"))
        assert await shown(listener, context) != before
        writer.write(GET)
        assert (await read_reply(reader)).status == 200
        own = writer.get_extra_info("ssl_object").getpeercert()
        assert own["serialNumber"] == before
    text = proxy.telemetry.metrics.render().decode()
    told = text.partition("\nnomba_proxy_certificate_expiry_timestamp_seconds ")[2].split()[0]
    assert float(told) == proxy.log.lines("certificate_reloaded")[0]["expires_at"]


async def test_a_certificate_that_cannot_be_used_changes_nothing(start_proxy, tls, authority):
    proxy = await start_proxy(env=tls)
    [listener] = proxy.running.listeners
    context = authority.trusting()
    before = await shown(listener, context)
    cert = tls["NOMBA_PROXY_TLS_CERT_FILE"]
    Path(cert).write_text("no certificate")
    await until(lambda: proxy.log.lines("certificate_not_reloaded"))
    assert cert in proxy.log.lines("certificate_not_reloaded")[0]["reason"]
    assert await shown(listener, context) == before
    authority.issue("localhost")
    await until(lambda: proxy.log.lines("certificate_reloaded"))
    assert await shown(listener, context) != before


async def test_a_pipe_in_a_certificates_place_is_not_waited_for(start_proxy, tls, authority):
    proxy = await start_proxy(env=tls)
    [listener] = proxy.running.listeners
    before = await shown(listener, authority.trusting())
    path = Path(tls["NOMBA_PROXY_TLS_CERT_FILE"])
    path.unlink()
    os.mkfifo(path)
    await until(lambda: proxy.log.lines("certificate_not_reloaded"))
    [line] = proxy.log.lines("certificate_not_reloaded")
    assert "no regular file" in line["reason"]
    path.unlink()
    authority.issue("localhost")
    await until(lambda: proxy.log.lines("certificate_reloaded"))
    assert await shown(listener, authority.trusting()) != before


async def test_a_certificate_changes_by_a_symlink_swap(start_proxy, authority, tmp_path):
    """As Kubernetes does it with a mounted secret."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Authority.issue(_Into(authority, tmp_path / name), "localhost")
    (tmp_path / "now").symlink_to("one")
    env = {
        "NOMBA_PROXY_LISTEN": "https://127.0.0.1:0",
        "NOMBA_PROXY_TLS_CERT_FILE": str(tmp_path / "now" / "server-cert.pem"),
        "NOMBA_PROXY_TLS_KEY_FILE": str(tmp_path / "now" / "server-key.pem"),
    }
    proxy = await start_proxy(env=env)
    [listener] = proxy.running.listeners
    before = await shown(listener, authority.trusting())
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "now")
    await until(lambda: proxy.log.lines("certificate_reloaded"))
    assert await shown(listener, authority.trusting()) != before


class _Into:
    def __init__(self, authority, folder):
        self.ca, self.folder = authority.ca, folder


@pytest.mark.parametrize("required", ["true", "false"])
async def test_a_client_ca_lets_in_whose_certificate_it_signed(
    start_proxy, tls, authority, tmp_path, required
):
    callers = Authority(tmp_path, "callers")
    env = {
        **tls,
        "NOMBA_PROXY_TLS_CLIENT_CA_FILE": callers.file,
        "NOMBA_PROXY_TLS_CLIENT_REQUIRED": required,
    }
    proxy = await start_proxy(env=env)
    [listener] = proxy.running.listeners
    own = authority.trusting(*callers.issue("billing", to="billing"))
    assert (await ask(listener, own)).status == 200
    foreign = authority.trusting(*authority.issue("billing", to="foreign"))
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await ask(listener, foreign)
    nobody = authority.trusting()
    if required == "true":
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await ask(listener, nobody)
    else:
        assert (await ask(listener, nobody)).status == 200


async def test_a_caller_whose_ca_is_taken_away_does_not_come_in_by_its_old_session(
    start_proxy, tls, authority, tmp_path
):
    callers = Authority(tmp_path, "callers")
    proxy = await start_proxy(env={**tls, "NOMBA_PROXY_TLS_CLIENT_CA_FILE": callers.file})
    [listener] = proxy.running.listeners
    context = authority.trusting(*callers.issue("billing", to="billing"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # its session is known when the handshake ends
    where = (listener.at.host, listener.at.port)

    def shake(session=None):
        with (
            socket.create_connection(where) as sock,
            context.wrap_socket(sock, server_hostname="localhost", session=session) as secure,
        ):
            secure.sendall(GET)
            secure.recv(100)
            return secure.session, secure.session_reused

    session, _ = await asyncio.to_thread(shake)
    _, reused = await asyncio.to_thread(shake, session)
    assert reused
    trustme.CA().cert_pem.write_to_path(callers.file)
    await until(lambda: proxy.log.lines("certificate_reloaded"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(shake, session)


# -- several processes -------------------------------------------------------------------


async def test_workers_share_every_kind_of_listener(workers, simulator, tls, authority, tmp_path):
    path = tmp_path / "proxy.sock"
    more = ("--listen=https://127.0.0.1:0", f"--listen=unix://{path}")
    env = {name: value for name, value in tls.items() if "TLS" in name}
    async with workers(*more, count=2, **env) as proxy:
        secure = next(
            line.split()[-1] for line in proxy.banner.splitlines() if "https://" in line
        ).removeprefix("https://")
        host, _, port = secure.partition(":")
        context = authority.trusting()

        async def each():
            for _ in range(8):
                assert (await ask(str(path))).status == 200
                reader, writer = await asyncio.open_connection(
                    host, int(port), ssl=context, server_hostname="localhost"
                )
                writer.write(GET)
                assert (await read_reply(reader)).status == 200
                writer.close()

        await each()
        victim = proxy.pids[0]
        os.kill(victim, 9)
        await proxy.replaced(victim, count=2)
        await each()
    assert not path.exists()


# -- what is printed ---------------------------------------------------------------------


async def test_the_banner_says_how_to_call_each_kind(tls, tmp_path):
    path = tmp_path / "proxy.sock"
    flags = ("--simulate", "--admin-listen=127.0.0.1:0", f"--listen=unix://{path}")
    async with spawned("serve", *flags, "--listen=127.0.0.1:0") as (_, banner):
        assert f"curl -s --unix-socket {path} http://localhost/v1/accounts/balance" in banner
        assert "http://127.0.0.1:" in banner


@pytest.mark.parametrize("kind", ["unix", "https"])
async def test_what_is_printed_works(authority, tmp_path, kind):
    cert, key = authority.issue("localhost", "127.0.0.1")
    listen = "https://127.0.0.1:0" if kind == "https" else f"unix://{tmp_path}/proxy.sock"
    flags = ("--simulate", *PORTS, f"--listen={listen}")
    files = ("--set", f"tls.cert_file={cert}", "--set", f"tls.key_file={key}")
    async with spawned("serve", *flags, *files) as (_, banner):
        line = next(one.strip() for one in banner.splitlines() if "curl" in one)
        done = await asyncio.create_subprocess_exec(*line.split(), stdout=asyncio.subprocess.PIPE)
        out, _ = await asyncio.wait_for(done.communicate(), 20)
    assert b'"code":"00"' in out.replace(b" ", b"")


async def test_what_is_printed_leaves_room_for_a_certificate(authority, tls):
    files = ("--set", f"tls.client_ca_file={authority.file}", *PORTS)
    async with spawned("serve", "--simulate", *files, **tls) as (_, banner):
        assert "--cert … --key … https://127.0.0.1:" in banner
    async with spawned(
        "serve", "--simulate", *files, "--set", "tls.client_required=false", **tls
    ) as (_, banner):
        assert "--key …" not in banner


async def test_a_name_with_several_addresses_is_listened_on_at_each(start_proxy):
    found = {one[4][0] for one in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    proxy = await start_proxy(env={"NOMBA_PROXY_LISTEN": "localhost:0"})
    assert {one.at.host for one in proxy.running.listeners} == found
    assert len({one.at.port for one in proxy.running.listeners}) == 1
