import gzip
import time
import tracemalloc
import zlib

import brotli
import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.judge import (
    PEEK_LIMIT,
    Verdict,
    judge,
    may_replay,
    may_resend,
    needs_body,
)
from proxy.core.routes import Kind
from proxy.errors import Outcome

JSON = b"application/json"
EXPIRED = "Internal Server Error: INTERNAL: JWT expired at 2026-07-07T23:10:48Z."


def verdict(status, envelope, *, complete=True):
    body = envelope if isinstance(envelope, bytes) else orjson.dumps(envelope)
    return judge(status, coding=b"", body=body, complete=complete)[0]


def encoded(body, coding):
    return judge(500, coding=coding, body=body, complete=True)[0]


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def streamed_zstd(data, level):
    """As a server writes it that does not know the size beforehand."""
    packer = zstandard.ZstdCompressor(level=level).compressobj()
    return packer.compress(data) + packer.flush()


# -- the table of design.md ------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"<html>", b'{"code":"00"}', b'{"code":"401","description":"Unauthorized"}'],
)
@pytest.mark.parametrize("complete", [True, False])
def test_a_401_is_a_refusal_whatever_it_says(body, complete):
    assert verdict(401, body, complete=complete) is Verdict.REFUSAL
    assert judge(401, coding=b"", body=body, complete=complete)[0] is Verdict.REFUSAL


@pytest.mark.parametrize("status", [500, 400])
@pytest.mark.parametrize(
    "envelope",
    [
        {"detail": EXPIRED},
        {"description": EXPIRED},
        {"code": "400", "description": "JWT expired at 2026-07-07T23:10:48Z"},
        {"code": "500", "detail": "jwt EXPIRED", "data": None},
    ],
)
def test_an_expired_jwt_inside_an_error_is_an_unproven_refusal(status, envelope):
    assert verdict(status, envelope) is Verdict.REFUSAL_UNPROVEN


@pytest.mark.parametrize(
    "envelope",
    [
        {"code": "401"},
        {"code": 401},
        {"code": "401", "description": "re-authenticate"},
        {"code": "01", "description": "Invalid credentials"},
        {"code": "02", "description": "Token expired"},
        {"code": "02", "message": "The access token is invalid"},
        {"code": "02", "description": "Expired token"},
    ],
)
def test_an_auth_failure_inside_a_200_is_an_unproven_refusal(envelope):
    assert verdict(200, envelope) is Verdict.REFUSAL_UNPROVEN


@pytest.mark.parametrize(
    "envelope",
    [
        {"code": "00", "description": "Token expired"},
        {"code": "200", "description": "Success"},
        {"code": "02", "description": "amount is required"},
        {"code": "01", "description": "Insufficient funds"},
        {"code": "03", "description": "Token expired"},
        {"code": "400", "description": "Token expired"},
        {"code": "02"},
        {"code": None, "description": "Token expired"},
        {"description": EXPIRED},
        {"results": [], "cursor": ""},
    ],
)
def test_any_other_200_is_an_answer(envelope):
    assert verdict(200, envelope) is Verdict.ANSWER


@pytest.mark.parametrize(
    "status", [201, 204, 302, 402, 403, 404, 408, 409, 422, 429, 501, 502, 503, 504]
)
def test_no_other_status_is_a_refusal_whatever_it_says(status):
    for envelope in ({"detail": EXPIRED}, {"code": "401", "description": "Token expired"}):
        assert verdict(status, envelope) is Verdict.ANSWER


@given(st.integers(100, 599), st.binary(max_size=200))
def test_only_a_401_proves_that_nothing_was_done(status, body):
    assert (verdict(status, body) is Verdict.REFUSAL) == (status == 401)


@pytest.mark.parametrize(
    ("what", "kind", "allowed"),
    [
        (Verdict.REFUSAL, Kind.READ, True),
        (Verdict.REFUSAL, Kind.WRITE, True),
        (Verdict.REFUSAL, Kind.MONEY, True),
        (Verdict.REFUSAL_UNPROVEN, Kind.READ, True),
        (Verdict.REFUSAL_UNPROVEN, Kind.WRITE, False),
        (Verdict.REFUSAL_UNPROVEN, Kind.MONEY, False),
        (Verdict.ANSWER, Kind.READ, False),
        (Verdict.ANSWER, Kind.WRITE, False),
        (Verdict.ANSWER, Kind.MONEY, False),
    ],
)
def test_only_a_proven_refusal_is_replayed_unless_it_is_a_read(what, kind, allowed):
    assert may_replay(what, kind=kind) is allowed


