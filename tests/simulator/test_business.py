"""How the simulated business hangs together: orders, cards, settlement, accounts, mandates."""

import json
from decimal import Decimal

import pytest

START = Decimal("1000000.00")
CARD = '{"cardPan":"5060990580000217499","cardCVV":"123"}'


async def order(caller, reference="order-1", amount="25.50"):
    body = {"order": {"orderReference": reference, "amount": amount}}
    reply = await caller.send("POST", "/v1/checkout/order", json=body)
    assert reply.status == 200, reply.json
    return reply.json["data"]


async def sub_account(caller):
    return (await caller.send("GET", "/v1/accounts")).json["results"][0]["accountId"]


# -- checkout --------------------------------------------------------------------------


async def test_a_card_is_charged_once_its_otp_has_come(sim, logged_in):
    await order(logged_in)
    detail = {"orderReference": "order-1", "cardDetails": CARD}
    reply = await logged_in.send("POST", "/v1/checkout/checkout-card-detail", json=detail)
    assert reply.json["data"]["responseCode"] == "T0"
    assert sim.balance == START
    otp = {"orderReference": "order-1", "otp": "1234"}
    reply = await logged_in.send("POST", "/v1/checkout/checkout-card-otp", json=otp)
    assert reply.json["data"]["responseCode"] == "00"
    assert sim.balance == START + Decimal("25.50")
    again = await logged_in.send("POST", "/v1/checkout/checkout-card-otp", json=otp)
    assert (again.status, sim.balance) == (400, START + Decimal("25.50"))


async def test_an_otp_before_the_card_is_refused(sim, logged_in):
    await order(logged_in)
    otp = {"orderReference": "order-1", "otp": "1234"}
    assert (await logged_in.send("POST", "/v1/checkout/checkout-card-otp", json=otp)).status == 400
    assert sim.ledger == []


async def test_a_card_number_is_not_kept(sim, logged_in):
    await order(logged_in)
    detail = {"orderReference": "order-1", "cardDetails": CARD}
    await logged_in.send("POST", "/v1/checkout/checkout-card-detail", json=detail)
    await logged_in.send("POST", "/v1/checkout/user-card", json={"orderReference": "order-1"})
    everything = str(sim._book.dump())
    assert "5060990580000217499" not in everything
    assert "cardCVV" not in everything


async def test_an_order_is_seen_as_paid_and_can_be_requeried(sim, logged_in):
    await order(logged_in)
    path = "/v1/checkout/transaction?orderReference=order-1"
    before = (await logged_in.send("GET", path)).json["data"]
    sim.pay(b'{"orderReference": "order-1"}')
    after = (await logged_in.send("GET", path)).json["data"]
    assert (before["success"], before["transactionDetails"]) == (False, None)
    assert after["success"]
    single = "/v1/transactions/accounts/single?orderReference=order-1"
    assert (await logged_in.send("GET", single)).json["data"] == after["transactionDetails"]


@pytest.mark.parametrize("path", ["order/cancel", "transaction/cancel"])
async def test_a_cancelled_order_cannot_be_paid(sim, logged_in, path):
    await order(logged_in)
    body = {"orderReference": "order-1"}
    assert (await logged_in.send("POST", f"/v1/checkout/{path}", json=body)).status == 200
    assert sim.pay(b'{"orderReference": "order-1"}').status == 400
    assert (await logged_in.send("POST", f"/v1/checkout/{path}", json=body)).status == 400
    assert sim.ledger == []


async def test_refunds_never_exceed_what_was_paid(sim, logged_in):
    await order(logged_in)
    sim.pay(b'{"orderReference": "order-1"}')
    rows = (await logged_in.send("GET", "/v1/transactions/accounts")).json["data"]["results"]
    paid = rows[0]["id"]

    async def refund(**more):
        body = {"transactionId": paid, **more}
        return (await logged_in.send("POST", "/v1/checkout/refund", json=body)).status

    assert await refund(amount="10") == 200
    assert await refund(amount="15.51") == 400
    assert await refund() == 200  # all that is left
    assert await refund() == 400
    assert sim.balance == START
    assert [str(one.amount) for one in sim.ledger] == ["25.50", "10.00", "15.50"]


