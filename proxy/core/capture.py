"""What somebody who watches an exchange is told while it happens.

The handler tells; `Capture` itself takes it and keeps nothing. What keeps it is a room of its
own (`inspector/`), which the handler knows nothing of.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from proxy.core.exchange import Exchange
from proxy.core.heads import Headers, RequestHead
from proxy.core.secret import Secret


@dataclass(frozen=True, slots=True)
class Dialled:
    """When a connection came about, on the monotonic clock, in seconds.

    Attributes:
        began: the dialling; before it, a place in the pool was waited for.
        reached: the address answered; what follows is TLS.
        ready: a request can be written.
    """

    began: float
    reached: float
    ready: float


class Capture:
    """Is told of one exchange, in this order; every call is cheap and none fails."""

    __slots__ = ()

    def body(self, parts: Iterable[bytes]) -> None:
        """The caller's body has arrived whole; can be gone through once."""

    def waiting(self) -> None:
        """A token is waited for."""

    def waited(self) -> None:
        """The wait is over, however it ended."""

    def attempt(
        self,
        head: RequestHead,
        *,
        account: str,  # noqa: ARG002 - nothing is kept here
        token: Secret,  # noqa: ARG002
        generation: int,  # noqa: ARG002
        why: str,  # noqa: ARG002
    ) -> RequestHead:
        """A request is about to be sent; what is sent for it.

        Args:
            head: to be completed.
            account: that it is completed with.
            token: the same; to know it again should the upstream repeat it.
            generation: the token's.
            why: `first try`, `replay with a new token` or `sent again over a new connection`.

        Returns:
            The head, which may have been given a field that says which attempt it is.
        """
        return head

    def sending(self, dialled: Dialled | None) -> None:
        """Its first byte is written; `dialled` if the connection was made for it."""

    def answered(self, status: int, *, reason: bytes, headers: Headers) -> None:
        """The head of a reply to it has come."""

    def part(self, data: bytes) -> None:
        """Some of that reply's body has passed; right after a head, all that will be seen."""

    def failed(self, error: str) -> None:
        """The attempt, or its reply, ended with one of our error codes."""

    def reply(self, data: bytes) -> None:
        """The head the caller gets, with its body unless that is the last attempt's."""

    def end(self) -> None:
        """The exchange is over."""


class Together(Capture):
    """Two that are told of one exchange.

    Args:
        one: is told first, and never of bodies.
        other: sees what the first one made of an attempt's head.
    """

    __slots__ = ("_one", "_other")

    def __init__(self, one: Capture, other: Capture) -> None:
        self._one = one
        self._other = other

    def body(self, parts: Iterable[bytes]) -> None:
        """The caller's body has arrived whole."""
        self._other.body(parts)

    def waiting(self) -> None:
        """A token is waited for."""
        self._one.waiting()
        self._other.waiting()

    def waited(self) -> None:
        """The wait is over."""
        self._one.waited()
        self._other.waited()

    def attempt(
        self, head: RequestHead, *, account: str, token: Secret, generation: int, why: str
    ) -> RequestHead:
        """A request is about to be sent."""
        head = self._one.attempt(head, account=account, token=token, generation=generation, why=why)
        return self._other.attempt(
            head, account=account, token=token, generation=generation, why=why
        )

    def sending(self, dialled: Dialled | None) -> None:
        """Its first byte is written."""
        self._one.sending(dialled)
        self._other.sending(dialled)

    def answered(self, status: int, *, reason: bytes, headers: Headers) -> None:
        """The head of a reply to it has come."""
        self._one.answered(status, reason=reason, headers=headers)
        self._other.answered(status, reason=reason, headers=headers)

    def part(self, data: bytes) -> None:
        """Some of that reply's body has passed."""
        self._other.part(data)

    def failed(self, error: str) -> None:
        """The attempt, or its reply, came to a bad end."""
        self._one.failed(error)
        self._other.failed(error)

    def reply(self, data: bytes) -> None:
        """What the caller gets."""
        self._other.reply(data)

    def end(self) -> None:
        """The exchange is over, and both have to let go of it."""
        try:
            self._one.end()
        finally:
            self._other.end()


class Guarded(Capture):
    """One whose faults change nothing of an exchange: after the first it is told of the end only.

    Args:
        begin: brings it.
        told: of that fault.
    """

    __slots__ = ("_failed", "_one", "_told")

    def __init__(
        self, begin: Callable[[], Capture], *, told: Callable[[Exception], object]
    ) -> None:
        self._told = told
        self._failed = False
        self._one = Capture()
        try:
            self._one = begin()
        except Exception as fault:  # noqa: BLE001 - whatever it is
            self._fail(fault)

    def body(self, parts: Iterable[bytes]) -> None:
        """The caller's body has arrived whole."""
        self._tell(partial(self._one.body, parts))

    def waiting(self) -> None:
        """A token is waited for."""
        self._tell(self._one.waiting)

    def waited(self) -> None:
        """The wait is over."""
        self._tell(self._one.waited)

    def attempt(
        self, head: RequestHead, *, account: str, token: Secret, generation: int, why: str
    ) -> RequestHead:
        """A request is about to be sent."""
        if not self._failed:
            try:
                return self._one.attempt(
                    head, account=account, token=token, generation=generation, why=why
                )
            except Exception as fault:  # noqa: BLE001 - it goes out as it is
                self._fail(fault)
        return head

    def sending(self, dialled: Dialled | None) -> None:
        """Its first byte is written."""
        self._tell(partial(self._one.sending, dialled))

    def answered(self, status: int, *, reason: bytes, headers: Headers) -> None:
        """The head of a reply to it has come."""
        self._tell(partial(self._one.answered, status, reason=reason, headers=headers))

    def part(self, data: bytes) -> None:
        """Some of that reply's body has passed."""
        self._tell(partial(self._one.part, data))

    def failed(self, error: str) -> None:
        """The attempt, or its reply, came to a bad end."""
        self._tell(partial(self._one.failed, error))

    def reply(self, data: bytes) -> None:
        """What the caller gets."""
        self._tell(partial(self._one.reply, data))

    def end(self) -> None:
        """The exchange is over, and it has to let go of it."""
        try:
            self._one.end()
        except Exception as fault:  # noqa: BLE001 - whatever it is
            if not self._failed:
                self._fail(fault)

    def _tell(self, what: Callable[[], None]) -> None:
        if not self._failed:
            try:
                what()
            except Exception as fault:  # noqa: BLE001 - whatever it is
                self._fail(fault)

    def _fail(self, fault: Exception) -> None:
        self._failed = True
        self._told(fault)


# Begins the capture of an exchange: the exchange, target and version of its request line (the
# method is the exchange's), its fields.
Watch = Callable[[Exchange, str, Headers], Capture]
