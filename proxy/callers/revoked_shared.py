"""Phantom tokens that ended before their time, in all replicas that share a server.

What was revoked lies on the server, in a sorted set by the time it may be forgotten. Whoever adds to
it tells the others, on a channel, what it has added. Nobody trusts that this arrives: each addition
gives the set another mark, and a message says between which two marks it lies; who finds another
mark there than the one it knows reads the whole set, and adds what the server has lost.

A revocation holds in its own process at once and is written to a file too (`Revoked`): a replica
that is restarted before the server could be reached has still to tell it. What others have
revoked is not written there: it lies on the server, in every other replica and in the file of
whoever revoked it.

No more than 100 000 are remembered, here and on the server (`Remembered` says which are dropped).
"""

import asyncio
import contextlib
import hmac
import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from itertools import islice
from typing import Any

from proxy.callers.remembered import LIMIT, Remembered
from proxy.callers.revoked import Revoked
from proxy.core.exchange import Emit, Event
from proxy.core.lifetime import Backoff
from proxy.errors import TokenUnavailable
from proxy.valkey import Unreachable, Valkey

_BATCH = 100  # that are written, and told, at once
_PAGE = 1000  # that are read at once
_LONGEST = 19  # digits of a time
_LONGEST_ID = 64  # characters
_LONGEST_LIFE = 26 * 86400.0  # seconds: of a refresh token, by the longest `login_lifetime`
_MOMENT = 1.0  # seconds that it may take until the server has a revocation
_AGAIN = Backoff(first=0.05, cap=1.0)

# The mark is a member too: what removes the set, whatever it is, removes its mark.
_MARK = """
local now = redis.call('TIME')
local mark = redis.call('ZRANGEBYSCORE', KEYS[1], '+inf', '+inf')[1] or ''
"""
# -> time, mark, entries from a time on; without them if the mark is the one that is known
_READ = (
    _MARK
    + """
if mark ~= '' and mark == ARGV[1] then return {now, mark, {}} end
return {now, mark, redis.call(
  'ZRANGEBYSCORE', KEYS[1], ARGV[2], '(+inf', 'WITHSCORES', 'LIMIT', ARGV[3], ARGV[4])}
"""
)
# -> time, how many were dropped because there are too many
_WRITE = (
    _MARK
    + """
local added, last = {}, 0
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now[1])
for at = 3, #ARGV, 2 do
  local id, expires = ARGV[at], tonumber(ARGV[at + 1])
  if expires >= tonumber(now[1]) and redis.call('ZADD', KEYS[1], 'NX', expires, id) == 1 then
    added[#added + 1] = id .. ':' .. ARGV[at + 1]
    last = math.max(last, expires)
  end
end
if #added == 0 then return {now, 0} end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '+inf', '+inf')
redis.call('ZADD', KEYS[1], '+inf', ARGV[1])
local over = math.max(redis.call('ZCARD', KEYS[1]) - 1 - tonumber(ARGV[2]), 0)
if over > 0 then redis.call('ZREMRANGEBYRANK', KEYS[1], 0, over - 1) end
local life = (last - tonumber(now[1]) + 60) * 1000
if redis.call('PTTL', KEYS[1]) < life then redis.call('PEXPIRE', KEYS[1], life) end
if mark == '' then mark = '-' end
redis.call('PUBLISH', KEYS[2], mark .. ' ' .. ARGV[1] .. ' ' .. table.concat(added, ' '))
return {now, over}
"""
)


