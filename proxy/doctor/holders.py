"""Which processes of this machine listen at a place, as its kernel says it: nobody is asked."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from proxy.settings import Address, UnixSocket

_LISTENS = "0A"  # TCP_LISTEN, proc_pid_net(5)
_ACCEPTS = 0x10000  # __SO_ACCEPTCON, the flag of a Unix socket that listens


def holders(at: Address | UnixSocket) -> frozenset[int]:
    """The processes that have a socket which listens there, as far as this user may know."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(at)}
    found = set()
    for folder in Path("/proc").glob("[0-9]*/fd") if sockets else ():
        with suppress(OSError):  # it has ended, or is another user's
            if any(str(one.readlink()) in sockets for one in folder.iterdir()):
                found.add(int(folder.parent.name))
    return frozenset(found)


def name_of(found: frozenset[int]) -> str:
    """The first of some processes, for people; "" if there is none."""
    for process in sorted(found):
        with suppress(OSError):  # it has ended
            name = Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
            return f"{name}, process {process}"
    return ""


def _inodes(at: Address | UnixSocket) -> Iterator[str]:
    """Those of a path, or of a port whatever the address: it may be bound to all of them."""
    if isinstance(at, UnixSocket):
        for fields in _rows("/proc/net/unix"):
            listens = len(fields) > 7 and int(fields[3], 16) & _ACCEPTS
            if listens and fields[7:] == at.path.split():
                yield fields[6]
        return
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for fields in _rows(table):
            if fields[3] == _LISTENS and fields[1].endswith(f":{at.port:04X}"):
                yield fields[9]


def _rows(table: str) -> Iterator[list[str]]:
    with suppress(OSError):
        for row in Path(table).read_text(errors="replace").splitlines()[1:]:
            yield row.split()
