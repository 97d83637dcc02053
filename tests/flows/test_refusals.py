"""Which replies are auth refusals, what may be replayed, and what the caller is told."""

import asyncio

import aiohttp
import pytest

BALANCE = "/v1/accounts/balance"
TRANSFER = "/v2/transfers/bank"
UNKNOWN_WRITE = "/v1/something/new"
ISSUE = "/v1/auth/token/issue"

JWT_EXPIRED = {"detail": "Internal Server Error: INTERNAL: JWT expired at 2026-07-07T23:10:48Z."}
UNPROVEN = [
    (500, JWT_EXPIRED),
    (400, {"code": "400", "description": "JWT expired at 2026-07-07T23:10:48Z."}),
    (200, {"code": "401", "description": "re-authenticate"}),
    (200, {"code": "02", "description": "Token expired"}),
    (200, {"code": "01", "description": "Invalid credentials"}),
]


@pytest.mark.parametrize(("status", "body"), UNPROVEN)
async def test_an_unproven_refusal_of_a_read_is_renewed_and_replayed(
    proxy, simulator, status, body
):
    simulator.fail(BALANCE, status=status, body=body)
    reply = await proxy.get(BALANCE)
    assert (reply.status, reply.outcome) == (200, "answered")
    assert reply.json["code"] == "00"
    assert simulator.count(BALANCE) == 2
    assert simulator.count(ISSUE) == 2


@pytest.mark.parametrize(("status", "body"), UNPROVEN)
@pytest.mark.parametrize("path", [TRANSFER, UNKNOWN_WRITE, "/v1/accounts"])
async def test_an_unproven_refusal_of_anything_else_is_sent_once_and_told(
    proxy, simulator, status, body, path
):
    simulator.fail(path, status=status, body=body)
    reply = await proxy.send("POST", path, body=b"{}")
    assert (reply.status, reply.json) == (status, body)
    assert reply.outcome == "unknown"
    assert "merchantTxRef" in reply.get("Nomba-Proxy-Hint")
    assert simulator.count(path) == 1
    await asyncio.wait_for(simulator.wait_for(ISSUE, 2), 20)


async def test_money_that_moved_before_a_500_is_not_moved_twice(proxy, simulator):
    simulator.switches.expired_as = "500"
    simulator.switches.debit_before_auth_error = True
    await proxy.get(BALANCE)
    simulator.expire()
    reply = await proxy.transfer()
    assert (reply.status, reply.outcome) == (500, "unknown")
    assert len(simulator.ledger) == 1


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "QUERY"])
async def test_a_401_is_replayed_whatever_the_method(proxy, simulator, method):
    path = "/v1/anything"
    simulator.fail(path, status=401, body={"code": "401", "description": "Unauthorized"})
    reply = await proxy.send(method, path, body=b'{"a":1}')
    assert reply.status == 404
    first, second = simulator.calls(path)
    assert first.body == second.body == b'{"a":1}'


async def test_a_second_401_is_passed_on_untouched(proxy, simulator):
    body = {"code": "401", "description": "accountId is not yours"}
    simulator.fail(BALANCE, times=2, status=401, body=body)
    reply = await proxy.get(BALANCE)
    assert (reply.status, reply.json, reply.outcome) == (401, body, "answered")
    assert simulator.count(BALANCE) == 2
    assert simulator.count(ISSUE) == 2


async def test_a_path_that_was_served_gets_a_third_token_if_two_died_in_a_row(proxy, simulator):
    """A rival logs in, and again right behind our renewal: the path is not what is wrong."""
    assert (await proxy.get(BALANCE)).status == 200
    simulator.fail(BALANCE, times=3, status=401, body={"code": "401"})
    first, second = await proxy.get(BALANCE), await proxy.get(BALANCE)
    assert (first.status, second.status) == (401, 200)
    assert simulator.count(BALANCE) == 5
    assert simulator.count(ISSUE) == 3


