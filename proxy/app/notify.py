"""The service manager that started this process, should there be one, is told how it goes.

The protocol is systemd's, sd_notify(3): datagrams of `NAME=value` lines to the socket that
`$NOTIFY_SOCKET` names. Only the process that was started speaks: of several, the supervisor.
"""

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from proxy.core.exchange import Emit, Event

_SLACK = 3.0  # signs of life in the time after which their lack is acted upon


@dataclass(frozen=True, slots=True)
class Manager:
    """Whoever started this process and wants to know how it goes.

    Attributes:
        address: of its socket; "" if there is nobody.
        every: seconds between two signs of life that it wants; 0 for none.
        emit: is told if it cannot be reached.
    """

    address: str
    every: float
    emit: Emit

    @classmethod
    def of(cls, variables: Mapping[str, str], *, emit: Emit) -> "Manager":
        """The one that the environment tells of (sd_notify(3), sd_watchdog_enabled(3)).

        Args:
            variables: `NOTIFY_SOCKET`, and `WATCHDOG_USEC` with `WATCHDOG_PID`, which a process that
                another one started inherits in vain.
            emit: takes events.
        """
        address = variables.get("NOTIFY_SOCKET", "")
        if address.startswith("@"):
            address = "\0" + address[1:]  # without a file: an abstract one, unix(7)
        elif not address.startswith("/"):
            address = ""
        limit = variables.get("WATCHDOG_USEC", "")
        ours = variables.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
        wanted = bool(address) and ours and limit.isascii() and limit.isdigit()
        return cls(address, int(limit) / 1e6 / _SLACK if wanted else 0.0, emit)

    def ready(self, status: str) -> None:
        """All is up, or up again.

        Args:
            status: for people, one line.
        """
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Something is read anew; `ready` follows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=Reloading")

    def stopping(self) -> None:
        """The end has begun."""
        self._say("STOPPING=1", "STATUS=Answering what has come, then ending")

    def hear(self, event: Event, *, status: str) -> None:
        """Pass on what a supervisor tells of.

        Args:
            event: of any kind.
            status: as for `ready`.
        """
        if event.name == "restarting":
            self.reloading()
        elif event.name == "restarted":
            self.ready(status)
        elif event.name == "draining":
            self.stopping()

    def alive(self) -> None:
        """A sign of life, if one is wanted."""
        if self.every:
            self._say("WATCHDOG=1")

    async def give_signs(self) -> None:
        """Give signs of life for as long as the event loop turns."""
        while self.every:
            self.alive()
            await asyncio.sleep(self.every)

    def _say(self, *lines: str) -> None:
        """Tell it, without ever waiting for it: it may be busy, or gone."""
        if not self.address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), self.address)
        except OSError as error:
            told: dict[str, object] = {"reason": error.strerror, "untold": lines[0]}
            self.emit(Event("manager_not_told", "warning", fields=told))
