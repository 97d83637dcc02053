"""Phantom tokens: of Nomba's shape, read only by whoever has the key, each for one door."""

import base64
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.phantom import Phantoms

NOW = 1_780_000_000.5
names = st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True)


def phantoms(key=b"k" * 32, **more):
    return Phantoms(key, **{"lifetime": 3600, "refresh_lifetime": 86400, **more})


def issue(made, caller="app", upstream="nomba", secret="abc", chance=bytes(range(56))):
    return made.issue(caller, upstream=upstream, secret=secret, now=NOW, chance=chance)


@given(names, names, st.sampled_from(["", "0123456789ab"]), st.binary(min_size=56, max_size=56))
def test_a_pair_has_the_documented_shape_and_says_what_it_was_issued_for(
    caller, upstream, secret, chance
):
    made = phantoms()
    pair = issue(made, caller, upstream, secret, chance)
    assert 300 <= len(pair.access) <= 600
    assert [
        len(json.loads(base64.urlsafe_b64decode(part + "==")))
        for part in pair.access.split(".")[:2]
    ] == [2, 8]
    assert 30 <= len(pair.refresh) <= 60
    read = made.read(pair.access.encode())
    assert (read.caller, read.upstream, read.secret) == (caller, upstream, secret)
    assert read.expires == NOW + 3600.5
    refresh = made.read_refresh(pair.refresh.encode(), upstream=upstream)
    assert (refresh.token_id, refresh.expires) == (read.token_id, int(NOW + 86400))
    assert made.is_for(refresh, caller=caller, secret=secret)
    assert not made.is_for(refresh, caller=caller + "x", secret=secret)
    assert not made.is_for(refresh, caller=caller, secret=secret + "x")
    assert made.read_refresh(pair.refresh.encode(), upstream=upstream + "x") is None


def test_another_key_reads_nothing():
    pair = issue(phantoms())
    other = phantoms(b"o" * 32)
    assert other.read(pair.access.encode()) is None
    assert other.read_refresh(pair.refresh.encode(), upstream="nomba") is None
    assert phantoms().read(pair.access.encode()) is not None  # another process with the same key


def test_no_change_of_a_single_character_is_read():
    made = phantoms()
    pair = issue(made)
    access, refresh = pair.access.encode(), pair.refresh.encode()
    for at, instead in itertools.product(range(len(access)), (b"A", b"B", b".", b"=", b"\xff")):
        changed = access[:at] + instead + access[at + 1 :]
        assert changed == access or made.read(changed) is None
    for at, instead in itertools.product(range(len(refresh)), (b"A", b"B", b"=", b"+", b"\xff")):
        changed = refresh[:at] + instead + refresh[at + 1 :]
        assert changed == refresh or made.read_refresh(changed, upstream="nomba") is None


@pytest.mark.parametrize("algorithm", ["none", "HS256", "hs256", "RS256"])
def test_a_token_signed_otherwise_is_not_read(algorithm):
    made = phantoms()
    _, payload, signature = issue(made).access.split(".")
    head = base64.urlsafe_b64encode(json.dumps({"alg": algorithm}).encode()).decode().rstrip("=")
    for text in (f"{head}.{payload}.", f"{head}.{payload}.{signature}", f"{head}.{payload}"):
        assert made.read(text.encode()) is None


@given(st.binary(max_size=80) | st.binary(min_size=990, max_size=2000))
def test_anything_else_is_not_read_and_breaks_nothing(data):
    made = phantoms()
    assert made.read(data) is None
    assert made.read_refresh(data, upstream="nomba") is None
    start = issue(made).access.encode().partition(b".")[0]
    assert made.read(start + b"." + data) is None


def test_an_access_token_is_no_refresh_token_and_the_other_way_round():
    made = phantoms()
    pair = issue(made)
    assert made.read(pair.refresh.encode()) is None
    assert made.read_refresh(pair.access.encode(), upstream="nomba") is None