async def test_only_what_was_paid_at_checkout_can_be_refunded(sim, logged_in):
    sent = await logged_in.transfer()
    body = {"transactionId": sent.json["data"]["id"]}
    assert (await logged_in.send("POST", "/v1/checkout/refund", json=body)).status == 404


async def test_a_deleted_card_cannot_be_charged(sim, logged_in):
    path = "/v1/checkout/tokenized-card-data"
    card = (await logged_in.send("POST", path, json={})).json["data"]["tokenKey"]
    pay = {"order": {"amount": 5}, "tokenKey": card}
    assert (await logged_in.send("DELETE", path, json={"tokenKey": card})).status == 200
    reply = await logged_in.send("POST", "/v1/checkout/tokenized-card-payment", json=pay)
    assert reply.status == 404
    assert (await logged_in.send("DELETE", path, json={"tokenKey": card})).status == 404
    assert sim.ledger == []


# -- transfers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settlement", "status", "back"), [("on-requery", "SUCCESS", 0), ("reversed", "REVERSED", 1)]
)
@pytest.mark.parametrize("path", ["/v2/transfers/bank", "/v2/bill/topup"])
async def test_money_in_flight_settles_on_requery(sim, logged_in, path, settlement, status, back):
    sim.switches.settlement = settlement
    sent = await logged_in.transfer(path=path)
    assert (sent.status, sent.json["code"]) == (201, "201")
    assert sent.json["data"]["status"] == "PENDING_BILLING"
    assert sim.balance == START - Decimal("250.50")
    assert (await logged_in.transfer(path=path)).status == 400  # the reference is used
    single = "/v1/transactions/accounts/single?merchantTxRef=ref-1"
    for _ in range(2):
        assert (await logged_in.send("GET", single)).json["data"]["status"] == status
    session = sent.json["data"]["sessionId"]
    requery = await logged_in.send("GET", f"/v1/transactions/requery/{session}")
    assert requery.json["data"]["status"] == status
    assert sim.balance == START - (1 - back) * Decimal("250.50")
    assert [one.target for one in sim.ledger] == ["pending", "parent" if back else "outside:NGN"]


async def test_on_v1_money_in_flight_looks_like_a_success(sim, logged_in):
    sim.switches.settlement = "on-requery"
    sent = await logged_in.transfer(path="/v1/transfers/bank")
    assert (sent.status, sent.json["code"]) == (200, "00")
    assert sent.json["data"]["status"] == "PENDING_BILLING"


async def test_money_can_stay_in_flight_for_a_while(sim, logged_in, clock):
    sim.switches.settlement, sim.switches.settle_after = "on-requery", 90
    await logged_in.transfer()
    single = "/v1/transactions/accounts/single?merchantTxRef=ref-1"
    for _ in range(3):
        assert (await logged_in.send("GET", single)).json["data"]["status"] == "PENDING_BILLING"
        clock.now += 30
    assert (await logged_in.send("GET", single)).json["data"]["status"] == "SUCCESS"


async def test_a_requery_can_come_too_early(sim, logged_in, clock):
    sim.switches.requery_delay = 1.5
    await logged_in.transfer()
    single = "/v1/transactions/accounts/single?merchantTxRef=ref-1"
    clock.now += 1
    assert (await logged_in.send("GET", single)).status == 404
    clock.now += 0.5
    assert (await logged_in.send("GET", single)).status == 200


