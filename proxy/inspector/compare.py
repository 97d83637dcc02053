"""What differs: headers of two heads, and two messages line by line."""

import difflib
from typing import Literal

from proxy.inspector.exit import Field, Message
from proxy.inspector.redact import TOKEN

Mark = Literal["", "added", "changed", "removed"]
Line = tuple[Literal[" ", "-", "+"], str]

_DEEPEST = 40
_MOST_LINES = 4000  # of one side; beyond, comparing takes too long


def mark(
    before: list[Field], after: list[Field]
) -> tuple[list[tuple[str, str, Mark]], list[tuple[str, str, Mark]]]:
    """Both lists of fields, each with what became of it, or where it came from."""
    earlier, later = _by_name(before), _by_name(after)

    def one(field: Field, other: dict[str, list[str]], missing: Mark) -> tuple[str, str, Mark]:
        name, value = field
        found = other.get(name.lower())
        if found is None:
            return name, value, missing
        return name, value, "" if value in found else "changed"

    return (
        [one(field, later, "removed") for field in before],
        [one(field, earlier, "added") for field in after],
    )


def _by_name(fields: list[Field]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in fields:
        found.setdefault(name.lower(), []).append(value)
    return found


def lines(message: Message | None) -> list[str]:
    """A message as lines; JSON is spread out, its values as they stand."""
    if message is None:
        return []
    head = [message.start, *(f"{name}: {value}" for name, value in message.headers), ""]
    body = message.body
    if body.text is None:
        return [*head, *([f"({body.size} bytes)"] if body.size else [])]
    return head + (spread(body.text) if body.kind == "json" else body.text.splitlines())


def differences(before: Message | None, after: Message | None) -> list[Line]:
    """All lines of both, each with where it stands."""
    one, other = lines(before)[:_MOST_LINES], lines(after)[:_MOST_LINES]
    found: list[Line] = []
    for how, a, b, c, d in difflib.SequenceMatcher(None, one, other).get_opcodes():
        if how == "equal":
            found += [(" ", line) for line in one[a:b]]
        else:
            found += [("-", line) for line in one[a:b]]
            found += [("+", line) for line in other[c:d]]
    return found


def spread(text: str) -> list[str]:
    """JSON with a line for each value; numbers and texts stay as they were written."""
    found, depth = [""], 0  # no deeper than can be read: what is open is anybody's
    for part in TOKEN.findall(text):
        if part.isspace():
            continue
        if part in "}]":
            depth = max(0, depth - 1)
            found.append("  " * min(depth, _DEEPEST))
        found[-1] += part + (" " if part == ":" else "")
        if part in "{[":
            depth += 1
        if part in "{[,":
            found.append("  " * min(depth, _DEEPEST))
        if len(found) > _MOST_LINES:
            return [*found, "…"]
    return found
