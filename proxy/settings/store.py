"""Where sessions are kept: read and check what `store` and `workers` say."""

import os
import re
from pathlib import Path

from proxy.settings.model import SettingsModel
from proxy.settings.shared_store import SHARED, masked
from proxy.settings.sources import Report

# On these a lock is not sure to hold between machines, or after one has lost its connection.
_NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "9p", "lustre", "glusterfs"),
        *("gfs2", "ocfs2", "beegfs", "orangefs", "coda", "davfs", "fuse.sshfs", "fuse.glusterfs"),
        *("fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.juicefs", "fuse.ceph", "fuse.davfs2"),
        *("fuse.cephfs", "fuse.mount-s3", "fuse.blobfuse2", "fuse.goofys", "fuse.moosefs"),
    }
)
_MOUNTS = Path("/proc/self/mountinfo")


def read_store(model: SettingsModel, *, state_dir: Path, report: Report) -> Path | None:
    """The folder that sessions are kept in; None for memory, or for a server."""
    text = model.store
    if text is None:
        return state_dir / "sessions" if model.workers > 1 else None
    kind, _, rest = text.partition(":")
    if kind == "memory" and not rest:
        if model.workers > 1:
            report.problem(
                "store",
                f"memory is of one process, and there are {model.workers} workers",
                hint="They would end each other's session. Leave store unset, or set file:DIR.",
            )
        return None
    path = rest.removeprefix("//") if rest.startswith("///") else rest
    if kind == "file" and path.startswith("/") and not path.startswith("//"):
        return Path(path)
    if kind == "file" and rest:
        report.problem(
            "store",
            f"{rest} is no absolute path",
            hint="Proxies that share a session must mean the same folder: file:/var/lib/…",
        )
        return None
    if kind not in SHARED:
        hint = "memory, file:DIR with a folder of this machine, or valkey://HOST:PORT"
        report.problem("store", f"{masked(text)!r} is no store", hint=hint)
    return None


def check_store(folder: Path, *, report: Report) -> None:
    """Check that a folder can hold sessions, before anything is started."""
    if kind := network_file_system(folder):
        report.problem(
            "store",
            f"{folder} is on a network file system ({kind})",
            hint="Its locks do not hold: two proxies could log in at once. Name a local folder.",
        )
        return
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    found = there.stat()
    if there == folder and found.st_uid != os.geteuid():
        report.problem(
            "store",
            f"{folder} belongs to another user",
            hint="Whoever owns it could keep the session locked. Name a folder of your own.",
        )
    elif not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        report.problem(
            "store",
            f"{there} is no folder that can be written",
            hint="Name one that the proxy may write to: store = file:DIR, or state_dir.",
        )
    elif there == folder and found.st_mode & 0o022:
        report.problem(
            "store",
            f"{folder} can be written by other users",
            hint=f"They could keep the session locked: chmod go-w {folder}",
        )


def network_file_system(path: Path, *, mounts: Path = _MOUNTS) -> str:
    """The kind of the network file system that a path is on; "" if it is on none.

    Args:
        path: need not exist.
        mounts: lists what is mounted (proc(5), mountinfo); where there is no such list, nobody knows.
    """
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    resolved = path.resolve()
    best, kind = -1, ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        try:
            point = Path(_unescaped(fields.split(" ")[4]))
            found = rest.split(" ")[0]
        except IndexError:
            continue
        # Of two at the same place, the later one hides the earlier.
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), found
    return kind if kind in _NETWORK else ""


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