async def test_a_transfer_of_a_sub_account_is_paid_by_it(sim, logged_in):
    sub = await sub_account(logged_in)
    reply = await logged_in.transfer(path=f"/v2/transfers/bank/{sub}")
    assert reply.json["data"]["accountId"] == sub
    balance = await logged_in.send("GET", f"/v1/accounts/{sub}/balance")
    assert balance.json["data"]["amount"] == "49749.50"
    assert sim.balance == START
    too_much = await logged_in.transfer("ref-2", path=f"/v2/transfers/bank/{sub}", amount=60000)
    assert too_much.json["description"] == "Insufficient funds"


async def test_a_wallet_transfer_reaches_the_other_account(sim, logged_in):
    sub = await sub_account(logged_in)
    form = {"amount": 100, "merchantTxRef": "w-1", "receiverAccountId": sub}
    assert (await logged_in.send("POST", "/v2/transfers/wallet", json=form)).status == 200
    balances = sim.show_ledger()["balances"]
    assert (balances["parent"], balances[sub]) == ("999900.00", "50100.00")
    path = f"/v1/transactions/accounts/{sub}"
    [received] = (await logged_in.send("GET", path)).json["data"]["results"]
    assert received["merchantTxRef"] == "w-1"
    own = {**form, "merchantTxRef": "w-2"}
    reply = await logged_in.send("POST", f"/v2/transfers/wallet/{sub}", json=own)
    assert reply.status == 400


async def test_a_suspended_account_pays_nothing_until_it_is_active_again(sim, logged_in):
    sub = await sub_account(logged_in)
    await logged_in.send("PUT", f"/v1/accounts/suspend/{sub}")
    refused = await logged_in.transfer(path=f"/v2/transfers/bank/{sub}")
    assert (refused.status, sim.ledger) == (400, [])
    await logged_in.send("PUT", f"/v1/accounts/reactivate/{sub}")
    assert (await logged_in.transfer(path=f"/v2/transfers/bank/{sub}")).status == 200


async def test_transactions_are_found_by_what_they_are(sim, logged_in):
    await logged_in.transfer("ref-1")
    await logged_in.transfer("ref-2")
    await logged_in.transfer("bill-1", path="/v2/bill/topup")
    path = "/v1/transactions/accounts"
    every = (await logged_in.send("GET", path)).json["data"]["results"]
    assert [one["merchantTxRef"] for one in every] == ["bill-1", "ref-2", "ref-1"]
    assert [one["amount"] for one in every] == [250.5] * 3  # numbers here
    by_type = await logged_in.send("GET", f"{path}?type=topup")
    assert len(by_type.json["data"]["results"]) == 1
    by_body = await logged_in.send("POST", path, json={"merchantTxRef": "ref-2"})
    assert [one["merchantTxRef"] for one in by_body.json["data"]["results"]] == ["ref-2"]
    of_banks = await logged_in.send("GET", "/v1/transactions/bank")
    assert len(of_banks.json["results"]) == 2


# -- accounts --------------------------------------------------------------------------


async def test_a_new_sub_account_is_empty_and_in_the_list(logged_in):
    opened = await logged_in.send("POST", "/v1/accounts", json={"accountName": "Third"})
    account = opened.json["data"]["accountId"]
    rows = (await logged_in.send("GET", "/v1/accounts")).json["results"]
    assert [row["accountName"] for row in rows][-1] == "Third"
    balance = await logged_in.send("GET", f"/v1/accounts/{account}/balance")
    assert balance.json["data"]["amount"] == "0.00"
    details = await logged_in.send("GET", f"/v1/accounts/sub-account-details?accountId={account}")
    assert details.json["data"]["accountName"] == "Third"


async def test_the_parent_has_no_settings_of_a_sub_account(sim, logged_in):
    parent = sim.switches.account_id
    assert (await logged_in.send("PUT", f"/v1/accounts/suspend/{parent}")).status == 400
    assert (await logged_in.send("GET", f"/v1/accounts/{parent}/balance")).status == 200


