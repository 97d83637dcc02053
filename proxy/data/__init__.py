"""What is known of Nomba's operations: the packaged endpoint table.

Source: Nomba's OpenAPI file and its API reference, gathered in `endpoints.csv`.
The core reads it to name and class requests, the simulator to answer them.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the endpoint table.

    Attributes:
        method: HTTP method, upper case.
        template: path with `{name}` for a variable segment, without query.
        money: `OUT` (money leaves), `CHARGE` (somebody is charged) or `""`.
        idempotency_field: the body field that holds the caller's reference, or `""`.
        declares_account: whether it declares the `accountId` header.
        pages: whether it lists something, page by page.
    """

    method: str
    template: str
    money: str
    idempotency_field: str
    declares_account: bool = True
    pages: bool = False


# Older transfer paths that public integrations still call; not in the OpenAPI file.
_OLDER = tuple(
    Operation("POST", f"/v1/transfers/{kind}{tail}", "OUT", "merchantTxRef")
    for kind in ("bank", "wallet")
    for tail in ("", "/{subAccountId}")
)


@cache
def operations() -> tuple[Operation, ...]:
    """Every operation known: the 109 of the table and the four older transfer paths."""
    text = resources.files(__package__).joinpath("endpoints.csv").read_text("utf-8")
    rows = csv.DictReader(text.splitlines())
    table = tuple(
        Operation(
            method=row["method"],
            template=row["path"].partition("?")[0],
            money=row["money"],
            idempotency_field=row["idempotency_field"],
            declares_account=row["declares_accountId_header"] == "yes",
            pages=bool(row["paging"]),
        )
        for row in rows
    )
    return table + _OLDER
