"""Every operation of the endpoint table, held against the table's own columns."""

import csv
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

import proxy.data
from proxy.data import operations

TABLE = Path(proxy.data.__file__).with_name("endpoints.csv")
ROWS = {
    f"{row['method']} {row['path'].partition('?')[0]}": row
    for row in csv.DictReader(TABLE.read_text().splitlines())
    if "/auth/" not in row["path"]
}
MONEY = 10  # naira moved by every sample
PAY = {"amount": MONEY, "merchantTxRef": "ref-1"}
BANK = {**PAY, "accountNumber": "0123456789", "bankCode": "000001"}
WALLET = {**PAY, "receiverAccountId": "somebody-else"}
ABROAD = {"amount": 15000, "idempotencyKey": "key-1"}

# What a call needs beyond its path; `{name}` stands for a thing of the prepared world.
BODIES = {
    "POST /v1/accounts": {"accountName": "New Shop"},
    "PUT /v1/accounts/{subAccountId}/access": {"canTransfer": False},
    "POST /v1/accounts/virtual": {"accountRef": "va-2", "accountName": "Ada"},
    "POST /v1/accounts/virtual/{subAccountId}": {"accountRef": "va-3", "accountName": "Ada"},
    "PUT /v1/accounts/virtual/{identifier}": {"accountName": "Obi"},
    "POST /v1/checkout/order": {"order": {"orderReference": "order-9", "amount": "10.00"}},
    "POST /v1/checkout/tokenized-card-payment": {
        "order": {"orderReference": "order-8", "amount": MONEY},
        "tokenKey": "{tokenKey}",
    },
    "POST /v1/checkout/tokenized-card-data": {"customerEmail": "ada@example.com"},
    "DELETE /v1/checkout/tokenized-card-data": {"tokenKey": "{tokenKey}"},
    "POST /v1/checkout/refund": {"transactionId": "{paid}"},
    "POST /v1/checkout/checkout-card-detail": {
        "orderReference": "order-1",
        "cardDetails": '{"cardCVV":"123","cardPan":"5060990580000217499"}',
    },
    "POST /v1/checkout/checkout-card-otp": {"orderReference": "order-3", "otp": "123456"},
    "POST /v1/checkout/resend-otp": {"orderReference": "order-1"},
    "POST /v1/checkout/confirm-transaction-receipt": {"orderReference": "order-2"},
    "POST /v1/checkout/user-card/auth": {"orderReference": "order-1"},
    "POST /v1/checkout/user-card/saved-card/auth": {"orderReference": "order-1"},
    "POST /v1/checkout/user-card": {"orderReference": "order-3"},
    "POST /v1/checkout/transaction/cancel": {"orderReference": "order-1"},
    "POST /v1/checkout/order/cancel": {"orderReference": "order-1"},
    "POST /v1/transfers/bank/lookup": {"accountNumber": "0123456789", "bankCode": "000001"},
    "POST /v1/terminals/assign": {"serialNumber": "T-2"},
    "POST /v1/terminals/assign/{subAccountId}": {"serialNumber": "T-3"},
    "POST /v1/terminals/unassign": {"serialNumber": "T-1"},
    "POST /v1/terminals/unassign/{subAccountId}": {"serialNumber": "T-sub"},
    "POST /v1/terminals/payment-request/{terminalId}": {"amount": MONEY},
    "PUT /v1/direct-debits/update-status": {"mandateId": "{mandateId}", "status": "suspended"},
    "POST /v1/direct-debits/debit-mandate": {"mandateId": "{mandateId}", "amount": MONEY},
    "POST /v1/direct-debits": {"customerName": "Ada"},
    "POST /v1/global-payout/transfer/authorize": ABROAD,
    "POST /v1/global-payout/exchange/authorize": ABROAD,
    "POST /v1/global-payout/money/convert": {"amount": 15000},
    "POST /v1/global-collection/inflow/initiate": ABROAD,
}
for _version in ("v1", "v2"):
    for _tail in ("", "/{subAccountId}"):
        BODIES[f"POST /{_version}/transfers/bank{_tail}"] = BANK
        BODIES[f"POST /{_version}/transfers/wallet{_tail}"] = WALLET
        for _kind in ("topup", "data", "cabletv", "electricity", "betting"):
            BODIES[f"POST /{_version}/bill/{_kind}{_tail}"] = PAY