class SharedRevoked:
    """The ids of revoked tokens, on a server and in a file of what was revoked here.

    Args:
        own: what was revoked on this machine.
        valkey: the server.
        key: that phantom tokens are signed with: those of another are worth nothing here.
        wall: epoch seconds, by the server's clock.
        alive: seconds, on a clock that runs during sleep.
        random: 0 <= x < 1.
        emit: takes events.
        limit: how many are remembered.
    """

    def __init__(
        self,
        own: Revoked,
        *,
        valkey: Valkey,
        key: bytes,
        wall: Callable[[], float],
        alive: Callable[[], float],
        random: Callable[[], float],
        emit: Emit,
        limit: int = LIMIT,
    ) -> None:
        name = f"nomba-proxy:{{{_digest(key)}}}"
        self._keys = (f"{name}:revoked", f"{name}:revocations")
        self._own = own
        self._valkey = valkey
        self._wall = wall
        self._alive = alive
        self._random = random
        self._emit = emit
        self._limit = limit
        self._known = Remembered(limit)
        self._unwritten: dict[str, int] = {}
        self._mark: bytes | None = None  # that all is known of; None before anything is
        self._settled = asyncio.Event()
        self._unkept = ""  # why the file could not be written
        self._writing: asyncio.Task[None] | None = None
        self._told = self._dropping = self._closed = False
        valkey.follow(self._keys[1], self._look)

    def __contains__(self, token_id: str) -> bool:
        """Whether a token was revoked, here or, as far as it was heard of, in another replica.

        Raises:
            TokenUnavailable: nobody knows: the server was not reached since the start.
        """
        if token_id in self._known.ends or token_id in self._own:
            return True
        if self._mark is None:
            raise TokenUnavailable(
                "It is not known yet which tokens were revoked.",
                hint="The server that replicas share was not reached since the start.",
                retry_after=1,
            )
        return False

    def add(self, token_id: str, *, expires: int) -> None:
        """Revoke a token: here at once, in the other replicas as soon as the server has it.

        Should that take longer than a moment, the log says so.

        Args:
            token_id: its id.
            expires: epoch seconds after which it need not be remembered.
        """
        try:
            self._own.add(token_id, expires=expires)
        except OSError as error:  # the server will have it
            self._unkept = error.strerror or type(error).__name__
        if token_id not in self._known.ends:
            self._learn({token_id: expires}, is_written=False)

    async def settled(self) -> None:
        """As `Revocations`."""
        await self._settled.wait()

    async def close(self) -> None:
        """Try once more to write what the server has not got."""
        self._closed = True
        if self._writing is not None:
            self._writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writing
        try:
            while self._unwritten:
                await self._write_some()
        except Unreachable as error:
            self._tell(error)

    # -- what is known ------------------------------------------------------------------------

    def _learn(self, ends: Mapping[str, int], *, is_written: bool) -> None:
        latest = self._wall() + _LONGEST_LIFE  # what says more is none of ours
        ends = {one: end for one, end in ends.items() if end <= latest and len(one) <= _LONGEST_ID}
        self._known.learn(ends, now=self._wall())
        if not is_written:
            self._unwritten |= {one: ends[one] for one in ends if one in self._known.ends}
        if len(self._unwritten) > 2 * self._limit:
            known = self._known.ends
            self._unwritten = {one: end for one, end in self._unwritten.items() if one in known}
        if self._unwritten and not self._closed and (not self._writing or self._writing.done()):
            self._writing = asyncio.create_task(self._write(), name="write revocations")

    # -- from the server ----------------------------------------------------------------------

    async def _look(self, message: bytes) -> None:
        if not message:
            await self._compare()
            return
        before, after, *entries = *message.split(b" "), b""
        self._learn(dict(filter(None, map(_entry, entries))), is_written=True)
        if before == (self._mark or b"-") and self._mark is not None:
            self._mark = after

    async def _compare(self) -> None:
        """Know what the server has, and write there what it has not got."""
        now, known = self._wall(), self._known.ends
        # What processes beside this one have revoked, and perhaps not written.
        others = {
            one: end for one, end in self._own.entries().items() if one not in known and end >= now
        }
        self._learn(others, is_written=False)
        mark, entries = await self._page(self._mark or b"", low=0, skip=0)
        if mark and mark == self._mark:
            return
        found = dict(entries)
        while len(entries) == _PAGE and len(found) < 2 * self._limit:
            low = entries[-1][1]
            skip = sum(end == low for end in found.values())
            _, entries = await self._page(b"", low=low, skip=skip)
            found.update(entries)
        self._learn(found, is_written=True)
        self._known.forget(self._wall())
        for token_id in found:
            self._unwritten.pop(token_id, None)
        lost = {one: end for one, end in self._known.ends.items() if one not in found}
        # What is told from now on follows on what was there when the first page was read.
        self._mark = mark
        self._settled.set()
        self._learn(lost, is_written=False)

    async def _page(
        self, known: bytes, *, low: int, skip: int
    ) -> tuple[bytes, list[tuple[str, int]]]:
        args: tuple[Any, ...] = (known, low, skip, _PAGE)
        mark, found = await self._valkey.run(_READ, keys=self._keys, args=args)
        pairs = zip(found[::2], found[1::2], strict=True)
        return mark, [(one.decode("ascii", "replace"), int(float(end))) for one, end in pairs]

    # -- to the server ------------------------------------------------------------------------

    async def _write(self) -> None:
        began, failures = self._alive(), 0
        while self._unwritten:
            try:
                await self._write_some()
                failures = 0
            except Unreachable as error:
                failures += 1
                if self._alive() - began >= _MOMENT:
                    self._tell(error)
                await asyncio.sleep(_AGAIN.delay(failures, jitter=self._random()))
        self._told, self._unkept = False, ""

    async def _write_some(self) -> None:
        some = dict(islice(self._unwritten.items(), _BATCH))
        flat = [part for entry in some.items() for part in entry]
        args: tuple[Any, ...] = (os.urandom(8).hex(), self._limit, *flat)
        [dropped] = await self._valkey.run(_WRITE, keys=self._keys, args=args)
        for token_id in some:
            self._unwritten.pop(token_id, None)
        if dropped and not self._dropping:
            told: dict[str, object] = {
                "reason": f"more than {self._limit} phantom tokens are revoked and not over yet",
                "hint": "Those that are over soonest are forgotten, and would be taken again. Find "
                "out who logs in and out so often; callers.login_lifetime makes them end sooner.",
            }
            self._emit(Event("revocations_dropped", "error", fields=told))
        self._dropping = bool(dropped)

    def _tell(self, error: Unreachable) -> None:
        """Say, once, that what was revoked does not hold everywhere."""
        if self._told:
            return
        self._told = True
        told: dict[str, object] = {
            "reason": str(error),
            "waiting": len(self._unwritten),
            "hint": "It holds in this replica; others take the token until the server has it, "
            "which is tried again and again, and after a restart.",
        }
        if self._unkept:
            told["reason"] = f"{error}; nor in the state folder: {self._unkept}"
            told["hint"] = "It holds in this process only, while it runs; it is tried again."
        self._emit(Event("revocation_not_stored", "error", fields=told))


def _digest(key: bytes) -> str:
    """Names a signing key without saying anything of it."""
    return sha256(hmac.digest(key, b"nomba-proxy revocations", "sha256")).hexdigest()[:32]


def _entry(text: bytes) -> tuple[str, int] | None:
    token_id, _, end = text.decode("ascii", "replace").partition(":")
    return (token_id, int(end)) if end.isdecimal() and len(end) <= _LONGEST else None
