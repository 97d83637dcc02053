"""The one type for secrets: it does not print, and it knows where it may go."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, compress, count
from operator import sub
from typing import NoReturn, final

# What the key of phantom tokens is pinned to: no origin at all.
SIGNING = "signing:"
_SHORT = 6  # characters; a shorter secret is found in a text by chance
# The same of the password of a shared store.
STORE = "store:"
# The same of the token that opens the admin listener.
ADMIN = "admin:"
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

    __slots__ = ("_imprint", "_origin", "_value")

    def __init__(self, value: str, *, origin: str) -> None:
        self._value = value
        self._origin = origin
        self._imprint: Imprint | None = None

    def reveal(self, *, to: str) -> str:
        """The text, for a request to origin `to`.

        Raises:
            SecretMisuse: `to` is not the origin this secret is pinned to.
        """
        if to != self._origin:
            raise SecretMisuse(f"a secret of {self._origin} was asked for by {to}")
        return self._value

    def holds(self, text: str) -> bool:
        """Whether `text` is the secret (constant time); bytes that are no UTF-8 are welcome."""
        return hmac.compare_digest(self._value.encode(), text.encode("utf-8", "surrogatepass"))

    def veil(self, text: str, instead: str) -> str:
        """A text with `instead` wherever the secret stands in it."""
        return text.replace(self._value, instead) if len(self._value) >= _SHORT else text

    def imprint(self) -> "Imprint":
        """What masks the secret elsewhere."""
        if self._imprint is None:
            value = self._value.encode()
            self._imprint = Imprint(len(value), sum(value), _digest(value).hex())
        return self._imprint

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


@dataclass(frozen=True, slots=True)
class Imprint:
    """Finds a secret in a text without holding it: for a process that has no use for the secret.

    Attributes:
        length: its bytes.
        total: their sum: of a thousand places in a text, one or two have the same.
        digest: its SHA-256, in hexadecimal; tokens are long enough that nobody guesses one by it.
    """

    length: int
    total: int
    digest: str

    def veil(self, text: str, instead: str) -> str:
        """As `Secret.veil`; takes some 0.1 µs a character of a text that could hold it."""
        if not _SHORT <= self.length <= len(text):
            return text
        data = text.encode("utf-8", "surrogatepass")
        # The sum of every stretch of that length, each from the one before it.
        steps = map(sub, data[self.length :], data)
        sums = accumulate(steps, initial=sum(data[: self.length]))
        kept, end = [], 0
        for at in compress(count(), map(self.total.__eq__, sums)):
            found = data[at : at + self.length]
            if at >= end and _digest(found).hex() == self.digest:
                kept += [data[end:at], instead.encode()]
                end = at + self.length
        return b"".join([*kept, data[end:]]).decode("utf-8", "surrogatepass")


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(b"nomba-proxy imprint\0" + value).digest()


def mask(text: str) -> str:
    """`text` cut to its first and last four characters, for people to recognise.

    Short texts are hidden whole. For identifiers (accounts, client ids), not secrets.
    """
    return f"{text[:4]}…{text[-4:]}" if len(text) >= 12 else "…"
