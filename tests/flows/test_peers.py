"""Callers that their connection makes known: by certificate, and by uid at a Unix socket."""

import asyncio
import contextlib
import json
import os
import ssl
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certificates import Authority, name, raw_names
from cryptography import x509
from cryptography.x509.oid import NameOID
from harness import LOST, read_reply, transfer_body
from processes import until as until_true

from proxy.core.caller import Digest

BALANCE, TRANSFER = "/v1/accounts/balance", "/v2/transfers/bank"
KEY = "npk_keyed_" + "k" * 43
KEYED = f'[[caller]]\nname = "keyed"\nsecrets = ["{Digest.of(KEY, salt="0" * 16)}"]\n'
CN, ORGANIZATION = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME
REFUSED = (ssl.SSLError, *LOST)
ME = os.getuid()


def entry(caller, **more):
    """One `[[caller]]`, as the file has it."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"name": caller, **more}.items()]
    return "\n".join(("[[caller]]", *lines, ""))


BILLING = entry("billing", certificates=["subject:CN=billing,O=Acme"], role="read-only")
SHOP = entry("shop", certificates=["dns:shop.internal", "uri:spiffe://acme/shop"])


@pytest.fixture
def roster(tmp_path):
    """Write the callers file."""
    (tmp_path / "state").mkdir(exist_ok=True)

    def write(*entries, anonymous=False):
        head = f"anonymous = {json.dumps(anonymous)}\n"
        (tmp_path / "state" / "callers.toml").write_text(head + "\n".join(entries))

    return write


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def billing(authority):
    return authority.issue(name((CN, "billing"), (ORGANIZATION, "Acme")))


@pytest.fixture
def shop(authority):
    return authority.issue(alternatives=[x509.DNSName("shop.internal")])


@pytest.fixture
async def serve(start_proxy, authority, simulator):
    """Start a proxy that asks callers for certificates of the authority."""
    own = authority.issue(alternatives=[x509.DNSName("localhost")])

    async def begin(**settings):
        (own.parent / "callers.pem").write_bytes(authority.pem)
        tls = {"cert_file": own, "key_file": own, "client_ca_file": own.parent / "callers.pem"}
        settings = {f"tls__{key}": value for key, value in tls.items()} | settings
        proxy = await start_proxy(listen="https://127.0.0.1:0", **settings)
        await simulator.wait_for("/v1/auth/token/issue", 1)
        simulator.forget_received()
        return proxy

    return begin


@dataclass
class Knocker:
    """Makes connections to proxies, each of which asks one thing after another."""

    authority: Authority
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def tls(self, proxy, file=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.authority.pem.decode())
        if file is not None:
            context.load_cert_chain(file)
        options = {"ssl": context, "server_hostname": "localhost"}
        return self._asking(*await asyncio.open_connection(*proxy.address, **options))

    async def unix(self, path):
        return self._asking(*await asyncio.open_unix_connection(path))

    def _asking(self, reader, writer):
        self.writers.append(writer)

        async def ask(*headers, **more):
            writer.write(request(*headers, **more))
            return await asyncio.wait_for(read_reply(reader), 30)

        return ask


@pytest.fixture
async def knock(authority):
    knocker = Knocker(authority)
    yield knocker
    for writer in knocker.writers:
        writer.close()
        with contextlib.suppress(*REFUSED):
            await writer.wait_closed()


def request(*headers, method="GET", target=BALANCE, host="localhost", body=b""):
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    lines += [f"Content-Length: {len(body)}"] * bool(body)
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def error(reply):
    return reply.status, reply.json["proxy"]["error"]


async def until(ask, status):
    """The reply once it has this status: a changed file is seen after a while."""
    for _ in range(200):
        if (reply := await ask()).status == status:
            return reply
        await asyncio.sleep(0.05)
    raise AssertionError(f"still {reply.status}")


# -- certificates ------------------------------------------------------------------------


async def test_a_certificate_says_who_calls_and_what_it_may(
    serve, roster, billing, shop, simulator, knock
):
    roster(BILLING, SHOP)
    proxy = await serve()
    by_subject = await knock.tls(proxy, billing)
    by_name = await knock.tls(proxy, shop)
    transfer = {"method": "POST", "target": TRANSFER, "body": transfer_body()}
    assert (await by_subject()).status == 200
    assert error(await by_subject(**transfer)) == (403, "caller_forbidden")
    assert simulator.calls(TRANSFER) == []
    assert (await by_name()).status == 200
    assert (await by_name("Content-Type: application/json", **transfer)).status == 200
    assert len(simulator.calls(TRANSFER)) == 1
    lines = await proxy.exchanges(4)
    assert [line["caller"] for line in lines] == ["billing", "billing", "shop", "shop"]


async def test_the_same_head_over_another_connection_is_another_caller(
    serve, roster, billing, shop, knock
):
    roster(BILLING, SHOP)
    proxy = await serve()
    asking = [await knock.tls(proxy, one) for one in (billing, shop)]
    for _ in range(3):
        for ask in asking:
            assert (await ask()).status == 200
    lines = await proxy.exchanges(6)
    assert [line["caller"] for line in lines] == ["billing", "shop"] * 3


@pytest.mark.parametrize("required", ["true", "false"])
@pytest.mark.parametrize(
    ("wrong", "alert"), [("another authority", "UNKNOWN_CA"), ("expired", "CERTIFICATE_EXPIRED")]
)
async def test_a_certificate_that_is_not_good_ends_the_handshake(
    serve, roster, authority, tmp_path, simulator, wrong, alert, required, knock
):
    roster(BILLING, anonymous=True)
    proxy = await serve(tls__client_required=required)
    other = Authority(tmp_path, "another")
    signed_by = other if wrong == "another authority" else authority
    until_then = datetime.now(UTC) - timedelta(hours=1) if wrong == "expired" else None
    file = signed_by.issue(name((CN, "billing"), (ORGANIZATION, "Acme")), until=until_then)
    with pytest.raises(ssl.SSLError, match=alert):  # with TLS 1.3 it is told at its first read
        await (await knock.tls(proxy, file))()
    assert simulator.received == []
    assert proxy.log.lines("exchange") == []
    [line] = proxy.log.lines("handshake_failed")
    assert line["reason"].startswith("the caller's certificate: ")
    assert ("expired" in line["reason"]) == (wrong == "expired")
    assert "tls.client_ca_file" in line["hint"]
    assert "billing" not in json.dumps(line)


async def test_no_certificate_ends_the_handshake_where_one_is_required(
    serve, roster, simulator, knock
):
    roster(KEYED)
    proxy = await serve()
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        await (await knock.tls(proxy))(f"X-Nomba-Proxy-Key: {KEY}")
    assert simulator.received == []
    [line] = proxy.log.lines("handshake_failed")
    assert line["reason"] == "the caller showed no certificate"
    assert "tls.client_required" in line["hint"]


async def test_that_a_certificate_is_required_is_taken_over_by_a_reload(
    serve, roster, tmp_path, knock
):
    roster(KEYED)
    config = tmp_path / "proxy.toml"
    config.write_text("[tls]\nclient_required = false\n")
    proxy = await serve(env={"NOMBA_PROXY_CONFIG": str(config)})
    assert (await (await knock.tls(proxy))(f"X-Nomba-Proxy-Key: {KEY}")).status == 200
    config.write_text("[tls]\nclient_required = true\n")
    assert (await proxy.running.reload())["changed"] == ["tls.client_required"]
    await until_true(lambda: proxy.log.lines("certificate_reloaded"))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        await (await knock.tls(proxy))(f"X-Nomba-Proxy-Key: {KEY}")


async def test_a_caller_that_stays_after_the_alert_is_cut_off(serve, roster, authority):
    """What it sends then is thrown away, and it is told of once."""
    roster(KEYED)
    proxy = await serve(callers__head_timeout="3")
    reader, writer = await asyncio.open_connection(*proxy.address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.pem.decode())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    side = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    async def step(what):
        while True:
            try:
                return what()
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                if came := await asyncio.wait_for(reader.read(65536), 20):
                    incoming.write(came)
                else:
                    incoming.write_eof()

    await step(side.do_handshake)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        await step(lambda: side.read(1))
    for _ in range(50):
        writer.write(b"x" * 10_000)
        await asyncio.sleep(0)
    with contextlib.suppress(*LOST):
        assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    assert len(proxy.log.lines("handshake_failed")) == 1


async def test_without_a_certificate_a_key_is_good_where_none_is_required(
    serve, roster, billing, knock
):
    roster(BILLING, KEYED)
    proxy = await serve(tls__client_required="false")
    ask = await knock.tls(proxy)
    assert error(await ask()) == (401, "caller_unknown")
    assert (await ask(f"X-Nomba-Proxy-Key: {KEY}")).status == 200
    assert (await (await knock.tls(proxy, billing))()).status == 200
    lines = await proxy.exchanges(3)
    assert [line["caller"] for line in lines[1:]] == ["keyed", "billing"]


async def test_a_certificate_of_no_caller_is_told_what_it_says(
    serve, roster, authority, simulator, knock
):
    roster(BILLING)
    proxy = await serve()
    file = authority.issue(name((CN, "billing")), alternatives=[x509.DNSName("elsewhere.test")])
    reply = await (await knock.tls(proxy, file))()
    assert error(reply) == (401, "caller_unknown")
    assert "certificate of this connection is of no caller" in reply.json["description"]
    assert "dns:elsewhere.test and subject:CN=billing" in reply.json["proxy"]["hint"]
    assert simulator.received == []
    (line,) = await proxy.exchanges()
    says = "The certificate says subject:CN=billing; dns:elsewhere.test."
    assert line["detail"] == f"{reply.json['description']} {says}"
    assert says not in str(reply.json)
    roster(BILLING, anonymous=True)  # a door that is closed is opened by who says so
    ask = await knock.tls(proxy, file)
    await until(ask, 200)
    assert (await proxy.exchanges(2))[-1]["caller"] == "anonymous"


async def test_the_log_names_the_certificate_whatever_else_was_wrong(
    serve, roster, authority, billing, knock
):
    roster(BILLING)
    proxy = await serve()
    evil = "x\x1b[31m\u202e, y"
    file = authority.issue(name((CN, evil), (ORGANIZATION, "Acme")))
    ask = await knock.tls(proxy, file)
    assert error(await ask("Authorization: Bearer of-somebody-else")) == (401, "caller_unknown")
    assert (await (await knock.tls(proxy, billing))()).status == 200
    refused, answered = await proxy.exchanges(2)
    said = r"The certificate says subject:CN=x\u001b[31m\u202e\, y,O=Acme."
    assert refused["detail"] == f"The token is unknown, expired or revoked. {said}"
    assert "detail" not in answered


async def test_a_certificate_that_cannot_be_read_ends_the_handshake(
    serve, roster, authority, shop, simulator, knock
):
    """It was signed, and `ssl` fails at what it says."""
    roster(BILLING, SHOP, anonymous=True)
    proxy = await serve()
    subject = name((CN, "billing"), (ORGANIZATION, "Acme"))
    file = authority.issue(subject, alternatives=raw_names((2, b"shop.internal\xff")))
    with pytest.raises(REFUSED):
        await (await knock.tls(proxy, file))()
    assert simulator.received == []
    assert (await (await knock.tls(proxy, shop))()).status == 200


async def test_a_key_goes_before_the_certificate(serve, roster, billing, knock):
    roster(BILLING, KEYED)
    proxy = await serve()
    ask = await knock.tls(proxy, billing)
    assert (await ask(f"X-Nomba-Proxy-Key: {KEY}")).status == 200
    assert error(await ask(f"X-Nomba-Proxy-Key: {KEY[:-1]}")) == (401, "caller_unknown")
    assert (await ask("Authorization: Bearer of-somebody-else")).status == 200
    lines = await proxy.exchanges(3)
    assert [line["caller"] for line in lines] == ["keyed", "-", "billing"]


async def test_a_page_cannot_call_by_the_certificate_of_its_browser(
    serve, roster, billing, simulator, knock
):
    roster(BILLING, KEYED)
    proxy = await serve(callers__hosts="proxy.internal")
    ask = await knock.tls(proxy, billing)
    foreign = "Origin: https://evil.example"
    assert error(await ask(foreign)) == (403, "origin_refused")
    assert error(await ask("Sec-Fetch-Site: cross-site")) == (403, "origin_refused")
    assert error(await ask(host="evil.example")) == (403, "host_refused")
    assert simulator.received == []
    assert (await ask(host="proxy.internal:8443")).status == 200
    assert (await ask(foreign, f"X-Nomba-Proxy-Key: {KEY}")).status == 200


async def test_what_becomes_of_a_caller_holds_for_connections_that_are_open(
    serve, roster, billing, knock
):
    roster(BILLING)
    proxy = await serve()
    ask = await knock.tls(proxy, billing)
    assert (await ask()).status == 200
    roster(BILLING.replace("[[caller]]", "[[caller]]\nenabled = false"), anonymous=True)
    assert "billing is disabled" in (await until(ask, 401)).json["description"]
    roster(BILLING)
    await until(ask, 200)


async def test_a_replay_of_a_caller_without_a_key_says_why_not(
    inspect, roster, authority, billing, tmp_path, knock
):
    roster(BILLING)
    own = authority.issue(alternatives=[x509.DNSName("localhost")])
    (tmp_path / "callers.pem").write_bytes(authority.pem)
    inspector = await inspect(
        listen="https://127.0.0.1:0",
        tls__cert_file=own,
        tls__key_file=own,
        tls__client_ca_file=tmp_path / "callers.pem",
    )
    await (await knock.tls(inspector.proxy, billing))()
    (row,) = await inspector.rows(1)
    assert row["caller"] == "billing"
    refused = await inspector.post("/api/exchanges/1/replay", status=409)
    assert "has no key" in json.dumps(refused)


# -- Unix sockets ------------------------------------------------------------------------


@pytest.fixture
async def serve_here(start_proxy, simulator):
    """Start a proxy at a Unix socket that everybody on this machine may use; its path."""
    with tempfile.TemporaryDirectory(prefix="np-") as folder:
        Path(folder).chmod(0o755)
        path = f"{folder}/sock"

        async def begin(**settings):
            proxy = await start_proxy(listen=f"unix://{path}?mode=0666", **settings)
            await simulator.wait_for("/v1/auth/token/issue", 1)
            simulator.forget_received()
            return proxy, path

        yield begin


async def test_a_uid_says_who_calls_and_what_it_may(serve_here, roster, simulator, knock):
    roster(entry("mine", uids=[ME], role="read-only"), KEYED)
    proxy, path = await serve_here()
    ask = await knock.unix(path)
    for host in ("localhost", "whatever.example"):  # no browser comes this way
        assert (await ask(host=host)).status == 200
    transfer = {"method": "POST", "target": TRANSFER, "body": transfer_body()}
    assert error(await ask(**transfer)) == (403, "caller_forbidden")
    with_key = f"X-Nomba-Proxy-Key: {KEY}"
    reply = await ask(with_key, "Content-Type: application/json", **transfer)
    assert reply.status == 200
    assert error(await ask(with_key[:-1])) == (401, "caller_unknown")
    lines = await proxy.exchanges(5)
    assert [line["caller"] for line in lines] == ["mine", "mine", "mine", "keyed", "-"]
    assert len(simulator.calls(TRANSFER)) == 1


async def test_a_uid_of_no_caller_is_told_so(serve_here, roster, simulator, knock):
    roster(entry("another", uids=[ME + 1]), KEYED)
    _, path = await serve_here()
    ask = await knock.unix(path)
    reply = await ask()
    assert error(reply) == (401, "caller_unknown")
    assert f"--uid {ME}," in reply.json["proxy"]["hint"]
    assert simulator.received == []
    assert (await ask(f"X-Nomba-Proxy-Key: {KEY}")).status == 200
    roster(entry("another", uids=[ME + 1]), anonymous=True)
    await until(ask, 200)


ASK = """
import os, socket, sys
uid = int(sys.argv[2])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(sys.stdin.buffer.read())
while data := sock.recv(65536):
    sys.stdout.buffer.write(data)
"""


async def ask_as(uid, path, *headers):
    """The status and the text of a reply that a process of another user gets."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", ASK, path, str(uid)), **pipes
    )
    sent = request(*headers, "Connection: close")
    out, err = await asyncio.wait_for(process.communicate(sent), 30)
    assert process.returncode == 0, err.decode()
    return int(out.split(b" ", 2)[1]), out.decode()


@pytest.mark.skipif(ME != 0, reason="only root becomes another user")
async def test_another_user_is_another_caller(serve_here, roster):
    roster(entry("seven", uids=[1007]), entry("eight", uids=[1008], enabled=False), KEYED)
    proxy, path = await serve_here()
    assert (await ask_as(1007, path))[0] == 200
    status, text = await ask_as(1008, path)
    assert (status, "eight is disabled" in text) == (401, True)
    status, text = await ask_as(1009, path)
    assert (status, "1009, is of no caller" in text) == (401, True)
    status, text = await ask_as(65534, path)
    assert (status, "another user namespace" in text) == (401, True)
    assert (await ask_as(1009, path, f"X-Nomba-Proxy-Key: {KEY}"))[0] == 200
    lines = await proxy.exchanges(5)
    assert [line["caller"] for line in lines] == ["seven", "-", "-", "-", "keyed"]
