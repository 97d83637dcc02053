"""The books: accounts with money, movements between them, and the records of the business.

Money is only ever moved, never made: whoever is outside has an account too, and may
owe. So the balances of each currency always add up to nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from proxy.simulator.ids import Ids
from proxy.simulator.times import TimeForm, write_time

Record = dict[str, Any]

PARENT = "parent"  # the parent account, whatever its id
PENDING = "pending"  # money in flight
NAIRA, DOLLAR = "NGN", "USD"
DOLLARS = "dollars"  # the parent's wallet for global payouts

_CAPITAL = Decimal("1000000.00")  # naira of the parent on the first day
_SUB_CAPITAL = Decimal("50000.00")  # of each sub-account


def outside(currency: str) -> str:
    """The account of everybody who is not the merchant."""
    return f"outside:{currency}"


_FIXED = {PARENT, PENDING, DOLLARS, outside(NAIRA), outside(DOLLAR)}
# What the books rely on when they are read again.
_MOVED = {"id", "type", "status", "amount", "_from", "_to", "_account", "_at"}
_FIELDS = {
    "transactions": {"_n", *_MOVED},
    "references": {"_n", "transaction"},
    "orders": {"_n", "orderReference", "amount", "status", "_account"},
    "virtual": {"_n", "accountRef", "bankAccountNumber", "_account"},
    "terminals": {"_n", "terminalId", "serialNumber", "_account"},
    "mandates": {"_n", "mandateId", "status"},
    "cards": {"_n", "tokenKey"},
    "keys": {"_n", "asked", "answer"},
    "order_accounts": {"_n", "orderReference"},
}


def currency_of(source: str, target: str) -> str:
    """What is moved between two accounts."""
    return DOLLAR if DOLLARS in {source, target} else NAIRA


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """Money that went from one account to another.

    Attributes:
        number: counted from 1.
        at: unix seconds.
        operation: the call that moved it, or what else did.
        source, target: accounts: `parent`, the id of a sub-account, `pending`, `dollars`,
            or `outside:` with the currency.
        amount: how much, above 0.
        currency: ISO 4217.
        ref: the caller's reference, or the transaction's id where the call has none.
    """

    number: int
    at: float
    operation: str
    source: str
    target: str
    amount: Decimal
    currency: str
    ref: str


class Book:
    """All that the business remembers; the same for the same seed and the same calls.

    Args:
        clock: unix seconds.
        seed: identifiers are the same for the same seed.

    Attributes:
        ids: where identifiers come from.
        balances: money by account.
        ledger: every movement, oldest first.
        changes: how often anything changed.
    """

    def __init__(self, *, clock: Callable[[], float], seed: int) -> None:
        self._clock = clock
        self.ids = Ids(seed, purpose="business")
        self.balances: dict[str, Decimal] = {}
        self.ledger: list[Movement] = []
        self._tables: dict[str, dict[str, Record]] = {}
        self._serial = 0
        self.changes = 0
        self.reset()

    def reset(self) -> None:
        """Back to the first day."""
        self.ids.count = 0
        self._serial = 0
        self.balances.clear()
        self.ledger.clear()
        self._tables.clear()
        for account in sorted(_FIXED):
            self.balances[account] = Decimal("0.00")
        self._endow(PARENT, _CAPITAL)
        for name in ("Simulated Shop", "Simulated Branch"):
            sub = self.ids.uuid()
            self.open_account(sub, {"accountName": name, "accountRef": name.lower()})
            self._endow(sub, _SUB_CAPITAL)
        self.changes += 1

    def _endow(self, account: str, amount: Decimal) -> None:
        self.balances[account] += amount
        self.balances[outside(NAIRA)] -= amount

    def open_account(self, account: str, record: Record) -> Record:
        """A new sub-account without money."""
        self.balances[account] = Decimal("0.00")
        return self.add("accounts", account, {"status": "ACTIVE", **record})

    def move(
        self, amount: Decimal, *, source: str, target: str, ref: str, operation: str
    ) -> Movement:
        """Move money; the source may fall below nothing only if the caller lets it."""
        movement = Movement(
            number=len(self.ledger) + 1,
            at=self._clock(),
            operation=operation,
            source=source,
            target=target,
            amount=amount,
            currency=currency_of(source, target),
            ref=ref,
        )
        self.balances[source] -= amount
        self.balances[target] += amount
        self.ledger.append(movement)
        self.changes += 1
        return movement

    def table(self, name: str) -> Mapping[str, Record]:
        """The records of one kind, oldest first."""
        return self._tables.get(name, {})

    def add(self, table: str, key: str, record: Record) -> Record:
        """Keep a record under a key of its table; the record.

        What begins with an underscore is not shown; `_n` numbers the records.
        """
        self._serial += 1
        record["_n"] = self._serial
        self._tables.setdefault(table, {})[key] = record
        self.changes += 1
        return record

    def change(self, record: Record, **values: object) -> Record:
        """Change a record that is kept; the record."""
        record.update(values)
        self.changes += 1
        return record

    def drop(self, table: str, key: str) -> None:
        """Forget a record."""
        del self._tables[table][key]
        self.changes += 1

    def now(self, form: TimeForm = "millis-z") -> str | int | None:
        """The present, written."""
        return write_time(self._clock(), form=form)

    @property
    def seconds(self) -> float:
        """The present in unix seconds."""
        return self._clock()

    def show_ledger(self) -> list[Record]:
        """Every movement, as JSON can hold it."""
        names = Movement.__slots__
        rows = [{name: getattr(one, name) for name in names} for one in self.ledger]
        return [{**row, "amount": str(row["amount"])} for row in rows]

    def dump(self) -> Record:
        """Everything, as JSON can hold it."""
        return {
            "ids": self.ids.count,
            "serial": self._serial,
            "balances": {name: str(amount) for name, amount in self.balances.items()},
            "ledger": self.show_ledger(),
            "tables": self._tables,
        }

    def load(self, state: Record) -> None:
        """Become what `dump` gave.

        Raises:
            KeyError, TypeError, ValueError, ArithmeticError: it is something else.
        """
        ledger = [Movement(**{**one, "amount": Decimal(one["amount"])}) for one in state["ledger"]]
        balances = {name: Decimal(amount) for name, amount in state["balances"].items()}
        tables = {name: {**table} for name, table in state["tables"].items()}  # TypeError if none
        _check_balances(balances)
        for name, table in tables.items():
            _check_records(table.values(), needed=_FIELDS.get(name, {"_n"}))
        missing = set(balances) - set(tables["accounts"]) - _FIXED
        missing |= {one["transaction"] for one in tables.get("references", {}).values()} - set(
            tables.get("transactions", {})
        )
        if missing:
            raise ValueError(f"{len(missing)} records are missing")
        ids, serial = state["ids"], state["serial"]
        if type(ids) is not int or type(serial) is not int or min(ids, serial) < 0:
            raise ValueError("a count is no count")
        self.ids.count, self._serial = ids, serial
        self.balances, self.ledger, self._tables = balances, ledger, tables
        self.changes += 1


def _check_balances(balances: Mapping[str, Decimal]) -> None:
    """ValueError unless the fixed accounts are there and each currency adds up to nothing."""
    dollars = {DOLLARS, outside(DOLLAR)}
    if not set(balances) >= _FIXED:
        raise ValueError("an account is missing")
    if not all(amount.is_finite() for amount in balances.values()):
        raise ValueError("an amount is no number")
    if sum(balances[name] for name in dollars) or sum(balances.values()):
        raise ValueError("the balances do not add up to nothing")


def _check_records(records: Iterable[object], *, needed: set[str]) -> None:
    """ValueError unless all are records with the fields that the books rely on."""
    for record in records:
        sound = isinstance(record, dict) and needed <= set(record)
        if not sound or type(record["_n"]) is not int:  # type: ignore[index]
            raise ValueError(f"a record lacks {', '.join(sorted(needed))}")