async def test_a_path_that_was_never_served_gets_no_third_token(proxy, simulator):
    simulator.fail(BALANCE, times=3, status=401, body={"code": "401"})
    first, second = await proxy.get(BALANCE), await proxy.get(BALANCE)
    assert (first.status, second.status) == (401, 401)
    assert "Two tokens in a row" in second.get("Nomba-Proxy-Hint")
    assert simulator.count(ISSUE) == 2


async def test_endless_401s_do_not_become_endless_renewals(proxy, simulator):
    simulator.fail(BALANCE, times=100, status=401, body={"code": "401"})
    replies = [await proxy.get(BALANCE) for _ in range(20)]
    assert {reply.status for reply in replies} == {401}
    assert replies[-1].outcome == "refused"
    assert simulator.count(ISSUE) <= 4
    assert (await proxy.get("/v1/accounts/parent")).status == 200


@pytest.mark.parametrize("status", [403, 404, 429, 500, 400, 502, 503])
async def test_other_failures_never_renew_or_replay(proxy, simulator, status):
    body = {"code": str(status), "description": "the word JWT, and the word expired"}
    simulator.fail(BALANCE, status=status, body=body)
    reply = await proxy.get(BALANCE)
    assert (reply.status, reply.json, reply.outcome) == (status, body, "answered")
    assert simulator.count(BALANCE) == 1
    assert simulator.count(ISSUE) == 1


async def test_a_403_page_of_an_edge_is_passed_on(proxy, simulator):
    page = b"<html>JWT expired</html>"
    simulator.fail(BALANCE, status=403, body=page, headers=[("Content-Type", "text/html")])
    reply = await proxy.get(BALANCE)
    assert (reply.status, reply.body) == (403, page)
    assert simulator.count(ISSUE) == 1


async def test_a_failed_renewal_after_a_refusal_is_a_503_and_refused(proxy, simulator):
    await proxy.get(BALANCE)
    simulator.revoke()
    simulator.fail(ISSUE, times=5, status=503, body=b"")
    reply = await proxy.get(BALANCE)
    assert (reply.status, reply.outcome) == (503, "refused")
    assert reply.json["proxy"]["error"] == "token_unavailable"
    assert reply.get("Retry-After") is not None
    assert simulator.count(BALANCE) == 2
    again = await proxy.get(BALANCE)
    assert (again.status, again.outcome) == (503, "not_sent")
    assert simulator.count(BALANCE) == 2  # the refused token is not used again


@pytest.mark.parametrize("path", [BALANCE, TRANSFER])
async def test_a_replay_that_is_lost_is_unknown_and_never_the_old_401(proxy, simulator, path):
    simulator.fail(path, status=401, body={"code": "401"})
    simulator.fail(path, drop=True, times=2)
    method = "GET" if path == BALANCE else "POST"
    reply = await proxy.send(method, path, body=None if method == "GET" else b"{}")
    assert (reply.status, reply.outcome) == (502, "unknown")
    assert reply.json["proxy"]["error"] == "upstream_broken"
    # A read is sent once more where a used connection ends without a word.
    assert simulator.count(path) == (3 if method == "GET" else 2)