QUERIES = {
    "GET /v1/accounts/sub-account-details": "accountId={subAccountId}",
    "GET /v1/checkout/transaction": "orderReference=order-2",
    "GET /v1/transactions/accounts/single": "orderReference=order-2",
    "GET /v1/transactions/accounts/{subAccountId}/single": "merchantTxRef=sub-ref",
    "GET /v1/bill/cabletv/lookup": "customerId=77",
    "GET /v1/bill/electricity/lookup": "customerId=77",
    "GET /v2/bill/electricity/lookup": "customerId=77",
    "GET /v1/bill/betting/lookup": "customerId=77",
    "GET /v1/direct-debits/status": "mandateId={mandateId}",
}
NO_ENVELOPE = {
    "GET /v1/accounts",
    "GET /v1/transactions/bank",
    "GET /v1/transactions/bank/{subAccountId}",
}


@dataclass
class World:
    """A merchant in whose books there is one of everything; calls operations by their name."""

    caller: object
    names: dict[str, str]

    async def call(self, operation, *, body=None, query=""):
        method, _, template = operation.partition(" ")
        body = BODIES.get(operation) if body is None else body
        query = query or QUERIES.get(operation, "")
        if template == "/v1/accounts/{accountId}/terminals":  # the other ones are wallets
            template = template.replace("accountId", "subAccountId")
        target = self.fill(template) + (f"?{self.fill(query)}" if query else "")
        if body is not None:
            body = {name: self.fill(value) for name, value in body.items()}
        return await self.caller.send(method, target, json=body)

    def fill(self, text):
        if isinstance(text, str):
            for name, value in self.names.items():
                text = text.replace(f"{{{name}}}", value)
        return text


@pytest.fixture
async def world(sim, logged_in):
    sim.switches.rate_limit = 0
    world = World(logged_in, {"telco": "mtn", "terminalId": "20001", "accountId": "wallet-ngn"})

    async def do(operation, **body):
        reply = await world.call(operation, body=body or None)
        assert reply.status == 200, (operation, reply.json)
        return reply.json.get("data", reply.json)

    world.names["subAccountId"] = (await do("GET /v1/accounts"))["results"][0]["accountId"]
    await do("POST /v1/accounts/virtual", accountRef="va-1", accountName="Ada")
    world.names["identifier"] = "va-1"
    for n in (1, 2, 3):
        await do("POST /v1/checkout/order", order={"orderReference": f"order-{n}", "amount": MONEY})
    world.names["orderReference"] = "order-3"
    sim.pay(b'{"orderReference": "order-2"}')
    world.names["paid"] = (await do("GET /v1/transactions/accounts"))["results"][0]["id"]
    await do("POST /v1/checkout/checkout-card-detail", orderReference="order-3", cardDetails="1")
    await do("POST /v1/checkout/user-card", orderReference="order-3")
    card = await do("POST /v1/checkout/tokenized-card-data", customerEmail="ada@example.com")
    world.names["tokenKey"] = card["tokenKey"]
    await do("POST /v1/terminals/assign", serialNumber="T-1", terminalId="20001")
    await do("POST /v1/terminals/assign/{subAccountId}", serialNumber="T-sub")
    world.names["mandateId"] = (await do("POST /v1/direct-debits", customerName="A"))["mandateId"]
    sent = await do(
        "POST /v2/transfers/bank/{subAccountId}", **{**BANK, "merchantTxRef": "sub-ref"}
    )
    world.names["sessionId"] = sent["sessionId"]
    world.names["transactionId"] = (
        await do("POST /v1/global-collection/inflow/initiate", amount=5, idempotencyKey="k")
    )["id"]
    return world


def own(sim):
    """Naira of the merchant, in all accounts."""
    balances = sim.show_ledger()["balances"]
    outside = {"outside:NGN", "outside:USD", "dollars", "pending"}
    return sum(Decimal(value) for name, value in balances.items() if name not in outside)


def test_the_table_has_what_the_facts_say():
    assert len(ROWS) + 3 == 109
    assert len(operations()) == 113


@pytest.mark.parametrize("operation", [f"{op.method} {op.template}" for op in operations()][3:])
async def test_every_operation_answers_in_its_envelope(world, operation):
    reply = await world.call(operation)
    assert reply.status == 200, reply.json
    if operation in NO_ENVELOPE:
        assert set(reply.json) == {"results", "cursor"}
        return
    assert reply.json["code"] == ("200" if " /v2/" in operation else "00")
    assert reply.json["description"] == "Success"
    assert reply.json["data"] not in (None, {}, [])
    shown = str(reply.json)
    assert "'_" not in shown  # nothing of the books' own


@pytest.mark.parametrize(
    ("operation", "money"),
    [
        (f"{op.method} {op.template}", op.money)
        for op in operations()
        if "/auth/" not in op.template
    ],
)
async def test_money_moves_exactly_where_the_table_says(sim, world, operation, money):
    sim.switches.card_otp = False
    before, moved = own(sim), len(sim.ledger)
    await world.call(operation)
    amount = Decimal(BODIES.get(operation, {}).get("amount", MONEY))
    assert own(sim) - before == {"OUT": -amount, "CHARGE": amount, "": 0}[money]
    assert (len(sim.ledger) > moved) == bool(money)
    if money:
        assert sim.ledger[moved].operation == operation


