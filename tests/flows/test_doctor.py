"""`nomba-proxy doctor`: what it says of keys, sessions, stores and replies, and whom it leaves alone."""

import asyncio
import json
import re
import signal
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from examining import BALANCE, ISSUE, REFRESH, REVOKE, examined, places_of, settings_of
from harness import LOST, environ, run, served, spawned
from valkeys import free_port

from proxy.core.exchange import Event
from proxy.doctor.of_proxy import rivals_of
from proxy.doctor.of_replies import Answer, Place, of_issue, of_open_door
from proxy.simulator import parse_fault
from proxy.telemetry import Metrics

KEY = "k" * 48
SECRET = "marked-client-secret-0123456789"


@pytest.fixture
def owner(simulator, tmp_path):
    """The environment that the doctor and the proxies have."""
    simulator.switches.client_secret = SECRET
    return settings_of(simulator, tmp_path)


@pytest.fixture
def doctor(simulator, owner):
    """Examine; whatever is said, no secret is in it."""

    async def begin(*, env=None, **options):
        environ = {**owner, **(env or {})}
        environ = {name: value for name, value in environ.items() if value is not None}
        report = await examined(environ, **options)
        seen = report.text + repr(report.steps)
        assert SECRET not in seen
        for name in ("NOMBA_CLIENT_ID", "NOMBA_ACCOUNT_ID"):
            assert environ.get(name, SECRET) not in seen
        for request in simulator.received:
            assert request.bearer is None or request.bearer not in seen
        return report

    return begin


def calls(simulator):
    return [one.path.rpartition("/")[2] for one in simulator.received]


async def status(proxy):
    async with aiohttp.request("GET", f"{proxy.admin}/token") as reply:
        return (await reply.json())["nomba"]


# -- nobody has a session -------------------------------------------------------------------


async def test_where_nobody_has_a_session_one_is_made_tried_and_given_back(doctor, simulator):
    report = await doctor()
    assert report.failed == []
    tried = ("settings", "secret", "dns", "tcp", "http", "clock", "issue", "read", "refresh")
    for name in (*tried, "revoke", "store"):
        assert report[name].ok is True, name
    assert report["proxy"].ok is None
    assert [one.ok for one in report.all("listener")] == [True, True]
    assert calls(simulator) == ["balance", "issue", "balance", "refresh", "revoke"]
    assert simulator.received[0].bearer is None
    (revoked,) = simulator.calls(REVOKE)
    bearer = {"Authorization": f"Bearer {json.loads(revoked.body)['access_token']}"}
    account = {"accountId": simulator.switches.account_id}
    async with aiohttp.request(
        "GET", simulator.origin + BALANCE, headers=bearer | account
    ) as reply:
        assert reply.status == 401


async def test_it_does_not_log_in_where_it_must_not(doctor, simulator):
    report = await doctor(may_issue=False)
    assert report.failed == []
    assert [report[name].ok for name in ("issue", "read", "refresh")] == [None] * 3
    assert "--no-issue" in report["issue"].seen
    assert calls(simulator) == ["balance"]


@pytest.mark.parametrize("form", ["401", "200"])
async def test_keys_that_nomba_refuses(doctor, simulator, form):
    simulator.switches.wrong_secret = form
    report = await doctor(env={"NOMBA_CLIENT_SECRET": "another-marked-secret"})
    assert report.failed == ["issue"]
    assert f"HTTP {form}" in report["issue"].seen
    for cause in ("keys that are not of", "no parent account", "secret"):
        assert cause in report["issue"].next
    assert report["read"].ok is None
    assert report["store"].ok is True  # what does not depend on it goes on
    assert "another-marked-secret" not in report.text
    assert simulator.count(REVOKE) == 0


async def test_the_next_secret_is_tried_first_as_the_proxy_does(doctor, simulator):
    report = await doctor(env={"NOMBA_CLIENT_SECRET_NEXT": "the-next-marked-secret"})
    assert [one.ok for one in report.all("issue")] == [False, True]
    assert report["revoke"].ok is True
    assert simulator.count(ISSUE) == 2


