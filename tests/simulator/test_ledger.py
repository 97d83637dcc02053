"""Ten thousand random calls with faults: money is conserved, and nobody is lied to.

What a caller was told has to be in the books; what it was not told may be, once.
"""

import asyncio
import random
from collections import Counter
from decimal import Decimal

import pytest

from proxy.simulator import Switches, parse_fault
from proxy.simulator.simulator import Simulator

CALLS = 10_000
CALLERS = 20
SETTLEMENTS = ("at-once", "on-requery", "reversed")
FAULTS = [
    "lose-reply method=POST probability=0.03",
    "drop-before probability=0.02",
    "drop-during probability=0.02",
    "drop-after probability=0.02",
    "cut bytes=40 probability=0.02",
    "garbage probability=0.02",
    "stray-byte probability=0.02",
    "debit-then-expired method=POST probability=0.02",
    "unauthorized probability=0.02",
    "too-many-requests probability=0.02",
    "delay seconds=0.001 work=true probability=0.02",
    "revoke probability=0.005",
    "expire probability=0.005",
]
LOST = (ConnectionError, asyncio.IncompleteReadError, ValueError)


def family(path):
    """What a reference is used up by."""
    if "/global-" in path:
        return "key"
    if "debit-mandate" in path or "payment-request" in path or "refund" in path:
        return "none"
    return "order" if "/checkout/" in path else "merchant"


def call(rng, *, ref, sub):
    """A random call: method, path, body."""
    amount = str(Decimal(rng.randrange(1, 500_000)) / 100)
    tail = rng.choice(["", f"/{sub}"])
    bank = {"amount": amount, "accountNumber": "1", "bankCode": "2", "merchantTxRef": ref}
    return rng.choice(
        [
            ("POST", f"/v2/transfers/bank{tail}", bank),
            ("POST", f"/v1/transfers/bank{tail}", bank),
            (
                "POST",
                f"/v2/transfers/wallet{tail}",
                {
                    "amount": amount,
                    "receiverAccountId": rng.choice([sub, "x"]),
                    "merchantTxRef": ref,
                },
            ),
            ("POST", f"/v2/bill/topup{tail}", {"amount": amount, "merchantTxRef": ref}),
            ("POST", f"/v1/bill/data{tail}", {"amount": amount, "merchantTxRef": ref}),
            (
                "POST",
                "/v1/direct-debits/debit-mandate",
                {"amount": amount, "mandateId": "{mandate}", "merchantTxRef": ref},
            ),
            ("POST", "/v1/terminals/payment-request/t", {"amount": amount}),
            ("POST", "/v1/checkout/refund", {"transactionId": "{paid}", "amount": "0.05"}),
            (
                "POST",
                "/v1/checkout/tokenized-card-payment",
                {"order": {"orderReference": ref, "amount": amount}, "tokenKey": "{card}"},
            ),
            (
                "POST",
                "/v1/global-collection/inflow/initiate",
                {"amount": amount, "idempotencyKey": ref},
            ),
            (
                "POST",
                "/v1/global-payout/exchange/authorize",
                {"amount": amount, "idempotencyKey": ref},
            ),
            (
                "POST",
                "/v1/global-payout/transfer/authorize",
                {"amount": "0.50", "sourceCurrency": "USD", "idempotencyKey": ref},
            ),
            ("GET", f"/v1/transactions/accounts/single?merchantTxRef={ref}", None),
            ("GET", "/v1/accounts/balance", None),
        ]
    )


