"""What is said of replies, of a running proxy and of places: the tables, row by row."""

import pytest

from proxy.core.reply import WholeReply
from proxy.core.session import Held
from proxy.doctor.of_kept import of_held, of_store_problem, why_no_login
from proxy.doctor.of_local import Around, Door, of_doors, of_listener_certificate
from proxy.doctor.of_proxy import of_failures, of_forwarded, of_proxy, of_rivals, status_of
from proxy.doctor.of_replies import (
    Answer,
    Place,
    of_account_told,
    of_issue,
    of_open_door,
    of_read,
    read_answer,
)

PARENT = "11111111-0000-4000-8000-000000000001"
LIVE = Place("https://api.nomba.com", "production", PARENT, "IPv4")
SANDBOX = Place("https://sandbox.nomba.com", "sandbox", PARENT, "IPv4")
OVER_V6 = Place("https://api.nomba.com", "production", PARENT, "IPv6")
STATUS = {
    "upstreams": ["nomba"],
    "state": "living",
    "token": "digest",
    "generation": 3,
    "expires_in": 1200.0,
    "renewing": False,
    "failures": 0,
    "last_error": "",
    "retry_in": 0.0,
    "secret_pending": False,
}


def reply(status, body=b"", media=b"application/json"):
    return read_answer(WholeReply(status, ((b"Content-Type", media),), body))


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        (
            reply(401, b'{"code":"401","description":"Unauthorized"}'),
            Answer(401, "401", "Unauthorized", refusal=True),
        ),
        (
            reply(500, b'{"detail":"INTERNAL: JWT expired at 2026-07-07T23:10:48Z."}'),
            Answer(500, "", "INTERNAL: JWT expired at 2026-07-07T23:10:48Z.", refusal=True),
        ),
        (reply(403, b"<html>", b"text/html"), Answer(403, page=True)),
        (reply(403, b" \n<!DOCTYPE html>", b""), Answer(403, page=True)),
        (reply(200, b'{"code":0,"message":"a\\u001b[31m"}'), Answer(200, "0", r"a\u001b[31m")),
        (reply(200, b"[]"), Answer(200)),
        (reply(200, b'{"code":["00"],"description":5}'), Answer(200)),
        (reply(204), Answer(204)),
    ],
)
def test_a_reply_is_read_for_what_matters(found, answer):
    assert found == answer


@pytest.mark.parametrize(
    ("place", "other", "advice"),
    [
        (LIVE, "sandbox.nomba.com", "NOMBA_ENVIRONMENT=sandbox"),
        (SANDBOX, "api.nomba.com", "NOMBA_ENVIRONMENT=production"),
    ],
)
@pytest.mark.parametrize("answer", [Answer(401, "401"), Answer(200, "01"), Answer(200, "401")])
def test_keys_of_the_other_environment_are_the_first_thing_to_look_for(
    place, other, advice, answer
):
    step = of_issue(answer, error="", place=place)
    assert step.ok is False
    assert other in step.next
    assert advice in step.next
    assert PARENT not in step.next


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer(403, page=True), "the edge in front of Nomba"),
        (Answer(403, "403", "Unknown Source"), "Nomba refuses the address"),
    ],
)
def test_an_address_that_is_not_on_the_allowlist(answer, text):
    for step in (
        of_open_door(answer, LIVE),
        of_issue(answer, error="", place=LIVE),
        of_read(answer, LIVE, with_what="a token", fresh=True),
    ):
        assert step.ok is False
        assert text in step.seen
        assert "IPv4" in step.seen
        assert "ipv4_only" not in step.next
    v6 = of_open_door(answer, OVER_V6)
    assert "asked over IPv6" in v6.seen
    assert "upstream.ipv4_only = true" in v6.next


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (Answer(401, "401"), True),
        (Answer(403, "403", "Forbidden"), True),  # nobody knows what it says without a token
        (Answer(429, "429"), True),
        (Answer(200, page=True), False),
        (Answer(302, page=True), False),
        (Answer(502), False),
    ],
)
def test_the_answer_to_who_has_no_token(answer, ok):
    assert of_open_door(answer, LIVE).ok is ok


@pytest.mark.parametrize(
    "answer",
    [None, Answer(403, "403", "Forbidden"), Answer(429), Answer(500), Answer(200, "00")],
)
def test_every_login_that_fails_is_told_with_what_to_do(answer):
    step = of_issue(answer, error="issue: an odd reply", place=LIVE)
    assert (step.name, step.ok) == ("issue", False)
    assert step.seen
    assert step.next


def test_a_sub_account_is_told_by_what_the_login_says():
    assert of_account_told("", LIVE) is None
    assert of_account_told(PARENT.upper(), LIVE) is None
    step = of_account_told("22222222-0000-4000-8000-000000000002", LIVE)
    assert step.ok is False
    assert "2222…0002" in step.seen


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (Answer(200, "00"), True),
        (Answer(429), True),
        (Answer(401, "401", refusal=True), False),
        (Answer(403, "403", "Forbidden"), False),
        (Answer(404, "404"), False),
        (Answer(200, "99"), False),
    ],
)
def test_a_harmless_read(answer, ok):
    for fresh in (True, False):
        assert of_read(answer, LIVE, with_what="the token", fresh=fresh).ok is ok


