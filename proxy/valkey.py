"""A Valkey or Redis server that replicas share: the only module that speaks to one.

What replicas agree on is changed by scripts, which the server runs one at a time, and told of on a
channel. Nobody trusts that a message arrives: who follows a channel looks after every connect
and every two seconds as well.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from hashlib import sha1
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import NoScriptError, RedisError, ResponseError

from proxy.core.exchange import Emit, Event
from proxy.core.lifetime import Backoff
from proxy.core.secret import STORE, Secret

_CALL = 2.0  # seconds that a call may take, connecting included
_LOOK_EVERY = 2.0
# A server that was restarted is met again within half a second: whoever comes to an empty one first
# waits longer than that for what the others remember.
_RETRY = Backoff(first=0.05, cap=0.4)
_SAME_CLOCK = 60.0
_SUBSCRIBE = "subscribe"
_GOODBYE = 0.2  # seconds
_LONGEST = 300  # characters of what a server says
_REFUSED = 10.0  # seconds that a script is taken for one that the server refuses

Look = Callable[[bytes], Awaitable[None]]


class Unreachable(Exception):
    """The server cannot be used. The text is fit for people."""


class StoreClock:
    """The server's clock, as far as it can be told from here.

    Its time is ours plus an offset that lies between two bounds, which every call narrows. Times
    are written by the lower and read by the higher one: what dies there dies no later here.
    """

    def __init__(self) -> None:
        self._low = self._high = math.nan
        self._since = -math.inf

    def heard(self, told: float, *, asked: float, now: float) -> None:
        """Note an answer.

        Args:
            told: the server's time.
            asked: ours before the call.
            now: ours after it.
        """
        low, high = told - now, told - asked
        if now - self._since < _SAME_CLOCK and self._low <= high and low <= self._high:
            self._low, self._high = max(low, self._low), min(high, self._high)
        else:  # clocks drift, and are set
            self._low, self._high, self._since = low, high, now

    @property
    def there(self) -> float:
        """What to add to a time of ours."""
        return self._low

    @property
    def here(self) -> float:
        """What to add to a time of the server's; NaN before it was ever reached, as `there`."""
        return -self._high


