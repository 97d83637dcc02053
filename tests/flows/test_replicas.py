"""Replicas with one session on a server, and client secrets that change: as an operator meets it."""

import asyncio
import json
import os
import signal
import ssl
from types import SimpleNamespace

import aiohttp
import pytest
import trustme
from harness import run, served
from processes import until

from proxy.app.secret_files import SecretFiles
from proxy.core.secret import Secret

KEY = "k" * 48
ISSUE = "/v1/auth/token/issue"


@pytest.fixture
def replica(start_proxy, valkey):
    """Start one more, which shares the session with the others."""

    async def begin(**options):
        env = {"NOMBA_PROXY_CALLERS_SIGNING_KEY": KEY, **options.pop("env", {})}
        return await start_proxy(env=env, **{"store": valkey.url, **options})

    return begin


async def balance(proxy):
    return await proxy.send("GET", "/v1/accounts/balance")


async def asked(proxy, path):
    async with aiohttp.request("GET", proxy.admin + path) as reply:
        return reply.status, await reply.text()


async def status(proxy):
    return json.loads((await asked(proxy, "/token"))[1])["nomba"]


def secrets_tried(simulator):
    return [json.loads(one.body)["client_secret"] for one in simulator.calls(ISSUE)]


# -- replicas --------------------------------------------------------------------------------


async def test_replicas_serve_with_one_login(replica, simulator):
    several = [await replica() for _ in range(3)]
    assert [(await balance(proxy)).status for proxy in several] == [200] * 3
    assert simulator.count(ISSUE) == 1


async def test_a_token_that_nomba_ended_is_renewed_once_for_all(replica, simulator):
    several = [await replica() for _ in range(3)]
    for proxy in several:
        await balance(proxy)
    simulator.revoke()
    replies = await asyncio.gather(*(balance(proxy) for proxy in several * 10))
    assert {reply.status for reply in replies} == {200}
    assert simulator.count(ISSUE) == 2


async def test_a_restart_goes_on_with_the_session(replica, simulator):
    await (await replica()).stack.aclose()
    assert (await balance(await replica())).status == 200
    assert simulator.count(ISSUE) == 1


async def test_that_the_server_is_down_is_said_everywhere_but_to_callers(replica, valkey):
    proxy = await replica()
    assert (await balance(proxy)).status == 200
    await valkey.kill()
    await until(lambda: proxy.log.lines("store_lost"))
    assert (await balance(proxy)).status == 200
    code, text = await asked(proxy, "/readyz?verbose")
    assert code == 200
    assert f"no  store: valkey://127.0.0.1:{valkey.port}" in text
    assert "nomba_proxy_store_up 0.0" in (await asked(proxy, "/metrics"))[1]
    assert str(valkey.port) in (await status(proxy))["store"]
    await valkey.start()
    await until(lambda: len(proxy.log.lines("store_reached")) == 2)
    assert "store" not in (await asked(proxy, "/readyz?verbose"))[1]
    assert "nomba_proxy_store_up 1.0" in (await asked(proxy, "/metrics"))[1]


async def test_a_stop_holds_in_all_replicas(replica):
    one, other = await replica(), await replica()
    await balance(one), await balance(other)
    async with aiohttp.request("POST", one.admin + "/token/revoke?stop=1") as reply:
        assert reply.status == 200
    await until(lambda: other.log.lines("session_stopped"))
    assert (await balance(other)).status == 503


async def test_a_revocation_that_cannot_be_kept_changes_nothing(replica, valkey, simulator):
    proxy = await replica()
    await balance(proxy)
    await valkey.kill()
    for path in ("/token/revoke", "/token/revoke?stop=1"):
        async with aiohttp.request("POST", proxy.admin + path) as reply:
            assert reply.status == 502
            assert "nothing was done" in await reply.text()
    assert (await balance(proxy)).status == 200
    assert (await status(proxy))["state"] == "living"
    assert simulator.count("/v1/auth/token/revoke") == 0


async def test_a_password_that_is_changed_is_read_again(replica, valkey, tmp_path, simulator):
    file, admin = tmp_path / "password", valkey.client()
    file.write_text("one")
    file.chmod(0o600)
    admin.config_set("requirepass", "one")
    proxy = await replica(store_password_file=file)
    assert (await balance(proxy)).status == 200
    admin.config_set("requirepass", "another")
    file.write_text("another")
    admin.client_kill_filter(_type="normal", skipme=True)
    admin.client_kill_filter(_type="pubsub")
    simulator.revoke()
    assert (await until_served(proxy)).status == 200
    assert (await status(proxy))["store"] == ""


