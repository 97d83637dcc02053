"""Figures to hold: small in `make test`, whole in `make torture`, which prints the table."""

import os

import pytest

FULL = "TORTURE" in os.environ
ROWS = pytest.StashKey[list]()


@pytest.fixture
def size():
    """`size(small, full)`: how much of it there is to be this time."""
    return lambda small, full: full if FULL else small


@pytest.fixture
def chaos_seed():
    """Of what is left to chance; `CHAOS_SEED` chooses another."""
    return int(os.environ.get("CHAOS_SEED", "6"))


@pytest.fixture
def figure(request):
    """`figure(name, what)`: a row of the table."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda name, what: rows.append((name, what))


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if FULL and rows:
        terminalreporter.section("figures")
        for name, what in sorted(rows, key=lambda row: row[0]):
            terminalreporter.write_line(f"{name:<6} {what}")