@pytest.mark.parametrize(
    "operation",
    [name for name, row in ROWS.items() if row["idempotency_field"] == "merchantTxRef"],
)
async def test_a_used_merchant_reference_is_rejected_everywhere(sim, world, operation):
    body = {**BODIES[operation], "merchantTxRef": "sub-ref"}
    moved = len(sim.ledger)
    reply = await world.call(operation, body=body)
    assert (reply.status, reply.json["description"]) == (400, "Duplicate merchantTxRef")
    del body["merchantTxRef"]
    assert (await world.call(operation, body=body)).status == 400
    assert len(sim.ledger) == moved


@pytest.mark.parametrize(
    "operation",
    [name for name, row in ROWS.items() if row["idempotency_field"] == "idempotencyKey"],
)
async def test_a_used_idempotency_key_replays_its_reply(sim, world, operation):
    first = await world.call(operation)
    moved = len(sim.ledger)
    second = await world.call(operation)
    assert (second.status, second.body) == (200, first.body)
    other = await world.call(operation, body={**ABROAD, "amount": 30000})
    assert (other.status, other.json["code"]) == (400, "400")
    assert (await world.call(operation, body={"amount": 1})).status == 400
    assert len(sim.ledger) == moved


@pytest.mark.parametrize(
    "operation",
    [name for name, row in ROWS.items() if row["idempotency_field"] == "order.orderReference"],
)
async def test_a_used_order_reference_is_rejected(sim, world, operation):
    body = {"order": {"orderReference": "order-1", "amount": 5}, "tokenKey": "{tokenKey}"}
    moved = len(sim.ledger)
    reply = await world.call(operation, body=body)
    assert (reply.status, reply.json["description"]) == (400, "Duplicate orderReference")
    assert len(sim.ledger) == moved


KEYLESS = [
    "POST /v1/terminals/payment-request/{terminalId}",
    "POST /v1/direct-debits/debit-mandate",
]


@pytest.mark.parametrize("operation", KEYLESS)
async def test_where_there_is_no_key_twice_is_twice(sim, world, operation):
    body = {**BODIES[operation], "merchantTxRef": "sub-ref", "amount": 1}
    before = own(sim)
    for _ in range(2):
        assert (await world.call(operation, body=body)).status == 200
    assert own(sim) - before == 2


async def test_a_refusal_uses_no_reference_up(sim, world):
    operation = "POST /v1/checkout/tokenized-card-payment"
    wrong = {**BODIES[operation], "order": {"orderReference": "order-8", "amount": -1}}
    assert (await world.call(operation, body=wrong)).status == 400
    assert (await world.call(operation)).status == 200
    too_much = {**BANK, "merchantTxRef": "big", "amount": 10**9}
    assert (await world.call("POST /v2/transfers/bank", body=too_much)).status == 400
    fits = {**too_much, "amount": 1}
    assert (await world.call("POST /v2/transfers/bank", body=fits)).status == 200


HEADERLESS = [name for name, row in ROWS.items() if row["declares_accountId_header"] == "no"]


@pytest.mark.parametrize("operation", HEADERLESS)
async def test_an_operation_that_declares_no_account_needs_none(world, operation):
    method, _, template = operation.partition(" ")
    body = BODIES.get(operation)

    async def send(account):
        return await world.caller.send(
            method, world.fill(template), json=body, headers={"accountId": account}
        )

    assert (await send("another")).status == 401
    assert (await send(None)).status == 200


async def test_the_others_need_it(world):
    assert len(HEADERLESS) == 13
    reply = await world.caller.balance(headers={"accountId": None})
    assert reply.status == 401


async def test_a_used_account_reference_is_rejected(world):
    body = {"accountRef": "va-1", "accountName": "x"}
    reply = await world.call("POST /v1/accounts/virtual", body=body)
    assert (reply.status, reply.json["description"]) == (400, "accountRef is in use")


async def grow(world, operation):
    """Make sure that a list has three rows more than before."""
    for n in range(3):
        if "terminals" in operation:
            sub = "" if operation.endswith("accounts/terminals") else "/{subAccountId}"
            await world.call(f"POST /v1/terminals/assign{sub}", body={"serialNumber": f"N-{n}"})
        elif "virtual" in operation:
            await world.call(
                "POST /v1/accounts/virtual", body={"accountRef": f"n-{n}", "accountName": "x"}
            )
        elif "tokenized" in operation:
            await world.call("POST /v1/checkout/tokenized-card-data")
        elif "mandates" in operation:
            await world.call("POST /v1/direct-debits")
        elif "transactions" in operation:
            await world.call(
                "POST /v2/transfers/bank/{subAccountId}",
                body={**BANK, "merchantTxRef": f"n-{n}", "amount": n + 1},
            )
        else:
            await world.call("POST /v1/accounts", body={"accountName": f"n-{n}"})


