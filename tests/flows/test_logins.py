"""Logins that never reach Nomba: in every spelling, for whom, and what they are worth."""

import asyncio
import base64
import json
from datetime import datetime
from email.utils import parsedate_to_datetime

import pytest

from proxy.callers.revoked import Revoked

BALANCE = "/v1/accounts/balance"
ISSUE, REFRESH = "/v1/auth/token/issue", "/v1/auth/token/refresh"
REVOKE = "/v1/auth/token/revoke"
OURS = "00000000-0000-4000-8000-acc000000001"
OTHER = "99999999-0000-4000-8000-acc000000009"

SPELLINGS = [
    "/v1/auth/token/issue",
    "/v1/auth/token/issue/",
    "/v1/auth/token",
    "/v1/auth/token/",
    "//v1/auth//token/issue",
    "/V1/Auth/TOKEN/issue?x=1",
    "/v1/auth/token/%69ssue",
    "/v1/auth/token/%2569ssue",
    "/v1%2fauth%2Ftoken/issue",
    "/v1/auth/token;x=1/issue;y",
    "/v1/sandbox/auth/token/issue",
]
TOO_CLOSE = [
    "/v1/auth/token/issue%00",
    "/v1/auth/token/issue%20",
    "/v1/auth/token/issue%3fx",
    "/v1/auth/token/issue/extra",
    "/v1/auth/token%0a",
    "/v1/auth%00/token/issue",
    "/v1/auth;a%2fb/token/issue",
    "//x/v1/auth/token/issue",
]


@pytest.fixture
async def proxy(start_proxy, simulator):
    """Strangers are kept out; nothing but the one login of its own goes to the upstream."""
    running = await start_proxy(callers__anonymous="false")
    await simulator.wait_for(ISSUE, 1)
    yield running
    assert simulator.count(ISSUE) == 1


@pytest.fixture
def owner(simulator):
    """What an app has that was written for Nomba itself."""
    return {
        "client_id": simulator.switches.client_id,
        "client_secret": simulator.switches.client_secret,
    }


async def post(proxy, path, body, *headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await proxy.send("POST", path, *headers, body=data)


async def log_in(proxy, body, *headers):
    reply = await post(proxy, ISSUE, body, *headers)
    assert (reply.status, reply.json["code"]) == (200, "00"), reply.body
    return reply.json["data"]


async def balance(proxy, *headers):
    return (await proxy.get(BALANCE, *headers)).status


# -- every spelling of a login ------------------------------------------------------------


@pytest.mark.parametrize("path", SPELLINGS)
async def test_a_login_is_answered_here_and_never_reaches_nomba(proxy, simulator, owner, path):
    reply = await post(proxy, path, owner, "Authorization: Bearer whatever")
    data = reply.json["data"]
    assert (reply.status, reply.json["code"], reply.outcome) == (200, "00", "not_sent")
    assert data["businessId"] == OURS
    assert 300 <= len(data["access_token"]) <= 600
    assert data["access_token"].count(".") == 2
    assert 30 <= len(data["refresh_token"]) <= 60
    assert data["expires_in"] == data["expiresIn"] == 3600
    expires = datetime.strptime(data["expiresAt"], "%Y-%m-%dT%H:%M:%S%z")
    answered = parsedate_to_datetime(reply.get("Date"))
    assert 3590 <= (expires - answered).total_seconds() <= 3601
    assert len(simulator.received) == 1


@pytest.mark.parametrize("path", TOO_CLOSE)
async def test_paths_too_close_to_a_login_are_refused(proxy, simulator, owner, path):
    reply = await post(proxy, path, owner)
    assert (reply.status, reply.json["proxy"]["error"]) == (400, "target_ambiguous")
    assert len(simulator.received) == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
async def test_other_methods_on_a_login_path_are_refused(proxy, simulator, method):
    reply = await proxy.send(method, ISSUE)
    assert (reply.status, reply.get("Allow")) == (405, "POST")
    assert len(simulator.received) == 1


async def test_a_path_that_only_looks_like_a_login_is_forwarded(start_proxy, simulator):
    proxy = await start_proxy()
    for path in ("/v1/auth/tokens", "/v1/auth/token-list", "/v2/auth/token/issue", "/v1/auth"):
        assert (await proxy.send("POST", path, body=b"{}")).status == 404
        assert simulator.count(path) == 1


def spelled(owner):
    """One login in every sane form."""
    camel = {"clientId": owner["client_id"], "clientSecret": owner["client_secret"]}
    whole = {"grant_type": "client_credentials", **owner}
    yield owner
    yield camel
    yield {"client_id": camel["clientId"], "clientSecret": camel["clientSecret"]}
    yield owner | camel
    yield whole | {"scope": None, "more": [1, {"x": "y"}]}
    yield json.dumps(whole, indent=4).encode()
    yield b"\xef\xbb\xbf" + json.dumps(whole).encode()
    yield json.dumps(whole).encode("utf-16")
    yield b"  \r\n" + json.dumps(camel).encode() + b"\n\n"


async def test_a_login_in_any_sane_form_is_understood(proxy, owner):
    for body in spelled(owner):
        token = (await log_in(proxy, body))["access_token"]
        assert await balance(proxy, f"Authorization: Bearer {token}") == 200


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"not json", b"[]", b'"x"', b"{}", b'{"client_id":"a"}', b'{"client_id":1}'),
        b'{"client_id":"a","client_secret":null}',
        b'{"client_id":"a","clientId":"b","client_secret":"c"}',
        b'{"client_id":"\\ud800","client_secret":"c"}',
        b"client_id=a&client_secret=b",
        b"[" * 5000,
    ],
)
async def test_what_is_no_login_is_told_so(proxy, body):
    reply = await post(proxy, ISSUE, body)
    assert (reply.status, reply.json["code"]) == (400, "400")
    assert reply.json["proxy"]["error"] == "login_invalid"


