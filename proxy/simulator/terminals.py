"""Terminals: who has one, and payment requests to them.

Paths are D; fields that the facts do not name, A.
"""

from proxy.simulator.book import NAIRA, Book, Record, outside
from proxy.simulator.call import Call, Handler, refused
from proxy.simulator.messages import Reply
from proxy.simulator.payments import Payments


class Terminals:
    """The operations below `/v1/terminals`, and the lists below `/v1/accounts`."""

    def __init__(self, book: Book, *, payments: Payments) -> None:
        self._book = book
        self._payments = payments

    def handlers(self) -> dict[str, Handler]:
        """Every operation here; the table has one path under two names."""
        handlers: dict[str, Handler] = {
            "GET /v1/accounts/terminals": self._list,
            "GET /v1/accounts/{subAccountId}/terminals": self._list,
            "GET /v1/accounts/{accountId}/terminals": self._list,
            "POST /v1/terminals/payment-request/{terminalId}": self._request,
        }
        for tail in ("", "/{subAccountId}"):
            handlers[f"POST /v1/terminals/assign{tail}"] = self._assign
            handlers[f"POST /v1/terminals/unassign{tail}"] = self._unassign
        return handlers

    def _list(self, call: Call) -> Reply:
        account = self._payments.account(call.params.get("subAccountId"))
        every = self._book.table("terminals").values()
        return call.ok(
            call.cursor_page(self._shown(one) for one in every if one["_account"] == account)
        )

    def _shown(self, terminal: Record) -> Record:
        return {**terminal, "accountId": self._payments.shown_id(terminal["_account"])}

    def _find(self, terminal_id: str) -> Record | None:
        every = self._book.table("terminals").values()
        return next((one for one in every if one["terminalId"] == terminal_id), None)

    def _assign(self, call: Call) -> Reply:
        account = self._payments.account(call.params.get("subAccountId"))
        serial = call.text("serialNumber")
        if serial in self._book.table("terminals"):
            raise refused(400, "The terminal is assigned already")
        given = call.texts("terminalId").get("terminalId")
        if given and self._find(given) is not None:
            raise refused(400, "terminalId is in use")
        record = {
            "terminalId": given or self._book.ids.digits(8),
            "serialNumber": serial,
            "terminalLabel": call.texts("terminalLabel").get("terminalLabel", ""),
            "_account": account,
        }
        return call.ok(self._shown(self._book.add("terminals", serial, record)))

    def _unassign(self, call: Call) -> Reply:
        account = self._payments.account(call.params.get("subAccountId"))
        serial = call.text("serialNumber")
        terminal = self._book.table("terminals").get(serial)
        if terminal is None or terminal["_account"] != account:
            raise refused(404, "Terminal not found")
        self._book.drop("terminals", serial)
        return call.ok({**terminal, "accountId": None})

    def _request(self, call: Call) -> Reply:
        """The customer pays at once; there is no key (D), so each request is a new one."""
        wanted = call.params["terminalId"]
        terminal = self._find(wanted)
        if terminal is None:
            raise refused(404, "Terminal not found")
        transaction = self._payments.move(
            call,
            amount=call.amount(),
            source=outside(NAIRA),
            target=terminal["_account"],
            kind="purchase",
            details={"terminalId": wanted},
        )
        return call.ok(self._payments.shown(transaction))