def page_of(reply):
    return reply.json.get("data", reply.json)


@pytest.mark.parametrize(
    "operation", [name for name, row in ROWS.items() if row["paging"] == "limit+cursor"]
)
async def test_a_list_with_a_cursor_is_paged_without_gap_or_double(world, operation):
    await grow(world, operation)
    whole = page_of(await world.call(operation, query="limit=100"))
    assert len(whole["results"]) >= 3
    assert whole["cursor"] == ""
    collected, cursor = [], ""
    for _ in range(20):
        page = page_of(await world.call(operation, query=f"limit=2&cursor={cursor}"))
        assert 0 < len(page["results"]) <= 2
        collected += page["results"]
        cursor = page["cursor"]
        if not cursor:
            break
    assert collected == whole["results"]
    # What comes and goes meanwhile makes neither a gap nor a double.
    first = page_of(await world.call(operation, query="limit=2"))
    await world.call("POST /v2/transfers/bank", body={**BANK, "merchantTxRef": "late"})
    second = page_of(await world.call(operation, query=f"limit=2&cursor={first['cursor']}"))
    assert first["results"] + second["results"] == whole["results"][:4]
    for query in ("limit=0", "limit=x", "limit=-1", "cursor=%%%", "cursor=Zm9v"):
        assert (await world.call(operation, query=query)).status == 400, query


async def test_a_list_that_is_asked_for_with_a_body_is_paged_by_it(world):
    await grow(world, "POST /v1/accounts/virtual/list")
    operation, first = "POST /v1/accounts/virtual/list", {"limit": 3}
    page = page_of(await world.call(operation, body=first))
    rest = page_of(await world.call(operation, body={**first, "cursor": page["cursor"]}))
    assert (len(page["results"]), len(rest["results"]), rest["cursor"]) == (3, 1, "")


@pytest.mark.parametrize(
    "operation", [name for name, row in ROWS.items() if row["paging"] == "page"]
)
async def test_a_list_with_pages_is_paged(world, operation):
    await grow(world, operation)
    first = page_of(await world.call(operation, query="page=1&limit=2"))
    second = page_of(await world.call(operation, query="page=2&limit=2"))
    third = page_of(await world.call(operation, query="page=3&limit=2"))
    whole = page_of(await world.call(operation))
    assert len(whole["results"]) == whole["total"] in {4, 5}
    assert [len(one["results"]) for one in (first, second, third)] == [2, 2, whole["total"] - 4]
    assert [one["total"] for one in (first, second, third)] == [whole["total"]] * 3
    assert whole["results"][:4] == first["results"] + second["results"]
    assert (await world.call(operation, query="page=0")).status == 400


@pytest.mark.parametrize(
    "operation",
    [name for name in ROWS if "{" in name and "{telco}" not in name],
)
async def test_what_is_not_there_is_404(sim, world, operation):
    moved = len(sim.ledger)
    for name in world.names:
        world.names[name] = "nobody"
    reply = await world.call(operation)
    assert (reply.status, reply.json["code"]) == (404, "404")
    assert len(sim.ledger) == moved


@pytest.mark.parametrize("operation", [name for name in ROWS if not name.startswith("GET")])
@pytest.mark.parametrize("body", [b"[1]", b"{", b"\xff"])
async def test_a_body_that_is_no_object_is_400(sim, world, operation, body):
    method, _, template = operation.partition(" ")
    moved = len(sim.ledger)
    reply = await world.caller.send(method, world.fill(template), data=body)
    assert (reply.status, reply.json["code"]) == (400, "400")
    assert len(sim.ledger) == moved


@pytest.mark.parametrize(
    "operation", [f"{op.method} {op.template}" for op in operations() if op.money]
)
@pytest.mark.parametrize(
    "amount", [0, "-1", "0.001", "1e999999", "x", "1_0", " 1 ", "٣", None, True, {}, 10**13]
)
async def test_money_is_never_anything_but_an_amount(sim, world, operation, amount):
    field = next((name for name in ("amount", "order") if name in BODIES[operation]), None)
    if field is None:  # the amount is an earlier call's
        return
    value = {**BODIES[operation]["order"], "amount": amount} if field == "order" else amount
    moved = len(sim.ledger)
    reply = await world.call(operation, body={**BODIES[operation], field: value})
    assert (reply.status, reply.json["code"]) == (400, "400")
    assert len(sim.ledger) == moved
