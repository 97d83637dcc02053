"""Proxies that are up, and one measurement of one of them."""

import contextlib
import http.client
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from lab import Cores, Missing, Process, core_times, environment, free_port, spent
from load import Load, LoadFailed, wrk
from origin import ACCOUNT, Origin, need, origin
from ours import log_in
from peers import Peer, Site
from report import Round
from works import GET, Work

_WARM_UP = 1  # seconds
_SETTLES = 0.2  # seconds after a round, in which the last log lines are written
_LOGGED = 50  # lines, at least, after the warm-up
_CIPHER = "TLS_AES_128_GCM_SHA256"  # of the origin, see configs/origin.conf
PROBE = "/v1/accounts/parent"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A proxy that is up.

    Attributes:
        process: it.
        port: where it listens.
        headers: lines that a request needs to be let through.
        folder: of its files.
    """

    process: Process
    port: int
    headers: tuple[str, ...]
    folder: Path


class Stage:
    """Where it all happens; leaving it stops everything."""

    def __init__(self) -> None:
        need("wrk", "nginx", "taskset")
        self.cores = Cores.here()
        self._standing: dict[tuple[str, bool], Standing | Missing] = {}
        self._absent: dict[tuple[str, str], str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.origin: Origin = self._stack.enter_context(
            origin(self._folder / "origin", cores=self.cores.load)
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def standing(self, peer: Peer, work: Work) -> Standing:
        """The peer, started if it is not up.

        Raises:
            Missing: it cannot be had.
        """
        key = (peer.name, work.tls)
        if key not in self._standing:
            try:
                self._standing[key] = self._start(peer, work)
            except Missing as error:
                self._standing[key] = error
        up = self._standing[key]
        if isinstance(up, Missing):
            raise up
        return up

    def absent(self, peer: Peer, work: Work) -> str:
        """Why the peer cannot take part in this work; empty if it is up and can."""
        key = (peer.name, work.name)
        if key not in self._absent:
            try:
                prove(self.standing(peer, work), work)
                self._absent[key] = ""
            except Missing as error:
                self._absent[key] = str(error)
        return self._absent[key]

    def _start(self, peer: Peer, work: Work) -> Standing:
        folder = self._folder / f"{len(self._standing)}-{work.name}"
        folder.mkdir()
        site = Site(folder=folder, port=free_port(), origin=self.origin, tls=work.tls)
        plan = peer.plan(site)
        process = Process(
            plan.command,
            cores=self.cores.all[: peer.cores],
            output=folder / "output",
            env=environment(**plan.env),
        )
        self._stack.callback(process.stop)
        process.listens(site.port)
        headers = plan.headers
        if plan.log_in:
            headers = (f"Authorization: Bearer {log_in(site.port, plan.log_in)}",)
        up = Standing(process=process, port=site.port, headers=headers, folder=folder)
        prove(up, replace(GET, tls=work.tls))
        with contextlib.suppress(LoadFailed):  # the rounds will tell
            self._load(up, GET, connections=GET.connections)  # what it compiles, it has
        if plan.log and len((folder / plan.log).read_bytes().splitlines()) < _LOGGED:
            raise Missing("writes no access log")
        return up

    def measure(self, peer: Peer, work: Work, *, connections: int, seconds: int) -> Round:
        """Put load on a proxy that is up.

        Raises:
            LoadFailed: not every request was answered well, or a process of the proxy ended.
        """
        up = self.standing(peer, work)
        before, worked = up.process.cpu(), core_times(up.process.cores)
        load = self._load(up, work, connections=connections, seconds=seconds)
        time.sleep(_SETTLES)
        try:
            used = spent(before, up.process.cpu())
            worked = core_times(up.process.cores) - worked
        except RuntimeError as error:
            raise LoadFailed(str(error)) from None
        for log in (up.folder / "access.log", up.process.output):
            if log.exists():
                with log.open("r+b") as file:
                    file.truncate()
        return round_of(load, used, worked=worked, cores=peer.cores)

    def _load(self, up: Standing, work: Work, *, connections: int, seconds: int = _WARM_UP) -> Load:
        """Ask a proxy that is up, without measuring it."""
        return wrk(
            f"http://127.0.0.1:{up.port}{work.path}",
            cores=self.cores.load,
            connections=connections,
            seconds=seconds,
            headers=(*up.headers, *work.headers),
            method=work.method,
            up=work.up,
            alike=work.alike,
        )


def round_of(load: Load, used: float, *, worked: float, cores: int) -> Round:
    """What a load says of a proxy that used so many seconds of the time that its cores worked."""
    latency = asdict(load)
    requests, seconds = latency.pop("requests"), latency.pop("seconds")
    return Round(
        cpu=used / requests * 1e6,
        rate=requests / seconds,
        busy=used / seconds / cores,
        others=max(0.0, worked - used) / seconds / cores,
        **latency,
    )


def prove(up: Standing, work: Work) -> None:
    """See that a proxy does the whole work, over one connection.

    That is: two headers, HTTP/1.1, connections to the origin kept, TLS, the reply as it is.

    Raises:
        Missing: it does not.
    """
    probe = ("GET", PROBE, 0)
    replies = ask(up, [probe, probe, probe, (work.method, work.path, work.up)])
    if wrong := list(_wrong(replies, work)):
        raise Missing(f"does not do the same work: {', '.join(wrong)}")


def ask(up: Standing, requests: list[tuple[str, str, int]]) -> list[tuple[int, bytes]]:
    """The status and the body of each reply, over one connection.

    Args:
        up: who is asked.
        requests: method, path, and bytes of body of each.

    Raises:
        Missing: no reply.
    """
    headers = dict(line.split(": ", 1) for line in up.headers)
    connection = http.client.HTTPConnection("127.0.0.1", up.port, timeout=20)
    try:
        replies = []
        for method, path, size in requests:
            connection.request(method, path, body=b"x" * size or None, headers=headers)
            reply = connection.getresponse()
            replies.append((reply.status, reply.read()))
    except (OSError, http.client.HTTPException) as error:
        raise Missing(f"does not answer: {error!r}") from None
    finally:
        connection.close()
    return replies


def _wrong(replies: list[tuple[int, bytes]], work: Work) -> Iterator[str]:
    status, body = replies[-1]
    if status != 200 or len(body) != work.down:
        yield f"answers {status} with {len(body)} bytes"
    status, body = replies[-2]
    try:
        seen = json.loads(body)
    except ValueError:
        yield f"answers {status} {body[:100]!r}"
        return
    expected = {"http": "HTTP/1.1", "accountId": ACCOUNT, "cipher": _CIPHER if work.tls else ""}
    for name, value in expected.items():
        if seen[name] != value:
            yield f"{name} is {seen[name]!r} at the origin"
    if not seen["authorization"].startswith("Bearer bench-token-"):
        yield "Authorization is not set"
    if seen["requests"] == "1":
        yield "connections to the origin are not kept"
