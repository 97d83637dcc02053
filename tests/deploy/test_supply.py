"""What is shipped: the same bytes from the same source, under licences that are known, looked at for faults."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from email.message import Message
from pathlib import Path

import pytest
from audit import GOOD, UNKNOWN, VULNERABLE, audit
from deploying import program
from licences import PAGE, Unknown, licence_of, page, pinned

ROOT = Path(__file__).parents[2]


# -- the wheel ---------------------------------------------------------------------------


def built(folder, *, moment, mode):
    """The wheel of a copy of the source whose files have another age and other permissions."""
    for name in ("pyproject.toml", "README.md", "Makefile"):
        shutil.copy(ROOT / name, folder / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "proxy", folder / "proxy", ignore=ignored)
    for path in sorted(folder.rglob("*"), reverse=moment % 2 == 1):
        os.utime(path, (moment, moment))
        if path.is_file():
            path.chmod(mode)
    venv = sys.prefix
    command = [program("make"), "build", f"VENV={venv}", "-o", f"{venv}/.runs"]
    env = {"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    [wheel] = (folder / "dist").glob("*.whl")
    return wheel


def test_the_same_source_makes_the_same_wheel(tmp_path):
    sums = []
    for at, (moment, mode) in enumerate([(1_600_000_000, 0o644), (1_650_000_001, 0o600)]):
        folder = tmp_path / str(at)
        folder.mkdir()
        wheel = built(folder, moment=moment, mode=mode)
        sums.append((wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest()))
    assert sums[0] == sums[1]


# -- licences ----------------------------------------------------------------------------


def test_the_page_of_licences_is_what_is_installed():
    assert PAGE.read_text() == page(), "make licences writes it"
    lines = (ROOT / "requirements/run.txt").read_text().splitlines()
    assert len(pinned()) == sum("==" in line.partition(" ")[0] for line in lines) > 20


def says(**fields):
    message = Message()
    message["Name"] = "thing"
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    "said",
    [
        says(License_Expression="MIT AND (Apache-2.0 OR BSD-3-Clause)"),
        says(License="MIT License"),
        says(Classifier="License :: OSI Approved :: Apache Software License"),
    ],
)
def test_a_licence_that_asks_nothing_is_let_in(said):
    assert licence_of(said)


@pytest.mark.parametrize(
    "said",
    [
        says(),
        says(License_Expression="AGPL-3.0-only"),
        says(License_Expression="MIT AND GPL-2.0-or-later"),
        says(License="UNKNOWN"),
        says(License="Proprietary, ask us"),
        says(Classifier="License :: OSI Approved :: GNU General Public License v3 (GPLv3)"),
        says(License_Expression="LGPL-3.0-only", License="MIT"),
    ],
)
def test_any_other_is_refused(said):
    with pytest.raises(Unknown):
        licence_of(said)


# -- known vulnerabilities ---------------------------------------------------------------

_GOOD = {"name": "yarl", "version": "1.0", "vulns": []}
_BAD = {"name": "idna", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.0"]}]}
_SKIPPED = {"name": "redis", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("answer", "code", "word"),
    [
        ({"dependencies": [_GOOD]}, GOOD, "no known vulnerability in 1 "),
        ({"dependencies": [_GOOD, _BAD, _SKIPPED]}, VULNERABLE, "idna 1.0: PYSEC-1, mended in 2.0"),
        ({"dependencies": [_GOOD, _SKIPPED]}, UNKNOWN, "1 of 2 packages could not be looked up"),
        ({"dependencies": []}, UNKNOWN, "could not be looked up"),
        (None, UNKNOWN, "could not look: no route to host"),
    ],
)
def test_nothing_found_is_told_from_nothing_looked_at(tmp_path, answer, code, word):
    told = (
        "echo 'no route to host' >&2; exit 1" if answer is None else f"echo '{json.dumps(answer)}'"
    )
    played = tmp_path / "pip-audit"
    played.write_text(f"#!/bin/sh\n{told}\n")
    played.chmod(played.stat().st_mode | stat.S_IXUSR)
    found, text = audit(str(played))
    assert (found, word in text) == (code, True), text