async def test_a_virtual_account_is_found_by_reference_and_number_until_it_is_closed(
    sim, logged_in
):
    form = {"accountRef": "va/1", "accountName": "Ada"}
    opened = await logged_in.send("POST", "/v1/accounts/virtual", json=form)
    number = opened.json["data"]["bankAccountNumber"]
    for identifier in ("va%2F1", number):
        found = await logged_in.send("GET", f"/v1/accounts/virtual/{identifier}")
        assert found.json["data"]["accountRef"] == "va/1"
    paid = sim.pay(f'{{"accountNumber": "{number}", "amount": "12.5"}}'.encode())
    assert (paid.status, sim.balance) == (200, START + Decimal("12.5"))
    assert (await logged_in.send("DELETE", f"/v1/accounts/virtual/{number}")).status == 200
    assert (await logged_in.send("GET", f"/v1/accounts/virtual/{number}")).status == 404
    assert sim.pay(f'{{"accountNumber": "{number}", "amount": 1}}'.encode()).status == 404


async def test_a_virtual_account_of_a_sub_account_pays_into_it(sim, logged_in):
    sub = await sub_account(logged_in)
    form = {"accountRef": "va-1", "accountName": "Ada"}
    opened = await logged_in.send("POST", f"/v1/accounts/virtual/{sub}", json=form)
    number = opened.json["data"]["bankAccountNumber"]
    sim.pay(f'{{"accountNumber": "{number}", "amount": 5}}'.encode())
    assert sim.show_ledger()["balances"][sub] == "50005.00"


# -- the rest --------------------------------------------------------------------------


async def test_a_lookup_can_fail_inside_http_200(logged_in):
    for path in ("/v1/bill/data-plan/nobody", "/v1/bill/cabletv/lookup"):
        reply = await logged_in.send("GET", path)
        assert (reply.status, reply.json["code"]) == (200, "400")


async def test_a_terminal_is_assigned_once_and_pays_its_account(sim, logged_in):
    sub = await sub_account(logged_in)
    form = {"serialNumber": "T-1", "terminalId": "200"}
    assert (await logged_in.send("POST", f"/v1/terminals/assign/{sub}", json=form)).status == 200
    assert (await logged_in.send("POST", "/v1/terminals/assign", json=form)).status == 400
    pay = await logged_in.send("POST", "/v1/terminals/payment-request/200", json={"amount": 7})
    assert pay.status == 200
    assert sim.show_ledger()["balances"][sub] == "50007.00"
    assert (await logged_in.send("POST", "/v1/terminals/unassign", json=form)).status == 404
    assert (await logged_in.send("POST", f"/v1/terminals/unassign/{sub}", json=form)).status == 200
    assert (await logged_in.send("POST", "/v1/terminals/assign", json=form)).status == 200


async def test_a_suspended_mandate_is_not_debited(sim, logged_in):
    mandate = (await logged_in.send("POST", "/v1/direct-debits")).json["data"]["mandateId"]
    change = {"mandateId": mandate, "status": "suspended"}
    path = "/v1/direct-debits/update-status"
    assert (await logged_in.send("PUT", path, json=change)).status == 200
    assert (await logged_in.send("PUT", path, json={**change, "status": "?"})).status == 400
    status = await logged_in.send("GET", f"/v1/direct-debits/status?mandateId={mandate}")
    assert status.json["data"]["mandateStatus"] == "SUSPENDED"
    debit = {"mandateId": mandate, "amount": 5}
    reply = await logged_in.send("POST", "/v1/direct-debits/debit-mandate", json=debit)
    assert (reply.status, sim.ledger) == (400, [])


