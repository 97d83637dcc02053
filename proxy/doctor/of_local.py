"""What follows from what there is on this machine: plain functions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.doctor.certificate import Certificate
from proxy.doctor.of_network import day
from proxy.doctor.step import Step, bad, good, left_out

_SOON = 14 * 86400.0


@dataclass(frozen=True, slots=True)
class Door:
    """A place to listen at, and who is there.

    Attributes:
        key: the setting.
        at: as that says it.
        state: `ours` (a proxy of ours), `taken`, `silent` (the same, and who has it does not answer:
            a proxy that hangs, perhaps), `free`, `denied` (it cannot be had), `inherited`.
        detail: who has it, or why it cannot be had.
    """

    key: str
    at: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Around:
    """What there is on this machine.

    Attributes:
        admin: where a proxy's admin listener would be.
        status: what the one there says of its sessions; None if there is none.
        locked: whether it says nothing for lack of its token.
        rivals: how often it met rival sessions, by upstream.
        doors: the places that the settings name.
        odd: what it does not say of its sessions, or in another way, so that it cannot be read;
            "" if it can.
    """

    admin: str
    status: Mapping[str, Any] | None = None
    locked: bool = False
    rivals: Mapping[str, int] = field(default_factory=dict)
    doors: tuple[Door, ...] = ()
    odd: str = ""

    @property
    def runs(self) -> bool:
        """Whether a proxy runs here, or may: reachable for operators or not, or hanging."""
        return self.hangs or any(one.state == "ours" for one in self.doors)

    @property
    def hangs(self) -> bool:
        """Whether somebody has a place of the proxy's and does not answer."""
        return any(one.state == "silent" for one in self.doors)


def of_doors(around: Around) -> Iterator[Step]:
    """A step for each place that a proxy would listen at, or does."""
    for door in around.doors:
        yield _of_door(door, runs=around.runs)


def _of_door(door: Door, *, runs: bool) -> Step:
    name, where = "listener", f"{door.key} {door.at}"
    match door.state:
        case "inherited":
            return left_out(name, f"{where}: whoever starts the proxy hands it over")
        case "ours":
            return good(name, f"{where}: the running proxy has it")
        case "free" if door.at.endswith(":0"):
            return left_out(name, f"{where}: any port that is free")
        case "free":
            if runs and door.key != "inspect_listen":
                return bad(
                    name,
                    f"{where}: a proxy runs here, but not there",
                    "It was started with other settings: start it again with these.",
                )
            return good(name, f"{where}: free")
        case "silent":
            who = door.detail or "a process of another user"
            return bad(
                name,
                f"{where}: {who} has it, and does not answer",
                "If it is the proxy, it hangs, or this user may not ask it; if not, choose another "
                f"place for {door.key}.",
            )
        case "taken":
            who = door.detail or "a process of another user"
            command = "ss -lxp" if door.at.startswith("unix:") else "ss -ltnp"
            return bad(
                name,
                f"{where}: taken by {who}, which is no proxy of ours",
                f"End that process, or choose another place for {door.key} ({command}, as "
                "root, shows who listens where).",
            )
    return bad(name, f"{where}: {door.detail}", _hint(door))


def _hint(door: Door) -> str:
    if door.at.startswith("unix:"):
        return (
            "Make the folder, and let the user that the proxy runs as write to it "
            "(systemd: RuntimeDirectory=nomba-proxy)."
        )
    return (
        f"Choose another address for {door.key}: one of this machine's, and a port from 1024 on "
        "unless the proxy may have a lower one (CAP_NET_BIND_SERVICE)."
    )


def of_listener_certificate(shown: Certificate | None, *, path: str, now: float) -> Step:
    """Whether callers will take the certificate that a listener shows.

    Args:
        shown: it; None if it cannot be read.
        path: its file.
        now: epoch seconds.
    """
    renew = "Renew it; the running proxy takes over new files by itself (nomba-proxy certs renews its own)."
    if shown is None:
        return bad("listener tls", f"{path} holds no certificate", renew)
    what = f"{path}, for {', '.join(shown.names[:4]) or shown.subject}, by {shown.issuer}"
    if shown.ends <= now:
        return bad("listener tls", f"{what}: expired on {day(shown.ends)}", renew)
    if shown.begins > now:
        return bad(
            "listener tls", f"{what}: not valid before {day(shown.begins)}", "Check the clock."
        )
    soon = shown.ends - now < _SOON
    return good("listener tls", f"{what}, until {day(shown.ends)}", renew if soon else "")
