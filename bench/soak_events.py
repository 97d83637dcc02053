"""What happens to a proxy while callers ask: one thing after another, in an order from a seed.

Each event is waited for until the proxy has told of it, so that none goes by unnoticed.
"""

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from certificates import Authority
from cryptography import x509
from processes import Workers, until
from soak_load import Excuses
from soak_nomba import ISSUE, ClientSecret, Nomba
from valkeys import ValkeyServer

WORKERS = 2
QUIET = (0.3, 0.8)  # between these shares of a run no worker is ended: what one leaks shows there
# The store is away for so many seconds at most. A token is renewed earlier than that before its death.
_AWAY = 1.5
_IN_A_CALL = 0.2  # share of the events for which a token call is waited for
_SETTLES = 1.0  # seconds after which everybody has a token again


class Log:
    """The proxy's log: how many lines of each event there are so far."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._begun = path, 0, b""
        self.counts: Counter[str] = Counter()

    def count(self, event: str) -> int:
        """So many, now."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        self._at += len(new)
        *lines, self._begun = (self._begun + new).split(b"\n")
        self.counts.update(json.loads(line)["event"] for line in lines)
        return self.counts[event]


class SettingsFile:
    """The proxy's settings, with one that changes."""

    def __init__(self, path: Path, fixed: str) -> None:
        self.path, self._fixed, self._number = path, fixed, 0
        self.change()

    def change(self) -> None:
        """Another value, which shows in the log and nowhere else."""
        self._number += 1
        self._write(f"[callers]\nconnections = {5000 + self._number}\n")

    def spoil(self) -> None:
        """What cannot be used."""
        self._write('[callers]\nconnections = "as many as come"\n')

    def _write(self, changing: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(self._fixed + changing)
        new.replace(self.path)


class Certificate:
    """The proxy's, signed anew now and then by who signed the first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "proxy.pem"
        self.authority = Authority(folder)
        self.renew()

    def renew(self) -> None:
        """Another key, another certificate, in the one file that holds both."""
        self.authority.issue(alternatives=[x509.DNSName("localhost")]).replace(self.path)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """All that something can happen to."""

    proxy: Workers
    server: ValkeyServer
    nomba: Nomba
    settings: SettingsFile
    certificate: Certificate
    secret: ClientSecret
    log: Log
    excuses: Excuses
    ports: tuple[int, ...]


class Fate:
    """Makes things happen.

    Args:
        stage: to whom.
        seed: of what, when and to which.
        seconds: how long; each event comes once however short that is.
        pause: seconds between two events, at least and at most.

    Attributes:
        happened: how often what did.
        in_token_calls: how often the store was restarted while a token call was under way.
        idle: whether nothing is happening.
        began: when.
    """

    def __init__(
        self, stage: Stage, *, seed: int, seconds: float, pause: tuple[float, float]
    ) -> None:
        self._stage, self._dice, self._pause = stage, random.Random(seed), pause
        self._seconds = seconds
        self._ends_workers: dict[str, Callable[[], Awaitable[None]]] = {
            "reload with changed settings": self._reload,
            "kill -9 of a worker": self._kill,
            "SIGTERM to a worker": self._terminate,
        }
        self._others: dict[str, Callable[[], Awaitable[None]]] = {
            "reload with settings that cannot be used": self._bad_reload,
            "restart of the store, which comes back empty": self._store,
            "new certificate": self._certify,
            "another client secret": self._change_secret,
            "login of a rival, which ends the session": self._rival,
        }
        self.happened: Counter[str] = Counter()
        self.in_token_calls = 0
        self.idle = True
        self.began = time.monotonic()

    async def run(self) -> None:
        """Until the time is over."""
        events = self._ends_workers | self._others
        while True:
            for name in self._dice.sample(list(events), len(events)):
                await asyncio.sleep(self._dice.uniform(*self._pause))
                if name in self._ends_workers and self.happened[name] and self.quiet:
                    continue
                self.idle = False
                try:
                    await events[name]()
                except AssertionError as error:
                    counts = dict(self._stage.log.counts)
                    raise RuntimeError(f"{name}: {error}; the log: {counts}") from None
                self.idle = True
                self.happened[name] += 1
                if self.past >= 1 and events.keys() <= self.happened.keys():
                    return

    @property
    def past(self) -> float:
        """The share of the run that is over."""
        return (time.monotonic() - self.began) / self._seconds

    @property
    def quiet(self) -> bool:
        """Whether no worker is ended at present."""
        return QUIET[0] <= self.past < QUIET[1]

    async def _told(self, event: str, before: int, *, times: int = 1) -> None:
        await until(lambda: self._stage.log.count(event) >= before + times, seconds=60)

    async def _replaced(self, *pids: int) -> None:
        """Wait until others have their places, and serve."""
        proxy, ports = self._stage.proxy, self._stage.ports
        await proxy.replaced(*pids, count=WORKERS)
        await until(lambda: all(accepted(one, ports) for one in proxy.pids))

    async def _reload(self) -> None:
        stage, old = self._stage, self._stage.proxy.pids
        before = stage.log.count("reloaded")
        stage.settings.change()
        stage.proxy.process.send_signal(signal.SIGHUP)
        await self._told("reloaded", before)
        await self._replaced(*old)

    async def _bad_reload(self) -> None:
        stage, old = self._stage, self._stage.proxy.pids
        before = stage.log.count("reload_failed")
        stage.settings.spoil()
        stage.proxy.process.send_signal(signal.SIGHUP)
        await self._told("reload_failed", before)
        stage.settings.change()
        assert stage.proxy.pids == old

    async def _perhaps_in_a_token_call(self) -> None:
        """Now and then wait until the proxy renews: what happens then costs most."""
        if self._dice.random() < _IN_A_CALL:
            await until(lambda: self._stage.nomba.asked)

    async def _kill(self) -> None:
        await self._perhaps_in_a_token_call()
        victim, before = self._victim(), self._stage.log.count("process_ended")
        # It is stopped first: what it has accepted until then, and nothing else, goes with it.
        os.kill(victim, signal.SIGSTOP)
        await until(lambda: state(victim) == "T")
        self._stage.excuses.killed(accepted(victim, self._stage.ports))
        os.kill(victim, signal.SIGKILL)
        await self._told("process_ended", before)
        await self._replaced(victim)

    async def _terminate(self) -> None:
        victim = self._victim()
        os.kill(victim, signal.SIGTERM)
        await self._replaced(victim)

    def _victim(self) -> int:
        return self._dice.choice(self._stage.proxy.pids)

    async def _store(self) -> None:
        log, server, nomba = self._stage.log, self._stage.server, self._stage.nomba
        lost, reached = log.count("store_lost"), log.count("store_reached")
        await self._perhaps_in_a_token_call()
        began, tokens, renewing = time.monotonic(), nomba.granted.total(), nomba.renewing
        await server.kill()
        await self._told("store_lost", lost)
        await asyncio.sleep(self._dice.uniform(0, _AWAY))
        renewing = renewing or nomba.granted.total() > tokens
        await server.start()
        await until(lambda: log.count("store_reached") - reached >= log.count("store_lost") - lost)
        if renewing:
            # The token of before is dead, and the new one could not be stored: docs/scaling.md.
            self.in_token_calls += 1
            self._stage.excuses.away(began, time.monotonic() + _SETTLES)

    async def _certify(self) -> None:
        before = self._stage.log.count("certificate_reloaded")
        self._stage.certificate.renew()
        await self._told("certificate_reloaded", before, times=WORKERS)

    async def _change_secret(self) -> None:
        log, secret = self._stage.log, self._stage.secret
        changed, switched = log.count("secret_changed"), log.count("secret_switched")
        secret.change()
        await self._told("secret_switched", switched)
        await self._told("secret_changed", changed, times=WORKERS)
        secret.forget()

    async def _rival(self) -> None:
        """Somebody logs in with the same credentials, and so ends the proxy's session."""
        nomba, before = self._stage.nomba, self._stage.nomba.granted.total()
        switches = nomba.switches
        asked = {"grant_type": "client_credentials", "client_id": switches.client_id}
        asked["client_secret"] = switches.client_secret
        named = {"accountId": switches.account_id}
        url, began = nomba.simulator.origin + ISSUE, time.monotonic()
        async with aiohttp.request("POST", url, json=asked, headers=named) as reply:
            assert reply.status == 200
        self._stage.excuses.rivalled(began, time.monotonic())
        await until(lambda: nomba.granted.total() > before + 1)


def state(pid: int) -> str:
    """What /proc says that a process does: `R`, `S`, `T` and so on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def accepted(pid: int, ports: tuple[int, ...]) -> set[int]:
    """From which ports of this machine a process has accepted connections to `ports`.

    All of them, if it is stopped; of one that runs perhaps none, as it closes some meanwhile.
    """
    try:
        files = {str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:  # it has ended, or one of them was closed meanwhile
        return set()
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    theirs = {
        f"socket:[{row[9]}]": int(row[2].rpartition(":")[2], 16)
        for row in rows
        if int(row[1].rpartition(":")[2], 16) in ports
    }
    return {port for name, port in theirs.items() if name in files}