async def test_the_body_of_a_login_is_small(proxy):
    reply = await post(proxy, ISSUE, b" " * 20_000)
    assert (reply.status, reply.json["proxy"]["error"]) == (413, "body_too_large")


# -- who may log in -----------------------------------------------------------------------


async def test_a_wrong_secret_is_told_in_nombas_own_form(proxy, owner):
    for body in (
        owner | {"client_secret": "wrong"},
        owner | {"client_id": "somebody"},
        owner | {"client_id": owner["client_id"].upper()},
        owner | {"client_secret": owner["client_secret"] + "\n"},
    ):
        reply = await post(proxy, ISSUE, body)
        assert (reply.status, reply.json["code"]) == (401, "401")
        assert reply.json["proxy"]["error"] == "caller_unknown"


async def test_a_setting_tells_it_in_a_200(start_proxy, owner):
    proxy = await start_proxy(callers__login_failure="200")
    reply = await post(proxy, ISSUE, owner | {"client_secret": "wrong"})
    assert (reply.status, reply.json["code"]) == (200, "01")
    assert "data" not in reply.json
    assert (await proxy.exchanges())[0]["error"] == "caller_unknown"
    assert (await log_in(proxy, owner))["access_token"]


async def test_the_upstreams_own_credentials_can_be_closed_out(start_proxy, owner):
    proxy = await start_proxy(
        callers__anonymous="false", callers__accept_upstream_credentials="false"
    )
    assert (await post(proxy, ISSUE, owner)).status == 401


async def test_who_logs_in_with_them_is_the_owner_and_the_log_says_what_to_do(proxy, owner):
    token = (await log_in(proxy, owner))["access_token"]
    await log_in(proxy, owner)
    assert await balance(proxy, f"Authorization: Bearer {token}") == 200
    assert [one["caller"] for one in await proxy.exchanges(3)] == ["owner"] * 3
    (event,) = proxy.log.lines("owner_logged_in")
    assert "nomba-proxy caller add" in event["hint"]


