"""Checkout: orders, how they are paid, refunds, saved cards.

Paths and `order.orderReference` are D; fields that the facts do not name, A.
A card's number is never kept, only its last four digits.
"""

from decimal import Decimal

from proxy.simulator.book import NAIRA, Book, Record, outside
from proxy.simulator.call import Call, Handler, refused
from proxy.simulator.messages import Reply
from proxy.simulator.payments import Payments
from proxy.simulator.switches import Switches

_NEW, _OTP, _PAID, _CANCELLED = "PENDING", "PENDING_OTP", "SUCCESS", "CANCELLED"


class Checkout:
    """The operations below `/v1/checkout`."""

    def __init__(self, switches: Switches, *, book: Book, payments: Payments) -> None:
        self._switches = switches
        self._book = book
        self._payments = payments

    def handlers(self) -> dict[str, Handler]:
        """Every operation here."""
        return {
            "POST /v1/checkout/order": self._order,
            "GET /v1/checkout/order/{orderReference}": self._show_order,
            "POST /v1/checkout/order/cancel": self._cancel,
            "POST /v1/checkout/transaction/cancel": self._cancel,
            "GET /v1/checkout/transaction": self._transaction,
            "POST /v1/checkout/confirm-transaction-receipt": self._confirm,
            "GET /v1/checkout/get-checkout-kta/{orderReference}": self._transfer_account,
            "POST /v1/checkout/checkout-card-detail": self._card_detail,
            "POST /v1/checkout/checkout-card-otp": self._card_otp,
            "POST /v1/checkout/resend-otp": self._resend_otp,
            "POST /v1/checkout/refund": self._refund,
            "POST /v1/checkout/tokenized-card-payment": self._token_payment,
            "GET /v1/checkout/tokenized-card-data": self._list_cards,
            "POST /v1/checkout/tokenized-card-data": self._save_card,
            "DELETE /v1/checkout/tokenized-card-data": self._forget_card,
            "POST /v1/checkout/user-card/auth": self._resend_otp,
            "POST /v1/checkout/user-card/saved-card/auth": self._resend_otp,
            "POST /v1/checkout/user-card": self._save_card_of_order,
            "GET /v1/checkout/user-card/{orderReference}": self._cards_of_order,
        }

    # -- orders ------------------------------------------------------------------------

    def _order(self, call: Call) -> Reply:
        order = self._keep_order(self._draft(call))
        link = f"https://checkout.simulator.invalid/{order['orderId']}"
        return call.ok({"checkoutLink": link, "orderReference": order["orderReference"]})

    def _keep_order(self, order: Record) -> Record:
        return self._book.add("orders", order["orderReference"], order)

    def _draft(self, call: Call) -> Record:
        """A new order from a body's `order`, not kept yet; a reference is used once."""
        given = call.texts("order.orderReference").get("order.orderReference")
        reference = given or self._book.ids.uuid()
        if reference in self._book.table("orders"):
            raise refused(400, "Duplicate orderReference")
        call.naira_only("order.currency")
        texts = call.texts("order.customerEmail", "order.callbackUrl", "order.customerId")
        named = call.texts("order.accountId").get("order.accountId")
        return {
            "orderId": self._book.ids.uuid(),
            "orderReference": reference,
            "amount": str(call.amount("order.amount")),
            "currency": NAIRA,
            **{name.removeprefix("order."): value for name, value in texts.items()},
            "status": _NEW,
            "createdAt": self._book.now("no-zone"),
            "_account": self._payments.account(named),
        }

    def _find(self, reference: str) -> Record:
        order = self._book.table("orders").get(reference)
        if order is None:
            raise refused(404, "Order not found")
        return order

    def _named(self, call: Call) -> Record:
        """The order that a body names."""
        return self._find(call.text("orderReference"))

    def _unpaid(self, call: Call) -> Record:
        order = self._named(call)
        if order["status"] in {_PAID, _CANCELLED}:
            raise refused(400, f"The order is {order['status']}")
        return order

    def _show_order(self, call: Call) -> Reply:
        return call.ok({"order": self._find(call.params["orderReference"])})

    def _cancel(self, call: Call) -> Reply:
        order = self._book.change(self._unpaid(call), status=_CANCELLED)
        return call.ok({"status": order["status"]})

    def _transaction(self, call: Call) -> Reply:
        reference = call.query.get("orderReference") or call.query.get("id") or ""
        return call.ok(self._state(self._find(reference)))

    def _confirm(self, call: Call) -> Reply:
        return call.ok(self._state(self._named(call)))

    def _state(self, order: Record) -> Record:
        found = self._payments.find(orderReference=order["orderReference"])
        return {
            "success": order["status"] == _PAID,
            "order": order,
            "transactionDetails": found and self._payments.shown(found),
        }

    def _transfer_account(self, call: Call) -> Reply:
        """Where a customer pays by bank transfer instead of a card."""
        order = self._find(call.params["orderReference"])
        if "accountNumber" not in order:
            number = self._book.ids.digits(10)
            self._book.change(order, accountNumber=number)
            self._book.add("order_accounts", number, {"orderReference": order["orderReference"]})
        shown = {name: order[name] for name in ("accountNumber", "amount", "orderReference")}
        return call.ok({**shown, "bankName": "Simulated Microfinance Bank"})

    # -- paying ------------------------------------------------------------------------

    def pay(self, call: Call) -> Record | None:
        """The customer pays an order, as a transaction; None if the call names none.

        The order is that of `orderReference`, or of the `accountNumber` from
        `get-checkout-kta`.

        Raises:
            Refused: there is no such order, or it is paid or cancelled.
        """
        if call.field("orderReference") is None:
            given = call.texts("accountNumber").get("accountNumber", "")
            known = self._book.table("order_accounts").get(given)
            if known is None:
                return None
            call.form["orderReference"] = known["orderReference"]
        return self._charge(call, self._unpaid(call), kind="online_checkout")

    def _charge(self, call: Call, order: Record, *, kind: str) -> Record:
        transaction = self._payments.move(
            call,
            amount=Decimal(order["amount"]),
            source=outside(NAIRA),
            target=order["_account"],
            kind=kind,
            details={"orderReference": order["orderReference"]},
        )
        self._book.change(order, status=_PAID)
        return transaction

    def _card_detail(self, call: Call) -> Reply:
        order = self._unpaid(call)
        digits = "".join(one for one in str(call.form.get("cardDetails", "")) if one.isdigit())
        card = f"**** **** **** {digits[-4:]}"
        if self._switches.card_otp:
            self._book.change(order, card=card, status=_OTP)
            data = {"responseCode": "T0", "message": "Enter the OTP", "status": True}
            return call.ok({**data, "transactionId": order["orderId"]})
        transaction = self._charge(call, order, kind="online_checkout")
        self._book.change(order, card=card)
        return call.ok({**self._payments.shown(transaction), "responseCode": "00"})

    def _card_otp(self, call: Call) -> Reply:
        """Any OTP is the right one."""
        order = self._unpaid(call)
        if order["status"] != _OTP:
            raise refused(400, "Send the card's details first")
        call.text("otp")
        transaction = self._charge(call, order, kind="online_checkout")
        return call.ok({**self._payments.shown(transaction), "responseCode": "00"})

    def _resend_otp(self, call: Call) -> Reply:
        self._unpaid(call)
        return call.ok({"success": True, "message": "OTP sent"})

    def _refund(self, call: Call) -> Reply:
        """Back to the customer, in parts if wanted; there is no key (D), so each is new."""
        paid = self._payments.find(id=call.text("transactionId"))
        if paid is None or "orderReference" not in paid:
            raise refused(404, "Transaction not found")
        left = Decimal(paid["amount"]) - Decimal(paid.get("_refunded", 0))
        amount = call.amount() if "amount" in call.form else left
        if amount > left or not amount:
            raise refused(400, f"At most {left} of it can be refunded")
        refund = self._payments.move(
            call,
            amount=amount,
            source=paid["_to"],
            target=outside(NAIRA),
            kind="checkout_refund",
            details={"refundOf": paid["id"]},
        )
        self._book.change(paid, _refunded=str(Decimal(paid.get("_refunded", 0)) + amount))
        return call.ok({**self._payments.shown(refund), "success": True})

    # -- cards -------------------------------------------------------------------------

    def _token_payment(self, call: Call) -> Reply:
        if call.text("tokenKey") not in self._book.table("cards"):
            raise refused(404, "Card not found")
        order = self._draft(call)
        transaction = self._charge(call, order, kind="tokenized_card_payment")
        self._keep_order(order)
        return call.ok({**self._payments.shown(transaction), "message": "success", "status": True})

    def _list_cards(self, call: Call) -> Reply:
        return call.ok(call.numbered_page(self._book.table("cards").values()))

    def _save_card(self, call: Call) -> Reply:
        return call.ok(self._keep(call.texts("customerEmail"), last="1111"))

    def _keep(self, record: Record, *, last: str) -> Record:
        token = self._book.ids.octets(20).hex()
        card = {"tokenKey": token, "cardPan": f"**** **** **** {last}", "cardType": "Simulated"}
        return self._book.add("cards", token, {**card, "tokenExpirationDate": "12/99", **record})

    def _forget_card(self, call: Call) -> Reply:
        token = call.text("tokenKey")
        if token not in self._book.table("cards"):
            raise refused(404, "Card not found")
        self._book.drop("cards", token)
        return call.ok({"tokenKey": token, "deleted": True})

    def _save_card_of_order(self, call: Call) -> Reply:
        order = self._named(call)
        if "card" not in order:
            raise refused(400, "No card was given for this order")
        record = {"orderReference": order["orderReference"]}
        return call.ok(self._keep(record, last=order["card"][-4:]))

    def _cards_of_order(self, call: Call) -> Reply:
        reference = self._find(call.params["orderReference"])["orderReference"]
        cards = self._book.table("cards").values()
        return call.ok([one for one in cards if one.get("orderReference") == reference])