async def test_what_echoes_a_secret_is_not_repeated(doctor, simulator):
    token = "marked-admin-token-0123456789abcdef"
    told = f"bad {SECRET} {token} {simulator.switches.account_id}"
    simulator.fail(ISSUE, status=401, body={"code": "401", "description": told})
    report = await doctor(env={"NOMBA_PROXY_ADMIN_TOKEN": token})
    assert "“bad *** *** 0000…0001”" in report["issue"].seen


async def test_a_token_that_is_refused_at_once_speaks_of_a_rival(doctor, simulator):
    simulator.inject(parse_fault(f"revoke path={BALANCE} times=2"))
    report = await doctor()
    assert report.failed == ["read", "refresh", "revoke"]
    assert "somebody else logged in" in report["read"].next
    assert "does no harm" in report["revoke"].next


async def test_a_refresh_that_fails_is_told_and_the_token_given_back(doctor, simulator):
    simulator.fail(
        REFRESH, status=404, body={"code": "404", "description": "Refresh Token not found"}
    )
    report = await doctor()
    assert report.failed == ["refresh"]
    assert "Refresh Token not found" in report["refresh"].seen
    assert report["revoke"].ok is True


async def test_a_login_without_a_reply_is_told(doctor, simulator):
    simulator.fail(ISSUE, drop=True)
    report = await doctor()
    assert report.failed == ["issue"]
    assert "no TLS" not in report.text
    assert report["issue"].next.startswith("Mend what the steps before this say")


# -- accounts, allowlists, clocks ------------------------------------------------------------


async def test_a_sub_account_that_the_environment_knows(doctor, simulator):
    account = simulator.switches.account_id
    report = await doctor(env={"NOMBA_SUB_ACCOUNT_ID": account.upper()})
    assert report.failed == ["account"]
    assert "parent account" in report["account"].next


async def test_an_account_that_the_keys_are_not_of(doctor, simulator):
    data = {"businessId": "the-parent-account-01", "access_token": "a-token", "refresh_token": "r"}
    simulator.fail(ISSUE, body={"code": "00", "data": data})
    report = await doctor()
    assert "the-…t-01" in report["account"].seen
    assert "the-parent-account-01" not in report.text
    assert report["account"].ok is False


async def test_a_403_in_json_speaks_of_the_sub_account_in_the_header(doctor, simulator):
    simulator.fail(BALANCE, status=401)
    simulator.fail(BALANCE, status=403)
    report = await doctor()
    assert report.failed == ["read"]
    assert "sub-account" in report["read"].next
    assert "allowlist" in report["read"].next
    assert report["revoke"].ok is True


async def test_a_403_of_the_edge_comes_before_any_login(doctor, simulator):
    simulator.inject(parse_fault(f"forbidden path={BALANCE}"))
    report = await doctor()
    assert report.failed == ["http"]
    assert "asked over IPv4" in report["http"].seen
    assert "allowlist" in report["http"].next
    assert [report[name].ok for name in ("issue", "read", "refresh")] == [None] * 3
    assert report["store"].ok is True
    assert calls(simulator) == ["balance"]


async def test_a_403_of_the_allowlist_at_the_login(doctor, simulator):
    simulator.fail(ISSUE, status=403, body={"code": "403", "description": "Unknown Source"})
    report = await doctor()
    assert report.failed == ["issue"]
    assert "Unknown Source" in report["issue"].seen
    assert "static IPv4 address" in report["issue"].next


@pytest.mark.parametrize(
    ("skew", "ok", "text"),
    [(300, False, "300 s behind"), (-300, False, "300 s ahead of"), (20, True, "20 s behind")],
)
async def test_a_clock_that_is_off(doctor, simulator, skew, ok, text):
    simulator.switches.clock_skew = skew
    report = await doctor()
    assert report["clock"].ok is ok
    assert text in re.sub(
        r"\b(29|30|1|2)[019] s", lambda m: f"{round(int(m[0][:-2]), -1)} s", report["clock"].seen
    )
    assert "NTP" in report["clock"].next
    assert report["issue"].ok is True  # the proxy judges the life of a token without it


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("garbage", "no answer in HTTP"),
        ("reply status=503", "in trouble"),
        ("drop-after", "no answer"),
    ],
)
async def test_an_upstream_that_does_not_answer_well(doctor, simulator, fault, text):
    simulator.inject(parse_fault(f"{fault} path={BALANCE} times=always"))
    report = await doctor()
    assert report.failed == ["http"]
    assert text in report["http"].seen
    assert report["issue"].ok is None
    assert simulator.count(ISSUE) == 0


