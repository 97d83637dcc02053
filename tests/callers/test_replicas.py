"""Several proxies that share a server: whom one knows the others know."""

import asyncio
import json
import re
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from harness import Line, Log, Served, environ
from processes import until
from valkeys import ValkeyServer

from proxy.app.assembly import assemble
from proxy.app.inspection import _replay_door
from proxy.core.phantom import Phantoms
from proxy.settings import load
from proxy.telemetry import Telemetry

BALANCE = "/v1/accounts/balance"
ISSUE, REFRESH = "/v1/auth/token/issue", "/v1/auth/token/refresh"
REVOKE = "/v1/auth/token/revoke"
KEY = "signing-key-" * 4
SCALING = (Path(__file__).parents[2] / "docs/scaling.md").read_text()


@pytest.fixture
def replica(start_proxy, valkey, tmp_path):
    """Start proxies that have nothing in common but the server and the keys."""

    async def begin(name, *, key=KEY, store=None, ready=True, **env):
        proxy = await start_proxy(
            callers__anonymous="false",
            env={
                "NOMBA_PROXY_STORE": store or valkey.url,
                "NOMBA_PROXY_CALLERS_SIGNING_KEY": key,
                "NOMBA_PROXY_STATE_DIR": str(tmp_path / name),
                **env,
            },
        )
        if ready:
            await readied(proxy)
        return proxy

    return begin


@pytest.fixture
def owner(simulator):
    return {
        "client_id": simulator.switches.client_id,
        "client_secret": simulator.switches.client_secret,
    }


async def asked(proxy, path):
    async with aiohttp.request("GET", proxy.admin + path) as reply:
        return reply.status


async def met(condition):
    """As `until`, for what has to be awaited."""
    for _ in range(1000):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come")


async def readied(proxy):
    async def is_ready():
        return await asked(proxy, "/readyz") == 200

    await met(is_ready)


async def post(proxy, path, **body):
    return await proxy.send("POST", path, body=json.dumps(body).encode())


async def log_in(proxy, owner):
    return (await post(proxy, ISSUE, **owner)).json["data"]


async def balance(proxy, pair):
    return (await proxy.get(BALANCE, f"Authorization: Bearer {pair['access_token']}")).status


async def refused(proxy, pair):
    async def is_refused():
        return await balance(proxy, pair) == 401

    await met(is_refused)
    reply = await post(proxy, REFRESH, refresh_token=pair["refresh_token"])
    assert reply.status == 404


async def test_who_logs_in_at_one_is_known_at_another(replica, simulator, owner):
    one, other = await replica("one"), await replica("other")
    pair = await log_in(one, owner)
    assert await balance(other, pair) == 200
    reply = await post(other, REFRESH, refresh_token=pair["refresh_token"])
    assert await balance(one, reply.json["data"]) == 200
    assert simulator.count(ISSUE) == 1


async def test_what_one_revokes_all_refuse_those_that_start_later_too(replica, owner):
    one, other = await replica("one"), await replica("other")
    gone, kept = await log_in(one, owner), await log_in(one, owner)
    assert (await post(one, REVOKE, access_token=gone["access_token"])).status == 200
    assert await balance(one, gone) == 401
    await refused(other, gone)
    third = await replica("third")
    assert await balance(third, gone) == 401
    assert [await balance(proxy, kept) for proxy in (one, other, third)] == [200] * 3


async def test_a_revocation_holds_though_the_server_was_away_and_lost_everything(
    replica, valkey, owner
):
    one, other = await replica("one"), await replica("other")
    pair = await log_in(other, owner)
    await valkey.kill()
    assert (await post(one, REVOKE, access_token=pair["access_token"])).status == 200
    assert await balance(one, pair) == 401
    assert await balance(other, pair) == 200  # nobody could tell it
    await until(lambda: one.log.lines("revocation_not_stored"))
    await valkey.start()
    await refused(other, pair)
    assert await balance(await replica("third"), pair) == 401
    assert pair["access_token"] not in one.log.text


