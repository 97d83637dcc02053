"""What is kept, how much of it, and what goes first."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.exchange import Exchange
from proxy.core.heads import CallerHead
from proxy.core.secret import Secret
from proxy.inspector.exit import Exit
from proxy.inspector.looks import MASK
from proxy.inspector.redact import Redactor
from proxy.inspector.ring import Clip, Ring

HEADERS = [(b"Host", b"x"), (b"Authorization", b"Bearer SECRET"), (b"Cookie", b"SECRET")]
HEAD = CallerHead([*HEADERS, (b"X-Api-Key", b"SECRET")]).forward(
    b"POST", target=b"/x", host=b"h", body_length=3
)


TOKEN = Secret("MARKED-token", origin="https://x")


def ring(budget=1 << 20, body_limit=1000):
    return Ring(budget=budget, body_limit=body_limit, is_secret=Redactor().is_secret)


def record(kept, number=0, *, body=b"abc", reply=b"ok", done=True):
    exchange = Exchange(f"id-{number}", started=0.0, method="POST")
    recording = kept.watch(exchange, "/x HTTP/1.1", HEADERS)
    exchange.body_bytes = len(body)
    recording.body((body,))
    recording.attempt(HEAD, account="a", token=TOKEN, generation=1, why="first try")
    recording.sending(None)
    recording.answered(200, reason=b"OK", headers=[(b"Set-Cookie", b"SECRET")])
    recording.part(reply)
    recording.reply(b"HTTP/1.1 200 OK\r\nSet-Cookie: SECRET\r\n\r\n")
    if done:
        recording.end()
    return recording


def test_secret_headers_are_cut_before_anything_is_kept():
    recording = record(ring())
    attempt = recording.attempts[0]
    sealed = [recording.sealed_headers, recording.sealed_given]
    sealed += [attempt.sealed_head, attempt.sealed_headers]
    assert not [one for one in sealed if b"SECRET" in one]
    assert attempt.sealed_head.count(MASK.encode()) == 2  # Cookie and X-Api-Key
    recording = record(kept := ring(), done=False)
    recording.attempt(HEAD, account="a", token=TOKEN, generation=2, why="replay with a new token")
    assert b"SECRET" not in recording.attempts[1].sealed_head
    recording.end()
    assert kept.used == recording.cost


@pytest.mark.parametrize(
    ("parts", "kept"),
    [([b"abc"], b"abc"), ([b"abcdef"], b"abcde"), ([b"abc", b"def", b"g"], b"abcde"), ([], b"")],
)
def test_a_body_is_kept_up_to_a_limit_and_counted_beyond(parts, kept):
    clip = Clip(5)
    for part in parts:
        clip.add(part)
    assert clip.uncover() == kept
    assert (clip.kept, clip.size) == (len(kept), sum(map(len, parts)))


def test_the_oldest_go_first_and_what_goes_keeps_nothing():
    kept = ring(budget=40_000)
    every = [record(kept, number, body=b"x" * 900) for number in range(20)]
    left = list(kept)
    assert 3 < len(left) < 15
    assert left == every[-len(left) :]
    assert kept.oldest == left[0].number
    gone = every[0]
    assert gone.gone
    assert kept.get(gone.number) is None
    assert (gone.request.kept, gone.sealed_start, gone.attempts) == (0, "", ())


def test_an_exchange_that_goes_while_it_is_under_way_goes_on_without_a_trace():
    kept = ring(budget=20_000)
    slow = record(kept, done=False)
    for number in range(20):
        record(kept, number, body=b"x" * 900)
    assert slow.gone
    used = kept.used
    slow.body((b"y" * 500,))
    slow.waiting()
    slow.waited()
    slow.attempt(HEAD, account="a", token=TOKEN, generation=2, why="replay with a new token")
    slow.sending(None)
    slow.answered(200, reason=b"OK", headers=HEADERS)
    slow.part(b"z" * 500)
    slow.failed("upstream_broken")
    slow.reply(b"HTTP/1.1 200 OK\r\n\r\n")
    slow.end()
    assert kept.used == used
    assert slow not in list(kept)
    assert kept.get(slow.number) is None


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 5000), st.booleans()), max_size=60))
def test_whatever_comes_it_stays_within_its_budget(sizes):
    kept = ring(budget=50_000)
    under_way = []
    for number, (body, reply, done) in enumerate(sizes):
        record(kept, number, body=b"x" * body, reply=b"y" * reply, done=done)
        assert 0 <= kept.used <= 50_000
        assert kept.used == sum(one.charged for one in kept)
        under_way = [one for one in kept if not one.done]
        assert all(one.charged == one.cost for one in kept if one.done)
        assert all(one.cost - one.charged < 10_000 for one in under_way)
    kept.clear()  # what is under way stays
    assert list(kept) == under_way
    for recording in list(kept):
        recording.end()
    kept.clear()
    assert kept.used == 0
    assert list(kept) == []


def test_who_asks_for_what_changed_gets_each_once_and_nothing_is_missed():
    kept = ring()
    first, second = record(kept, 1, done=False), record(kept, 2, done=False)
    mark = kept.change
    assert kept.since(0) == [first, second]
    assert kept.since(mark) == []
    first.end()
    third = record(kept, 3)
    assert kept.since(mark) == [first, third]
    assert kept.since(kept.change) == []


def test_what_could_not_be_read_is_a_row_without_a_request():
    kept = ring()
    exchange = Exchange("id", started=0.0)
    exchange.status, exchange.error = 400, "head_invalid"
    kept.note(exchange)
    (recording,) = kept
    shown = Exit(Redactor()).show(recording)
    assert (shown.row["status"], shown.row["state"], shown.request) == (400, "failed", None)


def test_the_list_goes_through_no_more_of_a_request_than_it_shows():
    """Its rows are made on the loop that forwards; what is cut off must be nobody's half secret."""
    card = "4111111111111111"
    half = "/v1/x?" + "a=b&" * 246 + "c="  # the limit is in the middle of the number
    kept = ring(body_limit=4000)
    for target, path in (
        (half + card + "&d=e", half.removesuffix("c=")),
        ("/v1/" + "x" * 2000, "/v1/"),
        ("x" * 2000, ""),
        (half[:980], half[:980]),
    ):
        exchange = Exchange("id", started=0.0)
        recording = kept.watch(exchange, f"{target} HTTP/1.1", [])
        assert Exit(Redactor()).row(recording)["path"] == path
    for size, shown in ((128, 128), (256, 128), (257, 0)):
        body = json.dumps({"merchantTxRef": "r" * size}).encode()
        row = Exit(Redactor()).row(record(kept, body=body))
        assert row["reference"] == "r" * shown


def test_a_large_head_is_charged_while_it_is_under_way():
    kept = ring(budget=500_000)
    for number in range(200):
        headers = [(b"X-Large", b"x" * 50_000)]
        kept.watch(Exchange(f"id-{number}", started=0.0), "/x HTTP/1.1", headers)
    assert len(list(kept)) < 10
    assert kept.used <= 500_000


def test_many_small_parts_cost_what_they_take():
    kept = ring(budget=10_000_000, body_limit=100_000)
    recording = record(kept, reply=b"a", done=False)
    for _ in range(1000):
        recording.part(b"ab")
    assert recording.cost > 100_000


def test_a_repetition_knows_what_it_repeats():
    kept = ring()
    original = record(kept, 1)
    kept.expect("id-2", replay_of=original.number)
    assert record(kept, 2).replay_of == original.number
    assert record(kept, 2).replay_of == 0
    assert kept.find("id-2").replay_of == 0
