"""Who is refused whatever the token, so that none is renewed for it."""

import math
from collections.abc import Callable

# Who asked, and what for: (caller, path).
Pair = tuple[str, str]
_MOST = 4096  # pairs of each sort
_NEVER = (0, 0, 0.0, False)


class Refusals:
    """The pairs that two successive generations were refused for, and those that were served.

    What is refused with an old token and with the new one alike is not the token's fault; unless
    the old one had served it, and so must have died. Then that refusal says nothing of the pair.

    Args:
        memory: seconds one is remembered.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        # Of each: the generation that was refused first, and the first of them that says something
        # of the pair, or 0; until when they count, or it is remembered; whether it is.
        self._refused: dict[Pair, tuple[int, int, float, bool]] = {}
        self._served: dict[Pair, int] = {}  # with which generation

    def note(self, pair: Pair, generation: int, *, now: float, memory: float = math.inf) -> bool:
        """A generation was refused for a pair; whether that makes it a remembered one.

        Args:
            pair: who was refused, and what for.
            generation: of the token.
            now: the time.
            memory: seconds it is remembered, if that is less than usual.
        """
        first, telling, until, remembered = self._refused.pop(pair, (generation, 0, 0.0, False))
        if now >= until:  # it has been forgotten
            first, telling, until, remembered = generation, 0, now + self._memory, False
        fresh = False
        if not self.served(pair, generation):
            fresh = not remembered and 0 < telling < generation
            telling = telling or generation
        if fresh:
            until, remembered = now + min(memory, self._memory), True
        self._refused[pair] = first, telling, until, remembered
        if len(self._refused) > _MOST:
            del self._refused[next(iter(self._refused))]
        return fresh

    def remembered(self, pair: Pair, *, now: float) -> bool:
        """Whether it is."""
        *_, until, remembered = self._refused.get(pair, _NEVER)
        return remembered and now < until

    def accepted(self, pair: Pair, generation: int, *, clock: Callable[[], float]) -> int:
        """A generation was accepted for it; the one that had been refused since the last, or 0.

        Also 0 if that is so long ago that it has been forgotten: whatever it was that has changed.

        Args:
            pair: who asked, and what for.
            generation: was accepted.
            clock: seconds; nearly always nothing was refused, and nobody asks what time it is.
        """
        self._served[pair] = generation
        if len(self._served) > _MOST:
            del self._served[next(iter(self._served))]
        if not self._refused:
            return 0
        first, _, until, _ = self._refused.pop(pair, _NEVER)
        return first if first and clock() < until else 0

    def served(self, pair: Pair, generation: int) -> bool:
        """Whether this very generation was accepted for it before."""
        return self._served.get(pair) == generation
