"""The client secrets of a session: the one that is set, the next one, and those set before."""

from proxy.core.secret import Secret

_KEPT = 8  # secrets set before


class Keyring:
    """What this process was given to log in with, and to open with what others have sealed.

    Args:
        current: the client secret.
        following: the one that is to replace it, if there is one already.
    """

    def __init__(self, current: Secret, following: Secret | None = None) -> None:
        self._set = (following, current) if following is not None else (current,)
        self._before: tuple[Secret, ...] = ()

    @property
    def newest(self) -> Secret:
        """The one that is to be in force in the end."""
        return self._set[0]

    @property
    def given(self) -> tuple[Secret, ...]:
        """Those that are set now, the newest first."""
        return self._set

    @property
    def known(self) -> tuple[Secret, ...]:
        """All, those set now first."""
        return self._set + self._before

    def change(self, current: Secret, following: Secret | None = None) -> bool:
        """Take over what is set now; whether that is anything else than before.

        What was set before is kept: it is in force until another one was accepted.
        """
        fresh = (following, current) if following is not None else (current,)
        if fresh == self._set:
            return False
        before = (*self._set, *self._before)
        self._set = fresh
        self._before = tuple(one for one in before if one not in fresh)[:_KEPT]
        return True

    def find(self, digest: str) -> Secret | None:
        """The one with this digest."""
        return next((one for one in self.known if one.digest() == digest), None)

    def order(self, in_force: str) -> tuple[Secret, ...]:
        """Those to log in with, one after the other until one is accepted.

        Args:
            in_force: digest of the one that is; "" if nobody knows. Whoever has it not does not
                log in: those who have it do.
        """
        if not in_force:
            return self._set
        first = self.find(in_force)
        if first is None:
            return ()
        return (first, *(one for one in self._set if one != first))