# -- a running proxy ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "ok", "text"),
    [
        ({}, True, "generation 3"),
        ({"secret_pending": True}, True, "generation 3"),
        ({"state": "stopped", "token": ""}, False, "operator"),
        ({"state": "empty", "token": ""}, False, "none yet"),
        ({"state": "empty", "token": "", "renewing": True}, False, "a login is under way"),
        ({"state": "empty", "token": "", "failures": 2}, True, "empty"),  # the failure is told
    ],
)
def test_the_state_of_a_running_proxy(more, ok, text):
    step = of_proxy(STATUS | more, names=["nomba"], where="127.0.0.1:9091")
    assert step.ok is ok
    assert text in step.seen


def test_an_upstream_that_a_proxy_has_not():
    assert status_of({"a": STATUS}, "nomba") is STATUS
    assert status_of({"a": STATUS}, "other") is None
    assert of_proxy(None, names=["nomba"], where="").ok is False


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("issue: HTTP 401, envelope code 401", "environment"),
        ("issue: HTTP 200, envelope code 01", "environment"),
        ("issue: HTTP 403, body is not JSON (IP allowlist or edge?)", "allowlist"),
        ("issue: HTTP 403, envelope code 403", "sub-account"),
        ("issue: No connection to api.nomba.com:443 in time; nothing was sent.", "try again"),
    ],
)
def test_why_a_running_proxy_gets_no_token(error, text):
    (step,) = of_failures(STATUS | {"failures": 4, "last_error": error, "retry_in": 30.0}, LIVE)
    assert step.ok is False
    assert "4 times" in step.seen
    assert text in step.next
    assert "30 s" in step.next
    assert list(of_failures(STATUS, LIVE)) == []


def test_rivals_that_a_running_proxy_has_met():
    assert list(of_rivals(0)) == []
    assert [one.ok for one in of_rivals(2)] == [False]


@pytest.mark.parametrize(
    ("error", "renewed", "name", "ok"),
    [
        ("", False, "read", True),
        ("", True, "rival", False),
        ("caller_unknown", False, "read", None),
        ("token_unavailable", False, "read", False),
    ],
)
def test_a_read_through_a_running_proxy(error, renewed, name, ok):
    step = of_forwarded(
        Answer(200, "00"),
        error=error,
        description="why",
        hint="",
        place=LIVE,
        renewed=renewed,
    )
    assert (step.name, step.ok) == (name, ok)


# -- stores and places ----------------------------------------------------------------------


def test_a_stopped_session_is_no_room_for_another():
    stopped = Held(stopped=True)
    assert of_held(stopped, where="file:/x", now=0.0).ok is False
    assert why_no_login(stopped, now=0.0)
    assert why_no_login(None, now=0.0)
    assert why_no_login(Held(), now=0.0) == ""
    assert "generation 7" in of_held(Held(generation=7), where="file:/x", now=0.0).seen


@pytest.mark.parametrize(
    ("where", "problem", "todo"),
    [
        ("file:/x", "it was written with another client secret", "the same one"),
        ("file:/x", "/x/session.lock: Permission denied", "as the user"),
        ("valkey://host:1", "Connection refused", "server runs"),
    ],
)
def test_a_store_that_cannot_be_used(where, problem, todo):
    step = of_store_problem(where, problem=problem)
    assert step.ok is False
    assert todo in step.next
    assert where in step.seen


@pytest.mark.parametrize(
    ("door", "runs", "ok"),
    [
        (Door("listen", "fd:3", "inherited"), False, None),
        (Door("listen", "127.0.0.1:0", "free"), True, None),
        (Door("listen", "127.0.0.1:1", "free"), False, True),
        (Door("listen", "127.0.0.1:1", "free"), True, False),
        (Door("inspect_listen", "127.0.0.1:1", "free"), True, True),
        (Door("listen", "127.0.0.1:1", "ours"), True, True),
        (Door("listen", "127.0.0.1:1", "taken", "nginx, process 7"), False, False),
        (Door("listen", "127.0.0.1:1", "denied", "Permission denied"), False, False),
        (Door("listen", "unix:///run/x", "denied", "its folder is not there"), False, False),
    ],
)
def test_a_place_to_listen_at(door, runs, ok):
    here = Door("listen", "127.0.0.1:2", "ours")
    around = Around("127.0.0.1:3", doors=(door, *([here] if runs else ())))
    step = next(of_doors(around))
    assert step.ok is ok
    assert door.at in step.seen
    assert door.detail in step.seen
    assert bool(step.next) is (ok is False)


@pytest.mark.parametrize(
    ("at", "command"), [("unix:///run/x", "ss -lxp"), ("127.0.0.1:1", "ss -ltnp")]
)
def test_who_has_a_place_is_asked_with_a_command_that_shows_it(at, command):
    step = next(of_doors(Around("127.0.0.1:3", doors=(Door("listen", at, "taken"),))))
    assert command in step.next


def test_a_file_without_a_certificate():
    assert of_listener_certificate(None, path="/x.pem", now=0.0).ok is False