class _Credentials(CredentialProvider):
    """User and password as they are set when a connection is made."""

    def __init__(self, user: str, password: Callable[[], Secret | None]) -> None:
        self._user = user
        self._password = password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """What the library sends: the password, with the user before it if there is one."""
        found = self._password()
        text = "" if found is None else found.reveal(to=STORE)
        return (self._user, text) if self._user else (text,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """The same."""
        return self.get_credentials()


class Valkey:
    """The server.

    Args:
        host, port: of it.
        shown: how it is called in messages.
        alive: seconds, on a clock that runs during sleep.
        random: 0 <= x < 1.
        emit: takes events.
        tls: whether to speak TLS.
        ca_file: certificates that its own is checked with, instead of the system's.
        user: of its access control list, or "".
        password: pinned to `core.secret.STORE`; asked for at each connection.
        database: its number.
    """

    def __init__(
        self,
        host: str,
        *,
        port: int,
        shown: str,
        alive: Callable[[], float],
        random: Callable[[], float],
        emit: Emit,
        tls: bool = False,
        ca_file: str | None = None,
        user: str = "",
        password: Callable[[], Secret | None] = lambda: None,
        database: int = 0,
    ) -> None:
        self.clock = StoreClock()
        self._problems: dict[str, str] = {}  # of scripts, and under "" of the connection
        self._since = 0.0  # when the last of them was met
        self._digests: dict[str, str] = {}  # of scripts
        self._shown = shown
        self._tls = tls
        self._password = password
        self._alive = alive
        self._random = random
        self._emit = emit
        self._told: bool | None = None  # whether it was said to be there
        self._looks: dict[str, list[Look]] = {}
        self._task: asyncio.Task[None] | None = None
        self._client = Redis(
            host=host,
            port=port,
            db=database,
            credential_provider=_Credentials(user, password) if user or password() else None,
            ssl=tls,
            ssl_ca_certs=ca_file,
            socket_timeout=_CALL,
            socket_connect_timeout=_CALL,
            retry=Retry(NoBackoff(), 0),  # when to repeat a call is for us to say
            protocol=2,
            driver_info=None,
        )

    @property
    def problem(self) -> str:
        """Why it cannot be used, in words; or ""."""
        return self._problems.get("") or next(iter(self._problems.values()), "")

    async def run(self, script: str, *, keys: tuple[str, ...], args: tuple[Any, ...] = ()) -> Any:
        """What a script brings, whose answer begins with the server's time, as `TIME` tells it.

        It is run a second time if the connection ends without an answer.

        Args:
            script: in Lua.
            keys: that it works on, all in one hash slot.
            args: bytes, texts and whole numbers.

        Raises:
            Unreachable: it is not known whether it was run.
        """
        asked = self._alive()
        try:
            async with asyncio.timeout(_CALL):
                try:
                    found = await self._eval(script, keys, args)
                except Disconnected:
                    # Over one that was kept, from before the server was restarted perhaps.
                    await self._disconnect()
                    found = await self._eval(script, keys, args)
            (seconds, micros), *rest = found
            told = int(seconds) + int(micros) / 1e6
        except (RedisError, OSError, TimeoutError) as error:
            # Another server may have taken its place: that one answers over new connections.
            await self._disconnect()
            raise self._lost(error, script=script) from None
        except (TypeError, ValueError):
            raise self._lost(OSError("an answer that is none"), script=script) from None
        self.clock.heard(told, asked=asked, now=self._alive())
        self._back(script)
        return rest

    async def _disconnect(self) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _eval(self, script: str, keys: tuple[str, ...], args: tuple[Any, ...]) -> Any:
        digest = self._digests.get(script)
        if digest is None:
            digest = sha1(script.encode(), usedforsecurity=False).hexdigest()
            self._digests[script] = digest
        try:
            return await self._client.evalsha(digest, len(keys), *keys, *args)
        except NoScriptError:  # a server that was restarted knows none
            return await self._client.eval(script, len(keys), *keys, *args)

    def wall(self, own: Callable[[], float]) -> Callable[[], float]:
        """A clock that all replicas share: the server's, and `own` before it was ever reached.

        It steps when the server's clock is set, or another server takes its place.

        Args:
            own: epoch seconds, by this machine's clock.
        """

        def now() -> float:
            offset = self.clock.there
            return own() if math.isnan(offset) else self._alive() + offset

        return now

    def follow(self, channel: str, look: Look) -> None:
        """Have `look` called with each message, and with b"" after connecting and now and then.

        What it raises as `Unreachable` is passed over: it is called again.
        """
        self._looks.setdefault(channel, []).append(look)

    def start(self) -> None:
        """Connect, now and whenever the connection is lost."""
        self._task = asyncio.create_task(self._keep(), name="follow the store")

    async def close(self) -> None:
        """Let go of it."""
        while self._task is not None and not self._task.done():
            # Once is not enough: the library takes a cancellation for its own timeout now and then.
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=0.1)
        with contextlib.suppress(RedisError, OSError):
            await self._client.aclose()

    async def _keep(self) -> None:
        failures, loop = 0, asyncio.get_running_loop()
        while True:
            try:
                async with self._client.pubsub(ignore_subscribe_messages=True) as channels:
                    async with asyncio.timeout(_CALL):
                        await channels.subscribe(*self._looks)
                    heard = loop.time()
                    while loop.time() - heard < 2 * _LOOK_EVERY + _CALL:
                        await channels.ping()
                        await self._look_everywhere()
                        failures, until = 0, loop.time() + _LOOK_EVERY
                        while (left := until - loop.time()) > 0:
                            message = await channels.get_message(timeout=left)
                            self._problems.pop(_SUBSCRIBE, None)
                            if message is None:
                                continue
                            heard = loop.time()
                            if message["type"] == "message":
                                for look in self._looks[message["channel"].decode()]:
                                    await self._look(look, message["data"])
                # Something on the way has let it go without a word: once more.
            except Exception as error:  # noqa: BLE001 - whatever it was, it is looked after again
                failures += 1
                self._lost(error, script=_SUBSCRIBE)
                await asyncio.sleep(_RETRY.delay(failures, jitter=self._random()))

    async def _look_everywhere(self) -> None:
        for looks in self._looks.values():
            for look in looks:
                await self._look(look, b"")

    async def _look(self, look: Look, message: bytes) -> None:
        try:
            await look(message)
        except Unreachable:
            pass
        except Exception as fault:  # noqa: BLE001 - of what lies there, or of ours: others go on
            told: dict[str, object] = {"reason": f"what lies there is odd: {fault!r}"}
            self._emit(Event("store_odd", "error", fields=told))

    def _lost(self, error: Exception, *, script: str = "") -> Unreachable:
        hint = " (does it speak TLS?)" if self._tls else ""
        text = str(error).strip() or f"no answer within {_CALL:g} seconds{hint}"
        if (password := self._password()) is not None:  # a server may repeat what it was sent
            text = password.veil(text, "***")
        text = text[:_LONGEST]
        problem = f"{self._shown}: {text}"
        # What the server itself refuses says nothing of what else is asked of it.
        at = script if isinstance(error, ResponseError) else ""
        self._problems[at], self._since = problem, self._alive()
        if self._told is not False:
            self._told = False
            told: dict[str, object] = {
                "reason": problem,
                "hint": "Until it can be used, a token in hand is, and nobody logs in "
                "(but with token.renew_alone).",
            }
            self._emit(Event("store_lost", "error", fields=told))
        return Unreachable(problem)

    def _back(self, script: str) -> None:
        for name in ("", script):
            self._problems.pop(name, None)
        if self._problems and self._alive() - self._since > _REFUSED:
            self._problems.clear()  # of a script that is seldom run
        if self._told is not True and not self._problems:
            self._told = True
            self._emit(Event("store_reached", fields={"store": self._shown}))
