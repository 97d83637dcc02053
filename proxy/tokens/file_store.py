"""A session kept in a file, for all processes of this machine and across restarts.

Two files: the sealed value, which is replaced as a whole, and beside it a lock file that is
never replaced. Its advisory lock is the lease: the system takes it from a holder that dies, at
whatever moment. Its content counts the writes, so that looking for news costs one short read.
"""

import asyncio
import contextlib
import fcntl
import math
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proxy.core.session import Held, Trouble
from proxy.tokens.seal import Identity, Seal, Unreadable
from proxy.tokens.store import StoreFailed

_COUNT = 8  # bytes
_TURN = 0.01  # seconds between two tries to get the lock
_LOOK = 1.0  # seconds between two looks whether it is still there: every request asks for news
_LARGEST = 256 * 1024  # bytes of a value
_SAME_CLOCK = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class MachineClock:
    """The clocks of a machine, by which what lies in its files is read.

    Times travel with the clocks of whoever wrote them: after a restart of the machine the clock
    that runs during sleep begins anew.

    Attributes:
        boot: names this boot, within which that clock is the same for everybody.
        alive: that clock, in seconds.
        wall: epoch seconds.
    """

    boot: str
    alive: Callable[[], float]
    wall: Callable[[], float]

    def stamp(self) -> Mapping[str, object]:
        """The clocks now."""
        return {"boot": self.boot, "alive": self.alive(), "wall": self.wall()}

    def translated(self, held: Held, stamp: Mapping[str, Any]) -> Held:
        """What was written with a stamp, by our own clock that runs during sleep."""
        now, wall = self.alive(), self.wall()
        if self.boot and stamp["boot"] == self.boot and now >= stamp["alive"]:
            return held
        passed = wall - stamp["wall"]
        if passed < -_SAME_CLOCK:  # nobody knows how long ago it was written
            return replace(
                held,
                token=None,
                trouble=Trouble(),
                gap_until=0.0,
                forced=(),
                deaths=(),
                rejected=(),
            )
        return held.moved(now - max(0.0, passed) - stamp["alive"])


class FileStore:
    """Keeps one session in a folder.

    Args:
        folder: on a file system of this machine; made if it is not there.
        identity: of the session.
        seal: encrypts it.
        clock: of this machine.
        warn: told, in words, of a value that is ignored.

    Raises:
        StoreFailed: the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Identity,
        seal: Seal,
        clock: MachineClock,
        warn: Callable[[str], object],
    ) -> None:
        self._path, self._lock_path = _files(folder, identity)
        self._seal = seal
        self._clock = clock
        self._warn = warn
        self._warned: object = None
        self._foreign = False  # whether what lies there is another one's
        self.problem = ""
        self._count = b""
        self._look_at = -math.inf  # when to see whether the lock is still there
        self._mine = asyncio.Lock()  # the file's is of a process, not of a task
        try:
            self._lock = self._open_lock()
        except OSError as error:
            raise _failed(error, folder) from None

    def news(self) -> Held | None:
        """As `Store`."""
        try:
            if (now := self._clock.alive()) >= self._look_at:
                self._look_at = now + _LOOK
                if not os.fstat(self._lock).st_nlink and not self._mine.locked():
                    self._lock_anew()  # somebody has removed it: others tell in another one
            if os.pread(self._lock, _COUNT, 0) == self._count:
                return None
            # Counted first: what is written in between is news again.
            self._count = os.pread(self._lock, _COUNT, 0)
        except OSError:
            return None
        return self._read()

    @asynccontextmanager
    async def lease(
        self, moot: Callable[[], bool] = bool, *, insist: bool = False
    ) -> AsyncIterator[Held | None]:
        """As `Store`; what cannot be read is ignored, whoever asks."""
        del insist
        async with self._mine:
            try:
                await self._acquire()
            except OSError as error:
                raise _failed(error, self._lock_path) from None
            try:
                yield None if moot() else self._read() or Held()
            finally:
                with contextlib.suppress(OSError):
                    fcntl.flock(self._lock, fcntl.LOCK_UN)

    async def save(self, held: Held) -> Held:
        """As `Store`."""
        if self._foreign and held.token is None:
            return held  # it may be of use to whoever wrote it, until there is something better
        if not self._is_the_lock():
            raise StoreFailed(f"{self._lock_path} was removed while it was held")
        fresh = self._path.with_name(f".{self._path.name}")  # nobody but the holder writes
        try:
            descriptor = os.open(
                fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600
            )
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o600)
                file.write(self._seal.close(held, self._clock.stamp(), now=self._clock.alive()))
            self._tell()  # a process that is killed before it has told has told
            fresh.replace(self._path)
            self._tell()
            self._foreign = False
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise _failed(error, self._path) from None
        return held

    def listen(self, told: Callable[[], object]) -> None:
        """Nobody says so: who wants news has to look."""

    def sure(self) -> bool:
        """Nobody can take it away."""
        return True

    def remember(self, held: Held) -> None:
        """It is kept when it is next saved."""

    def _tell(self) -> None:
        count = int.from_bytes(os.pread(self._lock, _COUNT, 0)) + 1
        self._count = (count % 256**_COUNT).to_bytes(_COUNT)
        os.pwrite(self._lock, self._count, 0)

    def close(self) -> None:
        """As `Store`."""
        with contextlib.suppress(OSError):
            os.close(self._lock)

    # -- the lock -----------------------------------------------------------------------------

    def _open_lock(self) -> int:
        self._lock_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def _lock_anew(self) -> None:
        fresh = self._open_lock()
        os.close(self._lock)
        self._lock, self._count = fresh, b""

    async def _acquire(self) -> None:
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(_TURN)
                continue
            try:
                if self._is_the_lock():
                    return
            except OSError:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
                raise
            # Somebody has removed it: who comes next would lock another one.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock_anew()

    def _is_the_lock(self) -> bool:
        try:
            found = self._lock_path.stat()
        except FileNotFoundError:
            return False
        mine = os.fstat(self._lock)
        return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)

    # -- the value ----------------------------------------------------------------------------

    def _read(self) -> Held | None:
        """What is stored; None, with a warning, if that is nothing of ours."""
        try:
            # What is no file, but a pipe perhaps, would be waited for.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                found = os.fstat(file.fileno())
                data = file.read(_LARGEST) if stat.S_ISREG(found.st_mode) else b""
        except FileNotFoundError:
            return None
        except OSError as error:
            self._ignore(f"{self._path}: {error.strerror}", about=error.errno)
            self._count = b""  # it may be readable the next time
            return None
        self._foreign = False
        try:
            return self._clock.translated(*self._seal.open(data))
        except Unreadable as error:
            self._foreign = error.foreign
            text = f"{self._path} is ignored: {error}"
            self._ignore(text, about=(found.st_ino, found.st_mtime_ns))
            return None

    def _ignore(self, text: str, *, about: object) -> None:
        if about != self._warned:
            self._warned = about
            self._warn(text)


def is_kept(folder: Path, *, identity: Identity) -> bool:
    """Whether a session was ever kept in a folder; nothing is made or opened."""
    return any(os.path.lexists(one) for one in _files(folder, identity))


def _files(folder: Path, identity: Identity) -> tuple[Path, Path]:
    """The value's, and the lock's."""
    name = f"session-{identity.digest()}"
    return folder / name, folder / f"{name}.lock"


def _failed(error: OSError, path: Path) -> StoreFailed:
    return StoreFailed(f"{error.filename or path}: {error.strerror or error}")