# -- somebody has a session: it survives -----------------------------------------------------


@pytest.fixture
def kept(request, tmp_path, valkey):
    """Settings of each kind of store."""
    return {
        "memory": {},
        "file": {"NOMBA_PROXY_STORE": f"file:{tmp_path}/sessions"},
        "valkey": {"NOMBA_PROXY_STORE": valkey.url, "NOMBA_PROXY_CALLERS_SIGNING_KEY": KEY},
    }[request.param]


@pytest.mark.parametrize("kept", ["memory", "file", "valkey"], indirect=True)
async def test_the_session_of_a_running_proxy_survives(doctor, start_proxy, simulator, kept):
    proxy = await start_proxy(env=kept)
    assert (await proxy.get(BALANCE)).status == 200
    before, sent = await status(proxy), len(simulator.received)
    report = await doctor(env=kept | places_of(proxy))
    assert report.failed == []
    assert "living, generation 1" in report["proxy"].seen
    assert [report[name].ok for name in ("issue", "read", "refresh")] == [None, True, None]
    assert "would end its session" in report["issue"].seen
    assert report["store"].ok is True
    assert [one.ok for one in report.all("listener")] == [True, True]
    assert calls(simulator)[sent:] == ["balance", "balance"]
    after = await status(proxy)
    assert (after["generation"], after["token"]) == (1, before["token"])
    assert (await proxy.get(BALANCE)).status == 200
    assert simulator.count(ISSUE) == 1


@pytest.mark.parametrize("kept", ["file", "valkey"], indirect=True)
async def test_a_session_that_only_the_store_has_is_used_and_survives(
    doctor, start_proxy, simulator, kept
):
    proxy = await start_proxy(env=kept)
    assert (await proxy.get(BALANCE)).status == 200
    await proxy.stack.aclose()
    report = await doctor(env=kept)
    assert report.failed == []
    assert "living session, generation 1" in report["store"].seen
    assert [report[name].ok for name in ("issue", "read", "refresh")] == [None, True, None]
    assert [simulator.count(path) for path in (ISSUE, REFRESH, REVOKE)] == [1, 0, 0]
    again = await start_proxy(env=kept)
    assert (await again.get(BALANCE)).status == 200
    assert (await status(again))["generation"] == 1
    assert simulator.count(ISSUE) == 1


@pytest.mark.parametrize("kept", ["file", "valkey"], indirect=True)
async def test_a_session_in_the_store_that_a_rival_has_ended(doctor, start_proxy, simulator, kept):
    proxy = await start_proxy(env=kept)
    assert (await proxy.get(BALANCE)).status == 200
    await proxy.stack.aclose()
    simulator.revoke()
    report = await doctor(env=kept)
    assert report.failed == ["read"]
    assert "rival session" in report["read"].next
    assert simulator.count(ISSUE) == 1


@pytest.mark.parametrize("kept", ["file", "valkey"], indirect=True)
async def test_a_session_that_an_operator_has_stopped_stays_so(
    doctor, start_proxy, simulator, kept
):
    proxy = await start_proxy(env=kept)
    assert (await proxy.get(BALANCE)).status == 200
    async with aiohttp.request("POST", f"{proxy.admin}/token/revoke?stop=1") as reply:
        assert reply.status == 200
    running = await doctor(env=kept | places_of(proxy))
    assert running.failed == ["proxy"]
    assert "nomba-proxy token renew" in running["proxy"].next
    await proxy.stack.aclose()
    report = await doctor(env=kept)
    assert report.failed == ["store"]
    assert report["issue"].ok is None
    assert simulator.count(ISSUE) == 1