async def test_a_replay_that_was_not_sent_is_refused_not_unsent(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin)
    await proxy.get("/v1/x")
    upstream.answer = upstream.reply_with(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
    upstream.gone_after_issue = 2
    reply = await proxy.send("POST", "/v2/transfers/bank", body=b"{}")
    assert (reply.status, reply.outcome) == (502, "refused")
    assert reply.json["proxy"]["error"] == "upstream_unreachable"
    assert len(upstream.requests) == 2


@pytest.mark.parametrize(("status", "body"), UNPROVEN)
async def test_a_replay_that_may_have_moved_money_is_unknown(proxy, simulator, status, body):
    simulator.fail(TRANSFER, status=401, body={"code": "401"})
    simulator.fail(TRANSFER, status=status, body=body)
    reply = await proxy.send("POST", TRANSFER, body=b"{}")
    assert (reply.status, reply.json, reply.outcome) == (status, body, "unknown")
    assert "merchantTxRef" in reply.get("Nomba-Proxy-Hint")
    assert simulator.count(TRANSFER) == 2


async def test_a_duplicate_that_the_second_try_is_told_of_hints_at_the_first(proxy, simulator):
    simulator.switches.debit_before_auth_error = True
    await proxy.get(BALANCE)
    simulator.expire()
    reply = await proxy.transfer()
    assert (reply.status, reply.json["description"]) == (400, "Duplicate merchantTxRef")
    assert reply.outcome == "answered"
    assert "the first was done" in reply.get("Nomba-Proxy-Hint")
    assert len(simulator.ledger) == 1


@pytest.mark.parametrize(
    ("path", "second"),
    [
        (TRANSFER, {"status": 200, "body": {"code": "00", "description": "SUCCESS"}}),
        (TRANSFER, {"status": 201, "body": {"code": "201", "description": "PROCESSING"}}),
        (TRANSFER, {"status": 401, "body": {"code": "401"}}),  # neither was done
        ("/v1/accounts", {"status": 400, "body": {"code": "400"}}),
    ],
)
async def test_a_second_try_that_says_nothing_of_the_first_has_no_hint(
    proxy, simulator, path, second
):
    simulator.fail(path, status=401, body={"code": "401"})
    simulator.fail(path, **second)
    reply = await proxy.send("POST", path, body=b"{}")
    assert (reply.status, reply.outcome) == (second["status"], "answered")
    assert reply.get("Nomba-Proxy-Hint") is None
    assert simulator.count(path) == 2


async def test_endless_401s_after_a_good_start_do_not_become_endless_renewals(proxy, simulator):
    assert (await proxy.get("/v1/accounts/parent")).status == 200
    simulator.fail(BALANCE, times=100, status=401, body={"code": "401"})
    for _ in range(20):
        assert (await proxy.get(BALANCE)).status == 401
    assert simulator.count(ISSUE) <= 5


async def test_a_late_401_of_an_old_generation_costs_no_renewal(proxy, simulator):
    await proxy.get(BALANCE)
    with simulator.hold("/v1/accounts/parent") as hold:
        slow = asyncio.create_task(proxy.get("/v1/accounts/parent"))
        await hold.caught(1)
        simulator.revoke()
        assert (await proxy.get(BALANCE)).status == 200  # renews to generation 2
        hold.release()
        assert (await slow).status == 200  # refused with generation 1, replayed with 2
    assert simulator.count(ISSUE) == 2


async def test_the_replay_after_a_gzipped_refusal_sees_through_the_coding(proxy, simulator):
    import gzip
    import json

    packed = gzip.compress(json.dumps(JWT_EXPIRED).encode())
    simulator.fail(BALANCE, status=500, body=packed, headers=[("Content-Encoding", "gzip")])
    simulator.fail(TRANSFER, status=500, body=packed, headers=[("Content-Encoding", "gzip")])
    assert (await proxy.get(BALANCE)).status == 200
    untouched = await proxy.send("POST", TRANSFER, body=b"{}")
    assert untouched.body == packed
    assert untouched.get("Content-Encoding") == "gzip"


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 404, "body": {"code": "404", "description": "Refresh Token not found"}},
        {"status": 400, "body": {"code": "400", "description": "JWT expired at 2026-07-07"}},
        {"status": 401, "body": {"code": "401", "description": "Unauthorized"}},
        {"status": 403, "body": b"<html>blocked</html>"},
        {"status": 500, "body": {"code": "500"}},
        {"status": 200, "body": {"code": "02", "description": "Token expired"}},
        {"status": 200, "body": b""},
        {"status": 200, "body": {"code": "00", "data": {}}},
        {"drop": True},
    ],
)
async def test_refresh_failing_in_any_way_ends_in_one_issue(proxy, simulator, failure):
    assert (await proxy.get(BALANCE)).status == 200
    simulator.fail("/v1/auth/token/refresh", **failure)
    # Asked for, not waited for: what is due may be dead by then, and is not refreshed any more.
    async with aiohttp.request("POST", f"{proxy.admin}/token/renew") as reply:
        assert reply.status == 200
    assert simulator.count("/v1/auth/token/refresh") == 1
    assert (await proxy.get(BALANCE)).status == 200
    assert simulator.count(ISSUE) == 2
