"""slowhttptest against the proxy, while others call through it."""

import re
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from lab import environment
from stand import Verdict, program

_CONNECTIONS, _RATE, _SECONDS = 500, 100, 30
_ANSWERED_WITHIN = 5.0  # seconds
_PAUSE = 0.1  # seconds between two calls
_READ = ("-X", "-n", "1", "-z", "5", "-w", "10", "-y", "20", "-k", "1")  # 5 bytes a second
_ATTACKS = {  # with how many bytes the origin answers
    "slow head": ("-H", "-i", "5", "1000"),
    "slow body": ("-B", "-i", "5", "-s", "8192", "1000"),
    "slow read of 100 KiB": (*_READ, "102400"),
    "slow read of 1 MiB": (*_READ, "1048576"),
    "slow read of 16 MiB": (*_READ, "16777216"),
}
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_AVAILABLE = re.compile(r"service available: *(\w+)")
_CONNECTED = re.compile(r"connected: *(\d+)")


class _Calls:
    """Calls as anyone makes them, one after another until it is left.

    Attributes:
        answered: how many were, with 200 and in time.
        failed: what became of the others.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.answered = 0
        self.failed: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self._over.wait(_PAUSE):
            try:
                with opener.open(f"{self._url}/1000", timeout=_ANSWERED_WITHIN) as reply:
                    reply.read()
                self.answered += 1
            except (OSError, urllib.error.URLError) as problem:
                self.failed.append(str(problem))


def slow(url: str, folder: Path) -> dict[str, Verdict]:
    """500 connections at a time for half a minute each; `pass` if every other call is answered."""
    attacker = program("slowhttptest", "slowhttptest")
    found = {}
    for attack, (*options, size) in _ATTACKS.items():
        command = [attacker, *options, "-c", str(_CONNECTIONS), "-r", str(_RATE), "-v", "1"]
        command += ["-l", str(_SECONDS), "-p", "3", "-u", f"{url}/{size}"]
        with _Calls(url) as calls:
            done = subprocess.run(
                command, cwd=folder, env=environment(), timeout=2 * _SECONDS + 30,
                capture_output=True, text=True, errors="replace", check=False,
            )  # fmt: skip
        said = f"{calls.answered} calls answered, {len(calls.failed)} not"
        if calls.failed:
            said += f", e.g. {calls.failed[0]}"
        text = _COLOURS.sub("", done.stdout)
        (folder / f"{attack}.log").write_text(text + done.stderr)
        available = set(_AVAILABLE.findall(text)) == {"YES"}
        at_most = max(map(int, _CONNECTED.findall(text)), default=0)
        said += f", {at_most} slow ones at a time"
        attacked = at_most > 0.9 * _CONNECTIONS  # or that it held would say nothing
        held = available and attacked and calls.answered and not calls.failed
        found[attack] = Verdict("pass" if held else "fail", said)
    return found
