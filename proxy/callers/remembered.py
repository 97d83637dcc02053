"""Which phantom tokens ended early, each until it would have ended anyway; never too many."""

from collections.abc import Mapping

LIMIT = 100_000
_FEW = 1000  # that are not worth being looked through for what is over


class Remembered:
    """Ids of tokens. Of more than a limit, those are dropped that are over soonest.

    That rule needs nothing but what is remembered, so whoever knows the same drops the same.

    Args:
        limit: how many are kept; up to a tenth more, between two times that they are looked through.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._room = min(_FEW, limit)
        self._floor = (
            0,
            "",
        )  # end and id of the last that was dropped: what is below is dropped too
        self._ends: dict[str, int] = {}

    @property
    def ends(self) -> Mapping[str, int]:
        """What is remembered, and until when."""
        return self._ends

    def learn(self, ends: Mapping[str, int], *, now: float) -> None:
        """Remember tokens.

        Args:
            ends: epoch seconds after which each need not be remembered, by its id.
            now: epoch seconds.
        """
        for token_id, end in ends.items():
            if (end, token_id) > self._floor:
                self._ends[token_id] = end
        if len(self._ends) > self._room:
            self.forget(now)

    def forget(self, now: float) -> None:
        """Forget what is over, and of the rest what is too much."""
        living = sorted((end, token_id) for token_id, end in self._ends.items() if end >= now)
        if len(living) > self._limit:
            self._floor = living[-self._limit - 1]
        self._ends = {token_id: end for end, token_id in living[-self._limit :]}
        most = self._limit + self._limit // 10
        self._room = min(max(2 * len(self._ends), _FEW), most)