async def test_the_account_that_is_told_is_one_that_requests_are_made_for(proxy, owner):
    for headers, expected in (
        ((), OURS),
        ((f"Accountid: {OURS}",), OURS),
        ((f"accountid: {OURS.upper()}",), OURS.upper()),
    ):
        assert (await log_in(proxy, owner, *headers))["businessId"] == expected
    for headers in ((f"accountId: {OTHER}",), (f"accountId: {OURS}", f"account_id: {OTHER}")):
        reply = await post(proxy, ISSUE, owner, *headers)
        assert (reply.status, reply.json["proxy"]["error"]) == (403, "account_mismatch")


@pytest.mark.parametrize("policy", ["allow", "fill"])
@pytest.mark.parametrize("spelled", [OTHER, OTHER.upper()])
async def test_an_account_that_the_upstream_lets_through_is_told_too(
    start_proxy, owner, policy, spelled
):
    proxy = await start_proxy(upstream__account_policy=policy, upstream__account_allow=OTHER)
    account = f"accountId: {spelled}"
    assert (await log_in(proxy, owner, account))["businessId"] == spelled
    assert (await proxy.get("/v1/x", account)).outcome == "answered"


async def test_an_owners_token_ends_with_the_upstreams_secret_client_and_origin(
    start_proxy, simulator, owner, upstream
):
    proxy = await start_proxy(callers__anonymous="false")
    pair = await log_in(proxy, owner)
    bearer = f"Authorization: Bearer {pair['access_token']}"
    assert await balance(proxy, bearer) == 200
    for more in (
        {"env": {"NOMBA_CLIENT_SECRET": "another"}},
        {"env": {"NOMBA_CLIENT_ID": "another"}},
        {"base_url": upstream.origin},
    ):
        other = await start_proxy(callers__anonymous="false", **more)
        assert await balance(other, bearer) == 401
        reply = await post(other, REFRESH, {"refresh_token": pair["refresh_token"]})
        assert reply.status == 404


async def test_a_revocation_is_kept_where_nothing_was_kept_before(start_proxy, owner, tmp_path):
    env = {"NOMBA_PROXY_CALLERS_SIGNING_KEY": "k" * 40}
    first = await start_proxy(callers__anonymous="false", env=env)
    token = (await log_in(first, owner))["access_token"]
    assert [one.name for one in (tmp_path / "state").iterdir()] == ["running"]
    assert (await post(first, REVOKE, {"access_token": token})).status == 200
    second = await start_proxy(callers__anonymous="false", env=env)
    assert await balance(second, f"Authorization: Bearer {token}") == 401


async def test_nothing_of_the_upstreams_is_in_any_answer(proxy, simulator, owner):
    replies = [await post(proxy, ISSUE, owner)]
    pair = replies[0].json["data"]
    replies += [
        await post(proxy, REFRESH, {"refresh_token": pair["refresh_token"]}),
        await post(proxy, REVOKE, {"access_token": pair["access_token"]}),
        await post(proxy, ISSUE, owner | {"client_secret": "wrong"}),
    ]
    await balance(proxy, f"Authorization: Bearer {replies[1].json['data']['access_token']}")
    secret = json.loads(simulator.calls(ISSUE)[0].body)["client_secret"]
    token = simulator.calls(BALANCE)[0].header("Authorization").removeprefix("Bearer ")
    for reply in replies:
        assert secret.encode() not in reply.raw
        assert token.encode() not in reply.raw


# -- what a phantom token is worth ----------------------------------------------------------


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {}", "{}", "  {}  "])
async def test_a_phantom_is_taken_with_and_without_bearer(proxy, simulator, owner, form):
    token = (await log_in(proxy, owner))["access_token"]
    assert await balance(proxy, "Authorization: " + form.format(token)) == 200
    sent = simulator.calls(BALANCE)[0].header("Authorization")
    assert token not in sent


async def test_a_refresh_brings_another_pair_and_the_first_lives_on(proxy, owner):
    first = await log_in(proxy, owner)
    for _ in range(2):
        reply = await post(proxy, REFRESH, {"refresh_token": first["refresh_token"]})
        second = reply.json["data"]
        assert second["access_token"] != first["access_token"]
        assert await balance(proxy, f"Authorization: Bearer {second['access_token']}") == 200
    assert await balance(proxy, f"Authorization: Bearer {first['access_token']}") == 200


