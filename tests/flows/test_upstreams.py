"""Several upstreams in one process: chosen by path or by name, and who shares a session."""

import asyncio
import json
import re
from dataclasses import dataclass, field

import aiohttp
import pytest
from harness import run, transfer_body
from watching import Inspector

from proxy.app.banner import banner
from proxy.app.running import Running
from proxy.core.caller import Digest
from proxy.settings import Listener, load
from proxy.simulator import Switches
from proxy.simulator.simulator import Simulator

BALANCE, TRANSFER = "/v1/accounts/balance", "/v2/transfers/bank"
ISSUE, REFRESH, REVOKE = (f"/v1/auth/token/{call}" for call in ("issue", "refresh", "revoke"))
FIRST, SECOND = "account-of-the-first", "account-of-the-second"
KEY = "npk_app_" + "s" * 43


@dataclass
class Entry:
    """One `[[upstream]]`."""

    origin: str
    client: str
    account: str
    more: dict = field(default_factory=dict)


def of(simulator, **more):
    """The entry of a simulator."""
    switches = simulator.switches
    return Entry(simulator.origin, switches.client_id, switches.account_id, more)


@pytest.fixture
async def live():
    switches = Switches(rate_limit=0, recipient_limit=0, client_id="live-client")
    async with Simulator(switches, seed=2) as running:
        yield running


@pytest.fixture
async def sandbox():
    switches = Switches(rate_limit=0, recipient_limit=0, client_id="sandbox-client")
    switches.account_id = "00000000-0000-4000-8000-acc000000002"
    async with Simulator(switches, seed=3) as running:
        yield running


@pytest.fixture
def start(start_proxy, simulator, tmp_path):
    """Start a proxy with the entries by their names, in that order."""
    secret = tmp_path / "secret"
    secret.write_text(simulator.switches.client_secret)
    secret.chmod(0o600)

    async def begin(*, callers="", settings=(), **entries):
        lines = []
        for name, entry in entries.items():
            values = {"name": name, "base_url": entry.origin, "client_id": entry.client}
            values |= {"account_id": entry.account, "client_secret_file": str(secret)}
            lines.append("[[upstream]]")
            lines += [
                f"{key} = {json.dumps(value)}" for key, value in (values | entry.more).items()
            ]
        file = tmp_path / "proxy.toml"
        file.write_text("\n".join((*lines, callers, "")))
        gone = ("CLIENT_ID", "CLIENT_SECRET", "ACCOUNT_ID", "BASE_URL")
        env = dict.fromkeys((f"NOMBA_{name}" for name in gone), None)
        env |= {"NOMBA_PROXY_CONFIG": str(file), "NOMBA_PROXY_INSPECT_LISTEN": "127.0.0.1:0"}
        return await start_proxy(env=env, **dict(settings))

    return begin


def caller(*rules):
    """A `[[caller]]` with rules."""
    digest = Digest.of(KEY, salt="0" * 16)
    return f'[[caller]]\nname = "app"\nsecrets = ["{digest}"]\nrules = {json.dumps(rules)}\n'


async def call(proxy, host, target, *headers, method="GET", body=b""):
    """A request to a name."""
    lines = [f"{method} {target} HTTP/1.1", *([f"Host: {host}"] if host else []), *headers]
    lines += [f"Content-Length: {len(body)}"] if body else []
    return await proxy.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


def problem(reply):
    return reply.status, reply.json["proxy"]["error"]


def bearers(simulator):
    """Every token that a simulator was shown."""
    return {request.bearer for request in simulator.received if request.bearer}


def renewals(simulator):
    return simulator.count(ISSUE) + simulator.count(REFRESH)


async def admin(proxy, path, method="GET"):
    async with aiohttp.ClientSession() as http, http.request(method, proxy.admin + path) as reply:
        return await reply.text()


def lines(head):
    return [line.decode() for line in head.split(b"\r\n")]


# -- live and sandbox ---------------------------------------------------------------------


