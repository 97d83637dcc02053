"""Under which conditions was measured."""

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from lab import Missing
from peers import Peer

_ROOT = Path(__file__).parents[1]


def conditions(peers: Iterable[Peer]) -> dict[str, object]:
    """What a figure depends on: machine, versions, moment."""
    versions = {}
    for peer in peers:
        try:
            versions[peer.name] = peer.version()
        except Missing as error:
            versions[peer.name] = f"missing: {error}"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": [round(one, 2) for one in os.getloadavg()],
        "versions": versions,
    }


def lines(told: dict[str, object]) -> list[str]:
    """The same for a terminal."""
    head = "{date} · commit {commit} · {cpu}, {cores} cores · {system} · Python {python}"
    load = "load average before the run {load_average[0]}: what others run here spoils figures"
    versions = told["versions"]
    assert isinstance(versions, dict)
    return [
        head.format(**told),
        load.format(**told),
        *(f"  {name}: {version}" for name, version in versions.items()),
    ]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=9"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
