"""Logins that never reach Nomba, callers we do not know, and whose account it is."""

import json
from datetime import datetime
from email.utils import parsedate_to_datetime

import aiohttp
import pytest

BALANCE = "/v1/accounts/balance"
OURS = "00000000-0000-4000-8000-acc000000001"
OTHER = "99999999-0000-4000-8000-acc000000009"

LOGIN_BODIES = [
    b'{"grant_type":"client_credentials","client_id":"a","client_secret":"b"}',
    b'{"grantType":"client_credentials","clientId":"a","clientSecret":"b"}',
    b"",
    b"not even json",
]
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


@pytest.mark.parametrize("body", LOGIN_BODIES)
@pytest.mark.parametrize("path", SPELLINGS)
async def test_any_login_is_answered_here_and_never_reaches_nomba(proxy, simulator, path, body):
    await proxy.get(BALANCE)
    before = len(simulator.received)
    reply = await proxy.send("POST", path, "Authorization: Bearer whatever", body=body)
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
    assert len(simulator.received) == before


@pytest.mark.parametrize("path", TOO_CLOSE)
async def test_paths_too_close_to_a_login_are_refused(proxy, simulator, path):
    await proxy.get(BALANCE)
    before = len(simulator.received)
    reply = await proxy.send("POST", path, body=b"{}")
    assert (reply.status, reply.json["proxy"]["error"]) == (400, "target_ambiguous")
    assert len(simulator.received) == before


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
async def test_other_methods_on_a_login_path_are_refused(proxy, simulator, method):
    await proxy.get(BALANCE)
    before = len(simulator.received)
    reply = await proxy.send(method, "/v1/auth/token/issue")
    assert (reply.status, reply.get("Allow")) == (405, "POST")
    assert len(simulator.received) == before


async def test_refresh_and_revoke_are_answered_in_their_own_forms(proxy, simulator):
    refreshed = await proxy.send("POST", "/v1/auth/token/refresh", body=b'{"refresh_token":"x"}')
    assert refreshed.json["data"]["access_token"]
    revoked = await proxy.send("POST", "/v1/auth/token/revoke/", body=b'{"access_token":"x"}')
    assert revoked.json == {"code": "00", "description": "Token revoked successfully"}
    assert (await proxy.get(BALANCE)).status == 200
    assert simulator.count("/v1/auth/token/issue") == 1


async def test_a_path_that_only_looks_like_a_login_is_forwarded(proxy, simulator):
    for path in ("/v1/auth/tokens", "/v1/auth/token-list", "/v2/auth/token/issue", "/v1/auth"):
        assert (await proxy.send("POST", path, body=b"{}")).status == 404
        assert simulator.count(path) == 1


async def test_an_app_that_logs_in_by_itself_works_unchanged(proxy, simulator):
    async with aiohttp.ClientSession() as http:
        login = {"grant_type": "client_credentials", "client_id": "mine", "client_secret": "mine"}
        account = {"accountId": OURS}
        for _ in range(3):  # logging in again and again ends nobody's session
            async with http.post(
                f"{proxy.url}/v1/auth/token/issue", json=login, headers=account
            ) as reply:
                token = (await reply.json())["data"]["access_token"]
            for form in (f"Bearer {token}", token):
                headers = account | {"Authorization": form}
                async with http.get(proxy.url + BALANCE, headers=headers) as reply:
                    assert (await reply.json())["code"] == "00"
    assert simulator.count("/v1/auth/token/issue") == 1


async def test_nobody_gets_in_where_anonymous_is_closed(start_proxy, simulator):
    proxy = await start_proxy(callers__anonymous="false")
    await simulator.wait_for("/v1/auth/token/issue", 1)
    for method, path in (("GET", BALANCE), ("POST", "/v1/auth/token/issue"), ("POST", "/v1/x")):
        reply = await proxy.send(method, path, "Authorization: Bearer x", body=b"{}")
        assert (reply.status, reply.json["proxy"]["error"]) == (401, "caller_unknown")
        assert (reply.json["code"], reply.outcome) == ("401", "not_sent")
    assert len(simulator.received) == 1


# -- accounts -----------------------------------------------------------------------------


