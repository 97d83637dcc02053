"""What a proxy is charged with is what all of it has used."""

import os
import sys
import time
from pathlib import Path

import pytest
from lab import (
    CannotMeasure,
    Cores,
    Missing,
    Process,
    core_times,
    cpu_times,
    environment,
    free_port,
    spent,
    tree,
)

BURNT = 0.2  # seconds of CPU time

# It burns in a grandchild, and in a thread that is over, and says when it is done.
PROGRAM = f"""
import subprocess, sys, threading, time

def burn():
    while time.process_time() < {BURNT}: pass

if sys.argv[1:] == ["burn"]:
    thread = threading.Thread(target=burn)
    thread.start()
    thread.join()
    print("done", flush=True)
    time.sleep(60)
else:
    subprocess.run([sys.executable, __file__, *sys.argv[2:]])
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def until(condition):
    while not condition():  # the test's own time limit ends it
        time.sleep(0.01)


def test_the_time_of_children_and_of_ended_threads_counts(program, taskset, tmp_path):
    command = [sys.executable, str(program), "child", "grandchild", "burn"]
    output = tmp_path / "output"
    process = Process(command, cores=os.sched_getaffinity(0), output=output, env=environment())
    try:
        until(lambda: output.read_text() == "done\n")
        assert len(tree(process.pid)) == 3
        assert spent({}, process.cpu()) > BURNT
        assert sum(cpu_times([process.pid]).values()) < BURNT  # of the first alone
    finally:
        process.stop()


def test_stopping_ends_the_children_too(program, taskset, tmp_path):
    command = [sys.executable, str(program), "child", "burn"]
    process = Process(
        command, cores=os.sched_getaffinity(0), output=tmp_path / "output", env=environment()
    )
    until(lambda: len(tree(process.pid)) == 2)
    (child,) = tree(process.pid) - {process.pid}
    process.stop()
    until(lambda: not alive(child))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_a_core_has_worked_counts_for_whomever():
    """Hundredths of a second, so somewhat less than what was burnt may be seen."""
    cores = os.sched_getaffinity(0)
    before, own = core_times(cores), time.process_time()
    while time.process_time() - own < BURNT:
        pass
    assert core_times(cores) - before > BURNT / 2


def test_only_what_was_used_meanwhile_counts():
    assert spent({1: 5.0, 2: 1.0}, {1: 5.5, 2: 1.0, 3: 0.25}) == 0.75


def test_time_that_ended_with_its_process_is_no_measurement():
    with pytest.raises(RuntimeError, match="1 processes of the proxy have ended"):
        spent({1: 5.0, 2: 1.0}, {1: 5.5})


def test_a_program_that_does_not_start_says_why(taskset, tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such setting')"]
    cores = os.sched_getaffinity(0)
    process = Process(command, cores=cores, output=tmp_path / "output", env=environment())
    with pytest.raises(Missing, match="ended with code 1: no such setting"):
        process.listens(free_port())
    process.stop()


def test_one_core_is_too_few():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with pytest.raises(CannotMeasure, match="two cores"):
            Cores.here()
    finally:
        os.sched_setaffinity(0, before)
