import base64
import json
from math import floor

import pytest

REVOKE = "/v1/auth/token/revoke"


def claims(token):
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


async def test_issue_gives_a_token_that_opens_business_calls(sim, caller):
    reply = await caller.issue()
    assert (reply.status, reply.json["code"], reply.json["description"]) == (200, "00", "Success")
    assert reply.json["data"].keys() == {
        "businessId",
        "access_token",
        "refresh_token",
        "expiresAt",
    }
    assert reply.json["data"]["businessId"] == sim.switches.account_id
    assert (await caller.balance()).status == 200


async def test_the_token_is_an_hs256_jwt_of_documented_length(sim, logged_in, clock):
    header = logged_in.token.split(".")[0]
    assert json.loads(base64.urlsafe_b64decode(header + "=="))["alg"] == "HS256"
    assert 300 <= len(logged_in.token) <= 600
    assert 30 <= len(logged_in.refresh_token) <= 60
    assert claims(logged_in.token)["iat"] == floor(clock.now)
    assert claims(logged_in.token)["exp"] == floor(clock.now) + 1800


async def test_credentials_have_the_documented_length(sim):
    assert len(sim.switches.client_id) == len(sim.switches.account_id) == 36


async def test_the_newest_session_wins_and_older_ones_die_at_once(sim, caller):
    await caller.issue()
    old, old_refresh = caller.token, caller.refresh_token
    await caller.issue()
    assert (await caller.balance(token=old)).status == 401
    assert (await caller.refresh(token=old)).status == 401
    assert (await caller.refresh(refresh_token=old_refresh)).status == 404
    assert (await caller.balance()).status == 200


async def test_sessions_of_different_clients_do_not_touch_each_other(sim, caller):
    await caller.issue()
    first = caller.token
    sim.switches.client_id = "00000000-0000-4000-8000-51312a7e0002"
    await caller.issue()
    assert (await caller.balance(token=first)).status == 200


@pytest.mark.parametrize("wrong", [{"client_secret": "x"}, {"client_id": "x"}])
async def test_wrong_credentials_get_401_and_leave_the_session_alone(sim, logged_in, wrong):
    reply = await logged_in.issue(**wrong)
    assert reply.status == 401
    assert reply.json == {"code": "401", "description": "Unauthorized"}
    assert (await logged_in.balance()).status == 200


async def test_wrong_credentials_can_get_200_with_code_01(sim, caller):
    sim.switches.wrong_secret = "200"
    reply = await caller.issue(client_secret="x")
    assert (reply.status, reply.json["code"]) == (200, "01")
    assert "data" not in reply.json


@pytest.mark.parametrize("path", ["/v1/auth/token/issue", "/v1/auth/token/refresh", REVOKE])
@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b'"x"'])
async def test_an_unreadable_auth_body_gets_400(sim, caller, path, body):
    reply = await caller.send("POST", path, data=body)
    assert (reply.status, reply.json["code"]) == (400, "400")


async def test_a_wrong_grant_type_gets_400(sim, logged_in):
    assert (await logged_in.issue(grant_type="password")).status == 400
    assert (await logged_in.refresh(grant_type="client_credentials")).status == 400


@pytest.mark.parametrize("account", [None, "", "00000000-0000-4000-8000-acc000000002"])
async def test_a_missing_or_wrong_account_gets_401_everywhere(sim, caller, account):
    headers = {"accountId": account}
    assert (await caller.issue(headers=headers)).status == 401
    await caller.issue()
    assert (await caller.balance(headers=headers)).status == 401
    reply = await caller.send("POST", "/v1/auth/token/refresh", json={}, headers=headers)
    assert reply.status == 401