@pytest.mark.parametrize("kept", ["file", "valkey"], indirect=True)
async def test_a_session_that_was_sealed_with_another_secret_is_left_alone(
    doctor, start_proxy, simulator, kept
):
    proxy = await start_proxy(env=kept)
    assert (await proxy.get(BALANCE)).status == 200
    await proxy.stack.aclose()
    report = await doctor(env=kept | {"NOMBA_CLIENT_SECRET": "another-marked-secret"})
    assert report.failed == ["store"]
    assert "another client secret" in report["store"].seen
    assert "may live" in report["issue"].seen
    assert simulator.count(ISSUE) == 1


async def test_a_store_that_does_not_answer_keeps_it_from_logging_in(doctor, simulator):
    url = f"valkey://127.0.0.1:{free_port()}"
    report = await doctor(env={"NOMBA_PROXY_STORE": url, "NOMBA_PROXY_CALLERS_SIGNING_KEY": KEY})
    assert report.failed == ["store"]
    assert url in report["store"].seen
    assert "server runs" in report["store"].next
    assert simulator.count(ISSUE) == 0


@pytest.mark.parametrize("kept", ["file", "valkey"], indirect=True)
async def test_a_store_without_a_living_session_is_left_as_it_was(
    doctor, start_proxy, simulator, kept
):
    first = await doctor(env=kept)
    assert first.failed == []
    assert first["revoke"].ok is True
    proxy = await start_proxy(env=kept)
    assert (await proxy.get(BALANCE)).status == 200
    assert (await status(proxy))["generation"] == 1


async def test_a_folder_that_nobody_has_used_is_not_made(doctor, tmp_path):
    await doctor(env={"NOMBA_PROXY_STORE": f"file:{tmp_path}/sessions"})
    assert not (tmp_path / "sessions").exists()


# -- a proxy that runs, and is in trouble ----------------------------------------------------


async def test_a_running_proxy_whose_login_is_refused(doctor, start_proxy, simulator):
    proxy = await start_proxy(env={"NOMBA_CLIENT_SECRET": "another-marked-secret"})
    assert (await proxy.get(BALANCE)).status == 503
    before = simulator.count(ISSUE)
    report = await doctor(env=places_of(proxy))
    assert report.failed == ["issue"]
    assert "the running proxy has failed" in report["issue"].seen
    assert "no parent account" in report["issue"].next
    assert report["read"].ok is None
    assert simulator.count(ISSUE) == before


async def test_a_running_proxy_that_the_edge_refuses(doctor, start_proxy, simulator):
    simulator.inject(parse_fault(f"forbidden path={ISSUE} times=always"))
    proxy = await start_proxy()
    assert (await proxy.get(BALANCE)).status == 503
    report = await doctor(env=places_of(proxy))
    assert "allowlist" in report["issue"].next


async def test_a_rival_ends_the_token_of_a_running_proxy(doctor, start_proxy, simulator):
    proxy = await start_proxy()
    assert (await proxy.get(BALANCE)).status == 200
    simulator.revoke()
    report = await doctor(env=places_of(proxy))
    assert report.failed == ["rival"]
    assert "each login ends the one before" in report["rival"].next


def test_a_count_that_is_none_is_passed_over():
    odd = [
        f'nomba_proxy_session_rivals_total{{upstream="{n}"}} {n}' for n in ("1.2.3", "9e999", "2")
    ]
    assert rivals_of("\n".join(odd)) == {"2": 2}


def test_how_often_a_rival_was_met_stands_in_the_metrics():
    metrics = Metrics(version="test")
    for _ in range(2):
        metrics.emit(Event("session_rival", "error", "live"))
    assert rivals_of(metrics.render().decode()) == {"live": 2}


