"""A supervisor of small processes: what it does about those that hang or cannot be started."""

import asyncio
import json
import os
import signal
import sys

import pytest
from harness import environ

from proxy.supervisor import ROOM

SCRIPT = """
import json, os, signal, sys, time
from proxy.core.exchange import Event
from proxy.supervisor import GO, CannotRun, Post, Supervisor

boss = os.getpid()

def tell(event):
    print(json.dumps({"event": event.name, **event.fields}), flush=True)

def target(link):
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: HEARD)
    BEGIN
    while not stop and os.getppid() == boss:
        SIGN
        time.sleep(0.05)
    return 0

begun = []

def prepare():
    begun.append(1)
    if sys.argv[1:] and len(begun) == 2:
        raise OSError(24, "no descriptors")

missing = lambda: tell(Event("missing"))
post = Post("worker", target, prepare=prepare, missing=missing)
with Supervisor(emit=tell, limit=LIMIT, silent=SILENT) as supervisor:
    try:
        supervisor.fill(post)
    except CannotRun as error:
        print(json.dumps({"event": "cannot", "reason": str(error)}), flush=True)
        sys.exit(1)
    print(json.dumps({"event": "filled"}), flush=True)
    sys.exit(supervisor.run())
"""
HEEDS = "stop.append(1)"
GIVES = "link.say(alive=True)"
BEGINS = 'link.say(up={"pid": os.getpid()})'


class Told:
    def __init__(self, process):
        self.process = process
        self.seen = []

    async def until(self, name):
        while not self.seen or self.seen[-1]["event"] != name:
            line = await asyncio.wait_for(self.process.stdout.readline(), 20)
            assert line, self.seen
            self.seen.append(json.loads(line))
        return self.seen[-1]


@pytest.fixture
async def supervised():
    begun = []

    async def begin(*arguments, heard=HEEDS, sign=GIVES, begins=BEGINS, **times):
        times = {"limit": 1.0, "silent": 20.0} | times
        script = SCRIPT.replace("HEARD", heard).replace("SIGN", sign).replace("BEGIN", begins)
        for name, seconds in times.items():
            script = script.replace(name.upper(), str(seconds))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, *arguments),
            env=environ(),
            stdout=asyncio.subprocess.PIPE,
        )
        begun.append(process)
        return Told(process)

    yield begin
    for process in begun:
        if process.returncode is None:
            process.kill()
        await asyncio.wait_for(process.communicate(), 20)


async def test_a_process_without_a_sign_of_life_is_killed_and_replaced(supervised):
    told = await supervised(sign="pass", silent=0.5)
    first = (await told.until("process_started"))["pid"]
    assert (await told.until("process_hung"))["pid"] == first
    assert (await told.until("process_ended"))["exit_code"] == -9
    assert (await told.until("process_started"))["pid"] != first


async def test_a_process_that_gives_signs_goes_on_and_ends_when_it_is_told_to(supervised):
    told = await supervised(silent=4)
    await told.until("filled")
    await asyncio.sleep(6)
    told.process.terminate()
    assert await asyncio.wait_for(told.process.wait(), 20) == 0
    rest = (await told.process.stdout.read()).decode()
    assert "process_hung" not in rest
    assert "draining" in rest


async def test_one_that_does_not_end_in_time_is_killed(supervised):
    told = await supervised(heard="None")
    await told.until("filled")
    told.process.terminate()
    assert await asyncio.wait_for(told.process.wait(), 20) == 0


async def test_what_cannot_be_started_is_tried_again_while_the_others_go_on(supervised):
    told = await supervised("fail", heard="os._exit(3)")
    pid = (await told.until("process_started"))["pid"]
    await told.until("filled")  # if it ended before, nothing was ever filled
    os.kill(pid, signal.SIGTERM)
    failed = await told.until("process_not_started")
    assert "no descriptors" in failed["reason"]
    assert await told.until("process_started")


@pytest.mark.parametrize(
    ("begins", "reason"),
    [
        ("link.say(failed='no room'); return 1", "no room"),
        ("raise SystemExit(3)", "worker ended at once: see the log"),
    ],
)
async def test_why_one_cannot_start_is_said(supervised, begins, reason):
    told = await supervised(begins=begins)
    assert (await told.until("cannot"))["reason"] == reason
    assert await asyncio.wait_for(told.process.wait(), 20) == 1


