"""What every operation that moves money shares: transactions, references, settlement."""

from collections.abc import Mapping
from decimal import Decimal

from proxy.data import operations
from proxy.simulator.book import PARENT, PENDING, Book, Record, currency_of
from proxy.simulator.call import Call, refused
from proxy.simulator.messages import Reply, reply_json
from proxy.simulator.switches import Switches

# Elsewhere a merchantTxRef is a field like any other, and twice is twice (D).
_REFERENCED = frozenset(
    f"{op.method} {op.template}" for op in operations() if op.idempotency_field == "merchantTxRef"
)
_IN_FLIGHT, _DONE, _REVERSED = "PENDING_BILLING", "SUCCESS", "REVERSED"


class Payments:
    """Makes transactions and keeps their promises: a reference is used once, money is there.

    Args:
        switches: the behaviour wanted, read anew at each call.
        book: what is remembered.
    """

    def __init__(self, switches: Switches, *, book: Book) -> None:
        self._switches = switches
        self._book = book

    # -- accounts ----------------------------------------------------------------------

    def account(self, account_id: str | None) -> str:
        """The account of the books behind an id; the parent for None.

        Raises:
            Refused: 404, there is none.
        """
        if account_id is None or account_id == self._switches.account_id:
            return PARENT
        if account_id not in self._book.table("accounts"):
            raise refused(404, "Account not found")
        return account_id

    def payer(self, call: Call) -> str:
        """The account that a call's path names, which may pay.

        Raises:
            Refused: there is none, or it is suspended.
        """
        account = self.account(call.params.get("subAccountId"))
        record = self._book.table("accounts").get(account, {})
        if record.get("status", "ACTIVE") != "ACTIVE":
            raise refused(400, "The account is suspended")
        return account

    def shown_id(self, account: str) -> str:
        """The id under which callers know an account of the books."""
        return self._switches.account_id if account == PARENT else account

    # -- money -------------------------------------------------------------------------

    def move(
        self,
        call: Call,
        *,
        amount: Decimal,
        source: str,
        target: str,
        kind: str,
        details: Mapping[str, object],
        may_float: bool = False,
    ) -> Record:
        """Move money for a call, as a transaction.

        Args:
            call: the call; where the endpoint table says so, the `merchantTxRef` in its
                body has to be a new one (D/O).
            amount: how much.
            source: the account of the books that it leaves.
            target: the account it reaches.
            kind: the type that is shown.
            details: what else is shown.
            may_float: `settlement` may keep it in flight.

        Raises:
            Refused: 400, and nothing has moved.
        """
        reference = call.texts("merchantTxRef").get("merchantTxRef")
        if call.operation in _REFERENCED and reference in self._book.table("references"):
            raise refused(400, "Duplicate merchantTxRef")
        if not source.startswith("outside:") and amount > self._book.balances[source]:
            raise refused(400, "Insufficient funds")
        in_flight = may_float and self._switches.settlement != "at-once"
        key = self._book.ids.uuid()
        named = reference or call.field("idempotencyKey") or details.get("orderReference")
        self._book.move(
            amount,
            source=source,
            target=PENDING if in_flight else target,
            ref=str(named or key),
            operation=call.operation,
        )
        own = target if source.startswith("outside:") else source
        record = {
            "id": key,
            "type": kind,
            "status": _IN_FLIGHT if in_flight else _DONE,
            "amount": str(amount),
            "currency": currency_of(source, target),
            "sessionId": self._book.ids.digits(30),
            "timeCreated": self._book.now("micros-z"),
            **({"merchantTxRef": reference} if reference else {}),
            **details,
            # Not shown: where the money is, and since when.
            "_from": source,
            "_to": target,
            "_account": own,
            "_at": self._book.seconds,
        }
        if call.operation in _REFERENCED and reference:
            self._book.add("references", reference, {"transaction": key})
        return self._book.add("transactions", key, record)

    def reply(self, call: Call, transaction: Record) -> Reply:
        """What the call that made a transaction gets: 201 if v2 has it in flight (D)."""
        data = self.shown(transaction)
        if transaction["status"] != _IN_FLIGHT:
            # `status` is false although all is well: only `code` can be relied on (D).
            return call.ok(data, message="success", status=False)
        if call.code != "200":
            return call.ok(data)
        return reply_json(201, content={"code": "201", "description": "PROCESSING", "data": data})

    def shown(self, transaction: Record) -> Record:
        """A transaction as callers see it."""
        return {**transaction, "accountId": self.shown_id(transaction["_account"])}

    # -- looking back ------------------------------------------------------------------

    def transactions(self, account: str | None = None) -> list[Record]:
        """The transactions of an account, its receipts included, or of all; newest first."""
        every = list(self._book.table("transactions").values())[::-1]
        return [one for one in every if account in {None, one["_from"], one["_to"]}]

    def find(self, **wanted: str) -> Record | None:
        """The first transaction with a field of this value."""
        ((name, value),) = wanted.items()
        if name == "merchantTxRef" and (known := self._book.table("references").get(value)):
            return self._book.table("transactions")[known["transaction"]]
        every = self._book.table("transactions").values()
        return next((one for one in every if one.get(name) == value), None)

    def requery(self, transaction: Record | None) -> Record:
        """A transaction that was asked after, which may settle it.

        Raises:
            Refused: 404, it is unknown, or too young to be known (D/O).
        """
        if transaction is None:
            raise refused(404, "Transaction not found")
        age = self._book.seconds - transaction["_at"]
        if age < self._switches.requery_delay:
            raise refused(404, "Transaction not found")
        if transaction["status"] == _IN_FLIGHT and age >= self._switches.settle_after:
            self._settle(transaction)
        return transaction

    def _settle(self, transaction: Record) -> None:
        back = self._switches.settlement == "reversed"
        self._book.move(
            Decimal(transaction["amount"]),
            source=PENDING,
            target=transaction["_from"] if back else transaction["_to"],
            ref=str(transaction.get("merchantTxRef", transaction["id"])),
            operation="reversal" if back else "settlement",
        )
        self._book.change(transaction, status=_REVERSED if back else _DONE)
