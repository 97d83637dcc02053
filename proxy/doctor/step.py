"""One step of an examination: what was seen, and what to do next."""

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one step.

    Attributes:
        name: of the step.
        ok: whether it is as it should be; None if it was left out.
        seen: what was seen, or why it was left out; never a secret.
        next: what to do; of a good step, what could be better.
    """

    name: str
    ok: bool | None
    seen: str
    next: str = ""

    def told(self, tell: Callable[[str], str]) -> "Step":
        """The same, with its texts changed."""
        return replace(self, seen=tell(self.seen), next=tell(self.next))


Tell = Callable[[Step], object]


def good(name: str, seen: str, advice: str = "") -> Step:
    """It is as it should be, though it could be better if there is advice."""
    return Step(name, ok=True, seen=seen, next=advice)


def bad(name: str, seen: str, advice: str) -> Step:
    """It is not, and this is what to do."""
    return Step(name, ok=False, seen=seen, next=advice)


def left_out(name: str, why: str, advice: str = "") -> Step:
    """It was not tried."""
    return Step(name, ok=None, seen=why, next=advice)
