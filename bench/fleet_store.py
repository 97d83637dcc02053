"""The server that replicas share, played: the scripts of `proxy/tokens/valkey_store.py` in Python.

It stands where `proxy/valkey.py` does, so the store above it is the real one. That it answers as
a real server does is held by tests/tokens/test_played_server.py.
"""

import asyncio
import contextlib
from collections.abc import Callable
from random import Random

from proxy.tokens import valkey_store as real
from proxy.valkey import StoreClock, Unreachable

LOST = 0.001  # of the messages, as when a connection breaks; the replica looks within
LOOK_EVERY = 2.0  # seconds


class Server:
    """What one session has on a server; it runs one script at a time.

    Args:
        now: seconds, by its clock.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._value = (b"", 0, 0, 0, 0)  # sealed, generation, count, fence, issued
        self._fence = 0
        self._lease = (b"", 0.0)  # whose, until when
        self.publish: Callable[[bytes], object] = bool
        self._scripts = {
            real._READ: self._read,
            real._ACQUIRE: self._acquire,
            real._EXTEND: self._extend,
            real._RELEASE: self._release,
            real._SAVE: self._save,
            real._REFILL: self._refill,
            real._ASK: self._ask,
        }

    @property
    def holder(self) -> bytes:
        """Who has the lease, or b""."""
        name, until = self._lease
        return name if self._now() < until else b""

    @property
    def generation(self) -> int:
        """Of what is stored."""
        return self._value[1]

    def lapse(self) -> None:
        """The lease ends."""
        self._lease = (b"", 0.0)

    def run(self, script: str, args: tuple) -> tuple[float, list]:
        """Its time, and what a script brings beside it."""
        return self._now(), self._scripts[script](*args)

    def _write(self, count, generation, fence, issued, sealed):
        self._value = (sealed, generation, count + 1, fence, issued)
        self.publish(b"w")
        return count + 1

    def _read(self, count, generation):
        _, stored, counted, _, _ = self._value
        return [None if (counted, stored) == (count, generation) else [*self._value]]

    def _acquire(self, who, life, fence):
        if self.holder not in {b"", who}:
            return [max(round((self._lease[1] - self._now()) * 1000), 1)]
        self._fence = max(self._fence, self._value[3], fence) + 1
        self._lease = (who, self._now() + life / 1000)
        return [0, self._fence, [*self._value]]

    def _extend(self, who, life):
        mine = self.holder == who
        if mine:
            self._lease = (who, self._now() + life / 1000)
        return [int(mine)]

    def _release(self, who):
        if self.holder == who:
            self.lapse()
            self.publish(b"f")
        return []

    def _save(self, *args):
        who, fence, count, generation, issued, sealed = args
        _, stored, counted, fenced, _ = self._value
        mine, free, same = self.holder == who, not self.holder, counted == count
        if fenced <= fence and (((mine or free) and same) or (free and stored < generation)):
            return [self._write(counted, generation, fence, issued, sealed)]
        return [-1 if mine and fenced <= fence else 0, [*self._value]]

    def _refill(self, generation, issued, count, sealed):
        _, stored, counted, fence, before = self._value
        if stored >= generation or before > issued:
            return [0, [*self._value]]
        return [self._write(max(counted, count), generation, fence, issued, sealed)]

    def _ask(self):
        self.publish(b"a")
        return []


class Link:
    """One replica's connection, in the place of `proxy.valkey.Valkey`.

    Args:
        server: at its other end.
        alive: seconds, by the replica's clock.
        random: where latencies come from.
        running: set while the replica is not stopped.
        ran: told of each script that the server has run for it, and what it brought.
    """

    def __init__(
        self,
        server: Server,
        *,
        alive: Callable[[], float],
        random: Random,
        running: asyncio.Event,
        ran: Callable[[str, list, str], object],
    ) -> None:
        self.clock = StoreClock()
        self.problem = ""
        self.gone = False  # whether the replica was killed
        self._server = server
        self._alive = alive
        self._random = random
        self._running = running
        self._ran = ran
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()

    def _way(self) -> float:
        """Seconds that a packet takes: 0.3 ms, and half a millisecond more on average."""
        return 0.0003 + self._random.expovariate(1 / 0.0005)

    async def run(self, script: str, *, keys: tuple, args: tuple = ()) -> list:
        """As `Valkey`. What was sent arrives, also if its sender is killed meanwhile."""
        del keys
        await self._running.wait()
        if self.gone:
            raise Unreachable("killed")
        loop, asked = asyncio.get_running_loop(), self._alive()
        answer, task = loop.create_future(), asyncio.current_task().get_name()

        def serve() -> None:
            told, rest = self._server.run(script, args)
            self._ran(script, rest, task)
            loop.call_later(self._way(), lambda: answer.done() or answer.set_result((told, rest)))

        loop.call_later(self._way(), serve)
        told, rest = await answer
        await self._running.wait()
        self.clock.heard(told, asked=asked, now=self._alive())
        return rest

    def follow(self, channel: str, look: Callable) -> None:
        """As `Valkey`."""
        del channel
        self._look = look

    def tell(self, message: bytes) -> None:
        """The server has published something."""
        if self._random.random() < LOST:
            delay, message = self._random.uniform(0, LOOK_EVERY), b""
        else:
            delay = self._way()
        asyncio.get_running_loop().call_later(delay, self._messages.put_nowait, message)

    async def keep(self) -> None:
        """Look after connecting, and with each message. Looks that would find nothing are left out."""
        message = b""
        while True:
            with contextlib.suppress(Unreachable):
                await self._look(message)
            message = await self._messages.get()
            await self._running.wait()
