"""The simulation of many replicas, and its picture in the docs (the server is held by test_played_server.py)."""

from pathlib import Path

import pytest
from fleet import figures, simulate, table
from fleet_picture import picture, read

DRAWN = Path(__file__).parents[2] / "docs/fleet.svg"


def test_the_same_seed_brings_the_same_day():
    one, other = (simulate(seed=5, replicas=20, hours=4, failing=0.5) for _ in range(2))
    assert table(one, requests=0) == table(other, requests=0)
    assert picture(figures(one)) == picture(figures(other))


@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_made_once_a_lifetime_and_for_holders_that_fail(seed):
    day = simulate(seed=seed, replicas=20, hours=12, failing=0.5)
    failed = [how for one in day.rounds for _, how in one.failed]
    made = sum(len(one.made) for one in day.rounds)
    assert len(day.rounds) < 12 * 3600 / 1400
    assert made <= len(day.rounds) + len(failed)


def test_where_nothing_fails_all_have_the_new_token_and_no_request_is_lost():
    day = simulate(seed=1, replicas=20, hours=4, failing=0)
    assert [(len(one.made), len(one.dark)) for one in day.rounds[1:]] == [(1, 20)] * 9
    assert not day.unanswered


def test_the_picture_is_what_the_script_draws():
    assert picture(read(DRAWN.read_text())) == DRAWN.read_text()


def test_the_picture_is_of_the_day_that_the_script_simulates():
    drawn, begun = read(DRAWN.read_text()), figures(simulate(seed=7, hours=1.5))
    assert drawn["replicas"] == begun["replicas"] == 200
    assert len(begun["rounds"]) == 3
    assert drawn["rounds"][:3] == begun["rounds"]
