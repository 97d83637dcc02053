"""Who is at the other end of a connection, as the connection itself says it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, Literal

from proxy.core.caller import Caller
from proxy.core.certificate import CertificatePattern, names_of, pattern_text
from proxy.core.printable import printable
from proxy.errors import CallerUnknown

# Every user of another user namespace looks like this one (user_namespaces(7)).
OVERFLOW_UID = 65534
PeerWay = Literal["certificate", "uid"]
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Names, and their characters, of a certificate that is nobody's: in a reply, and in the log.
_SHOWN, _LONGEST, _LOGGED = 3, 100, 8
_SUBJECT = "subject:"


@dataclass(frozen=True, slots=True)
class Peer:
    """What a connection says of who is at its other end.

    Attributes:
        names: of a certificate that was verified.
        uid: of the process that connected to a Unix socket, or None.
        expires: epoch seconds until which the certificate is good; infinite without one.
    """

    names: frozenset[str] = frozenset()
    uid: int | None = None
    expires: float = math.inf

    @classmethod
    def of_certificate(cls, found: Mapping[str, Any] | None) -> "Peer":
        """Whom a certificate was made for.

        Args:
            found: what `ssl.SSLObject.getpeercert` says; None or empty where none was verified.
        """
        if not found:
            return NOBODY
        return cls(names_of(found), expires=_epoch(found.get("notAfter", "")))

    @classmethod
    def of_uid(cls, uid: int) -> "Peer":
        """The user whose process it is."""
        return cls(uid=uid)


NOBODY = Peer()


class KnownPeers:
    """Finds the callers that certificates and uids belong to.

    Args:
        callers: each with its patterns and uids.
    """

    def __init__(self, callers: Iterable[Caller]) -> None:
        several = tuple(callers)
        self._uids: dict[int, list[Caller]] = {}
        self._patterns: dict[str, list[tuple[CertificatePattern, Caller]]] = {}
        every = [(pattern, one) for one in several for pattern in one.certificates]
        # A pattern is found by the rarest of its names: an O may stand in all of them.
        count = Counter(chain.from_iterable(pattern.names for pattern, _ in every))
        for pattern, one in every:
            rarest = min(pattern.names, key=count.__getitem__)
            self._patterns.setdefault(rarest, []).append((pattern, one))
        for one in several:
            for uid in one.uids:
                self._uids.setdefault(uid, []).append(one)

    def with_uid(self, uid: int) -> list[Caller]:
        """Those who list a uid."""
        return self._uids.get(uid, [])

    def fitting(self, names: frozenset[str]) -> list[tuple[CertificatePattern, Caller]]:
        """The patterns that a certificate with these names fits, and whose they are."""
        if not self._patterns:
            return []
        return [
            (pattern, caller)
            for name in names
            for pattern, caller in self._patterns.get(name, ())
            if pattern.names <= names
        ]

    def find(self, peer: Peer) -> tuple[Caller, PeerWay] | None:
        """Whose connection it is; None if it is nobody's.

        Raises:
            CallerUnknown: of several callers.
        """
        by_name = [caller for _, caller in self.fitting(peer.names)]
        by_uid = self.with_uid(peer.uid) if peer.uid is not None else []
        found = {one.name: one for one in (*by_name, *by_uid)}
        if len(found) > 1:
            what = "certificate" if by_name else "uid"
            raise CallerUnknown(
                f"The {what} of this connection fits several callers: {', '.join(sorted(found))}.",
                hint="Take a pattern away, or name more in it: certificates and uids of "
                "[[caller]], nomba-proxy caller list",
            )
        way: PeerWay = "certificate" if by_name else "uid"
        return next(((one, way) for one in found.values()), None)


def of_no_caller(peer: Peer) -> CallerUnknown | None:
    """What to tell a peer that is not known; None if its connection says nothing of it."""
    if peer.uid is not None:
        return CallerUnknown(
            f"The uid of this connection's other end, {peer.uid}, is of no caller.",
            hint="Users of another user namespace look like that: send a key."
            if peer.uid == OVERFLOW_UID
            else f"nomba-proxy caller add NAME --uid {peer.uid}, or send a key.",
        )
    if peer.expires == math.inf:
        return None
    # What may stand in a reply: not whatever a certificate can hold.
    fine = (one for one in sorted(peer.names) if one.isprintable() and len(one) <= _LONGEST)
    shown = [pattern_text(one) for one in islice(fine, _SHOWN)]
    has = f" It says {' and '.join(shown)}." if shown else ""
    return CallerUnknown(
        "The certificate of this connection is of no caller.",
        hint=f"nomba-proxy caller add NAME --certificate PATTERN, or send a key.{has}",
    )


def says_of_itself(peer: Peer) -> str:
    """Which certificate a connection has, for the log: as patterns that fit it; "" without one.

    Whoever reads it may add a caller by it, so the whole subject is one pattern. A CA that we trust
    has signed it, and can still have signed anything: what a terminal acts on is escaped.
    """
    if peer.expires == math.inf:
        return ""
    subject = [one for one in sorted(peer.names) if one.startswith(_SUBJECT)]
    whole = ",".join(pattern_text(one).removeprefix(_SUBJECT) for one in subject)
    patterns = [_SUBJECT + whole] if subject else []
    patterns += sorted(peer.names.difference(subject))
    if not patterns:
        return "The certificate says nothing that a pattern could ask for."
    shown = [
        one if len(one) <= _LONGEST else one[:_LONGEST] + "…"
        for one in map(printable, patterns[:_LOGGED])
    ]
    more = len(patterns) - len(shown)
    return f"The certificate says {'; '.join(shown)}{f'; and {more} more' if more else ''}."


def _epoch(text: str) -> float:
    """When a certificate's life is over, e.g. `Jan  5 09:34:43 2018 GMT`; 0 if it does not say."""
    try:
        month, day, time, year, _ = text.split()
        hour, minute, second = map(int, time.split(":"))
        number = _MONTHS.index(month) + 1
        return datetime(int(year), number, int(day), hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
