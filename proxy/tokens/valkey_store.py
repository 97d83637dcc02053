"""A session kept on a Valkey or Redis server, for all replicas that reach it.

Three keys, which a script changes together: the sealed value with its generation, a count of the
writes and the fence of the last writer; the lease, which ends by itself; the fence, which counts
leases. A lease is a time, and a process may be stopped for longer: so a write names the lease and
what it is based on, and is refused if anybody has come in between. What the issuer did in the
meantime no fence can undo: at most one renewal is made too often for each holder that was killed
or stopped. One that was stopped looks at its own clock before it calls the issuer.

The server may lose everything. Whoever remembers a newer generation than it has writes that back,
and a process that knows nothing and finds nothing waits for that before it logs in.
"""

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from proxy.core.session import Held, Token
from proxy.tokens.seal import Identity, Seal, Unreadable
from proxy.tokens.store import StoreFailed
from proxy.valkey import Unreachable, Valkey

_TURN, _LEAST = 0.25, 0.02  # seconds between two tries to get the lease, should no message come
_REMEMBERED = 1.0  # seconds that others have to write back what the server has lost
_SOONER = 0.1  # of the margin, by which replicas renew at different times
_WROTE, _FREE = b"w", b"f"  # messages: there is a new value; the lease is free

_VALUE = """
local function number(text)
  local found = tonumber(text)
  if found and found >= 0 and found < 2^53 and found == math.floor(found) then return found end
  return 0
end
local function value()
  local found = redis.call('HMGET', KEYS[1], 'value', 'generation', 'count', 'fence', 'issued')
  return {found[1] or '', number(found[2]), number(found[3]), number(found[4]), number(found[5])}
end
local function write(count, generation, fence, issued, sealed)
  redis.call('HSET', KEYS[1], 'value', sealed, 'count', count + 1,
    'generation', generation, 'fence', fence, 'issued', issued)
  redis.call('PUBLISH', KEYS[4], 'w')
  return count + 1
end
local now = redis.call('TIME')
"""
# -> time, value; without it if count and generation are those known
_READ = (
    _VALUE
    + """
local stored = value()
if stored[3] == tonumber(ARGV[1]) and stored[2] == tonumber(ARGV[2]) then stored = false end
return {now, stored}
"""
)
# -> time, milliseconds that another's lease lasts or 0, fence, value
_ACQUIRE = (
    _VALUE
    + """
local holder = redis.call('GET', KEYS[2])
local left = redis.call('PTTL', KEYS[2])
if holder and holder ~= ARGV[1] and left >= 0 then return {now, math.max(left, 1)} end
local fence = math.max(number(redis.call('GET', KEYS[3])), value()[4], tonumber(ARGV[3])) + 1
redis.call('SET', KEYS[3], fence)
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return {now, 0, fence, value()}
"""
)
# -> time, whether it was still there
_EXTEND = """
local mine = redis.call('GET', KEYS[2]) == ARGV[1]
if mine then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
return {redis.call('TIME'), mine and 1 or 0}
"""
_RELEASE = """
if redis.call('GET', KEYS[2]) == ARGV[1] then
  redis.call('DEL', KEYS[2])
  redis.call('PUBLISH', KEYS[4], 'f')
end
return {redis.call('TIME')}
"""
# -> time, count of this write; or 0 and the value that others wrote; or -1 and that, if they have
# only written back what was lost
_SAVE = (
    _VALUE
    + """
local holder, stored = redis.call('GET', KEYS[2]), value()
local fence, count, generation = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local same, mine = stored[3] == count, holder == ARGV[1]
if stored[4] <= fence and ((mine or not holder) and same
    or not holder and stored[2] < generation) then
  return {now, write(stored[3], generation, fence, ARGV[5], ARGV[6])}
end
return {now, (mine and stored[4] <= fence) and -1 or 0, stored}
"""
)
# -> time, count of this write; or 0 and the value, unless that is older by its number and by its time
_REFILL = (
    _VALUE
    + """
local stored = value()
if stored[2] < tonumber(ARGV[1]) and stored[5] <= tonumber(ARGV[2]) then
  local count = math.max(stored[3], tonumber(ARGV[3]))
  return {now, write(count, ARGV[1], stored[4], ARGV[2], ARGV[4])}
end
return {now, 0, stored}
"""
)
# -> time; all are asked to look
_ASK = """
redis.call('PUBLISH', KEYS[4], 'a')
return {redis.call('TIME')}
"""


