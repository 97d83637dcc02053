"""Several processes as one: starts them, replaces those that end, and ends them together.

It waits for signals and for what its processes say, and does nothing else: no threads, no event
loop, so that what it forks begins clean. A process that finds its link closed knows that the
supervisor is gone, and ends by itself.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from proxy.core.exchange import Emit, Event
from proxy.core.lifetime import Backoff

_AGAIN = Backoff(first=0.1, cap=10.0)
_SETTLED = 1.0  # seconds after which a process that ends has not failed to start
_PATIENCE = 1.0  # seconds for which callers may wait in the queue of a process that is not there
_LAST_WAIT = 5.0  # seconds beside the drain's limit until a process is killed
_SIGN = 5.0  # seconds between two signs of life
_SILENT = 30.0  # seconds without one after which a process hangs, perhaps with a lock
ROOM = 8  # processes of one post: the one that fills it, and those that are about to end
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
CUT = b"c"  # what a process is told whose work is not to be waited for
GO = b"g"  # what one is told whose place another takes
_LONGEST = 64 * 1024  # bytes of what a process says at once


class Link:
    """A process's line to its supervisor.

    Args:
        sock: the process's end. It brings `CUT`, `GO`, or its end: the supervisor is gone.
        place: the lowest number, below `ROOM`, that no other process at its post has.
        after: whether the one before it ended without being told to.
    """

    every = _SIGN  # seconds between two signs of life, once it is up

    def __init__(self, sock: socket.socket, *, place: int, after: bool) -> None:
        self.sock = sock
        self.place = place
        self.after = after

    def say(self, **what: object) -> None:
        """Tell something: `up` (running), `draining` (takes no more), `failed` (why), `reload`."""
        with contextlib.suppress(OSError):
            self.sock.sendall(json.dumps(what).encode() + b"\n")


Target = Callable[[Link], int]


@dataclass(slots=True)
class _Process:
    """One process that runs, or ran.

    Attributes:
        place: a number that nobody else at its post has.
        started: when.
        heard: the beginning of a line.
        up: whether it runs.
        heard_at: when it last said something.
        leaving: since when it ends because it was told to; 0 if it does not.
        hung: whether it was killed for it.
        said: what it told when it was up.
        failed: why it could not start, or "".
    """

    pid: int
    sock: socket.socket
    place: int
    started: float
    heard_at: float
    heard: bytes = b""
    up: bool = False
    leaving: float = 0.0
    hung: bool = False
    said: Mapping[str, Any] = field(default_factory=dict)
    failed: str = ""


@dataclass(slots=True)
class Post:
    """A place that is to be filled by one process at any time.

    Attributes:
        name: for events.
        target: what the process does; its exit code.
        last: whether it is ended only after all others.
        prepare: called before each process is started.
        missing: told if nobody will be there for a while.
        ended: told of each process that has ended, by its place.
        noted: called when a process says that it has noted something that those to come have to know.
        present: the process that fills it; others may be about to end.
        failures: processes in a row that ended soon.
        problem: why the last one could not start, or "".
        due: when the next one is to be started.
    """

    name: str
    target: Target
    last: bool = False
    prepare: Callable[[], None] | None = None
    missing: Callable[[], None] | None = None
    ended: Callable[[int], None] | None = None
    noted: Callable[[], None] | None = None
    present: _Process | None = None
    failures: int = 0
    problem: str = ""
    due: float | None = None


class CannotRun(Exception):
    """A process could not start; the text says why and what to do."""


class Supervisor:
    """Keeps every post filled until it is told to stop.

    Args:
        emit: takes events.
        limit: seconds a process may take to end; can be changed.
        told: what to tell of an end that a signal asks for.
        reload: prepares what processes begin with; whether they are to be replaced.
        silent: seconds without a sign of life after which a process hangs.
        awake: called again and again while it turns, which is a sign of its own life.
        awake_every: within so many seconds; 0 if nobody cares.
    """

    def __init__(
        self,
        *,
        emit: Emit,
        limit: float,
        told: Callable[[int], Mapping[str, object]] = lambda _: {},
        reload: Callable[[], bool] = lambda: True,
        silent: float = _SILENT,
        awake: Callable[[], object] = lambda: None,
        awake_every: float = 0.0,
    ) -> None:
        self._emit = emit
        self.limit = limit
        self._told = told
        self._reload = reload
        self._silent = silent
        self._awake = awake
        self._awake_every = awake_every
        self._posts: list[Post] = []
        self._processes: dict[int, tuple[Post, _Process]] = {}
        self._selector = selectors.DefaultSelector()
        self._signals, self._wakeup = socket.socketpair()
        for end in (self._signals, self._wakeup):
            end.setblocking(False)
        self._selector.register(self._signals, selectors.EVENT_READ)
        self._stops = 0
        self._asked_by: signal.Signals = signal.SIGTERM  # how it was told to stop
        self._looked = time.monotonic()
        self._rolling: list[tuple[Post, _Process]] = []
        self._once_more = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before[-1] = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        """Let nobody outlive it."""
        self._end_all(signal.SIGKILL)
        while self._processes:
            self._reap(block=True)
        self._restore()
        self._selector.close()
        for end in (self._signals, self._wakeup):
            end.close()

    # -- what its maker does ------------------------------------------------------------------

    def fill(self, *posts: Post) -> list[Mapping[str, Any]]:
        """Start a process for each, and wait until they are up; what they said then.

        Raises:
            CannotRun: one of them is not.
        """
        for post in posts:
            self._posts.append(post)
            self._start(post)
        while not self._stops:
            there = [post.present for post in posts if post.present is not None]
            if len(there) < len(posts):
                gone = next(post for post in posts if post.present is None)
                raise CannotRun(gone.problem or f"{gone.name} ended at once: see the log")
            if all(one.up for one in there):
                return [one.said for one in there]
            self._turn()
        raise CannotRun("it was told to stop before it was up")

    def run(self) -> int:
        """Keep the posts filled until a signal says stop, then end all; the exit code."""
        while not self._stops:
            self._turn()
        asked = self._stops
        self._emit(Event("draining", fields=dict(self._told(self._asked_by))))
        for last in (False, True):
            deadline = time.monotonic() + self.limit + _LAST_WAIT
            self._end_all(self._asked_by, last=last)
            while self._left(last=last):
                if time.monotonic() > deadline or self._stops > asked + 1:
                    self._end_all(signal.SIGKILL, last=last)
                elif self._stops > asked:
                    asked = self._stops
                    for one in self._left(last=last):
                        with contextlib.suppress(OSError):
                            one.sock.send(CUT)
                    deadline = time.monotonic() + _LAST_WAIT
                self._turn(most=0.5)
        return 0 if self._stops == 1 else 1

    def finish(self, post: Post) -> None:
        """Start one more process when all have ended, and wait for its end."""
        self._start(post)
        deadline = time.monotonic() + self.limit
        while self._processes:
            if time.monotonic() > deadline:
                self._end_all(signal.SIGKILL)
            self._turn(most=0.5)

    # -- one turn -----------------------------------------------------------------------------

    def _turn(self, *, most: float = 60.0) -> None:
        """Wait for something to happen, and see to it."""
        self._awake()
        most = min(most, self._awake_every or most)
        now = time.monotonic()
        for post in self._posts if not self._stops else ():  # then nobody is started any more
            if post.due is not None and self._place(post) is not None:
                most = min(most, post.due - now)
        if self._processes:
            most = min(most, _SIGN, self._silent)
        for key, _ in self._selector.select(max(0.0, most)):
            if key.data is None:
                self._hear_signals()
            else:
                self._hear(*key.data)
        self._reap(block=False)
        self._end_hung()
        if self._stops:
            return
        now = time.monotonic()
        for post in self._posts:
            if post.due is not None and post.due <= now and self._place(post) is not None:
                self._start(post)
        self._roll()

    def _hear_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in self._signals.recv(4096):
                if number in {signal.SIGTERM, signal.SIGINT}:
                    self._asked_by = signal.Signals(number) if not self._stops else self._asked_by
                    self._stops += 1
                elif number == signal.SIGHUP and not self._stops:
                    self._replace_all()

    def _replace_all(self) -> None:
        """Begin to replace one process after another, if there is something to begin with."""
        if not self._reload():
            return
        # Who was started before this has what was before: all are replaced once more.
        self._once_more = bool(self._rolling)
        if not self._rolling:
            self._begin_to_roll()

    def _begin_to_roll(self) -> None:
        posts = [post for post in self._posts if not post.last]
        self._rolling = [(one, one.present) for one in posts if one.present]
        told: dict[str, object] = {"processes": len(self._rolling)}
        self._emit(Event("restarting", fields=told))
        if posts and not self._rolling:  # whoever is started from now on begins with what is new
            self._emit(Event("restarted"))

    def _hear(self, post: Post, one: _Process) -> None:
        try:
            data = one.sock.recv(_LONGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up(one)
            return
        one.heard_at = time.monotonic()
        *lines, one.heard = (one.heard + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "up" in said:
                one.up, one.said = True, said["up"]
            one.failed = str(said.get("failed", one.failed))
            if said.get("noted") and post.noted is not None:
                post.noted()
            if said.get("reload") and not self._stops:
                self._replace_all()
            if said.get("draining"):
                one.leaving = one.leaving or time.monotonic()
                if post.present is one and not self._stops:  # it leaves; the next one may come
                    post.due = time.monotonic()
                    if self._place(post) is None and post.missing is not None:
                        post.missing()  # until one of those that drain has ended

    def _roll(self) -> None:
        """Restart one process after another: the next when the one before has a successor.

        Where `ROOM` processes are there, one of which is not to end, the others are waited for.
        """
        if not self._rolling:
            return
        while self._rolling:
            post, old = self._rolling[0]
            one = post.present
            if one is None or (one is not old and not one.up):
                return
            if one is old:
                if not old.leaving and self._place(post) is not None:
                    old.leaving = time.monotonic()
                    with contextlib.suppress(OSError):
                        old.sock.send(GO)
                return
            del self._rolling[0]
        self._emit(Event("restarted"))
        if self._once_more:
            self._once_more = False
            self._begin_to_roll()

    def _end_hung(self) -> None:
        """Kill what gives no sign of life, or does not end: a lock that it holds is free then."""
        now = time.monotonic()
        # After a pause of our own (a stopped machine, a stopped group) it is too early to tell.
        paused, self._looked = now - self._looked > self._silent / 2 + _SIGN, now
        for post, one in self._processes.values():
            if paused:
                one.heard_at = now
            silent = one.up and now - one.heard_at > self._silent
            late = one.leaving and now - one.leaving > self.limit + _LAST_WAIT
            if (silent or late) and not one.hung:
                one.hung = True
                told: dict[str, object] = {"process": post.name, "pid": one.pid}
                told["silent_seconds"] = round(now - one.heard_at, 1)
                self._emit(Event("process_hung", "error", fields=told))
                self._kill(one, signal.SIGKILL)

    def _reap(self, *, block: bool) -> None:
        """See to the processes that have ended."""
        for pid in list(self._processes):
            try:
                ended, status = os.waitpid(pid, 0 if block else os.WNOHANG)
            except ChildProcessError:
                ended, status = pid, 0
            if ended:
                self._ended(pid, os.waitstatus_to_exitcode(status))

    def _ended(self, pid: int, code: int) -> None:
        told: dict[str, object]
        post, one = self._processes.pop(pid)
        if one.sock.fileno() >= 0:  # what it said last
            self._hear(post, one)
        self._hang_up(one)
        if post.ended is not None:
            post.ended(one.place)
        if self._stops or post.present is not one:
            # It was to end, and has its successor if there is to be one. But not like this.
            if code < 0 and -code not in _SIGNALS:
                why = "it was killed while it ended: what it was doing then is in no log line"
                told = {"process": post.name, "exit_code": code, "reason": why}
                self._emit(Event("process_ended", "error", fields=told))
            return
        now = time.monotonic()
        if one.leaving:
            post.due, post.failures = now, 0
        else:
            lived = now - one.started
            post.failures = 1 if lived >= _SETTLED else post.failures + 1
            delay = 0.0 if post.failures == 1 else _AGAIN.delay(post.failures - 1, jitter=0.0)
            post.due = now + delay
            told = {"process": post.name, "exit_code": code}
            told |= {"reason": one.failed, "lived_seconds": round(lived, 1)}
            post.problem = one.failed
            told["restarts_in"] = round(delay, 1)
            self._emit(Event("process_ended", "error", fields=told))
            if delay > _PATIENCE and post.missing is not None:
                post.missing()
        post.present = None

    # -- processes ----------------------------------------------------------------------------

    def _start(self, post: Post) -> None:
        """Start a process, or try again later: what runs already goes on."""
        try:
            self._fork(post)
        except Exception as error:  # noqa: BLE001 - no descriptor, no memory, no address
            post.failures += 1
            post.problem = str(error)
            delay = _AGAIN.delay(post.failures, jitter=0.0)
            post.due = time.monotonic() + delay
            told: dict[str, object] = {"process": post.name, "reason": post.problem}
            told["restarts_in"] = round(delay, 1)
            self._emit(Event("process_not_started", "error", fields=told))

    def _place(self, post: Post) -> int | None:
        """The lowest number that no process of a post has; None while there is no room."""
        taken = {one.place for at, one in self._processes.values() if at is post}
        return next((place for place in range(ROOM) if place not in taken), None)

    def _fork(self, post: Post) -> None:
        place = self._place(post)
        assert place is not None  # noqa: S101 - it was looked for
        if post.prepare is not None:
            post.prepare()
        sys.stdout.flush()
        sys.stderr.flush()
        ours, theirs = socket.socketpair()
        # A signal to a process that still has our handlers would be told to us.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                self._become(post, place, ours, theirs)
        except OSError:
            ours.close()
            theirs.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        now = time.monotonic()
        ours.setblocking(False)
        post.due = None
        post.present = one = _Process(pid, ours, place, now, now)
        self._processes[pid] = post, one
        self._selector.register(ours, selectors.EVENT_READ, (post, one))
        told: dict[str, object] = {"process": post.name, "pid": pid}
        self._emit(Event("process_started", "debug", fields=told))

    def _become(self, post: Post, place: int, ours: socket.socket, theirs: socket.socket) -> None:
        """Be the process that fills a post; never returns."""
        code = 1
        try:
            # A terminal's Ctrl-C is for the supervisor: it tells the others, once.
            os.setpgid(0, 0)
            self._restore()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._selector.close()
            # A copy of another one's line would keep it from seeing the supervisor's end.
            others = [one.sock for _, one in self._processes.values()]
            for sock in (ours, self._signals, self._wakeup, *others):
                sock.close()
            code = post.target(Link(theirs, place=place, after=post.failures > 0))
        except KeyboardInterrupt:
            pass
        except BaseException:  # noqa: BLE001 - nothing of the supervisor's may go on in here
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _restore(self) -> None:
        signal.set_wakeup_fd(self._before.pop(-1, -1))
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _hang_up(self, one: _Process) -> None:
        if one.sock.fileno() >= 0:
            self._selector.unregister(one.sock)
            one.sock.close()

    def _left(self, *, last: bool) -> list[_Process]:
        return [one for post, one in self._processes.values() if last or not post.last]

    def _end_all(self, number: signal.Signals, *, last: bool = True) -> None:
        for one in self._left(last=last):
            self._kill(one, number)

    @staticmethod
    def _kill(one: _Process, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, number)