async def test_no_token_of_one_is_ever_seen_at_the_other(start, live, sandbox):
    mounted = {"mount": "/nomba-sandbox"}
    proxy = await start(live=of(live), sandbox=of(sandbox, **mounted))

    async def both(mark):
        for mount, host in (("", "live"), (mounted["mount"], "sandbox")):
            reply = await call(proxy, "localhost", mount + BALANCE)
            assert (reply.status, reply.outcome) == (200, "answered"), host
            body = transfer_body(f"{host}-{mark}")
            sent = await call(proxy, "localhost", mount + TRANSFER, method="POST", body=body)
            assert (sent.status, sent.outcome) == (200, "answered"), host

    rounds, callers = 4, 12
    for number in range(rounds):
        await asyncio.gather(*(both(f"{number}-{at}") for at in range(callers)))
        sandbox.revoke()
    assert renewals(live) == 1
    assert renewals(sandbox) == rounds
    assert (len(bearers(live)), len(bearers(sandbox))) == (1, rounds)
    assert bearers(live).isdisjoint(bearers(sandbox))
    for simulator in (live, sandbox):
        accounts = {request.header("accountId") for request in simulator.received}
        assert accounts == {simulator.switches.account_id}
    for name, simulator in (("live", live), ("sandbox", sandbox)):
        made = {json.loads(one.body)["merchantTxRef"] for one in simulator.calls(TRANSFER)}
        assert made == {f"{name}-{at}-{of_}" for at in range(rounds) for of_ in range(callers)}
        assert len(simulator.ledger) == rounds * callers


async def test_a_storm_of_401_at_one_does_not_renew_the_other(start, live, sandbox):
    proxy = await start(live=of(live), sandbox=of(sandbox, mount="/nomba-sandbox"))
    sandbox.fail(BALANCE, times=10_000, status=401)
    storm = [call(proxy, "localhost", f"/nomba-sandbox{BALANCE}") for _ in range(30)]
    calm = [call(proxy, "localhost", BALANCE) for _ in range(30)]
    replies = await asyncio.gather(*storm, *calm)
    assert {one.status for one in replies[:30]} <= {401, 503}
    assert {one.status for one in replies[30:]} == {200}
    assert renewals(live) == 1
    assert bearers(live).isdisjoint(bearers(sandbox))
    assert {line["upstream"] for line in proxy.log.lines("token_refused")} == {"sandbox"}


# -- by name ------------------------------------------------------------------------------


@pytest.fixture
async def named(start, live, sandbox):
    """Live and sandbox at the root, each by names of its own."""
    return await start(
        live=of(live, hosts=["live.example", "Pay.Example."]),
        sandbox=of(sandbox, hosts=["sandbox.localhost"]),
    )


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("live.example", BALANCE),
        ("LIVE.example.:8080", BALANCE),
        ("pay.example", BALANCE),
        ("live.example", f"http://live.example{BALANCE}"),
        ("live.example:80", f"HTTPS://Live.Example:443{BALANCE}"),
    ],
)
async def test_an_upstream_is_reached_by_its_names(named, live, sandbox, host, target):
    """Without a key, so none of them is taken for DNS rebinding."""
    assert (await call(named, host, target)).status == 200
    assert (live.count(BALANCE), sandbox.count(BALANCE)) == (1, 0)
    assert live.calls(BALANCE)[0].header("Host") == live.origin.removeprefix("http://")
    assert (await call(named, "sandbox.localhost", BALANCE)).status == 200
    assert (live.count(BALANCE), sandbox.count(BALANCE)) == (1, 1)
    assert [line["upstream"] for line in await named.exchanges(2)] == ["live", "sandbox"]


@pytest.mark.parametrize(
    ("host", "target", "headers", "error"),
    [
        ("localhost", BALANCE, [], (404, "mount_unknown")),
        ("live.example.evil.example", BALANCE, [], (404, "mount_unknown")),
        ("xlive.example", BALANCE, ["X-Forwarded-Host: live.example"], (404, "mount_unknown")),
        ("live.example", BALANCE, ["Host: live.example"], (400, "head_invalid")),
        ("live.example", BALANCE, ["host: sandbox.localhost"], (400, "head_invalid")),
        ("live.example@sandbox.localhost", BALANCE, [], (400, "head_invalid")),
        ("live.example, sandbox.localhost", BALANCE, [], (400, "head_invalid")),
        ("sandbox.localhost", f"http://live.example{BALANCE}", [], (400, "target_ambiguous")),
        ("live.example", f"http://evil.example{BALANCE}", [], (403, "host_refused")),
        ("live.example", f"http://a@live.example{BALANCE}", [], (403, "host_refused")),
        ("live.example", f"ftp://live.example{BALANCE}", [], (400, "target_ambiguous")),
    ],
)
async def test_what_names_nobody_or_two_reaches_nobody(
    named, live, sandbox, host, target, headers, error
):
    assert problem(await call(named, host, target, *headers)) == error
    assert live.count(BALANCE) == sandbox.count(BALANCE) == 0


