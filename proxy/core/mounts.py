"""Which upstream a request is for: by the name the proxy was called by, and by its path.

A name that an upstream lists among its `hosts` belongs to the upstreams that list it: by that
name no other one is reached, whatever the path. So nobody who calls the sandbox by its name
ends up at production because a path is misspelled.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.core.heads import Headers
from proxy.core.origin import Origin, host_name
from proxy.core.reply_heads import own_location
from proxy.errors import HeadInvalid, MountUnknown, TargetAmbiguous


@dataclass(frozen=True, slots=True, eq=False)  # a key, looked up by every request
class Mount:
    """Where callers reach one upstream.

    Attributes:
        prefix: of the path, without a trailing slash; empty for the root.
        hosts: names (`origin.host_name`) it is reached by; empty for all that are nobody's.
        strip: whether the prefix is taken off before a request is forwarded.
    """

    prefix: bytes = b""
    hosts: frozenset[str] = frozenset()
    strip: bool = True

    def holds(self, path: bytes) -> bool:
        """Whether a path is the prefix or lies below it."""
        end = len(self.prefix)
        return path.startswith(self.prefix) and path[end : end + 1] in {b"/", b""}

    def locate(self, location: bytes, *, origin: Origin) -> bytes:
        """Where a caller finds what the upstream's `Location` names.

        What lies outside of a mount that is kept is not to be had through it: as a path it would
        lead the caller to another upstream. So it is told as the upstream's own.
        """
        if self.strip:
            return own_location(location, origin=origin, mount=self.prefix)
        found = own_location(location, origin=origin, mount=b"")
        path = found.partition(b"?")[0].partition(b"#")[0]
        if not found.startswith(b"/") or found.startswith(b"//") or self.holds(path):
            return found
        return origin.text.encode() + found


class Mounts:
    """All of them.

    Args:
        mounts: in any order; the longest that holds a path wins.

    Attributes:
        by_host: whether a name chooses anything.
    """

    def __init__(self, mounts: Iterable[Mount]) -> None:
        ordered = sorted(mounts, key=lambda one: len(one.prefix), reverse=True)
        names = {name for one in ordered for name in one.hosts}
        self._named = {name: [one for one in ordered if name in one.hosts] for name in names}
        self._others = [one for one in ordered if not one.hosts]
        self.by_host = bool(names)

    def find(self, path: bytes, *, host: str) -> Mount:
        """The mount of a path.

        Args:
            path: of the target.
            host: the name the proxy was called by (`called_by`), or "".

        Raises:
            MountUnknown: there is none.
        """
        candidates = self._named.get(host, self._others)
        for one in candidates:
            if one.holds(path):
                return one
        if not candidates:  # names are not told: this may be a page that came by one of its own
            raise MountUnknown(
                "No upstream is reached by the name that the proxy was called by.",
                hint="Call it by one that an upstream lists in its hosts.",
            )
        raise MountUnknown(
            "No upstream is mounted at this path.",
            hint=f"Mounts: {', '.join(one.prefix.decode() or '/' for one in candidates)}",
        )

    def find_by_path(self, path: bytes) -> Mount:
        """The mount of a path, by whatever name the proxy is called.

        Raises:
            MountUnknown: there is none, or a name chooses.
        """
        if any(one.holds(path) for named in self._named.values() for one in named):
            raise MountUnknown(
                "At this path an upstream is chosen by the name in Host.",
                hint="Send it to that name yourself: a copied command calls the proxy by its address.",
            )
        return self.find(path, host="")


def called_by(headers: Headers, *, authority: str) -> str:
    """The name that the proxy was called by, where a name chooses the upstream; "" for none.

    Args:
        headers: raw fields.
        authority: of an absolute-form target, or "".

    Raises:
        HeadInvalid: `Host` is there more than once, or no host (RFC 9112 section 3.2).
        TargetAmbiguous: target and `Host` name two different hosts. RFC 9112 section 3.2.2 has a
            proxy go by the target, but what stands before us may have gone by `Host`.
    """
    values = [value.decode("latin-1") for name, value in headers if name.lower() == b"host"]
    if len(values) > 1:
        raise HeadInvalid("The request names its host more than once.", close=True)
    told = values[0] if values else ""
    name = host_name(told)
    if told and not name:
        raise HeadInvalid("The Host of the request is no host.", close=True)
    if not authority:
        return name
    named = host_name(authority)
    if told and name != named:
        raise TargetAmbiguous(
            "The request target names another host than Host does.",
            hint="Send the same name in both, or a path as the target.",
        )
    return named