async def until_served(proxy):
    for _ in range(50):
        if (reply := await balance(proxy)).status == 200:
            break
        await asyncio.sleep(0.1)
    return reply


async def test_what_the_server_refused_for_a_while_is_not_held_against_it(replica, valkey):
    proxy = await replica()
    await balance(proxy)
    client = valkey.client()
    client.config_set("maxmemory", 1)
    async with aiohttp.request("POST", proxy.admin + "/token/renew") as reply:
        assert reply.status == 502
    assert "maxmemory" in (await status(proxy))["store"]
    client.config_set("maxmemory", 0)

    async def is_well():
        return (await status(proxy))["store"] == ""

    for _ in range(300):
        if await is_well():
            break
        await asyncio.sleep(0.1)
    assert await is_well()
    assert "nomba_proxy_store_up 1.0" in (await asked(proxy, "/metrics"))[1]


# -- TLS ----------------------------------------------------------------------------------------


@pytest.fixture
async def tls(valkey, tmp_path):
    """A port that speaks TLS in front of the server, and its authority."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    async def copy(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    async def serve(reader, writer):
        back, forth = await asyncio.open_connection("127.0.0.1", valkey.port)
        await asyncio.gather(copy(reader, forth), copy(back, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield f"valkeys://localhost:{server.sockets[0].getsockname()[1]}", tmp_path / "ca.pem"
    server.close()


async def test_a_server_is_reached_by_tls(replica, tls, simulator):
    url, authority = tls
    several = [await replica(store=url, store_ca_file=authority) for _ in range(2)]
    assert [(await balance(proxy)).status for proxy in several] == [200] * 2
    assert simulator.count(ISSUE) == 1


async def test_a_server_that_nobody_vouches_for_is_not_used(replica, tls, simulator):
    proxy = await replica(store=tls[0])
    [lost] = await until(lambda: proxy.log.lines("store_lost"))
    assert "certificate" in lost["reason"].lower()
    reply = await balance(proxy)
    assert reply.status == 503
    assert b"valkeys" not in reply.body  # where it is, is not for callers
    assert simulator.count(ISSUE) == 0


# -- client secrets -----------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path, simulator):
    """The file of the client secret; `file("text")` replaces what is in it."""
    path = tmp_path / "secret"

    def write(text):
        fresh = path.with_suffix(".new")
        fresh.write_text(text + "\n")
        fresh.chmod(0o600)
        fresh.replace(path)
        return str(path)

    write.env = {"NOMBA_CLIENT_SECRET": None, "NOMBA_CLIENT_SECRET_FILE": str(path)}
    write(simulator.switches.client_secret)
    return write


async def test_a_changed_file_is_the_switch(start_proxy, simulator, file):
    proxy = await start_proxy(env=file.env)
    assert (await balance(proxy)).status == 200
    simulator.switches.client_secret = file_secret = "another-secret-0123456789"
    file(file_secret)
    await until(lambda: proxy.log.lines("secret_switched"))
    assert (await balance(proxy)).status == 200
    assert secrets_tried(simulator)[1:] == [file_secret]
    assert not (await status(proxy))["secret_pending"]


async def test_a_wrong_one_is_refused_and_said_and_harms_nobody(start_proxy, file, simulator):
    proxy = await start_proxy(env=file.env)
    file("a-mistyped-secret")
    await until(lambda: proxy.log.lines("secret_refused"))
    assert (await status(proxy))["secret_pending"]
    assert (await balance(proxy)).status == 200
    assert simulator.count(ISSUE) == 2
    assert "a-mistyped-secret" not in proxy.log.text


async def test_what_cannot_be_read_leaves_the_last_good_one(start_proxy, file, tmp_path):
    proxy = await start_proxy(env=file.env)
    (tmp_path / "secret").unlink()
    [said] = await until(lambda: proxy.log.lines("secret_not_reloaded"))
    assert str(tmp_path / "secret") in said["reason"]
    assert (await balance(proxy)).status == 200


async def test_a_next_secret_may_come_later(start_proxy, file, simulator, tmp_path):
    later = tmp_path / "next"
    env = {**file.env, "NOMBA_CLIENT_SECRET_NEXT_FILE": str(later)}
    proxy = await start_proxy(env=env)
    simulator.switches.other_clients = (f"{simulator.switches.client_id}:the-next-secret",)
    later.write_text("the-next-secret")
    later.chmod(0o600)
    await until(lambda: proxy.log.lines("secret_switched"))
    assert secrets_tried(simulator)[1:] == ["the-next-secret"]


async def test_apps_may_log_in_with_the_old_and_the_new_secret(start_proxy, file, simulator):
    proxy = await start_proxy(env=file.env)
    old, new = simulator.switches.client_secret, "another-secret-0123456789"

    async def login(secret):
        body = json.dumps({"client_id": simulator.switches.client_id, "client_secret": secret})
        return await proxy.send("POST", ISSUE, body=body.encode())

    await until(lambda: proxy.log.lines("token_renewed"))  # else nothing is switched from
    first = await login(old)
    token = json.loads(first.body)["data"]["access_token"]
    assert (await login(new)).status == 401
    simulator.switches.client_secret = new
    file(new)
    await until(lambda: proxy.log.lines("secret_switched"))
    assert [(await login(secret)).status for secret in (old, new)] == [200, 200]
    reply = await proxy.send("GET", "/v1/accounts/balance", f"Authorization: Bearer {token}")
    assert reply.status == 200


async def test_sighup_has_the_files_read_and_a_refused_one_tried_again(file, simulator):
    switches = simulator.switches
    env = {
        "NOMBA_CLIENT_ID": switches.client_id,
        "NOMBA_CLIENT_SECRET_FILE": file(switches.client_secret),
        "NOMBA_ACCOUNT_ID": switches.account_id,
        "NOMBA_BASE_URL": simulator.origin,
        "NOMBA_PROXY_LOG_LEVEL": "error",
    }
    async with served(**env) as proxy:
        file("not-valid-before-long")
        os.kill(proxy.process.pid, signal.SIGHUP)
        await until(lambda: "not-valid-before-long" in secrets_tried(simulator))
        switches.client_secret = "not-valid-before-long"
        os.kill(proxy.process.pid, signal.SIGHUP)
        await until(lambda: secrets_tried(simulator).count("not-valid-before-long") == 2)
        code, out, _ = await run("token", "show", f"--admin-listen={proxy.admin}")
        assert (code, "not in force" in out) == (0, False)
        assert proxy.process.returncode is None


async def test_workers_switch_with_one_login(workers, simulator, file):
    new = "another-secret-0123456789"
    env = {"NOMBA_CLIENT_SECRET_FILE": file(simulator.switches.client_secret)}
    async with workers(count=3, NOMBA_CLIENT_SECRET="", **env) as proxy:
        await proxy.serving()
        simulator.switches.client_secret = new
        file(new)
        await until(lambda: new in secrets_tried(simulator))
        await proxy.serving()
        old = set(proxy.pids)
        proxy.process.send_signal(signal.SIGHUP)
        told = {"client_id": simulator.switches.client_id, "client_secret": new}
        body = json.dumps(told).encode()
        login = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        statuses = set()
        while old & set(proxy.pids):  # who comes knows the new one from its first moment on
            statuses.add((await proxy.get(login % (ISSUE.encode(), len(body), body))).status)
        assert statuses == {200}
        await proxy.replaced(*old, count=3)
        await proxy.serving()
    assert secrets_tried(simulator).count(new) == 1


# -- files that are written while they are read ---------------------------------------------------


@pytest.fixture
def watched():
    """`look(text)`: what is told when the file holds a text at one look."""
    now, told = ["old"], []

    def secret(text):
        return Secret(text, origin="https://x.test")

    upstream = SimpleNamespace(
        name="nomba",
        client_secret=secret("old"),
        next_secret=None,
        read_secrets=lambda: (secret(now[0]), None),
    )

    def take(current, following, *, again):
        told.append((current.reveal(to="https://x.test"), again))

    files = SecretFiles([upstream], told={"nomba": take}, emit=lambda _: None)

    async def look(text, *, asked=False):
        now[0] = text
        await files._look(asked)
        return told

    return look


async def test_what_is_new_has_to_be_there_twice(watched):
    assert await watched("half") == []
    assert await watched("whole") == []
    assert await watched("whole") == [("whole", False)]
    assert await watched("whole") == [("whole", False)]


async def test_who_asks_says_that_it_is_whole(watched):
    assert await watched("whole", asked=True) == [("whole", True)]
    assert await watched("whole") == [("whole", True)]
    assert await watched("whole", asked=True) == [("whole", True)] * 2
