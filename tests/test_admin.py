"""The admin listener by itself, with sessions that only say what they were asked."""

import asyncio
import time

import pytest

from proxy.admin import ControlFailed, Guard, SessionControls, build_admin
from proxy.core.secret import ADMIN, Secret

TOKEN = "x" * 32


def guarding(*, local: bool, token: bool = False, open_metrics: bool = False) -> Guard:
    secret = Secret(TOKEN, origin=ADMIN) if token else None
    return Guard(local, secret, open_metrics, lambda host: host in {"127.0.0.1", "localhost"})


HERE = guarding(local=True)


async def reload():
    return {"changed": ["log.level"]}


class Asked:
    """Controls of one session, and what was done with them."""

    def __init__(self, *, ready: bool = True, failing: str = "") -> None:
        self.calls: list[str] = []
        self.failing = failing
        self.controls = SessionControls(
            ready=lambda: ready,
            status=lambda: {"state": "living"},
            renew=self.renew,
            revoke=self.revoke,
        )

    async def renew(self):
        self.calls.append("renew")
        if self.failing:
            raise ControlFailed(self.failing)

    async def revoke(self, stop):
        self.calls.append(f"revoke {stop}")
        return self.failing


@pytest.fixture
async def admin(aiohttp_raw_server, aiohttp_client):
    async def begin(*, draining: bool = False, guard: Guard = HERE, **sessions: Asked):
        answer = build_admin(
            {name: one.controls for name, one in sessions.items()},
            is_draining=lambda: draining,
            metrics=lambda: b"# metrics\n",
            metrics_type="text/plain; version=0.0.4",
            reload=reload,
            guard=lambda: guard,
        )
        return await aiohttp_client(await aiohttp_raw_server(answer))

    return begin


async def test_with_several_upstreams_one_is_named(admin):
    live, sandbox = Asked(), Asked()
    http = await admin(live=live, sandbox=sandbox)
    assert set(await (await http.get("/token")).json()) == {"live", "sandbox"}
    refused = await http.post("/token/renew")
    assert (refused.status, "live, sandbox" in (await refused.json())["error"]) == (400, True)
    assert (await http.post("/token/renew?upstream=sandbox")).status == 200
    assert (await http.post("/token/revoke?upstream=live&stop=1")).status == 200
    assert (live.calls, sandbox.calls) == (["revoke True"], ["renew"])


async def test_readiness_names_every_session(admin):
    http = await admin(live=Asked(), sandbox=Asked(ready=False))
    reply = await http.get("/readyz?verbose")
    assert reply.status == 503
    assert (
        await reply.text() == "not ready: no token yet\nok  token of live\nno  token of sandbox\n"
    )


async def test_a_draining_proxy_is_alive_and_not_ready(admin):
    http = await admin(draining=True, live=Asked())
    assert (await http.get("/readyz")).status == 503
    assert (await http.get("/livez")).status == 200


async def test_what_fails_says_why(admin):
    http = await admin(live=Asked(failing="nomba is down"))
    for path in ("/token/renew", "/token/revoke"):
        reply = await http.post(path)
        assert reply.status == 502
        assert "nomba is down" in (await reply.json())["error"]


async def test_unknown_paths_name_the_known_ones(admin):
    http = await admin(live=Asked())
    reply = await http.get("/nothing")
    assert reply.status == 404
    assert "/readyz" in (await reply.json())["paths"]
    refused = await http.post("/metrics")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
    for page in ({"Origin": "http://x"}, {"Sec-Fetch-Site": "cross-site"}):
        assert (await http.get("/livez", headers=page)).status == 403
    assert (await http.head("/livez", headers={"Sec-Fetch-Site": "none"})).status == 200
    assert (await http.head("/metrics")).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost:abc", "[::1", ""])
async def test_a_host_that_is_not_this_machine_is_refused(admin, host):
    http = await admin(live=Asked())
    assert (await http.get("/token", headers={"Host": host})).status == 403


PROBES = ["/livez", "/healthz", "/-/healthy", "/readyz", "/-/ready", "/readyz?verbose"]
OPERATORS = [
    ("GET", "/token"),
    ("POST", "/token/renew"),
    ("POST", "/token/revoke"),
    ("POST", "/-/reload"),
]


@pytest.mark.parametrize("host", ["10.1.2.3:9091", "proxy.internal", "127.0.0.1"])
async def test_elsewhere_probes_are_open_and_the_rest_needs_the_token(admin, host):
    live = Asked()
    http = await admin(guard=guarding(local=False, token=True), live=live)
    named = {"Host": host}
    for path in PROBES:
        assert (await http.get(path, headers=named)).status == 200
    good = named | {"Authorization": f"bearer {TOKEN}"}
    values = ("Bearer no", "Bearer \udcff", f"Basic {TOKEN}")  # bytes that are no UTF-8 are one
    for wrong in ({}, *({"Authorization": one} for one in values)):
        for method, path in (*OPERATORS, ("GET", "/metrics")):
            reply = await http.request(method, path, headers=named | wrong)
            assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert live.calls == []
    for method, path in (*OPERATORS, ("GET", "/metrics")):
        assert (await http.request(method, path, headers=good)).status == 200


async def test_elsewhere_without_a_token_nobody_operates(admin):
    live = Asked()
    http = await admin(guard=guarding(local=False), live=live)
    assert (await http.get("/readyz")).status == 200
    for method, path in (*OPERATORS, ("GET", "/metrics")):
        reply = await http.request(method, path)
        assert reply.status == 403
        assert "NOMBA_PROXY_ADMIN_TOKEN_FILE" in (await reply.json())["error"]
    assert live.calls == []


async def test_metrics_can_be_opened_elsewhere(admin):
    http = await admin(guard=guarding(local=False, open_metrics=True), live=Asked())
    assert (await http.get("/metrics")).status == 200
    assert (await http.get("/token")).status == 403


async def test_others_are_answered_while_many_ask_for_metrics(aiohttp_raw_server, aiohttp_client):
    """They are made where callers are served."""
    made = []

    def metrics():
        made.append(time.sleep(0.02))
        return b""

    answer = build_admin(
        {},
        is_draining=lambda: False,
        metrics=metrics,
        metrics_type="text/plain",
        reload=reload,
        guard=lambda: HERE,
    )
    http = await aiohttp_client(await aiohttp_raw_server(answer))
    asking = [asyncio.create_task(http.get("/metrics")) for _ in range(20)]
    while not made:
        await asyncio.sleep(0)
    assert (await http.get("/livez")).status == 200
    assert len(made) < 10
    assert {(await one).status for one in asking} == {200}
    assert len(made) == 20


async def test_a_token_is_asked_for_on_this_machine_too_once_there_is_one(admin):
    http = await admin(guard=guarding(local=True, token=True), live=Asked())
    assert (await http.get("/metrics")).status == 200
    for method, path in OPERATORS:
        assert (await http.request(method, path)).status == 401


async def test_a_page_does_not_operate_with_the_token_either(admin):
    http = await admin(guard=guarding(local=False, token=True), live=Asked())
    good = {"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}
    assert (await http.post("/token/renew", headers=good)).status == 403


async def test_a_reload_says_what_came_of_it(admin):
    http = await admin(live=Asked())
    assert await (await http.post("/-/reload")).json() == {"changed": ["log.level"]}
    assert (await http.get("/-/reload")).status == 405
