"""A stand-in for the payments API Nomba, for tests and for trying things out.

It speaks HTTP/1.1 on a real socket, keeps what it was sent byte for byte, and
can be told to misbehave. Each belief about Nomba that is not documented is a
switch (`switches.py`).

    async with Simulator() as sim:
        sim.fail("/v2/transfers/bank", drop=True, before=False)
        ...  # talk to sim.origin
        assert sim.count("/v1/auth/token/issue") == 1
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from email.utils import formatdate
from typing import Self

from proxy.simulator.api import Api
from proxy.simulator.bank import Bank, Movement
from proxy.simulator.messages import Headers, Received, Reply, phrase, reply_json
from proxy.simulator.script import Failure, Hold, Script
from proxy.simulator.server import Server, Site
from proxy.simulator.sessions import Sessions
from proxy.simulator.switches import ExpiresAtForm, Switches

__all__ = ["ExpiresAtForm", "Hold", "Movement", "Received", "Simulator", "Switches"]

_RATE_LIMIT = 40  # requests per window of one second (D); announced, not enforced


class Simulator:
    """One stand-in Nomba.

    Args:
        switches: how it behaves; the same object may be changed while it runs.
        clock: unix seconds.
        seed: tokens are the same for the same seed.
        sleep: how `fail(delay=…)` waits, given seconds.

    Attributes:
        switches: as given.
        received: every request whose head was complete, in order of arrival.
        origin: `http://host:port` once started, else empty.
    """

    def __init__(
        self,
        switches: Switches | None = None,
        *,
        clock: Callable[[], float] = time.time,
        seed: int = 1,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.switches = switches or Switches()
        self.received: list[Received] = []
        self.origin = ""
        self._clock = clock
        self._sleep = sleep
        self._bank = Bank()
        self._sessions = Sessions(
            self.switches,
            clock=clock,
            rng=random.Random(seed),  # noqa: S311 - these tokens guard nothing
        )
        self._api = Api(self.switches, sessions=self._sessions, bank=self._bank)
        self._script = Script()
        self._arrival = asyncio.Event()
        self._window = (0, 0)  # a second of the clock, replies given in it
        site = Site(
            head=self.received.append, whole=self._arrived, answer=self._answer, stamp=self._stamp
        )
        self._server = Server(site)

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; after `stop` it may be started again, its state kept.

        Args:
            host: address to bind.
            port: port to bind, 0 for any free one.

        Raises:
            OSError: the address cannot be bound.
        """
        bound = await self._server.start(host, port=port)
        self.origin = f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"

    async def stop(self) -> None:
        """Stop listening and cut every connection; harmless when not started."""
        await self._server.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def balance(self) -> Decimal:
        """Naira in the parent account."""
        return self._bank.balance

    @property
    def ledger(self) -> list[Movement]:
        """Every movement of money, oldest first."""
        return self._bank.ledger

    def calls(self, path: str) -> list[Received]:
        """The requests received for a path (without query), in order."""
        return [request for request in self.received if request.path == path]

    def count(self, path: str) -> int:
        """How many requests were received for a path, complete bodies or not."""
        return len(self.calls(path))

    async def wait_for(self, path: str, count: int = 1) -> None:
        """Wait until `count` requests for a path have been received, bodies included."""
        while sum(request.whole for request in self.calls(path)) < count:
            await self._arrival.wait()

    def expire(self) -> None:
        """From now on the living access token counts as an expired JWT."""
        self._sessions.expire()

    def revoke(self) -> None:
        """From now on the living access token and its refresh token are invalid."""
        self._sessions.clear()

    def reset(self) -> None:
        """Forget requests, sessions, money, failures and holds; the switches stay."""
        self.received.clear()
        self._sessions.clear()
        self._bank.reset()
        self._script.clear()

    def fail(
        self,
        path: str,
        *,
        times: int = 1,
        status: int | None = None,
        body: bytes | Mapping[str, object] | None = None,
        headers: Headers = (),
        before: bool = True,
        delay: float = 0.0,
        drop: bool = False,
    ) -> None:
        """Misbehave for the next requests to a path.

        Args:
            path: without query; compared exactly.
            times: how many requests.
            status: HTTP status of a scripted reply; 200 if only a body or headers are given.
            body: its body, a mapping is sent as JSON; by default the status in an envelope.
            headers: its headers; they replace the usual ones of the same name.
            before: misbehave instead of doing the work; False does the work first.
            delay: seconds to wait; with `before` the work waits too, else only the reply.
            drop: reset the connection, no reply.
        """
        scripted = status is not None or body is not None or headers
        self._script.fail(
            path,
            failure=Failure(
                reply=_reply(status or 200, body=body, headers=headers) if scripted else None,
                drop=drop,
                before=before,
                delay=delay,
            ),
            times=times,
        )

    def hold(self, path: str, *, before: bool = True) -> Hold:
        """Keep requests to a path unanswered until released.

        Args:
            path: without query; compared exactly.
            before: hold before the work is done; False holds the finished reply.

        Returns:
            The hold: `await caught(count)`, `release()`, or use it as a context.
        """
        return self._script.hold(path, before=before)

    def _arrived(self, _: Received) -> None:
        self._arrival.set()
        self._arrival.clear()  # wakes everyone who waits now, and only those

    async def _answer(self, request: Received) -> Reply | None:
        """What a request gets; None for a reset."""
        scripted = self._script.take(request.path)
        await self._script.pause(request.path, before=True)
        reply: Reply | None = None
        if scripted is None:
            reply = self._api.answer(request)
        else:
            if not scripted.before:
                reply = self._api.answer(request)
            if scripted.delay:
                await self._sleep(scripted.delay)
            if scripted.drop:
                reply = None
            elif scripted.reply is not None:
                reply = scripted.reply
            elif scripted.before:
                reply = self._api.answer(request)
        await self._script.pause(request.path, before=False)
        return reply

    def _stamp(self) -> Headers:
        """The headers of every reply: `Date` and the rate headers (D)."""
        now = self._clock()
        second, used = self._window
        used = used + 1 if second == int(now) else 1
        self._window = (int(now), used)
        return (
            ("Date", formatdate(now + self.switches.clock_skew, usegmt=True)),
            ("X-Rate-Limit-Limit", str(_RATE_LIMIT)),
            ("X-Rate-Limit-Remaining", str(max(0, _RATE_LIMIT - used))),
            ("X-Rate-Limit-Window", "1s"),
        )


def _reply(status: int, *, body: bytes | Mapping[str, object] | None, headers: Headers) -> Reply:
    if isinstance(body, bytes):
        return Reply(status=status, body=body, headers=headers)
    if body is None:
        body = {"code": str(status), "description": phrase(status)}
    return reply_json(status, content=dict(body), headers=headers)
