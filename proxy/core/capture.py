"""What somebody who watches an exchange is told while it happens.

The handler tells; `Capture` itself takes it and keeps nothing. What keeps it is a room of its
own (`inspector/`), which the handler knows nothing of.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
        self, head: RequestHead, *, account: str, token: Secret, generation: int, why: str
    ) -> None:
        """A request is about to be sent.

        Args:
            head: to be completed.
            account: that it is completed with.
            token: the same; to know it again should the upstream repeat it.
            generation: the token's.
            why: `first try`, `replay with a new token` or `sent again over a new connection`.
        """

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


# Begins the capture of an exchange: the exchange, target and version of its request line (the
# method is the exchange's), its fields.
Watch = Callable[[Exchange, str, Headers], Capture]