async def test_exchanged_naira_become_dollars_that_can_be_sent(sim, logged_in):
    root = "/v1/global-payout"
    send = {"amount": "10.00", "sourceCurrency": "USD", "idempotencyKey": "s"}
    refused = await logged_in.send("POST", f"{root}/transfer/authorize", json=send)
    assert refused.json["description"] == "Insufficient funds"
    buy = {"amount": 15000, "idempotencyKey": "b"}
    assert (await logged_in.send("POST", f"{root}/exchange/authorize", json=buy)).status == 200
    wallet = await logged_in.send("GET", f"{root}/accounts/wallet-usd")
    assert wallet.json["data"]["balance"] == "10.00"
    assert (await logged_in.send("POST", f"{root}/transfer/authorize", json=send)).status == 200
    balances = sim.show_ledger()["balances"]
    assert (balances["parent"], balances["dollars"]) == ("985000.00", "0.00")
    for currency in ("NGN", "USD"):
        mine = {"NGN": START + 100000 - 15000, "USD": 0}[currency]
        assert Decimal(balances[f"outside:{currency}"]) == -mine


async def test_what_buys_nothing_is_refused_and_its_key_stays_free(sim, logged_in):
    path = "/v1/global-payout/exchange/authorize"
    little = {"amount": "0.01", "idempotencyKey": "k"}
    assert (await logged_in.send("POST", path, json=little)).status == 400
    enough = {"amount": 1500, "idempotencyKey": "k"}
    assert (await logged_in.send("POST", path, json=enough)).status == 200
    assert len(sim.ledger) == 2


async def test_an_order_for_a_sub_account_pays_it_and_is_refunded_by_it(sim, logged_in):
    sub = await sub_account(logged_in)
    body = {"order": {"orderReference": "o", "amount": 7, "accountId": sub}}
    assert (await logged_in.send("POST", "/v1/checkout/order", json=body)).status == 200
    sim.pay(b'{"orderReference": "o"}')
    balance = await logged_in.send("GET", f"/v1/accounts/balance?accountId={sub}")
    assert balance.json["data"]["amount"] == "50007.00"
    rows = (await logged_in.send("GET", f"/v1/transactions/accounts/{sub}")).json["data"]["results"]
    refund = {"transactionId": rows[0]["id"]}
    assert (await logged_in.send("POST", "/v1/checkout/refund", json=refund)).status == 200
    assert (sim.balance, sim.show_ledger()["balances"][sub]) == (START, "50000.00")
    body["order"] |= {"orderReference": "p", "accountId": "nobody"}
    assert (await logged_in.send("POST", "/v1/checkout/order", json=body)).status == 404


async def test_an_order_can_be_paid_by_bank_transfer(sim, logged_in):
    await order(logged_in)
    account = await logged_in.send("GET", "/v1/checkout/get-checkout-kta/order-1")
    number = account.json["data"]["accountNumber"]
    assert sim.pay(f'{{"accountNumber": "{number}"}}'.encode()).status == 200
    assert sim.pay(f'{{"accountNumber": "{number}"}}'.encode()).status == 400
    assert sim.balance == START + Decimal("25.50")


async def test_what_is_owned_stays_owned_under_another_account_id(sim, logged_in):
    form = {"accountRef": "va-1", "accountName": "Ada"}
    opened = await logged_in.send("POST", "/v1/accounts/virtual", json=form)
    terminal = {"serialNumber": "T-1", "terminalId": "200"}
    await logged_in.send("POST", "/v1/terminals/assign", json=terminal)
    sim.switches.account_id = "another-account"
    await logged_in.issue()
    number = opened.json["data"]["bankAccountNumber"]
    assert sim.pay(f'{{"accountNumber": "{number}", "amount": 5}}'.encode()).status == 200
    shown = await logged_in.send("GET", "/v1/accounts/virtual/va-1")
    assert shown.json["data"]["accountHolderId"] == "another-account"
    rows = (await logged_in.send("GET", "/v1/accounts/terminals")).json["data"]["results"]
    assert [one["accountId"] for one in rows] == ["another-account"]
    assert (await logged_in.send("GET", "/v1/accounts/parent/balance")).status == 404