@pytest.mark.timeout(120)
async def test_money_is_conserved_over_ten_thousand_random_calls_with_faults(make_caller):
    rng = random.Random(20261124)
    switches = Switches(rate_limit=0, recipient_limit=0, lifetime=86400)
    told = set()  # references that were acknowledged, by what they are used up by
    lost = logins = 0
    door = asyncio.Lock()

    async with Simulator(switches) as sim:
        first = make_caller(sim)
        await first.issue()
        start = sim.show_ledger()["balances"]
        sub = (await first.send("GET", "/v1/accounts")).json["results"][0]["accountId"]
        card = (await first.send("POST", "/v1/checkout/tokenized-card-data", json={})).json
        mandate = (await first.send("POST", "/v1/direct-debits", json={})).json
        await first.send(
            "POST", "/v1/terminals/assign", json={"serialNumber": "t", "terminalId": "t"}
        )
        paid = await first.send(
            "POST",
            "/v1/checkout/tokenized-card-payment",
            json={
                "order": {"orderReference": "first", "amount": 10},
                "tokenKey": card["data"]["tokenKey"],
            },
        )
        fills = {
            "{card}": card["data"]["tokenKey"],
            "{mandate}": mandate["data"]["mandateId"],
            "{paid}": paid.json["data"]["id"],
        }
        before = len(sim.received)
        for fault in FAULTS:
            sim.inject(parse_fault(fault))
        refs = [f"ref-{n}" for n in range(CALLS // 2)]  # so that many are used again

        async def callers(count):
            nonlocal lost, logins
            caller = make_caller(sim)
            for _ in range(count):
                switches.settlement = rng.choice(SETTLEMENTS)
                ref = rng.choice(refs)
                method, path, body = call(rng, ref=ref, sub=sub)
                if body:
                    body = {name: fills.get(str(value), value) for name, value in body.items()}
                used = first.token
                try:
                    reply = await caller.send(method, path, json=body, token=used)
                    if reply.status == 401:
                        async with door:  # one logs in for all of them
                            if first.token == used:
                                await first.issue()
                                logins += 1
                except LOST:
                    lost += 1
                    continue
                if method == "POST" and reply.status in {200, 201} and family(path) != "none":
                    told.add((family(path), ref))

        await asyncio.gather(*(callers(CALLS // CALLERS) for _ in range(CALLERS)))
        received = len(sim.received) - before
        ledger = sim.show_ledger()

    # Every fault took part, and so did every call.
    assert received >= CALLS + logins
    assert lost > CALLS * 0.05
    assert logins > 10
    assert len(told) > 1000
    # The books, replayed from their movements, give the balances that are shown.
    balances = {name: Decimal(amount) for name, amount in start.items()}
    sums = Counter()
    for one in ledger["movements"]:
        amount = Decimal(one["amount"])
        assert amount > 0
        balances[one["source"]] -= amount
        balances[one["target"]] += amount
        for name in ("source", "target"):
            if not one[name].startswith("outside:"):
                assert balances[one[name]] >= 0, one
        sums[one["currency"]] += 1
    assert {name: str(amount) for name, amount in balances.items()} == ledger["balances"]
    operations = {one["operation"] for one in ledger["movements"]}
    assert "POST /v1/terminals/payment-request/{terminalId}" in operations
    # A refund never exceeds what was paid, however often it is asked for.
    refunds = [one for one in ledger["movements"] if one["operation"] == "POST /v1/checkout/refund"]
    assert 0 < sum(Decimal(one["amount"]) for one in refunds) <= 10
    # Nothing is made or lost, in any currency.
    dollars = {"dollars", "outside:USD"}
    assert sum(balances[name] for name in dollars) == 0
    assert sum(amount for name, amount in balances.items() if name not in dollars) == 0
    assert min(sums["NGN"], sums["USD"]) > 100
    # What was told is in the books, and no reference moved money twice.
    moved = Counter(
        (family(one["operation"]), one["ref"])
        for one in ledger["movements"]
        if one["operation"] not in {"settlement", "reversal"}
        and family(one["operation"]) != "none"
        and one["ref"] in refs
    )
    assert told <= set(moved)
    assert set(moved.values()) == {1}
    assert len(moved) > len(told)  # some replies were lost after the work
    # What was reversed came back whole.
    back = [one for one in ledger["movements"] if one["operation"] == "reversal"]
    there = {one["ref"]: one for one in ledger["movements"] if one["target"] == "pending"}
    assert back
    for one in back:
        assert one["target"] == there[one["ref"]]["source"]
        assert one["amount"] == there[one["ref"]]["amount"]
