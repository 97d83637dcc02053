"""Global payouts and collections: money that crosses a border.

Paths and the replaying `idempotencyKey` are D; fields that the facts do not name, and the
one rate, A.
"""

import json
from collections.abc import Callable
from decimal import ROUND_DOWN, Decimal

from proxy.simulator.book import DOLLAR, DOLLARS, NAIRA, PARENT, Book, Record, outside
from proxy.simulator.call import Call, Handler, refused
from proxy.simulator.messages import Reply
from proxy.simulator.payments import Payments

_RATE = Decimal(1500)  # naira for a dollar
_COUNTRIES = (("CD", "CDF"), ("GB", "GBP"), ("US", DOLLAR))


class Abroad:
    """The operations below `/v1/global-payout` and `/v1/global-collection`, sandbox ones too."""

    def __init__(self, book: Book, *, payments: Payments) -> None:
        self._book = book
        self._payments = payments

    def handlers(self) -> dict[str, Handler]:
        """Every operation here."""
        handlers: dict[str, Handler] = {
            "POST /v1/global-payout/transfer/authorize": self._transfer,
            "POST /v1/global-payout/exchange/authorize": self._exchange,
            "POST /v1/global-payout/money/convert": self._convert,
            "GET /v1/global-payout/exchange-rates": self._rates,
            "GET /v1/global-payout/payment-methods": self._methods,
            "GET /v1/global-payout/bank/providers": self._providers,
            "GET /v1/global-payout/transactions/{transactionId}": self._transaction,
            "POST /v1/global-collection/inflow/initiate": self._collect,
            "GET /v1/global-collection/transactions/{transactionId}": self._transaction,
        }
        for sandbox in ("", "/sandbox"):
            root = f"GET /v1{sandbox}"
            handlers[f"{root}/global-payout/accounts"] = self._accounts
            handlers[f"{root}/global-payout/accounts/{{accountId}}"] = self._account
            handlers[f"{root}/global-collection/drc/inflow/providers"] = self._providers
        return handlers

    # -- money -------------------------------------------------------------------------

    def _once(self, call: Call, work: Callable[[], Record]) -> Reply:
        """Do the work; a used `idempotencyKey` replays the reply of its first use (D).

        The same key for a different body, or for another operation, is refused (A).
        """
        key = call.text("idempotencyKey")
        asked = [call.operation, json.dumps(call.form, sort_keys=True)]
        known = self._book.table("keys").get(key)
        if known is None:
            answer = self._payments.shown(work())
            known = self._book.add("keys", key, {"asked": asked, "answer": answer})
        elif known["asked"] != asked:
            raise refused(400, "idempotencyKey was used for another request")
        return call.ok(known["answer"])

    def _transfer(self, call: Call) -> Reply:
        """Paid from the naira account, or from the dollars if `sourceCurrency` says so."""
        amount = call.amount()
        source = {NAIRA: PARENT, DOLLAR: DOLLARS}[self._currency(call)]
        return self._once(
            call,
            lambda: self._payments.move(
                call,
                amount=amount,
                source=source,
                target=outside(self._currency(call)),
                kind="global_payout",
                details=call.texts("destinationCurrency", "beneficiaryName"),
            ),
        )

    def _currency(self, call: Call) -> str:
        currency: str = call.texts("sourceCurrency").get("sourceCurrency", NAIRA)
        if currency not in {NAIRA, DOLLAR}:
            raise refused(400, f"sourceCurrency must be {NAIRA} or {DOLLAR}")
        return currency

    def _exchange(self, call: Call) -> Reply:
        """Naira become dollars, through the outside: each currency keeps its sum."""
        amount = call.amount()
        call.naira_only("sourceCurrency")

        def work() -> Record:
            bought = _dollars(amount)
            if not bought:
                raise refused(400, f"{amount} buys nothing")
            transaction = self._payments.move(
                call,
                amount=amount,
                source=PARENT,
                target=outside(NAIRA),
                kind="global_exchange",
                details={"bought": {"amount": str(bought), "currency": DOLLAR}},
            )
            self._book.move(
                bought,
                source=outside(DOLLAR),
                target=DOLLARS,
                ref=transaction["id"],
                operation=call.operation,
            )
            return transaction

        return self._once(call, work)

    def _collect(self, call: Call) -> Reply:
        """The customer pays at once."""
        amount = call.amount()
        return self._once(
            call,
            lambda: self._payments.move(
                call,
                amount=amount,
                source=outside(NAIRA),
                target=PARENT,
                kind="global_collection",
                details=call.texts("providerId", "customerName"),
            ),
        )

    # -- looking -----------------------------------------------------------------------

    def _convert(self, call: Call) -> Reply:
        """A quotation; nothing moves."""
        amount = call.amount()
        call.naira_only("sourceCurrency")
        quoted = {"amount": str(amount), "converted": str(_dollars(amount)), "rate": str(_RATE)}
        return call.ok(quoted)

    def _rates(self, call: Call) -> Reply:
        return call.ok([{"from": DOLLAR, "to": NAIRA, "rate": str(_RATE)}])

    def _methods(self, call: Call) -> Reply:
        methods = [
            {"country": country, "currency": currency, "method": "BANK_TRANSFER"}
            for country, currency in _COUNTRIES
        ]
        return call.ok(methods)

    def _providers(self, call: Call) -> Reply:
        return call.ok([{"id": f"provider-{n}", "name": f"Provider {n}"} for n in (1, 2, 3)])

    def _rows(self) -> list[Record]:
        return [
            {"accountId": name, "currency": currency, "balance": str(self._book.balances[account])}
            for name, currency, account in (
                ("wallet-ngn", NAIRA, PARENT),
                ("wallet-usd", DOLLAR, DOLLARS),
            )
        ]

    def _accounts(self, call: Call) -> Reply:
        return call.ok(self._rows())

    def _account(self, call: Call) -> Reply:
        wanted = call.params["accountId"]
        row = next((one for one in self._rows() if one["accountId"] == wanted), None)
        if row is None:
            raise refused(404, "Account not found")
        return call.ok(row)

    def _transaction(self, call: Call) -> Reply:
        found = self._payments.find(id=call.params["transactionId"])
        if found is None or not found["type"].startswith("global_"):
            raise refused(404, "Transaction not found")
        return call.ok(self._payments.shown(found))


def _dollars(naira: Decimal) -> Decimal:
    """What naira buy: whole cents, never more."""
    return (naira / _RATE).quantize(Decimal("0.01"), rounding=ROUND_DOWN)