async def test_an_unknown_refresh_token_is_told_as_nomba_does(proxy, owner):
    pair = await log_in(proxy, owner)
    for text in ("x", pair["access_token"], pair["refresh_token"][:-1] + "_", "A" * 54):
        reply = await post(proxy, REFRESH, {"refresh_token": text})
        assert (reply.status, reply.json["code"]) == (404, "404")
        assert reply.json["description"] == "Refresh Token not found"


async def test_a_revocation_ends_that_pair_only(proxy, owner):
    gone, kept = await log_in(proxy, owner), await log_in(proxy, owner)
    reply = await post(proxy, REVOKE, {"clientId": "x", "access_token": gone["access_token"]})
    assert reply.json == {"code": "00", "description": "Token revoked successfully"}
    assert await balance(proxy, f"Authorization: Bearer {gone['access_token']}") == 401
    assert (await post(proxy, REFRESH, {"refresh_token": gone["refresh_token"]})).status == 404
    assert await balance(proxy, f"Authorization: Bearer {kept['access_token']}") == 200
    assert (await post(proxy, REVOKE, {"access_token": "x"})).status == 401


async def test_a_revocation_holds_in_other_processes_and_after_a_restart(start_proxy, owner):
    one = await start_proxy(callers__anonymous="false")
    other = await start_proxy(callers__anonymous="false")
    pair, kept = await log_in(one, owner), await log_in(one, owner)
    bearer = f"Authorization: Bearer {pair['access_token']}"
    assert await balance(other, bearer) == 200  # the same key, from the same state folder
    await post(one, REVOKE, {"access_token": pair["access_token"]})
    for _ in range(100):
        if await balance(other, bearer) == 401:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("never heard of")
    later = await start_proxy(callers__anonymous="false")
    assert await balance(later, bearer) == 401
    assert await balance(later, f"Authorization: Bearer {kept['access_token']}") == 200


async def test_a_phantom_ends_with_its_lifetime_and_so_does_its_refresh_token(start_proxy, owner):
    proxy = await start_proxy(callers__anonymous="false", callers__login_lifetime=0.001)
    pair = await log_in(proxy, owner)
    await asyncio.sleep(1.1)
    assert await balance(proxy, f"Authorization: Bearer {pair['access_token']}") == 401
    assert (await post(proxy, REFRESH, {"refresh_token": pair["refresh_token"]})).status == 404
    reply = await proxy.get(BALANCE, f"Authorization: Bearer {pair['access_token']}")
    assert (reply.json["code"], reply.outcome) == ("401", "not_sent")
    assert reply.get("WWW-Authenticate").startswith("Bearer")


async def test_a_phantom_of_another_key_opens_nothing(start_proxy, owner, tmp_path):
    one = await start_proxy(env={"NOMBA_PROXY_CALLERS_SIGNING_KEY": "a" * 40})
    other = await start_proxy(
        env={"NOMBA_PROXY_CALLERS_SIGNING_KEY": "b" * 40}, callers__anonymous="false"
    )
    same = await start_proxy(
        env={"NOMBA_PROXY_CALLERS_SIGNING_KEY": "a" * 40}, callers__anonymous="false"
    )
    token = (await log_in(one, owner))["access_token"]
    assert await balance(other, f"Authorization: Bearer {token}") == 401
    assert await balance(same, f"Authorization: Bearer {token}") == 200
    kept = [one.name for one in (tmp_path / "state").iterdir()]
    assert kept == ["running"]  # nothing had to be kept


async def test_the_signing_key_is_kept_for_its_owner_only(proxy, tmp_path):
    path = tmp_path / "state" / "signing.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_text()) >= 43


