"""Bills: airtime, data, television, electricity, betting; v1 and v2.

Paths, codes and `merchantTxRef` are D; fields that the facts do not name, A.
"""

from functools import partial

from proxy.simulator.book import NAIRA, outside
from proxy.simulator.call import Call, Handler, number
from proxy.simulator.messages import Reply, reply_json
from proxy.simulator.payments import Payments

_KINDS = ("topup", "data", "cabletv", "electricity", "betting")
_TELCOS = ("MTN", "AIRTEL", "GLO", "9MOBILE")
_DISCOS = ("ABUJA", "EKO", "IKEJA", "KANO", "PORTHARCOURT")
_TELEVISION = ("DSTV", "GOTV", "STARTIMES")
_BETTING = ("BETONE", "BETTWO", "BETTHREE")


class Bills:
    """The operations below `/bill`."""

    def __init__(self, payments: Payments) -> None:
        self._payments = payments

    def handlers(self) -> dict[str, Handler]:
        """Every operation here."""
        handlers: dict[str, Handler] = {
            "GET /v1/bill/data-plan/{telco}": self._data_plans,
            "GET /v1/bill/cableTvProduct": partial(self._products, names=_TELEVISION),
            "GET /v1/bill/electricity/discos": partial(self._products, names=_DISCOS),
            "GET /v1/bill/betting/providers": partial(self._products, names=_BETTING),
            "GET /v1/bill/cabletv/lookup": self._look_up,
            "GET /v1/bill/electricity/lookup": self._look_up,
            "GET /v2/bill/electricity/lookup": self._look_up,
            "GET /v1/bill/betting/lookup": self._look_up,
        }
        for kind in _KINDS:
            for version in ("v1", "v2"):
                for tail in ("", "/{subAccountId}"):
                    pay = partial(self._pay, kind=kind)
                    handlers[f"POST /{version}/bill/{kind}{tail}"] = pay
        return handlers

    def _data_plans(self, call: Call) -> Reply:
        telco = call.params["telco"].upper()
        if telco not in _TELCOS:
            return _not_there(f"telco must be one of {', '.join(_TELCOS)}")
        sizes = ((1, 300), (5, 1500), (20, 5000))
        return call.ok([{"amount": naira, "plan": f"{telco} {gb} GB"} for gb, naira in sizes])

    def _products(self, call: Call, *, names: tuple[str, ...]) -> Reply:
        return call.ok([{"id": name, "name": f"Simulated {name.title()}"} for name in names])

    def _look_up(self, call: Call) -> Reply:
        customer = call.query.get("customerId")
        if not customer:
            return _not_there("customerId is missing")
        return call.ok({"customerId": customer, "customerName": "Simulated Customer"})

    def _pay(self, call: Call, *, kind: str) -> Reply:
        amount = call.amount()
        call.text("merchantTxRef")
        names = ("phoneNumber", "network", "customerId", "disco", "bettingProvider", "meterType")
        transaction = self._payments.move(
            call,
            amount=amount,
            source=self._payments.payer(call),
            target=outside(NAIRA),
            kind=kind,
            details={**call.texts(*names), "meta": {"amountPaid": number(amount)}},
            may_float=True,
        )
        return self._payments.reply(call, transaction)


def _not_there(description: str) -> Reply:
    """A failure inside HTTP 200, as some are (D/O)."""
    return reply_json(200, content={"code": "400", "description": description})
