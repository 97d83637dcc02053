"""A whole reply of the upstream, as the token calls see it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from proxy.core.heads import Headers


@dataclass(frozen=True, slots=True)
class WholeReply:
    """A reply whose body has been read to its end."""

    status: int
    headers: Headers
    body: bytes


class CallUpstream(Protocol):
    """Send one request over the upstream's dialler and read the whole reply."""

    def __call__(
        self,
        target: bytes,
        *,
        headers: Headers,
        body: bytes,
        within: float,
        sending: Callable[[], object] = ...,
    ) -> Awaitable[WholeReply]:
        """POST `body` to `target` at the origin this callable belongs to.

        Args:
            target: in origin form.
            headers: beside those that say who and how much.
            body: whole.
            within: seconds for all of it.
            sending: called right before the first byte is written; if it raises, none is.

        Raises:
            UpstreamError: no complete reply within `within` seconds.
        """
        ...
