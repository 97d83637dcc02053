"""What a business call with a token that does not live gets, in every form."""

import pytest

UNAUTHORIZED = (401, {"code": "401", "description": "Unauthorized"})
EXPIRED_AS = {
    "401": UNAUTHORIZED,
    "500": (
        500,
        {"detail": "Internal Server Error: INTERNAL: JWT expired at 2026-07-07T23:10:48Z."},
    ),
    "200": (200, {"code": "02", "description": "Token expired"}),
}


@pytest.mark.parametrize("form", EXPIRED_AS)
async def test_an_expired_token_is_refused_in_the_form_chosen(sim, logged_in, form):
    sim.switches.expired_as = form
    sim.expire()
    reply = await logged_in.balance()
    assert (reply.status, reply.json) == EXPIRED_AS[form]
    await logged_in.issue()
    assert (await logged_in.balance()).status == 200


@pytest.mark.parametrize("form", EXPIRED_AS)
async def test_a_revoked_token_always_gets_401(sim, logged_in, form):
    sim.switches.expired_as = form
    sim.revoke()
    reply = await logged_in.balance()
    assert (reply.status, reply.json) == UNAUTHORIZED
    assert (await logged_in.refresh()).status == 401


@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer ", "Basic eA==", "{token}"])
async def test_anything_but_a_bearer_token_gets_401(sim, logged_in, value):
    value = value and value.format(token=logged_in.token)
    reply = await logged_in.balance(token="", headers={"Authorization": value})
    assert (reply.status, reply.json) == UNAUTHORIZED
    assert sim.received[-1].bearer is None


async def test_an_unauthorized_call_learns_nothing_of_what_is_missing(sim, caller):
    assert (await caller.send("POST", "/v1/checkout/order")).status == 401


async def test_an_expired_token_moves_no_money_by_default(sim, logged_in):
    sim.expire()
    assert (await logged_in.transfer()).status == 401
    assert sim.ledger == []


@pytest.mark.parametrize("path", ["/v2/transfers/bank", "/v1/transfers/bank"])
@pytest.mark.parametrize("form", EXPIRED_AS)
@pytest.mark.parametrize("end", ["expire", "revoke"])
async def test_money_can_move_before_the_token_is_refused(sim, logged_in, path, form, end):
    sim.switches.debit_before_auth_error = True
    sim.switches.expired_as = form
    getattr(sim, end)()
    reply = await logged_in.transfer(path=path)
    assert (reply.status, reply.json) == EXPIRED_AS[form]
    assert [movement.ref for movement in sim.ledger] == ["ref-1"]
    await logged_in.issue()
    assert (await logged_in.transfer(path=path)).json["description"] == "Duplicate merchantTxRef"
    assert len(sim.ledger) == 1


async def test_money_never_moves_without_a_token_or_for_a_stranger(sim, logged_in):
    sim.switches.debit_before_auth_error = True
    assert (await logged_in.transfer(token="")).status == 401
    sim.switches.account_id = "00000000-0000-4000-8000-acc000000002"
    headers = {"accountId": "00000000-0000-4000-8000-acc000000001"}
    reply = await logged_in.send("POST", "/v2/transfers/bank", json={}, headers=headers)
    assert reply.status == 401
    assert sim.ledger == []