async def test_a_second_account_header_counts_as_wrong(sim, logged_in, wire):
    reader, writer = await wire()
    account = sim.switches.account_id
    writer.write(
        f"GET /v1/accounts/balance HTTP/1.1\r\nAuthorization: Bearer {logged_in.token}\r\n"
        f"accountId: {account}\r\nAccountid: {account}\r\n\r\n".encode()
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("seconds-z", "2026-07-07T23:40:48Z"),
        ("millis-z", "2026-07-07T23:40:48.290Z"),
        ("micros-z", "2026-07-07T23:40:48.290123Z"),
        ("nanos-z", "2026-07-07T23:40:48.290123000Z"),
        ("offset", "2026-07-08T00:40:48+01:00"),
        ("no-zone", "2026-07-07T23:40:48"),
        ("epoch-seconds", 1783467648),
        ("epoch-millis", 1783467648290),
        ("absent", None),
    ],
)
async def test_expires_at_can_take_every_form(sim, caller, form, expected):
    sim.switches.expires_at_form = form
    data = (await caller.issue()).json["data"]
    assert data.get("expiresAt") == expected
    assert ("expiresAt" in data) == (form != "absent")


async def test_expires_in_can_be_sent_too(sim, caller):
    sim.switches.expires_in = True
    sim.switches.lifetime = 90.7
    assert (await caller.issue()).json["data"]["expires_in"] == 90


async def test_a_token_lives_as_long_as_the_switch_says(sim, caller, clock):
    sim.switches.lifetime = 60
    await caller.issue()
    clock.now += 59.9
    assert (await caller.balance()).status == 200
    clock.now += 0.1
    assert (await caller.balance()).status == 401


async def test_clock_skew_moves_what_is_shown_but_not_when_a_token_dies(sim, caller, clock):
    sim.switches.clock_skew = -7200
    data = (await caller.issue()).json["data"]
    assert data["expiresAt"] == "2026-07-07T21:40:48Z"
    assert claims(data["access_token"])["iat"] == floor(clock.now) - 7200
    assert (await caller.balance()).status == 200
    clock.now += 1800
    assert (await caller.balance()).status == 401


async def test_refresh_gives_a_new_pair_and_kills_the_old_one(sim, logged_in):
    old, old_refresh = logged_in.token, logged_in.refresh_token
    reply = await logged_in.refresh()
    assert (reply.status, reply.json["code"]) == (200, "00")
    assert logged_in.token != old
    assert logged_in.refresh_token != old_refresh
    assert (await logged_in.balance()).status == 200
    assert (await logged_in.balance(token=old)).status == 401
    reply = await logged_in.refresh(refresh_token=old_refresh)
    assert reply.status == 404
    assert reply.json == {
        "code": "404",
        "description": "Refresh Token not found",
        "status": False,
    }


async def test_refresh_can_leave_the_old_access_token_alive(sim, logged_in):
    sim.switches.refresh_kills_old = False
    old = logged_in.token
    await logged_in.refresh()
    assert (await logged_in.balance(token=old)).status == 200
    assert (await logged_in.balance()).status == 200
    await logged_in.issue()
    assert (await logged_in.balance(token=old)).status == 401


async def test_refresh_can_leave_the_old_refresh_token_alive(sim, logged_in):
    sim.switches.refresh_token_dies = False
    old_refresh = logged_in.refresh_token
    await logged_in.refresh()
    assert (await logged_in.refresh(refresh_token=old_refresh)).status == 200


async def test_refresh_with_an_expired_bearer_gets_400_saying_so(sim, logged_in, clock):
    clock.now += 1800
    reply = await logged_in.refresh()
    assert (reply.status, reply.json["code"]) == (400, "400")
    assert "JWT expired at 2026-07-07T23:40:48Z" in reply.json["description"]


@pytest.mark.parametrize("token", ["", "unknown"])
async def test_refresh_without_a_known_bearer_gets_401(sim, logged_in, token):
    assert (await logged_in.refresh(token=token)).status == 401