def test_what_begins_as_a_success_is_an_answer_however_it_goes_on():
    assert verdict(200, b'{"code":"00","data":' + b"[" * 1000) is Verdict.ANSWER
    assert verdict(200, b'{"code": "00","code":"401"}') is Verdict.ANSWER


@pytest.mark.parametrize("spaced", [b"", b" "])
@pytest.mark.parametrize("before", [b"", b" ", b'{"data":'])
def test_only_what_begins_so_is_taken_for_a_success_unread(spaced, before):
    inner = b'{"code":' + spaced + b'"00"}'
    body = before + inner + (b',"code":"401"}' if before.strip() else b"")
    expected = Verdict.REFUSAL_UNPROVEN if before.strip() else Verdict.ANSWER
    assert verdict(200, body) is expected


# -- anchored to the envelope ----------------------------------------------------------


@pytest.mark.parametrize("status", [500, 400])
@pytest.mark.parametrize(
    "body",
    [
        {"data": {"description": EXPIRED}},
        {"error": {"detail": EXPIRED}},
        {"narration": EXPIRED, "description": "Bad request"},
        {"description": {"text": EXPIRED}},
        {"description": [EXPIRED]},
        {EXPIRED: "description"},
        [{"description": EXPIRED}],
        EXPIRED,
        {"description": "the JWT has not expired"},
        {"description": "MyJWT expiredness"},
        {"detail": "no such JWT", "description": "expired card"},
        {"detail": "JWT", "message": "expired"},
    ],
)
def test_the_text_anywhere_else_is_no_refusal(status, body):
    assert verdict(status, body) is Verdict.ANSWER


@pytest.mark.parametrize(
    "envelope",
    [
        {"data": {"code": "401"}},
        {"code": {"code": "401"}},
        {"code": ["401"]},
        {"code": "02", "data": {"description": "Token expired"}},
        {"code": "02", "description": "tokenised card expired"},
        {"code": "02", "description": "token is required", "message": "card expired"},
    ],
)
def test_a_code_or_text_anywhere_else_in_a_200_is_no_refusal(envelope):
    assert verdict(200, envelope) is Verdict.ANSWER


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rejected.\nThe token of the card is fine\nYour token has expired\nBye", "unproven"),
        ("\nInvalid token", "unproven"),
        ("token\nexpired", "answer"),
        ("Invalid\ntoken", "answer"),
    ],
)
def test_a_text_in_lines_is_looked_at_line_by_line(text, expected):
    found = verdict(200, {"code": "02", "description": text})
    assert (found is Verdict.REFUSAL_UNPROVEN) == (expected == "unproven")


@pytest.mark.parametrize("word", ["token", "invalid", "credentials", "jwt invali"])
def test_a_text_full_of_tokens_costs_no_more_than_another(word):
    """An upstream repeats what a caller sent, and everybody waits for the verdict."""

    def cost(text):
        body = orjson.dumps({"code": "02", "description": text})
        assert 0.9 * PEEK_LIMIT < len(body) <= PEEK_LIMIT
        costs = []
        for _ in range(3):
            began = time.process_time()
            assert judge(200, coding=b"", body=body, complete=True)[0] is Verdict.ANSWER
            costs.append(time.process_time() - began)
        return min(costs)

    def filled(with_what):
        return f"{with_what} " * ((PEEK_LIMIT - 64) // (len(with_what) + 1))

    assert cost(filled(word)) < 20 * cost(filled("x" * len(word)))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"JWT expired", b"\xff{}", b"null", b"1", b"[" * 10_000]
)
def test_what_is_no_envelope_is_an_answer(body):
    assert verdict(500, body) is Verdict.ANSWER