async def test_a_proxy_that_wants_keys_is_not_asked_without(doctor, start_proxy, simulator):
    proxy = await start_proxy(callers__anonymous="false")
    while not (await status(proxy))["token"]:
        await asyncio.sleep(0.01)
    report = await doctor(env={**places_of(proxy), "NOMBA_PROXY_CALLERS_ANONYMOUS": "false"})
    assert report.failed == []
    assert report["read"].ok is None
    assert "nomba-proxy caller add" in report["read"].next


async def test_a_proxy_whose_admin_listener_is_elsewhere_keeps_its_session(
    doctor, start_proxy, simulator
):
    proxy = await start_proxy()
    assert (await proxy.get(BALANCE)).status == 200
    env = {"NOMBA_PROXY_LISTEN": str(proxy.running.listen)}
    report = await doctor(env=env)
    assert "proxy" in report.failed
    assert "--admin-listen" in report["proxy"].next
    assert report["issue"].ok is None
    assert simulator.count(ISSUE) == 1


async def test_a_proxy_that_listens_where_the_settings_say_no_more_keeps_its_session(
    doctor, start_proxy, simulator
):
    """They were changed, and it has not been started anew."""
    proxy = await start_proxy()
    assert (await proxy.get(BALANCE)).status == 200
    report = await doctor()
    assert report.failed == []
    assert [report[name].ok for name in ("issue", "read", "refresh")] == [None] * 3
    assert f"NOMBA_PROXY_ADMIN_LISTEN={proxy.running.admin_listener} " in report["issue"].seen
    assert simulator.count(ISSUE) == 1
    assert (await proxy.get(BALANCE)).status == 200
    await proxy.stack.aclose()
    assert (await doctor())["issue"].ok is True


async def test_a_proxy_that_hangs_keeps_its_session(doctor, owner, simulator):
    async with spawned("serve", **owner) as (process, _):
        while not simulator.count(ISSUE):
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        try:
            report = await doctor()
        finally:
            process.send_signal(signal.SIGCONT)
    assert "proxy" in report.failed
    assert "does not answer" in report["proxy"].seen
    assert report["issue"].ok is None
    assert simulator.count(ISSUE) == 1


async def test_an_admin_listener_that_wants_a_token(doctor, start_proxy, simulator):
    token = "marked-admin-token-0123456789abcdef"
    proxy = await start_proxy(env={"NOMBA_PROXY_ADMIN_TOKEN": token})
    assert (await proxy.get(BALANCE)).status == 200
    for known in (places_of(proxy), {"NOMBA_PROXY_ADMIN_LISTEN": proxy.admin.rpartition("/")[2]}):
        report = await doctor(env=known)
        assert "proxy" in report.failed
        assert "NOMBA_PROXY_ADMIN_TOKEN_FILE" in report["proxy"].next
        assert report["issue"].ok is None
    report = await doctor(env={**places_of(proxy), "NOMBA_PROXY_ADMIN_TOKEN": token})
    assert report.failed == []
    assert report["read"].ok is True
    assert token not in report.text
    assert simulator.count(ISSUE) == 1


async def test_an_admin_listener_that_other_machines_reach_needs_a_token_first(
    doctor, start_proxy, simulator
):
    proxy = await start_proxy(env={"NOMBA_PROXY_ADMIN_LISTEN": "0.0.0.0:0"})
    report = await doctor(env=places_of(proxy))
    assert "If it has none, give it one" in report["proxy"].next
    assert report["issue"].ok is None


async def test_an_admin_listener_at_a_unix_socket(doctor, start_proxy, simulator, tmp_path):
    where = {"NOMBA_PROXY_ADMIN_LISTEN": f"unix://{tmp_path}/admin.sock"}
    proxy = await start_proxy(env=where)
    assert (await proxy.get(BALANCE)).status == 200
    report = await doctor(env=places_of(proxy) | where)
    assert report.failed == []
    assert report["read"].ok is True
    assert simulator.count(ISSUE) == 1


SESSION = {
    "upstreams": ["nomba"],
    "state": "living",
    "token": "0123456789ab",
    "generation": 3,
    "expires_in": 1700.5,
    "renews_in": 1400.0,
    "renewing": False,
    "failures": 0,
    "last_error": "",
    "retry_in": 0.0,
    "skew": None,
    "store": "",
    "secret": "",
    "secret_pending": False,
    "secret_retry_in": 0.0,
}
NEWER = ("store", "secret_pending", "secret_retry_in")


