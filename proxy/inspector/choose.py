"""Which exchanges are looked at: the same words filter the list, a terminal and an export."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CLASSES = ("2xx", "3xx", "4xx", "5xx", "pending")
_SEARCHED = (
    *("path", "route", "request_id", "reference", "description", "error", "detail"),
    *("caller", "code", "outcome", "method", "upstream"),
)


class FilterUnknown(Exception):
    """A filter that cannot be understood; the text says why."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What has to fit; an empty field fits everything.

    Attributes:
        q: words, all of which stand somewhere in the row; upper and lower case are the same.
        method: as sent.
        status: `404`, `4xx`, or `pending`.
        caller: by name.
        family: of operations, e.g. `transfers`.
        money: only what moves money.
        errors: only what failed, or of which nobody knows.
    """

    q: str = ""
    method: str = ""
    status: str = ""
    caller: str = ""
    family: str = ""
    money: bool = False
    errors: bool = False

    @classmethod
    def read(cls, query: Mapping[str, str]) -> "Filter":
        """From a query.

        Raises:
            FilterUnknown: `status` is none.
        """
        status = query.get("status", "").lower()
        if status and status not in _CLASSES and not (status.isdigit() and len(status) == 3):
            raise FilterUnknown(f"status is {', '.join(_CLASSES)}, or a number such as 404")
        return cls(
            q=query.get("q", "").lower(),
            method=query.get("method", "").upper(),
            status=status,
            caller=query.get("caller", ""),
            family=query.get("family", ""),
            money=query.get("money", "") in {"1", "true"},
            errors=query.get("errors", "") in {"1", "true"},
        )

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is one of those."""
        if self.method and row["method"] != self.method:
            return False
        if self.caller and row["caller"] != self.caller:
            return False
        if self.family and row["family"] != self.family:
            return False
        if self.money and row["kind"] != "money":
            return False
        if self.errors and row["state"] not in {"failed", "unknown"}:
            return False
        if self.status and not self._has_status(row):
            return False
        if self.q:
            text = "\n".join(str(row[name]) for name in _SEARCHED).lower()
            text += f"\n{row['status']}"
            return all(word in text for word in self.q.split())
        return True

    def _has_status(self, row: Mapping[str, Any]) -> bool:
        if self.status == "pending":
            return bool(row["state"] == "pending")
        status = str(row["status"])
        return status == self.status if self.status.isdigit() else status[0] == self.status[0]