@pytest.mark.parametrize("with_account", [True, False])
async def test_revoke_ends_the_session_with_or_without_an_account(sim, logged_in, with_account):
    form = {"clientId": sim.switches.client_id, "access_token": logged_in.token}
    headers = {} if with_account else {"accountId": None}
    reply = await logged_in.send("POST", REVOKE, json=form, token="", headers=headers)
    assert reply.status == 200
    assert reply.json == {"code": "00", "description": "Token revoked successfully"}
    assert (await logged_in.balance()).status == 401
    assert (await logged_in.refresh()).status == 401


@pytest.mark.parametrize("wrong", [{"clientId": "x"}, {"access_token": "x"}])
async def test_revoking_with_wrong_particulars_gets_401_and_revokes_nothing(sim, logged_in, wrong):
    form = {"clientId": sim.switches.client_id, "access_token": logged_in.token} | wrong
    assert (await logged_in.send("POST", REVOKE, json=form)).status == 401
    assert (await logged_in.balance()).status == 200


VARIANTS = ["/v1/auth/token/issue/", "/v1/auth/token", "/v1/auth/token/"]


@pytest.mark.parametrize("path", [*VARIANTS, "/v1/auth/token/issue"])
async def test_callers_spellings_of_the_login_work(sim, caller, path):
    switches = sim.switches
    form = {
        "grant_type": "client_credentials",
        "clientId": switches.client_id,
        "clientSecret": switches.client_secret,
    }
    caller.token = (await caller.send("POST", path, json=form)).json["data"]["access_token"]
    assert (await caller.balance()).status == 200


@pytest.mark.parametrize("path", VARIANTS)
async def test_callers_spellings_of_the_login_can_be_unknown(sim, caller, path):
    sim.switches.login_variants = False
    reply = await caller.send("POST", path, json={})
    assert (reply.status, reply.json) == (404, {"code": "404", "description": "Not found"})
    assert (await caller.issue(client_id=None, clientId=sim.switches.client_id)).status == 401


@pytest.mark.parametrize("path", ["//v1/auth/token/issue", "/v1/auth/token/refresh/"])
async def test_other_spellings_of_the_auth_paths_are_not_known(sim, caller, path):
    assert (await caller.send("POST", path, json={})).status == 404


@pytest.mark.parametrize(("scope", "status"), [("client", 200), ("account", 401)])
async def test_a_login_ends_the_session_of_its_client_or_of_the_account(sim, caller, scope, status):
    sim.switches.session_scope = scope
    sim.switches.other_clients = ("second:its-secret",)
    await caller.issue()
    first, first_refresh = caller.token, caller.refresh_token
    await caller.issue(client_id="second", client_secret="its-secret")
    assert (await caller.balance()).status == 200
    assert (await caller.balance(token=first)).status == status
    reply = await caller.refresh(token=first, refresh_token=first_refresh)
    assert reply.status == status


async def test_a_refresh_ends_the_whole_account_too_if_that_is_the_scope(sim, caller):
    sim.switches.session_scope = "account"
    sim.switches.other_clients = ("second:its-secret",)
    sim.switches.refresh_kills_old = False
    await caller.issue()
    await caller.refresh()
    assert (await caller.balance()).status == 200
    sim.switches.refresh_kills_old = True
    await caller.refresh()
    assert (await caller.balance()).status == 200


async def test_a_client_with_the_secret_of_another_is_refused(sim, caller):
    sim.switches.other_clients = ("second:its-secret",)
    assert (await caller.issue(client_secret="its-secret")).status == 401
    assert (await caller.issue(client_id="second")).status == 401
    assert (await caller.issue(client_id="third")).status == 401


async def test_a_sub_account_in_the_header_gets_403(sim, logged_in):
    subs = await logged_in.send("GET", "/v1/accounts")
    header = {"accountId": subs.json["results"][0]["accountId"]}
    reply = await logged_in.balance(headers=header)
    assert (reply.status, reply.json["code"]) == (403, "403")
    assert (await logged_in.balance(headers=header, token="unknown")).status == 401
