"""Whose account a request is for."""

import json

BALANCE = "/v1/accounts/balance"
OURS = "00000000-0000-4000-8000-acc000000001"
OTHER = "99999999-0000-4000-8000-acc000000009"


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
