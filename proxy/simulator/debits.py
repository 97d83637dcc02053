"""Direct debits: mandates and what is drawn on them.

Paths are D; fields that the facts do not name, A.
"""

from proxy.simulator.book import NAIRA, PARENT, Book, Record, outside
from proxy.simulator.call import Call, Handler, refused
from proxy.simulator.messages import Reply
from proxy.simulator.payments import Payments

_ACTIVE = "ACTIVE"
_DELETED = "DELETED"
_STATUSES = (_ACTIVE, "SUSPENDED", _DELETED)


class Debits:
    """The operations below `/v1/direct-debits`."""

    def __init__(self, book: Book, *, payments: Payments) -> None:
        self._book = book
        self._payments = payments

    def handlers(self) -> dict[str, Handler]:
        """Every operation here."""
        return {
            "POST /v1/direct-debits": self._create,
            "GET /v1/direct-debits/mandates": self._list,
            "GET /v1/direct-debits/status": self._status,
            "GET /v1/direct-debits/{mandateId}": self._show,
            "PUT /v1/direct-debits/update-status": self._update,
            "POST /v1/direct-debits/debit-mandate": self._debit,
        }

    def _create(self, call: Call) -> Reply:
        key = self._book.ids.uuid()
        names = ("customerName", "customerAccountNumber", "bankCode", "customerEmail", "narration")
        record = {
            "mandateId": key,
            "status": _ACTIVE,
            **call.texts(*names),
            "createdAt": self._book.now("micros-z"),
        }
        return call.ok(self._book.add("mandates", key, record))

    def _list(self, call: Call) -> Reply:
        return call.ok(call.numbered_page(self._book.table("mandates").values()))

    def _status(self, call: Call) -> Reply:
        mandate = self._find(call.query.get("mandateId", ""))
        return call.ok({"mandateId": mandate["mandateId"], "mandateStatus": mandate["status"]})

    def _show(self, call: Call) -> Reply:
        return call.ok(self._find(call.params["mandateId"]))

    def _update(self, call: Call) -> Reply:
        mandate = self._find(call.text("mandateId"))
        status = call.text("status").upper()
        if mandate["status"] == _DELETED:
            raise refused(400, "The mandate is deleted")
        if status not in _STATUSES:
            raise refused(400, f"status must be one of {', '.join(_STATUSES)}")
        return call.ok(self._book.change(mandate, status=status))

    def _debit(self, call: Call) -> Reply:
        """There is no key (D), so each debit is a new one."""
        mandate = self._find(call.text("mandateId"))
        if mandate["status"] != _ACTIVE:
            raise refused(400, f"The mandate is {mandate['status']}")
        transaction = self._payments.move(
            call,
            amount=call.amount(),
            source=outside(NAIRA),
            target=PARENT,
            kind="direct_debit",
            details={"mandateId": mandate["mandateId"]},
        )
        return call.ok(self._payments.shown(transaction))

    def _find(self, mandate_id: str) -> Record:
        mandate = self._book.table("mandates").get(mandate_id)
        if mandate is None:
            raise refused(404, "Mandate not found")
        return mandate
