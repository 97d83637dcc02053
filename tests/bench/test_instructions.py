"""What is said of callgrind's dumps is what is in them, and the commands still run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from instructions import Count, Missing, annotated, find, total

ROOT = Path(__file__).parents[2]
DUMP = "version: 1\ncreator: callgrind\nevents: {}\n\nfn=(1) main\n0 5\n\ntotals: {}\n"
# What callgrind_annotate says: a function that calls itself can count for more than there is.
ANNOTATED = """\
1,500 (150.0%)  /src/Python/ceval.c:_PyEval_EvalFrameDefault'2 [/usr/lib/libpython3.so]
1,000 (100.0%)  /src/Python/ceval.c:_PyEval_EvalFrameDefault [/usr/lib/libpython3.so]
  420 (42.00%)  ???:0x0000000000028ad0 [/usr/lib/libcrypto.so.3]
    6 ( 0.60%)  ./Include/object.h:_PyFrame_Clear
"""


def command(name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    # Not under coverage: what runs in these processes is no test of it.
    return subprocess.run(
        (sys.executable, str(ROOT / "bench" / name), *arguments),
        check=False,
        env={"PATH": os.environ["PATH"]} | env,
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_a_request_is_what_a_batch_twice_as_large_costs_more():
    assert Count(requests=200, once=50_000, twice=90_000).each == 200


def test_a_dump_says_how_many_instructions_there_were():
    assert total(DUMP.format("Ir", 184_467)) == 184_467


@pytest.mark.parametrize(
    "dump", ["", DUMP.format("Ir Dr", "5 1"), DUMP.format("Cycles", 5), "events: Ir\n"]
)
def test_a_dump_that_counts_anything_else_is_refused(dump):
    with pytest.raises(ValueError, match="no dump"):
        total(dump)


def test_a_profile_is_per_request_and_leaves_out_what_is_counted_again_and_again():
    rows = [line.split() for line in annotated(ANNOTATED, times=10, most=1000).splitlines()]
    assert rows == [
        ["100", "100.00%", "_PyEval_EvalFrameDefault", "ceval.c"],
        ["42", "42.00%", "0x0000000000028ad0", "???"],
        ["1", "0.60%", "_PyFrame_Clear", "object.h"],
    ]


def test_a_missing_tool_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match=r"valgrind is missing \(Debian"):
        find("valgrind")


def test_without_valgrind_the_command_says_so_and_fails(tmp_path):
    done = command("instructions.py", PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nothing was counted: valgrind is missing")


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.timeout(120)
def test_the_instructions_of_a_request_are_counted():
    done = command("instructions.py", "--requests=40", "--work=GET, key", "--json")
    assert done.returncode == 0, done.stderr
    (count,) = json.loads(done.stdout)["works"]["GET, key"]
    assert count["requests"] == 40
    assert 0 < count["once"] < count["twice"] < 3 * count["once"]
    assert count["each"] == (count["twice"] - count["once"]) / 40


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.timeout(120)
def test_the_functions_of_a_request_are_profiled(loop):
    arguments = ("--requests=20", f"--loop={loop}", "--top=500", "--work=POST 1 KiB, key")
    done = command("profile_path.py", *arguments)
    assert done.returncode == 0, done.stderr
    # The handler is a coroutine: it is entered once, and again for each time it has waited.
    called = re.search(r"(\d+\.\d+)  __call__  proxy/handler.py:\d+\n", done.stdout)
    assert called is not None, done.stdout
    assert 1 <= float(called[1]) < 6
    assert ("selector_events.py" in done.stdout) == (loop == "asyncio")
