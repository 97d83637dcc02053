"""Terminals: who has one, and payment requests to them.

Paths are D; fields that the facts do not name, A.
"""

from proxy.simulator.book import NAIRA, Book, outside
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
        shown_id = self._payments.shown_id(account)
        return call.ok(call.cursor_page(one for one in every if one["accountId"] == shown_id))

    def _assign(self, call: Call) -> Reply:
        account = self._payments.account(call.params.get("subAccountId"))
        serial = call.text("serialNumber")
        if serial in self._book.table("terminals"):
            raise refused(400, "The terminal is assigned already")
        record = {
            "terminalId": call.texts("terminalId").get("terminalId") or self._book.ids.digits(8),
            "serialNumber": serial,
            "terminalLabel": call.texts("terminalLabel").get("terminalLabel", ""),
            "accountId": self._payments.shown_id(account),
        }
        return call.ok(self._book.add("terminals", serial, record))

    def _unassign(self, call: Call) -> Reply:
        account = self._payments.account(call.params.get("subAccountId"))
        serial = call.text("serialNumber")
        terminal = self._book.table("terminals").get(serial)
        if terminal is None or terminal["accountId"] != self._payments.shown_id(account):
            raise refused(404, "Terminal not found")
        self._book.drop("terminals", serial)
        return call.ok({**terminal, "accountId": None})

    def _request(self, call: Call) -> Reply:
        """The customer pays at once; there is no key (D), so each request is a new one."""
        wanted = call.params["terminalId"]
        every = self._book.table("terminals").values()
        terminal = next((one for one in every if one["terminalId"] == wanted), None)
        if terminal is None:
            raise refused(404, "Terminal not found")
        transaction = self._payments.move(
            call,
            amount=call.amount(),
            source=outside(NAIRA),
            target=self._payments.account(terminal["accountId"]),
            kind="purchase",
            details={"terminalId": wanted},
        )
        return call.ok(self._payments.shown(transaction))