async def test_without_a_place_for_the_key_the_proxy_starts_and_says_so(start_proxy, owner):
    proxy = await start_proxy(state_dir="/proc/nowhere")
    (event,) = proxy.log.lines("signing_key_not_kept")
    assert "NOMBA_PROXY_CALLERS_SIGNING_KEY" in event["hint"]
    token = (await log_in(proxy, owner))["access_token"]
    assert (await post(proxy, REVOKE, {"access_token": token})).status == 200
    await post(proxy, REVOKE, {"access_token": token})  # nor the second time
    assert len(proxy.log.lines("revocation_not_stored")) == 2
    closed = await start_proxy(state_dir="/proc/nowhere", callers__anonymous="false")
    token = (await log_in(closed, owner))["access_token"]
    await post(closed, REVOKE, {"access_token": token})
    assert await balance(closed, f"Authorization: {token}") == 401  # as far as it can


@pytest.mark.parametrize(
    "value",
    [
        "x",
        "Bearer x",
        "Bearer ",
        "Basic eA==",
        f"Basic {base64.b64encode(b'owner:x').decode()}",
        f"Basic {base64.b64encode(b'anonymous:').decode()}",
        "Digest username=owner",
    ],
)
async def test_where_strangers_are_let_in_anything_else_is_dropped(start_proxy, simulator, value):
    proxy = await start_proxy()
    assert await balance(proxy, f"Authorization: {value}") == 200
    assert (await proxy.exchanges())[0]["caller"] == "anonymous"
    assert simulator.calls(BALANCE)[0].header("Authorization").startswith("Bearer ey")
    closed = await start_proxy(callers__anonymous="false")
    reply = await closed.get(BALANCE, f"Authorization: {value}")
    assert (reply.status, reply.json["code"]) == (401, "401")


async def test_two_tokens_are_none(proxy, owner):
    one, two = [(await log_in(proxy, owner))["access_token"] for _ in range(2)]
    headers = [f"Authorization: Bearer {one}", f"authorization: {two}"]
    assert await balance(proxy, *headers) == 401


async def test_a_hundred_logins_cost_the_upstream_nothing(proxy, simulator, owner):
    pairs = await asyncio.gather(*(log_in(proxy, owner) for _ in range(100)))
    assert len({one["access_token"] for one in pairs}) == 100
    assert len(simulator.received) == 1


async def test_what_is_over_is_forgotten_and_nothing_else(tmp_path):
    now, path = [1000.0], tmp_path / "revoked"

    def revoked():
        return Revoked(path, wall=lambda: now[0], monotonic=lambda: now[0])

    one, other = revoked(), revoked()
    for number in range(3):
        one.add(f"short-{number}", expires=1100)
    one.add("long", expires=5000)
    one.add("long", expires=5000)
    assert path.read_text().count("\n") == 4
    now[0] = 1050.0
    assert "short-1" in other
    now[0] = 2000.0
    third = revoked()  # starts, and forgets what is over: the file is another one now
    assert path.read_text() == "long 5000\n"
    for number in range(4):
        third.add(f"new-{number}", expires=9000)
    now[0] = 2002.0
    assert all(f"new-{number}" in one and f"new-{number}" in other for number in range(4))
    assert "long" in one
    assert "short-1" not in one
    path.write_bytes(b"x" * 10 + b" " + b"9" * 5000 + b"\n\xff\xff 12\nnew-5 9000\nhalf")
    now[0] = 2004.0
    assert "new-5" in one
    assert "half" not in one


async def test_a_signing_key_that_everybody_can_read_is_not_used(start_proxy, owner, tmp_path):
    (tmp_path / "state").mkdir()
    key = tmp_path / "state" / "signing.key"
    key.write_text("k" * 64)
    key.chmod(0o644)
    proxy = await start_proxy()
    (event,) = proxy.log.lines("signing_key_not_kept")
    assert "open to every user" in event["reason"]


@pytest.mark.parametrize("what", ["folder", "unreadable", "nonsense"])
async def test_a_list_of_revocations_that_cannot_be_read_stops_nothing(
    start_proxy, owner, tmp_path, what
):
    path = tmp_path / "state" / "revoked"
    path.parent.mkdir()
    if what == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\x00\xff nonsense 12345678901234567890\n")
        path.chmod(0o000 if what == "unreadable" else 0o600)
    proxy = await start_proxy(callers__anonymous="false")
    token = (await log_in(proxy, owner))["access_token"]
    assert await balance(proxy, f"Authorization: {token}") == 200
