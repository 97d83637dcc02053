"""Banks, transfers, and the transactions that all money leaves behind.

Paths, codes and references are D or O; fields that the facts do not name, A.
"""

from proxy.simulator.book import NAIRA, Record, outside
from proxy.simulator.call import Call, Handler, Refused, number, refused
from proxy.simulator.limits import Limits, too_many
from proxy.simulator.messages import Reply, reply_json
from proxy.simulator.payments import Payments

_BANKS = 601  # rows; "some 600" (D), 601 seen


class Transfers:
    """The operations below `/transfers` and `/transactions`."""

    def __init__(self, *, payments: Payments, limits: Limits) -> None:
        self._payments = payments
        self._limits = limits
        self._banks = [
            {"code": f"{n:06}", "name": f"Simulated Bank {n}"} for n in range(1, _BANKS + 1)
        ]

    def handlers(self) -> dict[str, Handler]:
        """Every operation here; the v1 transfers are older paths (O)."""
        handlers: dict[str, Handler] = {
            "GET /v1/transfers/banks": self._list_banks,
            "POST /v1/transfers/bank/lookup": self._look_up,
            "GET /v1/transactions/requery/{sessionId}": self._requery_session,
        }
        for tail in ("", "/{subAccountId}"):
            for version in ("v1", "v2"):
                handlers[f"POST /{version}/transfers/bank{tail}"] = self._to_bank
                handlers[f"POST /{version}/transfers/wallet{tail}"] = self._to_wallet
            handlers[f"GET /v1/transactions/bank{tail}"] = self._list_bank
            handlers[f"GET /v1/transactions/accounts{tail}"] = self._list
            handlers[f"POST /v1/transactions/accounts{tail}"] = self._list
            handlers[f"GET /v1/transactions/accounts{tail}/single"] = self._single
        return handlers

    def _list_banks(self, call: Call) -> Reply:
        return call.ok(self._banks)

    def _look_up(self, call: Call) -> Reply:
        given = {name: call.text(name) for name in ("accountNumber", "bankCode")}
        return call.ok({**given, "accountName": "Simulated Holder"})

    def _to_bank(self, call: Call) -> Reply:
        recipient = {name: call.text(name) for name in ("accountNumber", "bankCode")}
        details = {**recipient, **call.texts("accountName", "senderName", "narration")}
        return self._transfer(call, target=outside(NAIRA), kind="transfer", details=details)

    def _to_wallet(self, call: Call) -> Reply:
        receiver = call.text("receiverAccountId")
        try:
            target = self._payments.account(receiver)
        except Refused:  # another merchant's
            target = outside(NAIRA)
        if target == self._payments.payer(call):
            raise refused(400, "receiverAccountId is the sender's own")
        details = {"receiverAccountId": receiver, **call.texts("senderName", "narration")}
        return self._transfer(call, target=target, kind="p2p", details=details)

    def _transfer(self, call: Call, *, target: str, kind: str, details: Record) -> Reply:
        amount, source = call.amount(), self._payments.payer(call)
        call.text("merchantTxRef")
        recipient = details.get("receiverAccountId") or (
            f"{details['bankCode']}/{details['accountNumber']}"
        )
        if not self._limits.may_receive(recipient):
            raise Refused(too_many())
        transaction = self._payments.move(
            call,
            amount=amount,
            source=source,
            target=target,
            kind=kind,
            details=details,
            may_float=True,
        )
        self._limits.received(recipient)
        return self._payments.reply(call, transaction)

    # -- transactions ------------------------------------------------------------------

    def _rows(self, call: Call) -> list[Record]:
        account = call.params.get("subAccountId")
        rows = self._payments.transactions(account and self._payments.account(account))
        for name in ("status", "type", "merchantTxRef"):
            wanted = call.query.get(name) or call.field(name)
            rows = [one for one in rows if not wanted or one.get(name) == wanted]
        return rows

    def _list(self, call: Call) -> Reply:
        return call.ok(self._page(call, self._rows(call)))

    def _list_bank(self, call: Call) -> Reply:
        """Without an envelope, as some lists are (D)."""
        rows = [one for one in self._rows(call) if one["type"] == "transfer"]
        return reply_json(200, content=self._page(call, rows))

    def _page(self, call: Call, rows: list[Record]) -> Record:
        """Amounts are numbers here and texts elsewhere (D/O)."""
        shown = (self._payments.shown(one) for one in rows)
        page = call.cursor_page(shown, newest_first=True)
        page["results"] = [{**one, "amount": number(one["amount"])} for one in page["results"]]
        return page

    def _single(self, call: Call) -> Reply:
        """`merchantTxRef=` for transfers, `orderReference=` for checkout (O)."""
        found = None
        for name in ("merchantTxRef", "orderReference", "id", "sessionId"):
            if call.query.get(name):
                found = self._payments.find(**{name: call.query[name]})
                break
        account = call.params.get("subAccountId")
        if found and account:
            own = self._payments.account(account)
            found = found if own in {found["_from"], found["_to"]} else None
        return call.ok(self._payments.shown(self._payments.requery(found)))

    def _requery_session(self, call: Call) -> Reply:
        found = self._payments.find(sessionId=call.params["sessionId"])
        return call.ok(self._payments.shown(self._payments.requery(found)))
