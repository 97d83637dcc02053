"""The three calls on the wire: the bytes they send, and what every documented reply means."""

import asyncio
import json
import socket
import traceback
from dataclasses import replace

import pytest

from proxy.core.secret import Secret, SecretMisuse
from proxy.settings import parse_origin
from proxy.simulator.simulator import Simulator
from proxy.tokens.nomba import IssuerError, NombaAuth
from proxy.upstream.dialler import Dialler, Timeouts

ISSUE = "/v1/auth/token/issue"
REFRESH = "/v1/auth/token/refresh"
REVOKE = "/v1/auth/token/revoke"
MARK = "MARKED-NEVER-TO-BE-SHOWN"
NOON = 1_783_465_848.290123

FORMS = [
    "seconds-z",
    "millis-z",
    "micros-z",
    "nanos-z",
    "offset",
    "no-zone",
    "epoch-seconds",
    "epoch-millis",
    "absent",
]


def grant(**changes):
    """A success envelope; a value of None leaves the field out."""
    data = {
        "businessId": "account",
        "access_token": "access",
        "refresh_token": "refresh",
        "expires_in": 1234,
    } | changes
    kept = {key: value for key, value in data.items() if value is not None}
    return {"code": "00", "description": "Success", "data": kept}


def secret_of(simulator):
    return Secret(simulator.switches.client_secret, origin=simulator.origin)


def reveal(secret, simulator):
    return secret.reveal(to=simulator.origin)