async def test_a_name_leads_to_its_upstream_only_and_any_other_to_the_rest(start, live, sandbox):
    proxy = await start(
        live=of(live),
        sandbox=of(sandbox, mount="/nomba", hosts=["sandbox.localhost", "x.example"]),
    )
    assert (await call(proxy, "sandbox.localhost", f"/nomba{BALANCE}")).status == 200
    assert problem(await call(proxy, "sandbox.localhost", BALANCE)) == (404, "mount_unknown")
    assert (live.count(BALANCE), sandbox.count(BALANCE)) == (0, 1)
    assert (await call(proxy, "localhost", BALANCE)).status == 200
    assert (await call(proxy, "localhost", f"/nomba{BALANCE}")).status == 404
    assert live.count(f"/nomba{BALANCE}") == 1
    refused = await call(proxy, "evil.example", BALANCE)  # DNS rebinding, as ever
    assert problem(refused) == (403, "host_refused")
    old = await proxy.raw(f"GET {BALANCE} HTTP/1.0\r\n\r\n".encode())
    assert old.status == 200
    assert (live.count(BALANCE), sandbox.count(BALANCE)) == (2, 1)


async def test_a_login_by_a_name_opens_the_upstream_of_that_name(start, live, sandbox):
    proxy = await start(
        live=of(live, hosts=["live.example"]),
        sandbox=of(sandbox, hosts=["sandbox.localhost"]),
        settings={"callers__anonymous": "false"},
    )
    await asyncio.gather(live.wait_for(ISSUE), sandbox.wait_for(ISSUE))
    switches = live.switches
    body = {"client_id": switches.client_id, "client_secret": switches.client_secret}
    sent = {"method": "POST", "body": json.dumps(body).encode()}
    assert (await call(proxy, "sandbox.localhost", ISSUE, **sent)).status == 401
    data = (await call(proxy, "live.example", ISSUE, **sent)).json["data"]
    assert data["businessId"] == switches.account_id
    token = f"Authorization: Bearer {data['access_token']}"
    assert (await call(proxy, "live.example", BALANCE, token)).status == 200
    assert (await call(proxy, "sandbox.localhost", BALANCE, token)).status == 401
    assert (live.count(ISSUE), sandbox.count(ISSUE), sandbox.count(BALANCE)) == (1, 1, 0)


async def test_where_a_name_chooses_the_inspector_replays_nothing(start, live, sandbox):
    """It calls the proxy by its address, which would be another upstream."""
    proxy = await start(
        live=of(live),
        sandbox=of(sandbox, mount="/nomba", hosts=["sandbox.localhost"]),
        settings={"inspect": "true"},
    )
    inspector = Inspector(proxy)
    try:
        await call(proxy, "sandbox.localhost", f"/nomba{BALANCE}")
        await call(proxy, "localhost", BALANCE)
        await inspector.rows(2)
        refused = await inspector.post("/api/exchanges/1/replay", status=422)
        assert "chosen by the name in Host" in refused["error"]
        await inspector.post("/api/exchanges/2/replay")
    finally:
        await inspector.http.close()
    assert (live.count(BALANCE), live.count(f"/nomba{BALANCE}")) == (2, 0)
    assert sandbox.count(BALANCE) == 1


async def test_the_simulator_is_the_only_upstream_and_answers_by_every_name(start_proxy):
    proxy = await start_proxy(simulate="true", upstream__hosts="pay.example")
    for host, target in (
        ("localhost", BALANCE),
        ("pay.example:8080", BALANCE),
        ("pay.example", f"http://pay.example{BALANCE}"),
    ):
        assert (await call(proxy, host, target)).status == 200
    assert problem(await call(proxy, "evil.example", BALANCE)) == (403, "host_refused")