@asynccontextmanager
async def saying(text):
    """An admin listener that says this of its sessions; its address."""

    async def answer(reader, writer):
        with suppress(*LOST):
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + text.encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


ODD = pytest.mark.parametrize(
    ("session", "named"),
    [
        ({name: text for name, text in SESSION.items() if name not in NEWER}, ", ".join(NEWER)),
        ({"upstreams": ["nomba"], "state": "living", "generation": 1}, "token, expires_in"),
        *(
            (SESSION | {name: other}, name)
            for name, other in {
                "upstreams": "nomba",
                "state": None,
                "token": {"access": "x"},
                "generation": "3",
                "expires_in": "soon",
                "renews_in": None,
                "failures": "none",
                "retry_in": [],
                "store": False,
            }.items()
        ),
        (SESSION | {"upstreams": []}, "upstreams"),
        (SESSION | {"upstreams": [{"name": "nomba"}]}, "upstreams"),
    ],
)


@ODD
async def test_a_running_proxy_of_another_version_is_told_and_keeps_its_session(
    doctor, simulator, session, named
):
    async with saying(json.dumps({"nomba": session})) as admin:
        report = await doctor(env={"NOMBA_PROXY_ADMIN_LISTEN": admin})
    assert report["proxy"].ok is False
    assert "an older or another version" in report["proxy"].seen
    assert named in report["proxy"].seen
    assert "its own version" in report["proxy"].next
    assert report["issue"].ok is None
    assert [simulator.count(path) for path in (ISSUE, REVOKE)] == [0, 0]


async def test_an_answer_nested_without_end_is_no_traceback(doctor):
    async with saying('{"nomba":' + "[" * 200_000) as admin:
        report = await doctor(env={"NOMBA_PROXY_ADMIN_LISTEN": admin}, may_issue=False)
        code, _, errors = await run("token", "show", "--admin-listen", admin)
    assert report["proxy"].ok is None
    assert (code, "Traceback" in errors) == (1, False)


@pytest.mark.parametrize(("action", "exit_code"), [("show", 1), ("renew", 0)])
async def test_the_token_verbs_say_that_another_version_answers(action, exit_code):
    older = {name: value for name, value in SESSION.items() if name not in NEWER}
    async with saying(json.dumps({"nomba": older})) as admin:
        code, out, errors = await run("token", action, "--admin-listen", admin)
    assert (code, out) == (exit_code, "")
    assert "an older or another version" in errors
    assert ", ".join(NEWER) in errors
    assert "Traceback" not in errors


EVIL = "\x1b]0;x\x07\x1b[2J\nFORGED\x7f\x9b31m\u202e\u2066"


def speaks_to_a_terminal(text):
    return [one for one in text if not one.isprintable() and one != "\n"]


@pytest.mark.parametrize("more", [(), ("--json",)])
async def test_nothing_that_a_proxy_says_speaks_to_the_terminal(more):
    session = SESSION | {"failures": 1, "last_error": EVIL, "store": EVIL, "token": EVIL}
    async with saying(json.dumps({"nomba": session})) as admin:
        code, out, _ = await run("token", "show", "--admin-listen", admin, *more)
    assert code == 0
    assert not speaks_to_a_terminal(out)
    assert r"\u001b]0;x\u0007" in out
    async with saying(json.dumps({"error": EVIL})) as admin:
        code, out, errors = await run("token", "show", "--admin-listen", admin, *more)
    assert code == 1
    assert not speaks_to_a_terminal(out + errors)
    assert r"\u001b]0;x\u0007" in errors


@pytest.mark.parametrize("more", [(), ("--json",)])
async def test_nothing_that_nomba_says_speaks_to_the_terminal(owner, simulator, more):
    simulator.fail(ISSUE, status=401, body={"code": "401", "description": EVIL})
    code, out, errors = await run("doctor", *more, **owner)
    assert code == 1
    assert not speaks_to_a_terminal(out + errors)
    assert r"u001b]0;x" in out


