from decimal import Decimal

import pytest

TRANSFER = "/v2/transfers/bank"
OLDER = "/v1/transfers/bank"
REQUERY = "/v1/transactions/accounts/single"


async def test_the_account_starts_with_a_million(sim, logged_in):
    reply = await logged_in.balance()
    assert reply.json["code"] == "00"
    assert reply.json["data"] == {"amount": "1000000.00", "currency": "NGN"}
    parent = await logged_in.send("GET", "/v1/accounts/parent")
    assert parent.json["data"]["accountId"] == sim.switches.account_id


async def test_the_bank_list_is_long_and_always_the_same(sim, logged_in):
    first = await logged_in.send("GET", "/v1/transfers/banks")
    second = await logged_in.send("GET", "/v1/transfers/banks")
    assert len(first.json["data"]) == 601
    assert first.body == second.body


async def test_a_lookup_names_the_holder(sim, logged_in):
    form = {"accountNumber": "0123456789", "bankCode": "000001"}
    reply = await logged_in.send("POST", "/v1/transfers/bank/lookup", json=form)
    assert reply.json["data"].items() >= form.items()
    assert (await logged_in.send("POST", "/v1/transfers/bank/lookup", json={})).status == 400


@pytest.mark.parametrize(("path", "code"), [(TRANSFER, "200"), (OLDER, "00")])
async def test_a_transfer_moves_the_balance(sim, logged_in, path, code):
    reply = await logged_in.transfer(path=path)
    assert (reply.status, reply.json["code"]) == (200, code)
    assert sim.balance == Decimal("999749.50")
    assert [(movement.ref, movement.amount) for movement in sim.ledger] == [
        ("ref-1", Decimal("250.5"))
    ]


@pytest.mark.parametrize("amount", [0.1, "0.1", "0.10"])
async def test_amounts_are_exact_as_number_or_text(sim, logged_in, amount):
    for n in range(3):
        await logged_in.transfer(f"ref-{n}", amount=amount)
    assert sim.balance == Decimal("999999.70")


@pytest.mark.parametrize("path", [TRANSFER, OLDER])
async def test_a_used_reference_is_rejected_not_replayed(sim, logged_in, path):
    await logged_in.transfer()
    reply = await logged_in.transfer(path=path)
    assert (reply.status, reply.json["code"]) == (400, "400")
    assert len(sim.ledger) == 1
    assert sim.balance == Decimal("999749.50")


async def test_more_than_the_balance_is_refused(sim, logged_in):
    reply = await logged_in.transfer(amount="1000000.01")
    assert (reply.status, reply.json["description"]) == (400, "Insufficient funds")
    assert (await logged_in.transfer(amount=1000000)).status == 200
    assert sim.balance == 0


@pytest.mark.parametrize(
    "changes",
    [
        *({"amount": amount} for amount in (0, -1, None, True, "x", "NaN", "Infinity", [1])),
        {"accountNumber": ""},
        {"bankCode": None},
        {"merchantTxRef": 7},
    ],
)
async def test_an_invalid_transfer_moves_nothing(sim, logged_in, changes):
    reply = await logged_in.transfer(**changes)
    assert (reply.status, reply.json["code"]) == (400, "400")
    assert sim.ledger == []


async def test_a_transfer_can_be_requeried(sim, logged_in):
    unknown = await logged_in.send("GET", f"{REQUERY}?merchantTxRef=ref-1")
    assert (unknown.status, unknown.json["code"]) == (404, "404")
    await logged_in.transfer()
    known = await logged_in.send("GET", f"{REQUERY}?merchantTxRef=ref-1")
    assert known.json["data"]["merchantTxRef"] == "ref-1"
    assert (await logged_in.send("GET", REQUERY)).status == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/accounts/balance/", 404),
        ("GET", "/v1/accounts//balance", 404),
        ("POST", "/v1/checkout/orders", 404),
        ("PATCH", "/v1/checkout/order", 405),
        ("GET", "/v1/accounts/virtual/", 404),
        ("POST", "/v1/accounts/balance", 405),
        ("GET", "/v1/auth/token/issue", 405),
        ("DELETE", TRANSFER, 405),
    ],
)
async def test_everything_else_is_not_there(sim, logged_in, method, path, status):
    reply = await logged_in.send(method, path)
    assert (reply.status, reply.json["code"]) == (status, str(status))


async def test_reset_goes_back_to_the_first_day(sim, logged_in):
    await logged_in.transfer()
    sim.fail(TRANSFER, status=500)
    old = logged_in.token
    sim.reset()
    assert (sim.balance, sim.ledger, sim.received) == (Decimal("1000000.00"), [], [])
    assert (await logged_in.balance()).status == 401
    await logged_in.issue()
    assert logged_in.token != old
    assert (await logged_in.transfer()).status == 200