async def test_a_replica_that_knows_nothing_yet_refuses_for_the_moment(replica, valkey, owner):
    one = await replica("one")
    pair = await log_in(one, owner)
    await valkey.kill()
    other = await replica("other", ready=False)
    reply = await other.get(BALANCE, f"Authorization: Bearer {pair['access_token']}")
    assert (reply.status, reply.json["proxy"]["error"]) == (503, "token_unavailable")
    assert reply.get("Retry-After") == "1"
    await valkey.start()
    await readied(other)
    assert await balance(other, pair) == 200


@pytest.mark.parametrize("key", [KEY, "ключ-подписи-" * 4])
async def test_workers_and_replicas_read_each_others_tokens(
    workers, replica, valkey, owner, tmp_path, key
):
    alone = await replica("alone", key=key)
    env = {
        "NOMBA_PROXY_STORE": valkey.url,
        "NOMBA_PROXY_CALLERS_SIGNING_KEY": key,
        "NOMBA_PROXY_CALLERS_ANONYMOUS": "false",
        "NOMBA_PROXY_STATE_DIR": str(tmp_path / "together"),
    }
    pair, kept = await log_in(alone, owner), await log_in(alone, owner)
    async with workers(count=2, **env) as together:

        async def statuses(pair):
            token = pair["access_token"].encode()
            head = b"GET %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n"
            return {(await together.get(head % (BALANCE.encode(), token))).status for _ in range(9)}

        async def all_take():
            return await statuses(pair) == {200}

        await met(all_take)  # each has looked once
        await post(alone, REVOKE, access_token=pair["access_token"])

        async def all_refuse():
            return await statuses(pair) == {401}

        await met(all_refuse)
        assert await statuses(kept) == {200}


SHIFTED = """
import sys, time
real = time.time
time.time = lambda: real() + {seconds}
from proxy.cli import main
sys.exit(main(["serve"]))
"""


