"""One stand-in Nomba: all its parts together, behind one address.

In a test:

    async with Simulator() as sim:
        sim.inject(parse_fault("lose-reply path=/v2/transfers/*"))
        ...  # talk to sim.origin
        assert sim.count("/v1/auth/token/issue") == 1
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from email.utils import formatdate
from pathlib import Path
from typing import Any, Self

from proxy.simulator.api import Api
from proxy.simulator.book import PARENT, Book, Movement
from proxy.simulator.faults import Fault, reply_with
from proxy.simulator.limits import Limits
from proxy.simulator.messages import Headers, Received, Reply
from proxy.simulator.script import Hold, Script, Waiting
from proxy.simulator.server import Server, Site
from proxy.simulator.sessions import Sessions
from proxy.simulator.state import StateFile, StateUnusable
from proxy.simulator.switches import Switches

_SAVE_AFTER = 1.0  # seconds from a change until the state file has it


class Simulator:
    """One stand-in Nomba.

    Args:
        switches: how it behaves; the same object may be changed while it runs.
        clock: unix seconds.
        seed: identifiers, tokens and the dice of faults are the same for the same seed.
        sleep: how delays wait, given seconds.
        state_file: where its state is kept, about a second behind; None for nowhere.
        memory: bytes of received requests that are remembered, the newest; None for all.
        observe: told of each request that was answered, and the reply (None for none).
        trouble: told of faults of its own, in a line.

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
        state_file: Path | None = None,
        memory: int | None = None,
        observe: Callable[[Received, Reply | None], object] = lambda *_: None,
        trouble: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.switches = switches or Switches()
        self.received: list[Received] = []
        self.origin = ""
        self._clock = clock
        self._sleep = sleep
        self._memory = memory
        self._observe = observe
        self.trouble = trouble
        self._book = Book(clock=clock, seed=seed)
        self._sessions = Sessions(self.switches, clock=clock, seed=seed)
        self._limits = Limits(self.switches, clock=clock)
        self._api = Api(
            self.switches, sessions=self._sessions, book=self._book, limits=self._limits
        )
        self._script = Script(seed)
        self._arrival = asyncio.Event()
        self._numbered = 0
        self._held = 0  # bytes of the requests in `received`
        site = Site(
            accept=self._script.take_connection,
            head=self._begun,
            whole=self._arrived,
            answer=self._answer,
            stamp=self._stamp,
            sleep=sleep,
            trouble=trouble,
        )
        self._server = Server(site)
        self._state_file = None if state_file is None else StateFile(state_file)
        self._saving: asyncio.TimerHandle | None = None
        self._saved = self._changes

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; after `stop` it may be started again, its state kept.

        Args:
            host: address to bind.
            port: port to bind, 0 for any free one.

        Raises:
            OSError: the address cannot be bound.
            StateUnusable: the state file is something else, cannot be written, or is
                another process's.
        """
        if self._state_file is not None:
            self._state_file.claim()
            try:
                self._load(self._state_file)
                self.save()  # now, so that a file that cannot be written is found out
            except StateUnusable:
                self._state_file.release()
                raise
        self.origin = await self._server.start(host, port=port)

    async def stop(self) -> None:
        """Stop listening and cut every connection; harmless when not started.

        Raises:
            StateUnusable: the state file cannot be written.
        """
        await self._server.stop()
        if self._saving is not None:
            self._saving.cancel()
        if self._state_file is not None:
            try:
                if self._saved != self._changes:
                    self.save()
            finally:
                self._state_file.release()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def balance(self) -> Decimal:
        """Naira in the parent account."""
        return self._book.balances[PARENT]

    @property
    def ledger(self) -> list[Movement]:
        """Every movement of money, oldest first."""
        return self._book.ledger

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
        self._remember()

    def revoke(self) -> None:
        """From now on the living access token and its refresh token are invalid."""
        self._sessions.clear()
        self._remember()

    def reset(self) -> None:
        """Forget requests, sessions, money, limits, faults and holds; the switches stay."""
        self.forget_received()
        self._sessions.clear()
        self._book.reset()
        self._limits.clear()
        self._script.clear()
        self._remember()

    def forget_received(self) -> None:
        """Forget the requests received; their numbers go on."""
        self.received.clear()
        self._held = 0

    def pay(self, body: bytes) -> Reply:
        """A customer pays an order, or into a virtual account: JSON as the control API takes it."""
        reply = self._api.pay(body)
        self._remember()
        return reply

    def show_ledger(self) -> dict[str, Any]:
        """Balances by account and every movement, as JSON can hold them."""
        return {
            "balances": {name: str(amount) for name, amount in self._book.balances.items()},
            "movements": self._book.show_ledger(),
        }

    @property
    def faults(self) -> list[Waiting]:
        """The faults that are still due; clear it to forget them."""
        return self._script.waiting

    def inject(self, fault: Fault) -> None:
        """Misbehave as asked; of several faults that match a request the oldest is taken."""
        self._script.add(fault)

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
            path: without query; `*` stands for any characters.
            times: how many requests.
            status: HTTP status of a scripted reply; 200 if only a body or headers are given.
            body: its body, a mapping is sent as JSON; by default the status in an envelope.
            headers: its headers; they replace the usual ones of the same name.
            before: misbehave instead of doing the work; False does the work first.
            delay: seconds to wait; with `before` the work waits too, else only the reply.
            drop: reset the connection, no reply.
        """
        scripted = status is not None or body is not None or headers
        fault = Fault(
            name="scripted",
            path=path,
            times=times,
            work=not before,
            reply=reply_with(status or 200, body=body, headers=headers) if scripted else None,
            drop="after" if drop else "",
            delay=delay,
        )
        self.inject(fault)

    def hold(self, path: str, *, before: bool = True) -> Hold:
        """Keep requests to a path unanswered until released.

        Args:
            path: without query; compared exactly.
            before: hold before the work is done; False holds the finished reply.

        Returns:
            The hold: `await caught(count)`, `release()`, or use it as a context.
        """
        return self._script.hold(path, before=before)

    def _begun(self, request: Received) -> Fault | None:
        self._numbered += 1
        request.number = self._numbered
        self.received.append(request)
        self._held += _size(request)
        self._trim()
        return self._script.take(request.method, request.path)

    def _arrived(self, request: Received) -> None:
        if self.received and self.received[0].number <= request.number:
            self._held += len(request.body)
            self._trim()
        self._arrival.set()
        self._arrival.clear()  # wakes everyone who waits now, and only those

    def _trim(self) -> None:
        """Forget the oldest requests beyond what may be remembered, never the newest."""
        old = 0
        while (
            self._memory is not None and self._held > self._memory and old + 1 < len(self.received)
        ):
            self._held -= _size(self.received[old])
            old += 1
        del self.received[:old]

    async def _answer(self, request: Received, fault: Fault | None) -> Reply | None:
        """What a request gets; None for nothing."""
        await self._script.pause(request.path, before=True)
        if fault is None:
            reply: Reply | None = self._api.answer(request)
        else:
            reply = await self._misbehave(request, fault)
        self._remember()
        await self._script.pause(request.path, before=False)
        self._observe(request, reply)
        return reply

    async def _misbehave(self, request: Received, fault: Fault) -> Reply | None:
        if fault.session == "expire":
            self.expire()
        elif fault.session == "revoke":
            self.revoke()
        reply = self._api.answer(request) if fault.work else None
        self._remember()
        if fault.delay:
            await self._sleep(fault.delay)
        if fault.stall or fault.drop:
            return None
        return fault.reply or reply or self._api.answer(request)

    def _stamp(self) -> Headers:
        """The headers of every reply: `Date` and the rate headers (D)."""
        date = formatdate(self._clock() + self.switches.clock_skew, usegmt=True)
        return (("Date", date), *self._limits.headers())

    # -- the state file ----------------------------------------------------------------

    @property
    def _changes(self) -> int:
        return self._book.changes + self._sessions.changes

    def _load(self, file: StateFile) -> None:
        state = file.read()
        if state is None:
            return
        try:
            self._book.load(state["book"])
            self._sessions.load(state["sessions"])
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise StateUnusable(f"{file} is damaged ({error!r}); move it away") from None

    def _remember(self) -> None:
        """Write the state soon, if there is anything new and nothing is planned yet."""
        if self._state_file is None or self._saving is not None or self._saved == self._changes:
            return
        self._saving = asyncio.get_running_loop().call_later(_SAVE_AFTER, self._save_soon)

    def _save_soon(self) -> None:
        try:
            self.save()
        except StateUnusable as error:  # tried again with the next change
            self.trouble(str(error))

    def save(self) -> None:
        """Write the state file now, if there is one.

        Raises:
            StateUnusable: it cannot be written.
        """
        self._saving = None
        if self._state_file is None:
            return
        state = {"book": self._book.dump(), "sessions": self._sessions.dump()}
        self._state_file.write(state)
        self._saved = self._changes


def _size(request: Received) -> int:
    """Bytes that a request takes, roughly: what it said, and what we made of it."""
    return 512 + 2 * len(request.raw_head) + len(request.body)