def test_the_banner_says_how_each_upstream_is_reached_and_who_shares_a_session(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    entries = {
        "live": {"hosts": ["pay.example", "::1"], "account_id": FIRST},
        "payroll": {"mount": "/payroll", "account_id": SECOND},
        "other": {"mount": "/v1", "strip_mount": False, "client_id": "other", "account_id": FIRST},
    }
    common = {"client_id": "one", "client_secret_file": str(secret)}
    text = ""
    for name, entry in entries.items():
        values = {"name": name} | common | entry
        text += "[[upstream]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items())
    file = tmp_path / "proxy.toml"
    file.write_text(text)
    settings = load(environ={}, config=str(file))
    running = Running(
        settings.listen, Listener(settings.admin_listen), settings.upstreams, "", None, None
    )
    shown = banner(running, settings=settings)
    assert "mounted at /, for Host ::1, pay.example\n  account    acco…irst\n" in shown
    assert "mounted at /payroll\n  account    acco…cond, session shared with live\n" in shown
    assert "mounted at /v1 (kept)\n  account    acco…irst\n" in shown
    assert "curl -s -H 'Host: [::1]' -H 'X-Nomba-Proxy-Key: …' http://127" in shown


# -- mounts that are kept -----------------------------------------------------------------


@pytest.fixture
def keep(start, upstream):
    """Start a proxy with a kept mount on a scripted upstream."""

    async def begin(mount="/kept", **more):
        entry = Entry(upstream.origin, "c", FIRST, {"mount": mount, "strip_mount": False})
        return await start(kept=entry, **more)

    return begin


@pytest.mark.parametrize("target", ["/kept/v1/x?a", "/kept", "/kept/", "/kept//v1/%41?", "/kept?a"])
async def test_a_kept_mount_is_forwarded_with_the_rest(keep, upstream, target):
    proxy = await keep()
    assert (await proxy.get(target)).status == 200
    assert lines(upstream.requests[0][0])[0] == f"GET {target} HTTP/1.1"
    assert problem(await proxy.get("/keptx/v1")) == (404, "mount_unknown")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("location", "seen"),
    [
        ("{origin}/kept/v1/x", "/kept/v1/x"),
        ("/kept/v1/x?a", "/kept/v1/x?a"),
        ("/v1/x", "{origin}/v1/x"),
        ("{origin}/v1/x", "{origin}/v1/x"),
    ],
)
async def test_a_location_under_a_kept_mount_is_what_the_upstream_means(
    keep, upstream, location, seen
):
    proxy = await keep()
    head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    upstream.answer = upstream.reply_with(head.format(origin=upstream.origin).encode())
    reply = await proxy.get("/kept/v1/y")
    assert reply.get("Location") == seen.format(origin=upstream.origin)


@pytest.mark.parametrize("mount", ["/kept", "/v1", "/sandbox", "/v1/auth"])
async def test_a_login_under_a_kept_mount_is_answered_here(start, keep, upstream, mount, tmp_path):
    proxy = await keep(mount)
    path = ISSUE if mount.startswith("/v1") else f"{mount}{ISSUE}"
    secret = (tmp_path / "secret").read_text()
    body = json.dumps({"clientId": "c", "clientSecret": secret}).encode()
    reply = await proxy.send("POST", path, body=body)
    assert (reply.status, reply.json["data"]["businessId"]) == (200, FIRST)
    for near in ("other", "issue/x", "%69ssue/y"):
        refused = await proxy.send("POST", path.replace("issue", near), body=body)
        assert problem(refused) == (400, "target_ambiguous")
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("mount", "target", "route", "kind"),
    [
        ("/kept", f"/kept{TRANSFER}", "other", "money"),
        ("/kept", "/kept/v1/transactions/accounts", "other", "money"),
        ("/v1", "/v1/transactions/accounts", "/v1/transactions/accounts", "read"),
        ("/v2", TRANSFER, TRANSFER, "money"),
        ("/sandbox", "/sandbox/v1/transactions/accounts", "/v1/transactions/accounts", "read"),
    ],
)
async def test_a_request_under_a_kept_mount_is_judged_by_what_is_forwarded(
    keep, upstream, mount, target, route, kind
):
    proxy = await keep(mount)
    assert (await proxy.send("POST", target, body=b"{}")).status == 200
    (line,) = await proxy.exchanges()
    assert (line["route"], line["kind"]) == (route, kind)
    assert lines(upstream.requests[0][0])[0] == f"POST {target} HTTP/1.1"


async def test_rules_see_the_kept_path(keep, upstream):
    key = f"X-Nomba-Proxy-Key: {KEY}"
    proxy = await keep(callers=caller("allow GET /v1/**", "allow GET /kept/v2/**"))
    assert problem(await proxy.get("/kept/v1/x", key)) == (403, "caller_forbidden")
    assert upstream.requests == []
    assert (await proxy.get("/kept/v2/x", key)).status == 200


# -- one session for two accounts ---------------------------------------------------------