@asynccontextmanager
async def shifted(seconds, **env):
    """A proxy on a machine whose wall clock is wrong."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SHIFTED.format(seconds=seconds)),
        env=environ(**env),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        banner = ""
        while "curl" not in banner:
            line = await asyncio.wait_for(process.stderr.readline(), 30)
            assert line, banner
            banner += line.decode()
        yield Served(process, banner)
    finally:
        process.terminate()
        await asyncio.wait_for(process.communicate(), 30)


async def sent(proxy, method, path, *headers, body=b""):
    head = "\r\n".join((f"{method} {path} HTTP/1.1", "Host: localhost", *headers))
    head += f"\r\nContent-Length: {len(body)}\r\n\r\n"
    host, _, port = proxy.address.rpartition(":")
    line = Line((host, int(port)))
    try:
        return await line.ask(head.encode() + body)
    finally:
        line.close()


async def test_machines_whose_clocks_are_wrong_take_each_others_tokens(
    valkey, simulator, owner, tmp_path
):
    env = {
        "NOMBA_CLIENT_ID": owner["client_id"],
        "NOMBA_CLIENT_SECRET": owner["client_secret"],
        "NOMBA_ACCOUNT_ID": simulator.switches.account_id,
        "NOMBA_BASE_URL": simulator.origin,
        "NOMBA_PROXY_LISTEN": "127.0.0.1:0",
        "NOMBA_PROXY_ADMIN_LISTEN": "127.0.0.1:0",
        "NOMBA_PROXY_STORE": valkey.url,
        "NOMBA_PROXY_CALLERS_SIGNING_KEY": KEY,
        "NOMBA_PROXY_CALLERS_ANONYMOUS": "false",
    }
    state = [{"NOMBA_PROXY_STATE_DIR": str(tmp_path / name)} for name in ("one", "other")]
    async with (
        shifted(3600, **env, **state[0]) as ahead,
        shifted(-3600, **env, **state[1]) as behind,
    ):
        for one in (ahead, behind):  # before it has reached the server it goes by its own clock
            await readied(SimpleNamespace(admin=f"http://{one.admin}"))
        for one, other in ((ahead, behind), (behind, ahead)):
            reply = await sent(one, "POST", ISSUE, body=json.dumps(owner).encode())
            bearer = f"Authorization: Bearer {reply.json['data']['access_token']}"
            assert (await sent(other, "GET", BALANCE, bearer)).status == 200


async def test_a_replay_goes_by_the_clock_of_the_replicas(tmp_path):
    env = {"NOMBA_PROXY_STATE_DIR": str(tmp_path), "NOMBA_CLIENT_ID": "id"}
    env |= {"NOMBA_CLIENT_SECRET": "secret", "NOMBA_ACCOUNT_ID": "account-0123456789"}
    settings = load(environ=env | {"NOMBA_BASE_URL": "http://127.0.0.1:9"})
    telemetry = Telemetry("json", level="debug", version="test", stream=Log())
    async with AsyncExitStack() as stack:
        made = assemble(settings, settings.upstreams, stack=stack, telemetry=telemetry)
        ahead = replace(made, wall=lambda: time.time() + 3600)
        door = _replay_door(settings, listeners=settings.listen, made=ahead, stack=stack)
        ticket = door.ticket("owner", settings.upstreams[0].name).encode()
        phantom = Phantoms(made.key, lifetime=1, refresh_lifetime=1).read(ticket)
    assert phantom.expires > time.time() + 3000


# -- the rights of a user, and passwords ----------------------------------------------------------


@asynccontextmanager
async def guarded(folder):
    """A server on which nobody may do more than docs/scaling.md says, which needs a password."""
    [line] = re.findall(r"(?m)^ACL SETUSER nomba-proxy (.*)$", SCALING)
    rules = line.replace(">PASSWORD", ">pass-word")
    (folder / "users").write_text(
        f"user default off\nuser nomba-proxy {rules}\nuser watcher on nopass ~* &* +@all\n"
    )
    server = ValkeyServer(folder, "--aclfile", str(folder / "users"))
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


async def test_a_user_with_the_rights_that_are_documented_can_do_everything(
    replica, simulator, owner, tmp_path
):
    async with guarded(tmp_path) as server:
        env = {"NOMBA_PROXY_STORE_PASSWORD": "pass-word"}
        store = server.url.replace("//", "//nomba-proxy@") + "/3"
        one = await replica("one", store=store, **env)
        other = await replica("other", store=store, **env)
        pair = await log_in(one, owner)
        assert await balance(other, pair) == 200
        async with aiohttp.request("POST", one.admin + "/token/renew") as reply:
            assert reply.status == 200
        await post(one, REVOKE, access_token=pair["access_token"])
        await refused(other, pair)
        await server.kill()
        await server.start()
        await refused(await replica("third", store=store, **env), pair)
        assert await balance(one, await log_in(other, owner)) == 200
        watcher = server.client(username="watcher", password="")
        assert watcher.acl_log() == []
    assert (simulator.count(ISSUE), simulator.count(REFRESH)) == (1, 1)


@pytest.mark.parametrize("password", ["wrong-word", None])
async def test_a_wrong_password_is_told_and_not_shown(replica, simulator, tmp_path, password):
    async with guarded(tmp_path) as server:
        store = server.url.replace("//", "//nomba-proxy@")
        env = {"NOMBA_PROXY_STORE_PASSWORD": password}
        proxy = await replica("one", store=store, ready=False, **env)
        [line] = await until(lambda: proxy.log.lines("store_lost"))
        assert "password" in line["reason"] or "Authentication" in line["reason"]
        assert f"127.0.0.1:{server.port}" in line["reason"]
        assert await asked(proxy, "/readyz") == 503
    assert "wrong-word" not in proxy.log.text
    assert simulator.count(ISSUE) == 0
