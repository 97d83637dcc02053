"""Secret headers are cut where they are captured, before anything is kept or goes elsewhere."""

from collections.abc import Callable

from proxy.core.heads import Headers
from proxy.inspector.looks import MASK

_MASK = MASK.encode()
_MOST_NAMES, _LONGEST_NAME = 4096, 64
# Secret, and never sent on: a head without others needs no cutting.
_STAYS_HERE = frozenset({b"authorization", b"proxy-authorization", b"x-nomba-proxy-key"})


class Cutter:
    """Cuts; on the path of every request.

    Args:
        is_secret: whether a header of this name is cut.
    """

    __slots__ = ("_is_secret", "_known")

    def __init__(self, is_secret: Callable[[bytes], bool]) -> None:
        self._is_secret = is_secret
        self._known: dict[bytes, bool] = {}  # names of headers: secret or not

    def fields(self, headers: Headers) -> tuple[bytes, bool]:
        """Header fields, one a line, the values of secret ones masked; whether one is passed on."""
        known, passed = self._known, False
        lines: list[bytes] = []
        for name, value in headers:
            secret = known.get(name)
            if secret is None:
                secret = self._find_out(name)
            if secret:
                passed = passed or name.lower() not in _STAYS_HERE
                lines += (name, b": ", _MASK, b"\r\n")
            else:
                lines += (name, b": ", value, b"\r\n")
        return b"".join(lines), passed

    def head(self, head: bytes) -> bytes:
        """The same of a head that is ready to be written."""
        fields, blank, rest = head.partition(b"\r\n\r\n")
        lines = fields.split(b"\r\n")
        for at, line in enumerate(lines):
            name, colon, _ = line.partition(b":")
            if at and colon and self._find_out(name):
                lines[at] = b"%b: %b" % (name, _MASK)
        return b"\r\n".join(lines) + blank + rest

    def _find_out(self, name: bytes) -> bool:
        found = self._is_secret(name)
        if len(self._known) < _MOST_NAMES and len(name) <= _LONGEST_NAME:
            self._known[name] = found
        return found