# Is up in the place it was given; leaves when it is told to, but ends only once somebody says so.
LINGERS = """
    tell(Event("place", fields={"place": link.place, "pid": os.getpid()}))
    link.say(up={})
    link.sock.setblocking(False)
"""
LINGERING = """
        link.say(alive=True)
        try:
            if link.sock.recv(1) == GO:
                tell(Event("left"))
                link.say(draining=True)
        except BlockingIOError:
            pass
"""


async def test_who_is_replaced_faster_than_it_ends_is_waited_for(supervised):
    """Its place, under which it counts, is nobody else's until it has ended."""
    heard = '(stop.append(1), tell(Event("ending")))'
    told = await supervised(heard=heard, begins=LINGERS, sign=LINGERING, limit=60.0)
    places, pids, left = [], [], []

    async def next_one():
        one = await told.until("place")
        left.extend(event for event in told.seen if event["event"] == "left")
        told.seen.clear()
        places.append(one["place"])
        pids.append(one["pid"])

    await next_one()
    await told.until("filled")
    for _ in range(ROOM - 1):
        told.process.send_signal(signal.SIGHUP)
        await next_one()
        await told.until("restarted")
    assert places == list(range(ROOM))
    assert len(left) == ROOM - 1
    told.process.send_signal(signal.SIGHUP)
    await told.until("restarting")
    await asyncio.sleep(0.5)
    told.process.send_signal(signal.SIGCHLD)  # it looks around once more
    await asyncio.sleep(0.5)
    os.kill(pids[3], signal.SIGTERM)  # the fourth of those that were to end has ended
    await told.until("left")
    assert [event["event"] for event in told.seen][-3:] == ["restarting", "ending", "left"]
    await next_one()
    await told.until("restarted")
    assert places[ROOM:] == [3]
    assert len(set(pids)) == ROOM + 1
    told.process.terminate()
    assert await asyncio.wait_for(told.process.wait(), 20) == 0


async def test_where_none_may_come_before_others_have_ended_nobody_waits_for_it(supervised):
    told = await supervised(
        heard="link.say(draining=True)", begins=LINGERS, sign=LINGERING, limit=60.0
    )
    await told.until("filled")
    for _ in range(ROOM - 1):
        told.process.send_signal(signal.SIGHUP)
        pid = (await told.until("place"))["pid"]
        await told.until("restarted")
    assert "missing" not in [event["event"] for event in told.seen]
    os.kill(pid, signal.SIGTERM)
    await told.until("missing")


# One fails again and again and is to be started once more when the end comes; for another one the
# end takes a while.
TURNS = """
import os, signal, sys, time
from proxy.supervisor import Post, Supervisor

boss = os.getpid()
turns = []

def ends(link):
    link.say(up={})
    time.sleep(0.3)
    return 3

def goes_on(link):
    signal.signal(signal.SIGTERM, lambda *_: None)
    link.say(up={})
    time.sleep(3)  # a signal does not end it
    return 0

def tell(event):
    if event.name == "process_ended" and event.fields["restarts_in"] > 0:
        os.kill(boss, signal.SIGTERM)
    if event.name == "draining":
        turns.clear()

awake = lambda: turns.append(1)
with Supervisor(emit=tell, limit=20.0, awake=awake) as supervisor:
    supervisor.fill(Post("goes on", goes_on), Post("ends", ends))
    supervisor.run()
print(len(turns))
"""


async def test_a_stop_waits_though_somebody_was_to_be_started_in_it():
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TURNS), env=environ(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert int(out) < 100  # two in a second, and one for each thing that happens


# Somebody mends the settings of one that fails again and again, and says so while it is not there.
RELOADED = """
import os, signal, sys, time
from proxy.supervisor import Post, Supervisor

boss = os.getpid()
begun = []

def ends(link):
    link.say(up={})
    if len(begun) > 2:
        time.sleep(20)
    time.sleep(0.3)
    return 3

def tell(event):
    print(event.name, flush=True)
    if event.name == "process_ended" and event.fields["restarts_in"] > 0:
        os.kill(boss, signal.SIGHUP)

with Supervisor(emit=tell, limit=1.0) as supervisor:
    supervisor.fill(Post("ends", ends, prepare=lambda: begun.append(1)))
    supervisor.run()
"""


async def test_a_reload_while_nobody_is_there_comes_to_an_end():
    """Whoever asked for it waits for that: systemd does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RELOADED), env=environ(), stdout=asyncio.subprocess.PIPE
    )
    seen = []
    while seen.count("process_started") < 3:
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        assert line, seen
        seen.append(line.decode().strip())
    process.terminate()
    await asyncio.wait_for(process.communicate(), 20)
    assert seen[-4:] == ["process_ended", "restarting", "restarted", "process_started"]