def test_a_code_of_any_depth_is_an_answer():
    deep = b'{"code":' + b"[" * 1020 + b"]" * 1020 + b"}"
    assert verdict(200, deep) is Verdict.ANSWER


def test_a_half_body_is_not_judged():
    assert verdict(500, {"detail": EXPIRED}, complete=False) is Verdict.ANSWER


@pytest.mark.parametrize("media", [b"text/html", b"text/plain", b"application/jsonp", b""])
def test_what_does_not_call_itself_json_is_not_judged(media):
    assert not needs_body(500, media=media, length=None)


# -- which replies are held back -------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    "media", [b"application/json", b"Application/JSON; charset=utf-8", b"application/problem+json"]
)
def test_json_with_a_status_that_can_hide_a_refusal_is_looked_into(status, media):
    assert needs_body(status, media=media, length=None)


@pytest.mark.parametrize("status", [201, 301, 401, 403, 404, 429, 502, 503])
def test_other_statuses_are_not_looked_into(status):
    assert not needs_body(status, media=JSON, length=None)


@pytest.mark.parametrize(
    ("status", "length", "looked"),
    [
        (200, PEEK_LIMIT, True),
        (200, PEEK_LIMIT + 1, False),
        (500, PEEK_LIMIT + 1, True),
        (400, 1 << 40, True),
    ],
)
def test_a_large_200_is_not_looked_into(status, length, looked):
    assert needs_body(status, media=JSON, length=length) is looked


# -- encodings -------------------------------------------------------------------------

ENCODERS = {
    b"identity": bytes,
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"GZip": gzip.compress,
    b" gzip ": gzip.compress,
    b"deflate": zlib.compress,
    b"DEFLATE": raw_deflate,
    b"br": brotli.compress,
    b"zstd": zstandard.compress,
}


@pytest.mark.parametrize("coding", ENCODERS)
def test_a_refusal_is_found_in_every_encoding(coding):
    body = ENCODERS[coding](orjson.dumps({"detail": EXPIRED}))
    assert encoded(body, coding) is Verdict.REFUSAL_UNPROVEN


@pytest.mark.parametrize("level", [1, 3, 9, 19])
def test_a_refusal_is_found_in_zstd_that_was_streamed_at_any_usual_level(level):
    # Levels 3 to 19 declare windows of 2 to 8 MiB; RFC 9659 has receivers take 8.
    body = streamed_zstd(orjson.dumps({"detail": EXPIRED}), level)
    assert encoded(body, b"zstd") is Verdict.REFUSAL_UNPROVEN


@pytest.mark.parametrize("coding", [b"gzip, br", b"compress", b"aes128gcm", b"", b"gzip;q=1"])
def test_an_encoding_we_do_not_know_is_an_answer(coding):
    assert encoded(gzip.compress(orjson.dumps({"detail": EXPIRED})), coding) is Verdict.ANSWER


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd"])
@given(noise=st.binary(min_size=1, max_size=100))
def test_noise_in_any_encoding_is_an_answer(coding, noise):
    assert encoded(noise, coding) is Verdict.ANSWER


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd"])
def test_a_body_that_stops_half_way_is_an_answer(coding):
    body = ENCODERS[coding](orjson.dumps({"detail": EXPIRED, "data": list(range(500))}))
    assert encoded(body[: len(body) // 2], coding) is Verdict.ANSWER


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd"])
def test_a_bomb_is_cheap(coding):
    huge = b'{"detail":"JWT expired","data":"' + b" " * (32 << 20) + b'"}'
    bomb = ENCODERS[coding](huge)[:PEEK_LIMIT]
    del huge
    tracemalloc.start()
    try:
        assert encoded(bomb, coding) is Verdict.ANSWER
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# -- resending ----------------------------------------------------------------------------

METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "PURGE"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("stale", [True, False])
@pytest.mark.parametrize("outcome", Outcome)
def test_only_what_was_not_sent_or_reads_nobody_heard_of_are_sent_again(
    method, stale, late, outcome
):
    may = may_resend(outcome, late=late, stale=stale, method=method)
    assert may == ((outcome == "not_sent" and not late) or (stale and method in METHODS[:3]))