async def test_a_proxy_with_other_upstreams_is_told(doctor, start_proxy):
    proxy = await start_proxy(upstream__name="other")
    report = await doctor(env=places_of(proxy))
    assert report["proxy"].ok is False
    assert "none of its: other" in report["proxy"].seen
    assert report["issue"].ok is None


@pytest.mark.parametrize(
    "options", [{"upstream__mount": "/live"}, {"upstream__hosts": "live.localhost"}]
)
async def test_a_running_proxy_is_called_by_the_path_and_name_of_the_upstream(
    doctor, start_proxy, simulator, options
):
    proxy = await start_proxy(**options)
    while not (await status(proxy))["token"]:
        await asyncio.sleep(0.01)
    flags = {key.replace("upstream__", "upstream.0."): text for key, text in options.items()}
    report = await doctor(env=places_of(proxy), flags=flags)
    assert report.failed == []
    assert report["read"].ok is True
    assert [simulator.count(path) for path in (ISSUE, REVOKE)] == [1, 0]


# -- several upstreams -----------------------------------------------------------------------


async def test_several_upstreams_are_told_apart_and_one_can_be_chosen(doctor, simulator, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    switches = simulator.switches
    entry = (
        f'client_id = "{switches.client_id}"\nclient_secret_file = "{secret}"\n'
        f'account_id = "{switches.account_id}"\nbase_url = "{simulator.origin}"\n'
    )
    config = tmp_path / "proxy.toml"
    config.write_text(
        f'[[upstream]]\nname = "live"\n{entry}[[upstream]]\nname = "twin"\nmount = "/twin"\n{entry}'
    )
    bare = dict.fromkeys(
        ("NOMBA_CLIENT_ID", "NOMBA_CLIENT_SECRET", "NOMBA_ACCOUNT_ID", "NOMBA_BASE_URL")
    )
    report = await doctor(env=bare, config=str(config))
    assert report.failed == []
    assert report["live: secret"].seen == f"file {secret}, mode 0600"
    assert report["live: revoke"].ok is True
    assert "shares the session of live" in report["twin: issue"].seen
    assert simulator.count(ISSUE) == 1
    one = await doctor(env=bare, config=str(config), upstream="twin")
    assert one["revoke"].ok is True
    assert simulator.count(ISSUE) == 2
    none = await doctor(env=bare, config=str(config), upstream="no")
    assert none.failed == ["upstream"]
    assert "there are: live, twin" in none["upstream"].seen


# -- settings and secrets --------------------------------------------------------------------


@pytest.mark.parametrize("host", ["sandbox.api.nomba.com", "api.sandbox.nomba.com"])
async def test_the_wrong_host_of_the_sandbox(doctor, host):
    report = await doctor(env={"NOMBA_BASE_URL": f"https://{host}"})
    assert report.failed == ["settings"]
    assert "https://sandbox.nomba.com" in report["settings"].seen
    assert {report[name].ok for name in ("dns", "issue", "listener")} == {None}


async def test_without_credentials_the_way_is_tried_all_the_same(doctor, simulator):
    bare = dict.fromkeys(("NOMBA_CLIENT_ID", "NOMBA_CLIENT_SECRET", "NOMBA_ACCOUNT_ID"))
    report = await doctor(env=bare)
    assert set(report.failed) == {"settings", "secret"}
    assert report["http"].ok is True
    assert "no credentials" in report["issue"].seen
    assert calls(simulator) == ["balance"]


@pytest.mark.parametrize(
    ("content", "mode", "ok", "text"),
    [
        (SECRET, 0o600, True, ""),
        (f"{SECRET}\n", 0o600, True, ""),
        (f"{SECRET}\n\n", 0o600, False, "white space"),
        (f"{SECRET}\r\n", 0o600, True, ""),
        (f" {SECRET}", 0o600, False, "white space"),
        (f"{SECRET}\n# a comment", 0o600, False, "line break"),
        (SECRET, 0o644, True, "chmod 600"),
        (f'"{SECRET}"', 0o600, True, "quotation marks"),
        ("", 0o600, False, "is empty"),
        (None, 0o600, False, "cannot be read"),
    ],
)
async def test_how_a_secret_lies_in_its_file(doctor, tmp_path, content, mode, ok, text):
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content.encode())
        path.chmod(mode)
    report = await doctor(env={"NOMBA_CLIENT_SECRET": None, "NOMBA_CLIENT_SECRET_FILE": str(path)})
    assert report["secret"].ok is ok
    assert text in report["secret"].seen + report["secret"].next
    assert report["dns"].ok is True


