"""What a measurement is made with: cores, processes, their CPU time, ports."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_STARTS_WITHIN = 30.0  # seconds
_ENDS_WITHIN = 10.0
_CPUCLOCK_SCHED = 2  # the kernel's name for "user and system time, by the scheduler"


class CannotMeasure(Exception):
    """The machine lacks something without which nothing can be measured; the text says what."""


class Missing(Exception):
    """A proxy cannot take part; the text says why."""


@dataclass(frozen=True)
class Cores:
    """Who runs where.

    Attributes:
        proxy: the core of what is measured.
        load: the cores of the origin and of who calls.
    """

    proxy: int
    load: tuple[int, ...]

    @classmethod
    def here(cls) -> "Cores":
        """The first core this process may use, and the others.

        Raises:
            CannotMeasure: there is only one.
        """
        first, *others = sorted(os.sched_getaffinity(0))
        if not others:
            raise CannotMeasure("two cores are needed: one for the proxy, one for the load")
        return cls(first, tuple(others))

    @property
    def all(self) -> tuple[int, ...]:
        """Both."""
        return (self.proxy, *self.load)


# None of them twice, and none of those that the system gives to whoever binds to any or connects: a
# port is told to a process first, and bound a while later.
_PORTS = itertools.cycle(random.sample(range(10_000, 15_000), 5_000))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and no other time the same."""
    while True:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", next(_PORTS)))
            return sock.getsockname()[1]


def tree(pid: int) -> set[int]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, left = set(), [pid]
    while left:
        one = left.pop()
        found.add(one)
        left += children.get(one, ())
    return found


def cpu_times(pids: Iterable[int]) -> dict[int, float]:
    """The CPU time of each process: user and system, of all threads, ended ones too; seconds.

    It is the clock of clock_getcpuclockid(3), whose number Python has no function for. It counts
    nanoseconds, where /proc/PID/stat counts hundredths of a second.
    """
    return {pid: time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED) for pid in pids}


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Seconds between two readings of a tree.

    Raises:
        RuntimeError: a process has ended, and its time with it.
    """
    if gone := before.keys() - after.keys():
        raise RuntimeError(f"{len(gone)} processes of the proxy have ended meanwhile")
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def core_times(cores: Iterable[int]) -> float:
    """Seconds for which these cores have worked, for whomever, since the machine started."""
    wanted = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


class Process:
    """A program on given cores, with its children in a group of their own.

    Args:
        command: what is run.
        cores: where it runs.
        output: takes what it writes to stdout and stderr.
        env: its whole environment.

    Raises:
        Missing: there is no such program.
    """

    def __init__(
        self, command: list[str], *, cores: Iterable[int], output: Path, env: Mapping[str, str]
    ) -> None:
        self.output, self.cores = output, tuple(cores)
        pinned = ["taskset", "--cpu-list", ",".join(map(str, self.cores)), *command]
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                pinned, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=dict(env),
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its id; it is that of the program, as taskset becomes it."""
        return self._process.pid

    def cpu(self) -> dict[int, float]:
        """What `spent` takes."""
        return cpu_times(tree(self.pid))

    def listens(self, port: int) -> None:
        """Wait until it does.

        Raises:
            Missing: it ended, or does not listen in time.
        """
        end = time.monotonic() + _STARTS_WITHIN
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise Missing(f"ended with code {self._process.returncode}: {self.last_words()}")
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            time.sleep(0.05)
        raise Missing(f"does not listen after {_STARTS_WITHIN:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """The end of what it has written."""
        lines = self.output.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-400:] or "it says nothing"

    def stop(self) -> None:
        """End it and what it has started."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDS_WITHIN)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def environment(**more: str) -> dict[str, str]:
    """That of this process, without what would set up a proxy."""
    proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("NOMBA_") and name.lower() not in proxies
    }
    return kept | {"NOMBA_PROXY_DRAIN_DELAY": "0"} | more


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, so that everything started is stopped."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