class ValkeyStore:
    """Keeps one session on a server.

    Args:
        valkey: the server.
        identity: of the session.
        seal: encrypts it.
        lease: seconds that a lease lasts without being extended.
        alive: seconds, on a clock that runs during sleep.
        wall: epoch seconds.
        random: 0 <= x < 1.
        warn: told, in words, of a value that cannot be read, and of a lease that was lost.
    """

    def __init__(
        self,
        valkey: Valkey,
        *,
        identity: Identity,
        seal: Seal,
        lease: float,
        alive: Callable[[], float],
        wall: Callable[[], float],
        random: Callable[[], float],
        warn: Callable[[str], object],
    ) -> None:
        name = f"nomba-proxy:{{{identity.digest()}}}"
        self._keys = (f"{name}:session", f"{name}:lease", f"{name}:fence", f"{name}:news")
        self._valkey = valkey
        self._seal = seal
        self._life = int(lease * 1000)
        self._alive = alive
        self._wall = wall
        self._sooner = _SOONER * random()
        self._warn = warn
        self._known = Held()  # the newest there is, as far as this process knows
        self._times = self._known  # the same by the server's clock, as it was written or read
        self._count, self._generation, self._fence = 0, 0, 0  # of what is stored
        self._base = (0, 0)  # count and generation of what the lease's holder has seen
        self._mark, self._until = 0, 0.0  # the lease's own fence, and when it ends unless extended
        self._news: Held | None = None
        self._unread = ""  # why what is stored cannot be read
        self._holder = b""
        self._down = False  # whether somebody was told that the store cannot be used
        self._leaving: set[asyncio.Task[None]] = set()
        self._told: Callable[[], object] = bool
        self._mine = asyncio.Lock()  # the lease is of a process, not of a task
        self._stirred = asyncio.Event()
        valkey.follow(self._keys[3], self._look)

    def listen(self, told: Callable[[], object]) -> None:
        """As `Store`."""
        self._told = told

    def news(self) -> Held | None:
        """As `Store`."""
        news, self._news = self._news, None
        return news

    # -- the lease ----------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(
        self, moot: Callable[[], bool] = bool, *, insist: bool = False
    ) -> AsyncIterator[Held | None]:
        """As `Store`."""
        async with self._mine:
            self._holder = os.urandom(12).hex().encode()
            extending: asyncio.Task[None] | None = None
            down = False
            try:
                while not moot():
                    if not await self._acquire():
                        continue
                    extending = asyncio.create_task(self._extend(), name="extend the lease")
                    held = await self._settled(insist=insist)
                    self._base = self._count, held.generation
                    yield None if moot() else held
                    return
                yield None
            except Unreachable as error:
                self._down = down = True
                raise StoreFailed(str(error)) from None
            except StoreFailed as error:
                down = error.reason == "store"
                raise
            finally:
                if extending is not None:
                    extending.cancel()
                # It may have been acquired though nobody has heard of it.
                self._leaving.add(leaving := asyncio.create_task(self._release()))
                leaving.add_done_callback(self._leaving.discard)
                await asyncio.shield(leaving)
                # Once more, now that it was awaited: that it is there again may have been seen meanwhile,
                # by nobody who had been told that it was not.
                self._down = self._down or down

    async def _acquire(self) -> bool:
        self._stirred.clear()
        asked = self._alive()
        left, *rest = await self._run(_ACQUIRE, self._holder, self._life, self._fence)
        if not rest:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(left / 1000, _LEAST), _TURN)):
                    await self._stirred.wait()
            return False
        self._mark, stored = rest
        self._fence, self._until = self._mark, asked + self._life / 1000
        self._take(stored)
        return True

    async def _settled(self, *, insist: bool) -> Held:
        """What there is, once the others had the time to write back what the server has lost."""
        until = self._alive() + _REMEMBERED
        if not self._known.generation and not self._unread:
            await self._run(_ASK)
        while not self._known.generation and not self._unread and self._alive() < until:
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until - self._alive()):
                    await self._stirred.wait()
            await self._read()
        if not self._unread:
            return self._known
        if not insist:
            raise StoreFailed(self._unread, reason="sealed")
        generation = max(self._generation, self._known.generation)
        return replace(self._known, token=None, calling=True, generation=generation)

    async def _extend(self) -> None:
        mine = True
        while mine:
            await asyncio.sleep(self._life / 3000)
            asked = self._alive()
            with contextlib.suppress(Unreachable):
                [mine] = await self._run(_EXTEND, self._holder, self._life)
                self._until = asked + self._life / 1000 if mine else 0.0

    async def _release(self) -> None:
        with contextlib.suppress(Unreachable):
            await self._run(_RELEASE, self._holder)

    # -- the value ----------------------------------------------------------------------------

    async def save(self, held: Held) -> Held:
        """As `Store`."""
        granted = held.generation > self._base[1]
        while True:
            sealed = self._sealed(held)
            try:
                count, *rest = await self._run(
                    _SAVE,
                    *(self._holder, self._mark, self._base[0], held.generation),
                    *(self._issued(), sealed),
                )
            except Unreachable as error:
                if granted:  # what else was to be written has not been done
                    self.remember(held)
                self._down = True
                raise StoreFailed(str(error)) from None
            if count <= 0 and rest[0][0] == sealed:  # written, and the answer lost
                count = rest[0][2]
            if count > 0:
                # Not before: whoever reads meanwhile would take it for lost, and write it back.
                self.remember(held)
                self._count, self._generation, self._unread = count, held.generation, ""
                self._base = count, held.generation
                return held
            if count == 0:
                self._warn("the session's lease was lost, and others have taken it meanwhile")
            known, self._known = self._known, Held()  # whatever it was, theirs is the session now
            self._take(rest[0])
            if not rest[0][0]:  # but there is none: it is lost, and ours is to be written back
                self._known = held if granted else known
            self._base = self._count, self._generation
            if count == 0 or not granted:
                return self._known
            # They have written back what was lost: ours is newer than that.
            held = held.renumbered(max(self._generation + 1, held.generation))

    def sure(self) -> bool:
        """As `Store`: a process that was stopped has slept through the end of its lease."""
        return self._alive() < self._until

    def remember(self, held: Held) -> None:
        """As `Store`."""
        if held.generation < self._known.generation:
            return
        self._known, there = held, self._valkey.clock.there
        if held.generation > self._times.generation and not math.isnan(there):
            self._times = held.moved(there)

    async def _look(self, message: bytes) -> None:
        """See whether there is something new."""
        if message == _FREE:
            self._stirred.set()
            return
        await self._read()

    async def _read(self) -> None:
        [stored] = await self._run(_READ, self._count, self._generation)
        if stored is not None:
            self._take(stored)
        elif not self._down and self._generation >= self._known.generation:
            return
        self._down = False
        if self._generation < self._known.generation:
            await self._refill()
        self._news = self._known
        self._stirred.set()
        self._told()

    async def _refill(self) -> None:
        """Write back what the server has lost."""
        known = self._known
        sealed = self._sealed(known)
        count, *rest = await self._run(
            _REFILL, known.generation, self._issued(), self._count, sealed
        )
        if count:
            self._count, self._generation = count, known.generation
        else:
            self._take(rest[0])

    def _take(self, stored: list[Any]) -> None:
        """Know what is stored, unless more is known."""
        sealed, generation, count, fence, issued = stored
        self._count, self._generation, self._fence = count, generation, max(fence, self._fence)
        self._unread = ""
        known = self._known
        # Who logged in beside a server that had lost all begins to count anew.
        anew = generation < known.generation and issued > self._issued()
        if not sealed or (generation < known.generation and not anew):
            return
        try:
            times = self._opened(sealed, generation)
        except Unreadable as error:
            if not error.foreign and known.generation:
                self._warn(f"the session in the store is written anew: {error}")
                if generation > known.generation:
                    self._known = known.renumbered(generation + 1)
                return
            if not generation:  # nobody has ever had a token: there is no session of theirs
                return
            self._unread = f"the session in the store cannot be used: {error}"
            self._warn(f"{self._unread}; it is left to those who can read it")
            return
        self._times = times
        self._known = self._here(times, known)
        if anew:
            self._known = self._known.renumbered(known.generation + 1)
            self._times = times.renumbered(known.generation + 1)

    def _opened(self, sealed: bytes, generation: int) -> Held:
        """A value by the server's clock.

        Raises:
            Unreadable: it is none of ours; or another one than its number says.
        """
        times, _ = self._seal.open(sealed)
        if times.generation != generation:
            raise Unreadable("it is another one than its number says")
        return times

    # -- the clocks ---------------------------------------------------------------------------

    def _sealed(self, held: Held) -> bytes:
        """A value by the server's clock, sealed. A token that came from there keeps its times."""
        there = held.moved(self._valkey.clock.there)
        token, before = there.token, self._times.token
        if token is not None and before is not None and token.same(before):
            token = replace(token, lifetime=before.lifetime)
            there = replace(there, token=token, issued=self._times.issued)
        self._times = there
        return self._seal.close(there, {}, now=self._alive() + self._valkey.clock.there)

    def _issued(self) -> int:
        """When the newest known token was asked for, in milliseconds of the server's clock."""
        return max(0, int(self._times.issued * 1000))

    def _here(self, times: Held, known: Held) -> Held:
        """A value by our own clocks, where a token that is known dies no later than it did."""
        held = times.moved(self._valkey.clock.here).bounded(now=self._alive())
        token = held.token
        if token is None:
            return replace(held, skew=None)
        if known.token is not None and token.same(known.token):
            mine = known.token.lifetime
            if mine.dies_at <= token.lifetime.dies_at:
                token = known.token
            else:  # the wall clock of whoever wrote it may be another one
                lifetime = replace(token.lifetime, renew_wall=mine.renew_wall)
                token = replace(token, lifetime=lifetime)
            return replace(held, token=token, skew=known.skew)
        # How far a clock is off is known of whoever has compared it.
        return replace(held, token=self._ours(token), skew=None)

    def _ours(self, token: Token) -> Token:
        """A token of the store's, to be renewed a little sooner, and by each replica at another time."""
        life = token.lifetime
        renew_at = life.renew_at - self._sooner * (life.dies_at - life.renew_at)
        wall = self._wall() + renew_at - self._alive()
        return replace(token, lifetime=replace(life, renew_at=renew_at, renew_wall=wall))

    async def _run(self, script: str, *args: Any) -> Any:
        return await self._valkey.run(script, keys=self._keys, args=args)

    @property
    def problem(self) -> str:
        """As `Store`."""
        return self._valkey.problem or self._unread

    def close(self) -> None:
        """There is nothing to let go of: the server is closed by whoever opened it."""
