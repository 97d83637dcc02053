"""The business: one parent account, its money, and the replies about both.

Paths, envelope and codes are D; the fields inside `data` are A unless the
facts name them, and nobody should rely on them.
"""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from urllib.parse import parse_qs

from proxy.simulator.messages import Reply, failure, json_object, success

_START = Decimal("1000000.00")  # naira
_BANKS = 601  # rows; "some 600" (D)


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """Money that left the account.

    Attributes:
        ref: the caller's merchantTxRef.
        amount: naira.
    """

    ref: str
    amount: Decimal


class Bank:
    """The parent account.

    Attributes:
        balance: naira.
        ledger: every movement, oldest first.
    """

    def __init__(self) -> None:
        self.ledger: list[Movement] = []
        self.reset()
        rows = [{"code": f"{n:06}", "name": f"Simulated Bank {n}"} for n in range(1, _BANKS + 1)]
        self._banks = success("00", data=rows)

    def reset(self) -> None:
        """Back to the first day."""
        self.balance = _START
        self.ledger.clear()

    def show_balance(self) -> Reply:
        """`GET /v1/accounts/balance`."""
        return success("00", data={"amount": f"{self.balance:.2f}", "currency": "NGN"})

    def show_parent(self, account_id: str) -> Reply:
        """`GET /v1/accounts/parent`."""
        return success("00", data={"accountId": account_id, "accountName": "Simulated Business"})

    def list_banks(self) -> Reply:
        """`GET /v1/transfers/banks`: the largest plain reply (D)."""
        return self._banks

    def look_up(self, body: bytes) -> Reply:
        """`POST /v1/transfers/bank/lookup`."""
        form = json_object(body) or {}
        if not _texts(form, names=("accountNumber", "bankCode")):
            return failure(400, description="Validation error")
        data = {name: form[name] for name in ("accountNumber", "bankCode")}
        return success("00", data={**data, "accountName": "Simulated Holder"})

    def transfer(self, body: bytes, *, code: str) -> Reply:
        """`POST /v2/transfers/bank`, and `POST /v1/transfers/bank` (older, O).

        Args:
            body: JSON with amount (number or text), accountNumber, bankCode and
                merchantTxRef; a used merchantTxRef is rejected, not replayed (D/O).
            code: the envelope code of a success: `200` on v2, `00` on v1 (D).

        Returns:
            HTTP 200 once the money has moved; HTTP 400 if it has not.
        """
        form = json_object(body) or {}
        amount = _amount(form.get("amount"))
        if amount is None or not _texts(form, names=("accountNumber", "bankCode", "merchantTxRef")):
            return failure(400, description="Validation error")
        ref = str(form["merchantTxRef"])
        if self._find(ref) is not None:
            return failure(400, description="Duplicate merchantTxRef")
        if amount > self.balance:
            return failure(400, description="Insufficient funds")
        self.balance -= amount
        movement = Movement(ref=ref, amount=amount)
        self.ledger.append(movement)
        return success(code, data=_shown(movement))

    def requery(self, query: str) -> Reply:
        """`GET /v1/transactions/accounts/single?merchantTxRef=…` (O)."""
        refs = parse_qs(query).get("merchantTxRef", [])
        movement = self._find(refs[0]) if refs else None
        if movement is None:
            return failure(404, description="Transaction not found")
        return success("00", data=_shown(movement))

    def _find(self, ref: str) -> Movement | None:
        return next((movement for movement in self.ledger if movement.ref == ref), None)


def _shown(movement: Movement) -> dict[str, str]:
    return {
        "merchantTxRef": movement.ref,
        "amount": f"{movement.amount:.2f}",
        "status": "SUCCESS",
    }


def _amount(value: object) -> Decimal | None:
    """A positive, finite amount from a number or text (D/O), else None."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        amount = Decimal(value)
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and amount > 0 else None


def _texts(form: dict[str, object], *, names: tuple[str, ...]) -> bool:
    """Whether every named field is a text that is not empty."""
    return all(isinstance(form.get(name), str) and form[name] for name in names)