# -- the command -----------------------------------------------------------------------------


async def test_the_command_prints_steps_and_exits_with_0(owner):
    code, out, err = await run("doctor", PYTHONIOENCODING="utf-8", **owner)
    assert (code, err) == (0, "")
    rows = [line for line in out.splitlines() if line[:1] in "✓✗–" and line]
    assert [row[0] for row in rows].count("✗") == 0
    assert SECRET not in out


async def test_the_command_exits_with_1_and_is_ascii_where_it_has_to_be(owner):
    env = {**owner, "NOMBA_CLIENT_SECRET": "another-marked-secret"}
    code, out, _ = await run("doctor", "--no-issue", PYTHONIOENCODING="ascii", **env)
    assert (code, out.isascii()) == (0, True)
    code, out, _ = await run("doctor", PYTHONIOENCODING="ascii", **env)
    assert (code, out.isascii()) == (1, True)
    assert re.search(r"(?m)^x issue .*\n    -> ", out)
    assert "another-marked-secret" not in out
    assert "begin with the first: issue" in out
    assert "\\u" not in out


async def test_the_command_prints_json(owner, simulator):
    code, out, _ = await run("doctor", "--json", "--no-issue", **owner)
    rows = json.loads(out)
    assert code == 0
    assert all(set(row) == {"step", "ok", "seen", "next"} for row in rows)
    assert {row["ok"] for row in rows} == {True, None}
    assert simulator.count(ISSUE) == 0


async def test_a_proxy_with_the_simulator_inside_is_examined_too():
    async with served("--simulate") as proxy:
        where = (f"--listen={proxy.address}", f"--admin-listen={proxy.admin}")
        code, out, _ = await run("doctor", "--simulate", "--inspect=false", "--json", *where)
    rows = {row["step"]: row for row in json.loads(out)}
    assert code == 0, out
    assert rows["read"]["ok"] is True
    assert rows["dns"]["ok"] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_examination_that_is_interrupted_leaves_nothing(owner, simulator, number):
    """Whatever it is in the middle of, the token that it has made is given back."""
    with simulator.hold(REFRESH) as hold:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "doctor"),
            env=environ(**owner),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await hold.caught(1)
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, err) == (130, b""), out
    assert simulator.count(REVOKE) == 1


# -- the manual ------------------------------------------------------------------------------


def samples():
    text = (Path(__file__).parents[2] / "docs/doctor.md").read_text()
    return re.findall(r"(?s)```text\n(.+?)```", text)


def shape(text):
    """What is printed, without what differs from run to run."""
    return re.sub(r"\d+", "N", text).strip().splitlines()


async def test_the_sample_in_the_manual_is_what_is_printed(owner):
    _, out, _ = await run("doctor", PYTHONIOENCODING="utf-8", **owner)
    assert shape(samples()[0]) == shape(out)


def test_the_samples_of_the_manual_are_in_the_words_of_the_doctor():
    live = Place(
        "https://api.nomba.com", "production", "11111111-0000-4000-8000-00000000abcd", "IPv6"
    )
    told = [
        of_issue(Answer(401, "401", "Unauthorized"), error="", place=live),
        of_open_door(Answer(403, page=True), live),
    ]
    assert len(samples()) == 1 + len(told)
    for sample, step in zip(samples()[1:], told, strict=True):
        assert " ".join(sample.split()) == f"✗ {step.name} {step.seen} → {step.next}"