def everything_told(error):
    """All that a log, a traceback included, could show of an error."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))


# -- the bytes sent ---------------------------------------------------------------------


def head(simulator, call, body, *extra):
    lines = [
        f"POST /v1/auth/token/{call} HTTP/1.1",
        f"Host: {simulator.origin.removeprefix('http://')}",
        "Content-Type: application/json",
        f"accountId: {simulator.switches.account_id}",
        *extra,
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def test_issue_sends_exactly_the_documented_call(auth, simulator):
    await auth.issue(secret_of(simulator))
    [sent] = simulator.received
    assert sent.raw_head == head(simulator, "issue", sent.body)
    assert json.loads(sent.body) == {
        "grant_type": "client_credentials",
        "client_id": simulator.switches.client_id,
        "client_secret": simulator.switches.client_secret,
    }


async def test_refresh_sends_exactly_the_documented_call_with_the_current_token(auth, simulator):
    first = await auth.issue(secret_of(simulator))
    await auth.refresh(access_token=first.access_token, refresh_token=first.refresh_token)
    [sent] = simulator.calls(REFRESH)
    bearer = f"Authorization: Bearer {reveal(first.access_token, simulator)}"
    assert sent.raw_head == head(simulator, "refresh", sent.body, bearer)
    assert json.loads(sent.body) == {
        "grant_type": "refresh_token",
        "refresh_token": reveal(first.refresh_token, simulator),
    }


async def test_revoke_sends_exactly_the_documented_call_without_a_bearer(auth, simulator):
    first = await auth.issue(secret_of(simulator))
    await auth.revoke(first.access_token)
    [sent] = simulator.calls(REVOKE)
    assert sent.raw_head == head(simulator, "revoke", sent.body)
    assert json.loads(sent.body) == {
        "clientId": simulator.switches.client_id,
        "access_token": reveal(first.access_token, simulator),
    }
    assert sent.status == 200


async def test_what_is_needed_in_json_is_escaped_and_not_cut(auth, simulator):
    odd = 'a"b\\c\u00e9 \u20ac'
    simulator.switches.client_secret = odd
    secret = Secret(odd, origin=simulator.origin)
    await auth.issue(secret)
    assert json.loads(simulator.received[0].body)["client_secret"] == odd


# -- success ----------------------------------------------------------------------------


async def test_a_grant_holds_what_the_reply_held(auth, simulator):
    simulator.fail(ISSUE, body=grant())
    got = await auth.issue(secret_of(simulator))
    assert reveal(got.access_token, simulator) == "access"
    assert reveal(got.refresh_token, simulator) == "refresh"
    assert (got.life, got.account_id) == (1234, "account")


async def test_granted_tokens_are_pinned_to_the_issuer_and_do_not_print(auth, simulator):
    got = await auth.issue(secret_of(simulator))
    for secret in (got.access_token, got.refresh_token):
        assert reveal(secret, simulator) not in repr(got)
        with pytest.raises(SecretMisuse):
            secret.reveal(to="https://api.nomba.com")


async def test_a_secret_pinned_elsewhere_is_not_sent(auth, simulator):
    await auth.issue(secret_of(simulator))
    alien = Secret(MARK, origin="https://api.nomba.com")
    with pytest.raises(SecretMisuse):
        await auth.revoke(alien)
    assert simulator.count(REVOKE) == 0


@pytest.mark.parametrize("refresh", [None, "", 7, ["x"], {}])
async def test_a_missing_or_odd_refresh_token_is_none_and_no_failure(auth, simulator, refresh):
    simulator.fail(ISSUE, body=grant(refresh_token=refresh))
    got = await auth.issue(secret_of(simulator))
    assert not got.refresh_token
    assert reveal(got.access_token, simulator) == "access"


@pytest.mark.parametrize("business", [None, 7, [], {}])
async def test_a_missing_or_odd_business_id_is_none_and_no_failure(auth, simulator, business):
    simulator.fail(ISSUE, body=grant(businessId=business))
    assert (await auth.issue(secret_of(simulator))).account_id == ""


async def test_status_false_on_a_success_means_nothing(auth, simulator):
    simulator.fail(ISSUE, body=grant() | {"status": False})
    assert (await auth.issue(secret_of(simulator))).life == 1234


# -- life -------------------------------------------------------------------------------


@pytest.fixture
async def frozen_simulator():
    async with Simulator(clock=lambda: NOON) as simulator:
        yield simulator


@pytest.mark.parametrize("skew", [0, 600, -600, 3600, -3600])
@pytest.mark.parametrize("form", FORMS)
async def test_every_form_of_expiry_gives_the_real_life_whatever_the_issuers_clock(
    frozen_simulator, credentials, form, skew
):
    frozen_simulator.switches.lifetime = 1234
    frozen_simulator.switches.expires_at_form = form
    frozen_simulator.switches.clock_skew = skew
    origin = parse_origin(frozen_simulator.origin)
    secret = Secret(frozen_simulator.switches.client_secret, origin=origin.text)
    mine = replace(credentials, origin=origin.text)
    dialler = Dialler(origin, timeouts=Timeouts())
    got = await NombaAuth(mine, call=dialler.call, timeout=20).issue(secret)
    assert 1234 <= got.life < 1235  # `Date` has no fractions


JWT_OF_1234 = "e30.eyJpYXQiOjE3ODM0NjU4NDgsImV4cCI6MTc4MzQ2NzA4Mn0.c2ln"


@pytest.mark.parametrize(
    ("fields", "life"),
    [
        ({"expires_in": 77}, 77),
        ({"expires_in": "77"}, 77),
        ({"expires_in": None, "expiresIn": 77}, 77),
        ({"expires_in": 77, "access_token": JWT_OF_1234}, 1234),
        ({"expires_in": 77, "expiresAt": "rubbish"}, 77),
        ({"expires_in": 77, "expiresAt": "2001-01-01T00:00:00Z"}, 77),
        ({"expires_in": 77, "expiresAt": "2999-01-01T00:00:00Z"}, 77),
        ({"expires_in": 77, "expiresAt": True}, 77),
        ({"expires_in": None}, 300),
        ({"expires_in": 0}, 300),
        ({"expires_in": -5}, 300),
        ({"expires_in": "nan"}, 300),
        ({"expires_in": 86401}, 300),
        ({"expires_in": None, "access_token": "a.b.c"}, 300),
        ({"expires_in": None, "access_token": "a.====.c"}, 300),
    ],
)
async def test_an_expiry_that_cannot_be_used_falls_through_to_the_next(
    auth, simulator, fields, life
):
    simulator.fail(ISSUE, body=grant(**fields))
    assert (await auth.issue(secret_of(simulator))).life == life


@pytest.mark.parametrize(
    "date",
    ["", "rubbish", "Thu, 99 Foo 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:00 +9" + "9" * 20],
)
async def test_an_odd_date_of_the_reply_costs_no_token(auth, simulator, date):
    expires = grant(expiresAt="2026-07-07T23:10:48Z")
    simulator.fail(ISSUE, body=expires, headers=(("Date", date),))
    assert (await auth.issue(secret_of(simulator))).life == 1234


# -- failures ---------------------------------------------------------------------------


def envelope(code, description=MARK):
    return {"code": code, "description": description}


# What the issuer does, and the reason a failure is filed under.
FAILURES = {
    "401 envelope": ({"status": 401, "body": envelope("401")}, "credentials"),
    "200 with code 01": ({"body": envelope("01")}, "credentials"),
    "200 with code 401": ({"body": envelope("401")}, "credentials"),
    "200 with code 02": ({"body": envelope("02", "Token expired")}, "reply"),
    "200 with code 400": ({"body": envelope("400")}, "reply"),
    "200 with a code of somebody's choice": ({"body": envelope(MARK)}, "reply"),
    "200 without a code": ({"body": {"data": grant()["data"]}}, "reply"),
    "200 with a numeric code": ({"body": grant() | {"code": 0}}, "reply"),
    "201 with code 00": ({"status": 201, "body": grant()}, "reply"),
    "500 with code 00": ({"status": 500, "body": grant()}, "reply"),
    "400 JWT expired": (
        {"status": 400, "body": envelope("400", "JWT expired at 2026-07-07T23:10:48Z.")},
        "reply",
    ),
    "404 refresh token not found": (
        {"status": 404, "body": envelope("404", "Refresh Token not found") | {"status": False}},
        "reply",
    ),
    "403 envelope": ({"status": 403, "body": envelope("403")}, "reply"),
    "429 envelope": ({"status": 429, "body": envelope("429")}, "reply"),
    "500 envelope": ({"status": 500, "body": envelope("500")}, "reply"),
    "508 envelope": ({"status": 508, "body": envelope("508")}, "reply"),
    "403 page": ({"status": 403, "body": f"<html>{MARK}</html>".encode()}, "reply"),
    "200 page": ({"status": 200, "body": f"<html>{MARK}</html>".encode()}, "reply"),
    "redirect": (
        {"status": 302, "body": b"", "headers": (("Location", "http://127.0.0.1:1/"),)},
        "reply",
    ),
    "empty body": ({"status": 200, "body": b""}, "reply"),
    "not JSON": ({"status": 200, "body": MARK.encode()}, "reply"),
    "JSON cut short": ({"status": 200, "body": json.dumps(grant()).encode()[:-1]}, "reply"),
    "not UTF-8": ({"status": 200, "body": b'{"code":"\xff"}'}, "reply"),
    "a JSON list": ({"status": 200, "body": json.dumps([grant()]).encode()}, "reply"),
    "a JSON text": ({"status": 200, "body": b'"00"'}, "reply"),
    "JSON null": ({"status": 200, "body": b"null"}, "reply"),
    "nested too deep": ({"status": 200, "body": b"[" * 100_000}, "reply"),
    "connection dropped": ({"drop": True}, "unreachable"),
    "connection dropped after the work": ({"drop": True, "before": False}, "unreachable"),
    "reply too large": ({"status": 200, "body": b" " * (1024 * 1024 + 1)}, "unreachable"),
}
# These are failures of the calls that bring a token only.
NO_TOKEN = {
    "data missing": {"code": "00", "description": "Success"},
    "data null": grant() | {"data": None},
    "data a list": grant() | {"data": [MARK]},
    "data a text": grant() | {"data": MARK},
    "access_token missing": grant(access_token=None),
    "access_token null": {"code": "00", "data": {"access_token": None}},
    "access_token empty": grant(access_token=""),
    "access_token a number": grant(access_token=7),
    "access_token a list": grant(access_token=[MARK]),
    "access_token with a space": grant(access_token=f"{MARK} x"),
    "access_token of spaces": grant(access_token="  "),
    "access_token with a newline": grant(access_token=f"{MARK}\r\nX-Evil: 1"),
    "access_token with a tab": grant(access_token=f"{MARK}\tx"),
    "access_token with NUL": grant(access_token=f"{MARK}\0"),
    "access_token with DEL": grant(access_token=f"{MARK}\x7f"),
    "access_token not ASCII": grant(access_token=f"{MARK}\u00e9"),
    "access_token with a wide space": grant(access_token=f"{MARK}\u00a0"),
}


def _calls(auth, simulator):
    origin = simulator.origin
    access, refresh = Secret("access-" + MARK, origin=origin), Secret("r-" + MARK, origin=origin)
    return {
        ISSUE: lambda: auth.issue(secret_of(simulator)),
        REFRESH: lambda: auth.refresh(access_token=access, refresh_token=refresh),
        REVOKE: lambda: auth.revoke(access),
    }


@pytest.mark.parametrize("path", [ISSUE, REFRESH, REVOKE])
@pytest.mark.parametrize("failure", FAILURES)
async def test_every_failure_has_its_reason_and_tells_no_secret(auth, simulator, path, failure):
    script, reason = FAILURES[failure]
    simulator.fail(path, **script)
    with pytest.raises(IssuerError) as caught:
        await _calls(auth, simulator)[path]()
    assert caught.value.reason == reason
    told = everything_told(caught.value)
    assert MARK not in told
    assert simulator.switches.client_secret not in told
    assert simulator.count(path) == 1  # nothing here tries again


async def test_a_login_that_comes_back_is_told_to_be_a_loop(auth, simulator):
    simulator.fail(ISSUE, status=508, body=envelope("508"))
    with pytest.raises(IssuerError, match=r"loop.*upstream\.addresses"):
        await auth.issue(secret_of(simulator))


@pytest.mark.parametrize("path", [ISSUE, REFRESH])
@pytest.mark.parametrize("failure", NO_TOKEN)
async def test_a_success_without_a_usable_token_is_a_failure(auth, simulator, path, failure):
    simulator.fail(path, body=NO_TOKEN[failure])
    with pytest.raises(IssuerError) as caught:
        await _calls(auth, simulator)[path]()
    assert caught.value.reason == "reply"
    assert MARK not in everything_told(caught.value)


@pytest.mark.parametrize("form", ["401", "200"])
async def test_a_wrong_secret_is_told_apart_in_both_forms(auth, simulator, form):
    simulator.switches.wrong_secret = form
    wrong = Secret("another", origin=simulator.origin)
    with pytest.raises(IssuerError) as caught:
        await auth.issue(wrong)
    assert caught.value.reason == "credentials"


async def test_an_edge_page_hints_at_the_allowlist(auth, simulator):
    simulator.fail(ISSUE, status=403, body=b"<html>Unknown Source</html>")
    with pytest.raises(IssuerError, match="allowlist"):
        await auth.issue(secret_of(simulator))


async def test_an_expired_bearer_and_a_used_refresh_token_are_replies(auth, simulator):
    first = await auth.issue(secret_of(simulator))
    pair = {"access_token": first.access_token, "refresh_token": first.refresh_token}
    simulator.expire()
    with pytest.raises(IssuerError, match="HTTP 400") as expired:
        await auth.refresh(**pair)
    second = await auth.issue(secret_of(simulator))
    with pytest.raises(IssuerError, match="HTTP 404") as used:
        await auth.refresh(access_token=second.access_token, refresh_token=first.refresh_token)
    assert (expired.value.reason, used.value.reason) == ("reply", "reply")


@pytest.mark.parametrize("before", [True, False])
async def test_no_answer_within_the_timeout_is_unreachable(simulator, credentials, call, before):
    impatient = NombaAuth(credentials, call=call, timeout=0.05)
    with simulator.hold(ISSUE, before=before), pytest.raises(IssuerError) as caught:
        await impatient.issue(secret_of(simulator))
    assert caught.value.reason == "unreachable"
    assert simulator.count(ISSUE) == 1


async def test_nobody_listening_is_unreachable(credentials):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        origin = parse_origin(f"http://127.0.0.1:{taken.getsockname()[1]}")
        secret = Secret(MARK, origin=origin.text)
        mine = replace(credentials, origin=origin.text)
        call = Dialler(origin, timeouts=Timeouts()).call
        with pytest.raises(IssuerError) as caught:
            await NombaAuth(mine, call=call, timeout=20).issue(secret)
    assert caught.value.reason == "unreachable"
    assert MARK not in everything_told(caught.value)


async def test_a_cancelled_call_lets_go_of_its_connection(auth, simulator):
    with simulator.hold(ISSUE) as hold:
        call = asyncio.create_task(auth.issue(secret_of(simulator)))
        await hold.caught()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await auth.issue(secret_of(simulator))
    assert simulator.count(ISSUE) == 2