@pytest.fixture
def two_accounts(start, upstream):
    """Start a proxy with two accounts of one client."""

    async def begin(settings=(), **more):
        entries = {
            name: Entry(upstream.origin, "c", account, {"mount": f"/{name}", **more})
            for name, account in (("first", FIRST), ("second", SECOND))
        }
        proxy = await start(settings=settings, **entries)
        await proxy.get("/first/v1/ready")
        await proxy.get("/second/v1/ready")
        upstream.requests.clear()
        return proxy

    return begin


async def test_two_accounts_of_one_client_share_one_login(two_accounts, upstream):
    proxy = await two_accounts()
    await asyncio.gather(
        *(proxy.get(f"/{n}/v1/{n}") for n in ("first", "second") for _ in range(20))
    )
    assert upstream.issued == 1
    assert len(upstream.requests) == 40
    for head, _ in upstream.requests:
        account = FIRST if b"/v1/first" in head else SECOND
        assert lines(head)[-4:-2] == ["Authorization: Bearer token-1", f"accountId: {account}"]
    events = proxy.log.lines("token_renewed")
    assert [one["upstream"] for one in events] == ["first"]


async def test_a_session_scope_of_account_gives_each_its_own(two_accounts, upstream):
    proxy = await two_accounts(session_scope="account")
    assert upstream.issued == 2
    await proxy.get("/first/v1/x")
    await proxy.get("/second/v1/x")
    tokens = {lines(head)[-4] for head, _ in upstream.requests}
    assert tokens == {"Authorization: Bearer token-1", "Authorization: Bearer token-2"}
    assert set(json.loads(await admin(proxy, "/token"))) == {"first", "second"}
    listener = f"--admin-listen={proxy.admin.removeprefix('http://')}"
    for wanted, shown in ([], ["first", "second"]), (["--upstream=second"], ["second"]):
        out = (await run("token", "show", *wanted, listener))[1]
        assert re.findall(r"(?m)^(\w.*):", out) == shown


async def test_what_ends_the_session_at_one_account_is_mended_once_for_both(two_accounts, upstream):
    proxy = await two_accounts()
    refused = upstream.reply_with(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
    answered = upstream.reply_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def answer(head, body, writer):
        await (refused if b"Bearer token-1\r" in head else answered)(head, body, writer)

    upstream.answer = answer
    calls = (proxy.get(f"/{name}/v1/x") for name in ("first", "second") for _ in range(20))
    replies = await asyncio.gather(*calls)
    assert {one.status for one in replies} == {200}
    assert upstream.issued == 2
    assert len(proxy.log.lines("token_refused")) == 1


async def test_operators_see_and_renew_a_shared_session_once(two_accounts, upstream):
    proxy = await two_accounts(settings={"inspect": "true"})
    shown = json.loads(await admin(proxy, "/token"))
    assert {name: one["upstreams"] for name, one in shown.items()} == {"first": ["first", "second"]}
    assert await admin(proxy, "/readyz?verbose") == "ready\nok  token of first, second\n"
    listener = f"--admin-listen={proxy.admin.removeprefix('http://')}"
    for name in ("first", "second"):
        code, out, _ = await run("token", "renew", "--upstream", name, listener)
        assert (code, out.partition(":")[0]) == (0, "first, second")
    assert (await run("token", "renew", listener))[0] == 0  # there is only one
    assert upstream.issued == 4
    assert (await run("token", "show", "--upstream=second", listener))[1].startswith("first, sec")
    code, _, err = await run("token", "show", "--upstream=third", listener)
    assert (code, "there are: first, second" in err) == (1, True)
    metrics = await admin(proxy, "/metrics")
    counted = re.findall(r'token_renewals_total\{grant="\w+",.*upstream="(\w+)"\} (\S+)', metrics)
    assert counted
    assert {name for name, _ in counted} == {"first"}
    assert sum(float(number) for _, number in counted) == 4
    inspector = Inspector(proxy)
    try:
        views = (await inspector.get("/api/sessions"))["sessions"]
    finally:
        await inspector.http.close()
    assert [(one["name"], one["generation"]) for one in views] == [("first", 4), ("second", 4)]
    assert [len(one["renewals"]) for one in views] == [4, 4]


async def test_a_shared_session_logs_in_and_out_once_as_the_first(start, simulator):
    first = of(simulator, mount="/first")
    second = Entry(simulator.origin, first.client, SECOND, {"mount": "/second"})
    proxy = await start(first=first, second=second, settings={"token__revoke_at_shutdown": "true"})
    await proxy.get(f"/first{BALANCE}")
    await proxy.stack.aclose()
    for path in (ISSUE, REVOKE):
        (request,) = simulator.calls(path)
        assert request.header("accountId") == first.account