async def test_a_terminal_id_is_one_terminals(logged_in):
    form = {"serialNumber": "T-1", "terminalId": "200"}
    assert (await logged_in.send("POST", "/v1/terminals/assign", json=form)).status == 200
    other = {**form, "serialNumber": "T-2"}
    assert (await logged_in.send("POST", "/v1/terminals/assign", json=other)).status == 400


async def test_a_deleted_mandate_stays_deleted(logged_in):
    mandate = (await logged_in.send("POST", "/v1/direct-debits")).json["data"]["mandateId"]
    path = "/v1/direct-debits/update-status"
    for status, answer in (("deleted", 200), ("active", 400)):
        change = {"mandateId": mandate, "status": status}
        assert (await logged_in.send("PUT", path, json=change)).status == answer


async def test_nothing_nested_too_deep_is_taken(logged_in):
    sub = await sub_account(logged_in)
    for depth, status in ((30, 200), (40, 400), (900, 400), (100_000, 400)):
        body = b'{"a":' * depth + b"1" + b"}" * depth
        reply = await logged_in.send("PUT", f"/v1/accounts/{sub}/access", data=body)
        assert reply.status == status
    assert (await logged_in.send("GET", "/v1/accounts")).status == 200


async def test_dollars_are_never_rounded_up(sim, logged_in):
    form = {"amount": "22.50", "idempotencyKey": "k"}
    await logged_in.send("POST", "/v1/global-payout/exchange/authorize", json=form)
    assert sim.show_ledger()["balances"]["dollars"] == "0.01"
    quoted = await logged_in.send("POST", "/v1/global-payout/money/convert", json={"amount": 44})
    assert quoted.json["data"]["converted"] == "0.02"


@pytest.mark.parametrize("currency", ["EUR", "USD"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/checkout/order", {"order": {"amount": 1, "currency": "{}"}}),
        ("/v1/accounts/virtual", {"accountRef": "x", "accountName": "x", "currency": "{}"}),
        (
            "/v1/global-payout/exchange/authorize",
            {"amount": 3000, "idempotencyKey": "k", "sourceCurrency": "{}"},
        ),
        ("/v1/global-payout/money/convert", {"amount": 10, "sourceCurrency": "{}"}),
    ],
)
async def test_a_currency_that_is_not_simulated_is_refused(sim, logged_in, path, body, currency):
    body = json.loads(json.dumps(body).replace("{}", currency))
    assert (await logged_in.send("POST", path, json=body)).status == 400
    assert sim.ledger == []


@pytest.mark.parametrize("currency", ["EUR", 7])
async def test_a_currency_that_there_is_not_is_refused(sim, logged_in, currency):
    form = {"amount": 1, "idempotencyKey": "k", "sourceCurrency": currency}
    reply = await logged_in.send("POST", "/v1/global-payout/transfer/authorize", json=form)
    assert reply.status == 400
    form = {"accountRef": "x", "accountName": "x", "currency": currency}
    assert (await logged_in.send("POST", "/v1/accounts/virtual", json=form)).status == 400


async def test_only_money_moves_before_a_token_is_refused(sim, logged_in):
    sim.switches.debit_before_auth_error = True
    mandate = (await logged_in.send("POST", "/v1/direct-debits")).json["data"]["mandateId"]
    sim.revoke()
    debit = {"mandateId": mandate, "amount": 5}
    await logged_in.send("POST", "/v1/direct-debits/debit-mandate", json=debit)
    change = {"mandateId": mandate, "status": "DELETED"}
    await logged_in.send("PUT", "/v1/direct-debits/update-status", json=change)
    assert [one.operation for one in sim.ledger] == ["POST /v1/direct-debits/debit-mandate"]
    await logged_in.issue()
    shown = await logged_in.send("GET", f"/v1/direct-debits/{mandate}")
    assert shown.json["data"]["status"] == "ACTIVE"
