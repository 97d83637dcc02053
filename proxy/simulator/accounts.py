"""Parent, sub-accounts and virtual accounts. Paths are D; fields that the facts do not name, A."""

from proxy.simulator.book import NAIRA, PARENT, Book, Record, outside
from proxy.simulator.call import Call, Handler, refused
from proxy.simulator.messages import Reply, reply_json
from proxy.simulator.payments import Payments

_BANK = "Simulated Microfinance Bank"


class Accounts:
    """The operations below `/v1/accounts`, terminals left out."""

    def __init__(self, book: Book, *, payments: Payments) -> None:
        self._book = book
        self._payments = payments

    def handlers(self) -> dict[str, Handler]:
        """Every operation here."""
        return {
            "GET /v1/accounts": self._list,
            "POST /v1/accounts": self._open,
            "GET /v1/accounts/sub-account-details": self._details,
            "GET /v1/accounts/parent": self._parent,
            "GET /v1/accounts/balance": self._balance,
            "GET /v1/accounts/{subAccountId}/balance": self._balance,
            "PUT /v1/accounts/suspend/{subAccountId}": self._suspend,
            "PUT /v1/accounts/reactivate/{subAccountId}": self._reactivate,
            "PUT /v1/accounts/{subAccountId}/access": self._access,
            "POST /v1/accounts/virtual": self._open_virtual,
            "POST /v1/accounts/virtual/{subAccountId}": self._open_virtual,
            "POST /v1/accounts/virtual/list": self._list_virtual,
            "PUT /v1/accounts/virtual/{identifier}": self._change_virtual,
            "GET /v1/accounts/virtual/{identifier}": self._show_virtual,
            "DELETE /v1/accounts/virtual/{identifier}": self._close_virtual,
        }

    def _shown(self, account: str) -> Record:
        record = self._book.table("accounts").get(account, {"accountName": "Simulated Business"})
        return {"accountId": self._payments.shown_id(account), "status": "ACTIVE", **record}

    def _list(self, call: Call) -> Reply:
        """Without an envelope, as some lists are (D)."""
        page = call.cursor_page(self._shown(account) for account in self._book.table("accounts"))
        return reply_json(200, content=page)

    def _open(self, call: Call) -> Reply:
        record = {"accountName": call.text("accountName"), **call.texts("accountRef")}
        account = self._book.ids.uuid()
        self._book.open_account(account, record)
        return call.ok(self._shown(account))

    def _details(self, call: Call) -> Reply:
        account = self._payments.account(call.query.get("accountId", ""))
        return call.ok(self._shown(account))

    def _parent(self, call: Call) -> Reply:
        return call.ok(self._shown(PARENT))

    def _balance(self, call: Call) -> Reply:
        """Of the account in the path, or in the query (A), else the parent's."""
        named = call.params.get("subAccountId") or call.query.get("accountId")
        account = self._payments.account(named)
        return call.ok({"amount": str(self._book.balances[account]), "currency": NAIRA})

    def _suspend(self, call: Call) -> Reply:
        return self._set(call, status="SUSPENDED")

    def _reactivate(self, call: Call) -> Reply:
        return self._set(call, status="ACTIVE")

    def _access(self, call: Call) -> Reply:
        return self._set(call, access=call.form)

    def _set(self, call: Call, **values: object) -> Reply:
        account = self._payments.account(call.params["subAccountId"])
        record = self._book.table("accounts").get(account)
        if record is None:
            raise refused(400, "The parent account has no such setting")
        self._book.change(record, **values)
        return call.ok(self._shown(account))

    # -- virtual accounts --------------------------------------------------------------

    def _open_virtual(self, call: Call) -> Reply:
        reference = call.text("accountRef")
        if self._find_virtual(reference) is not None:
            raise refused(400, "accountRef is in use")
        account = self._payments.account(call.params.get("subAccountId"))
        call.naira_only("currency")
        bank_number = self._book.ids.digits(10)
        record = {
            "accountRef": reference,
            "accountName": call.text("accountName"),
            "_account": account,
            "bankName": _BANK,
            "bankAccountNumber": bank_number,
            "bankAccountName": f"Simulated/{call.text('accountName')}",
            "currency": NAIRA,
            "callbackUrl": call.texts("callbackUrl").get("callbackUrl", ""),
            "expired": False,
            "createdAt": self._book.now("nanos-z"),
        }
        return call.ok(self._holding(self._book.add("virtual", reference, record)))

    def _holding(self, record: Record) -> Record:
        return {**record, "accountHolderId": self._payments.shown_id(record["_account"])}

    def _list_virtual(self, call: Call) -> Reply:
        rows = self._book.table("virtual").values()
        wanted = call.texts("accountRef", "accountName", "bankAccountNumber")
        found = (self._holding(one) for one in rows if wanted.items() <= one.items())
        return call.ok(call.cursor_page(found))

    def _show_virtual(self, call: Call) -> Reply:
        return call.ok(self._holding(self._virtual(call)))

    def _change_virtual(self, call: Call) -> Reply:
        record = self._virtual(call)
        self._book.change(record, **call.texts("accountName", "callbackUrl"))
        return call.ok(self._holding(record))

    def _close_virtual(self, call: Call) -> Reply:
        record = self._virtual(call)
        self._book.drop("virtual", record["accountRef"])
        return call.ok({"accountRef": record["accountRef"], "expired": True})

    def _virtual(self, call: Call) -> Record:
        record = self._find_virtual(call.params["identifier"])
        if record is None:
            raise refused(404, "Virtual account not found")
        return record

    def _find_virtual(self, identifier: str) -> Record | None:
        """By its reference or its account number."""
        table = self._book.table("virtual")
        numbered = (one for one in table.values() if one["bankAccountNumber"] == identifier)
        return table.get(identifier) or next(numbered, None)

    def deposit(self, call: Call) -> Record:
        """Somebody pays into a virtual account, as a transaction; no operation of Nomba's.

        Raises:
            Refused: there is none with that `accountNumber`.
        """
        record = self._find_virtual(call.text("accountNumber"))
        if record is None:
            raise refused(404, "Virtual account not found")
        return self._payments.move(
            call,
            amount=call.amount(),
            source=outside(NAIRA),
            target=record["_account"],
            kind="vact_transfer",
            details={"accountRef": record["accountRef"]},
        )
