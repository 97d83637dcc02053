"""The one type for secrets: it does not print, and it knows where it may go."""

import hashlib
import hmac
from collections.abc import Callable
from typing import NoReturn, final

# What the key of phantom tokens is pinned to: no origin at all.
SIGNING = "signing:"
_SHORT = 6  # characters; a shorter secret is found in a text by chance
# The same of an app's own secret that the built-in simulator is to know.
SIMULATED = "simulated:"


class SecretMisuse(Exception):
    """A secret was about to be sent to an origin it does not belong to."""


@final
class Secret:
    """A secret text, pinned to the one origin it may be revealed to.

    Args:
        value: the secret itself.
        origin: `scheme://host[:port]` it belongs to.
    """

    __slots__ = ("_origin", "_value")

    def __init__(self, value: str, *, origin: str) -> None:
        self._value = value
        self._origin = origin

    def reveal(self, *, to: str) -> str:
        """The text, for a request to origin `to`.

        Raises:
            SecretMisuse: `to` is not the origin this secret is pinned to.
        """
        if to != self._origin:
            raise SecretMisuse(f"a secret of {self._origin} was asked for by {to}")
        return self._value

    def holds(self, text: str) -> bool:
        """Whether `text` is the secret (constant time)."""
        return hmac.compare_digest(self._value.encode(), text.encode())

    def veil(self, text: str, instead: str) -> str:
        """A text with `instead` wherever the secret stands in it."""
        return text.replace(self._value, instead) if len(self._value) >= _SHORT else text

    def fingerprint(self, name: Callable[[str], str]) -> str:
        """What `name`, which keeps it to itself, makes of the secret."""
        return name(self._value)

    def digest(self) -> str:
        """Twelve hex digits that identify the secret without revealing it."""
        return hashlib.sha256(b"nomba-proxy\0" + self._value.encode()).hexdigest()[:12]

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return self._origin == other._origin and hmac.compare_digest(
            self._value.encode(), other._value.encode()
        )

    __hash__ = None  # type: ignore[assignment]  # a secret is no key

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")


def mask(text: str) -> str:
    """`text` cut to its first and last four characters, for people to recognise.

    Short texts are hidden whole. For identifiers (accounts, client ids), not secrets.
    """
    return f"{text[:4]}…{text[-4:]}" if len(text) >= 12 else "…"