async def test_a_read_for_another_account_is_overridden_and_logged(proxy, simulator):
    reply = await proxy.get(BALANCE, f"Accountid: {OTHER}")
    assert reply.status == 200
    assert simulator.calls(BALANCE)[0].header("accountId") == OURS
    assert (await proxy.exchanges())[0]["account_replaced"] is True


async def test_money_for_another_account_is_refused_with_both_ids_masked(proxy, simulator):
    await proxy.get(BALANCE)
    for spelling in ("accountId", "Accountid", "account_id", "ACCOUNT-ID"):
        reply = await proxy.send("POST", "/v2/transfers/bank", f"{spelling}: {OTHER}", body=b"{}")
        assert (reply.status, reply.json["proxy"]["error"]) == (403, "account_mismatch")
        assert reply.outcome == "not_sent"
        assert "9999…0009" in reply.json["description"]
        assert "0000…0001" in reply.json["description"]
        assert OTHER not in reply.raw.decode()
        assert OURS not in reply.raw.decode()
    assert simulator.count("/v2/transfers/bank") == 0


async def test_money_on_an_operation_nobody_knows_is_refused_too(proxy, simulator):
    reply = await proxy.send("POST", "/v9/new/payout", f"accountId: {OTHER}", body=b"{}")
    assert reply.status == 403
    assert simulator.count("/v9/new/payout") == 0


async def test_money_for_another_account_is_overridden_where_a_setting_says_so(
    start_proxy, simulator
):
    proxy = await start_proxy(upstream__account_override_money="true")
    reply = await proxy.send("POST", "/v2/transfers/bank", f"accountId: {OTHER}", body=b"{}")
    assert reply.status != 403
    assert simulator.calls("/v2/transfers/bank")[0].header("accountId") == OURS


async def test_the_right_account_in_any_spelling_is_no_mismatch(proxy, simulator):
    reply = await proxy.send("POST", "/v2/transfers/bank", f"ACCOUNTID: {OURS.upper()}", body=b"{}")
    assert reply.status != 403
    assert simulator.calls("/v2/transfers/bank")[0].header("accountId") == OURS


async def test_fill_keeps_the_callers_account_and_adds_ours_where_there_is_none(
    start_proxy, upstream
):
    proxy = await start_proxy(base_url=upstream.origin, upstream__account_policy="fill")
    await proxy.get("/v1/x", f"Accountid: {OTHER}")
    await proxy.get("/v1/x")
    sent = [
        head.partition(b"\r\naccountId: ")[2].split(b"\r\n")[0] for head, _ in upstream.requests
    ]
    assert sent == [OTHER.encode(), OURS.encode()]
    several = await proxy.get("/v1/x", f"Accountid: {OTHER}", f"accountId: {OURS}")
    assert several.status == 403


async def test_allow_takes_listed_accounts_only(start_proxy, upstream):
    proxy = await start_proxy(
        base_url=upstream.origin, upstream__account_policy="allow", upstream__account_allow=OTHER
    )
    assert (await proxy.get("/v1/x", f"accountId: {OTHER}")).status == 200
    assert (await proxy.get("/v1/x", f"accountId: {OURS}")).status == 200
    assert (await proxy.get("/v1/x", "accountId: someone-elses-account")).status == 403
    assert f"accountId: {OTHER}".encode() in upstream.requests[0][0]
    assert len(upstream.requests) == 2


async def test_an_account_id_in_query_or_body_is_never_touched(proxy, simulator):
    body = json.dumps({"accountId": OTHER}).encode()
    await proxy.send("POST", f"{BALANCE}?accountId={OTHER}", body=body)
    call = simulator.calls(BALANCE)[0]
    assert call.body == body
    assert call.target == f"{BALANCE}?accountId={OTHER}".encode()


async def test_a_login_tells_the_caller_the_account_it_asked_for(proxy):
    for headers, expected in (
        ((), OURS),
        ((f"Accountid: {OTHER}",), OTHER),
        ((f"accountId: {OTHER}", f"account_id: {OURS}"), OURS),
    ):
        reply = await proxy.send("POST", "/v1/auth/token/issue", *headers, body=b"{}")
        assert reply.json["data"]["businessId"] == expected
