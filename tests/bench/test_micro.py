"""The micro-benchmarks still find what they measure."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_micro_benchmark_runs_once():
    done = subprocess.run(
        (
            sys.executable,
            "-m",
            "pytest",
            "bench/micro",
            "--benchmark-disable",
            "-p",
            "no:cacheprovider",
        ),
        cwd=ROOT,
        check=False,
        env={"PATH": os.environ["PATH"]},  # not under coverage: they are no test of what they call
        capture_output=True,
        text=True,
        timeout=50,
    )
    summary = done.stdout.splitlines()[-1]
    assert re.search(r"\b[1-9]\d* passed in", summary), done.stdout
    assert done.returncode == 0, done.stdout
