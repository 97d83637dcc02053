import base64
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime, formatdate

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.lifetime import (
    DEFAULT_LIFE,
    MAX_LIFE,
    Backoff,
    Lifetime,
    parse_http_date,
    parse_timestamp,
    token_life,
)

MOMENT = 1_657_290_780.0  # 2022-07-08T14:33:00Z
DATE = "Fri, 08 Jul 2022 14:03:00 GMT"  # half an hour before


def jwt(**claims):
    parts = (b'{"alg":"HS256"}', orjson.dumps(claims), b"signature")
    return ".".join(base64.urlsafe_b64encode(one).rstrip(b"=").decode() for one in parts)


# -- timestamps ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2022-07-08T14:33:00Z", MOMENT),
        ("2022-07-08T14:33:00z", MOMENT),
        ("2022-07-08 14:33:00", MOMENT),
        ("2022-07-08T14:33:00", MOMENT),
        ("2022-07-08T14:33:00+00:00", MOMENT),
        ("2022-07-08T15:33:00+01:00", MOMENT),
        ("2022-07-08T15:33:00+0100", MOMENT),
        ("2022-07-08T09:03:00-05:30", MOMENT),
        ("2026-04-18T05:44:06.290Z", 1_776_491_046.290),
        ("2022-07-08T14:33:00.1Z", MOMENT + 0.1),
        ("2022-07-08T14:33:00.123456", MOMENT + 0.123456),
        ("2022-07-08T14:33:00.123456789Z", MOMENT + 0.123456789),
        ("2022-07-08T14:33:00,5+01:00", MOMENT - 3599.5),
        (" 2022-07-08T14:33:00Z ", MOMENT),
        (1_657_290_780, MOMENT),
        (1_657_290_780.5, MOMENT + 0.5),
        ("1657290780", MOMENT),
        (1_657_290_780_000, MOMENT),
        ("1657290780250", MOMENT + 0.25),
    ],
)
def test_every_form_of_expires_at_is_read(value, seconds):
    assert parse_timestamp(value) == pytest.approx(seconds, abs=1e-6, rel=0)


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            "",
            "soon",
            "2022-07-08",
            "14:33:00",
            "2022-13-08T14:33:00Z",
            "2022-07-08T25:33:00Z",
        ),
        *("2022-07-08T14:33Z", "2022-07-08T14:33:00.1234567890Z", "2022-07-08T14:33:00+99:00"),
        *(True, False, 0, -1, "0", "-5", "nan", "inf", float("nan"), float("inf"), 1e300, 10**400),
        *([], {}, [MOMENT], b"2022-07-08T14:33:00Z"),
    ],
)
def test_what_is_no_timestamp_is_none(value):
    assert parse_timestamp(value) is None


@given(
    st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001 - the zone is drawn apart
    st.integers(-14 * 60, 14 * 60),
    st.integers(0, 9),
)
def test_a_moment_survives_every_zone_and_number_of_digits(naive, offset, digits):
    moment = naive.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=offset)))
    fraction = "." + "123456789"[:digits] if digits else ""
    text = moment.isoformat()
    text = text[:19] + fraction + text[19:]
    expected = moment.timestamp() + float(f"0{fraction or '.0'}")
    assert parse_timestamp(text) == pytest.approx(expected, abs=1e-5, rel=0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)


@given(json_values | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:?\d\d|Z)?"))
def test_no_value_breaks_the_reading_of_a_timestamp(value):
    seconds = parse_timestamp(value)
    assert seconds is None or isinstance(seconds, float)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (DATE, MOMENT - 1800),
        ("Friday, 08-Jul-22 14:03:00 GMT", MOMENT - 1800),
        ("Fri Jul  8 14:03:00 2022", MOMENT - 1800),
        ("Fri, 08 Jul 2022 15:03:00 +0100", MOMENT - 1800),
        *((junk, None) for junk in (None, "", "yesterday", "Fri, 99 Jul 2022 14:03:00 GMT")),
    ],
)
def test_an_http_date_is_read_or_none(text, seconds):
    assert parse_http_date(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "Mon, 99999999999999999999 Jan 2024 00:00:00 GMT",
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2024 00:00:00 +99999999999999999",
    ],
)
def test_a_date_with_a_number_too_large_is_no_date(text):
    assert parse_http_date(text) is None


# -- how long it lives -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "date", "life"),
    [
        ({"expiresAt": "2022-07-08T14:33:00Z"}, DATE, 1800),
        ({"expiresAt": "2022-07-08T14:33:00Z", "access_token": jwt(iat=1, exp=61)}, DATE, 1800),
        ({"expiresAt": "2022-07-08T14:33:00Z", "expires_in": 60}, DATE, 1800),
        ({"expiresAt": "2022-07-09T14:03:00Z"}, DATE, MAX_LIFE),
        ({"expiresAt": "2022-07-09T14:03:01Z"}, DATE, DEFAULT_LIFE),
        ({"expiresAt": "2022-07-08T14:03:00Z", "expires_in": 60}, DATE, 60),
        ({"expiresAt": "2022-07-08T13:00:00Z", "expires_in": 60}, DATE, 60),
        ({"expiresAt": "2022-07-08T14:33:00Z", "expires_in": 60}, None, 60),
        ({"expiresAt": "2022-07-08T14:33:00Z", "expires_in": 60}, "junk", 60),
        (
            {"expiresAt": "junk", "access_token": jwt(iat=1000, exp=4600), "expires_in": 60},
            DATE,
            3600,
        ),
        ({"access_token": jwt(iat=1000, exp=4600)}, None, 3600),
        ({"access_token": jwt(iat=1_657_290_780_000, exp=1_657_290_840_000)}, None, 60),
        ({"access_token": jwt(iat=4600, exp=1000), "expires_in": 60}, None, 60),
        ({"access_token": jwt(exp=4600), "expires_in": 60}, None, 60),
        ({"access_token": "opaque", "expires_in": 60}, None, 60),
        ({"access_token": "a.!!!.c", "expires_in": 60}, None, 60),
        ({"access_token": "a.W10.c", "expires_in": 60}, None, 60),
        ({"access_token": "é.é.é", "expires_in": 60}, None, 60),
        ({"expires_in": "1800"}, None, 1800),
        ({"expiresIn": 1800}, None, 1800),
        ({"expires_in": 60, "expiresIn": 1800}, None, 60),
        ({"expires_in": None, "expiresIn": 1800}, None, 1800),
        *(
            ({"expires_in": value}, None, DEFAULT_LIFE)
            for value in (0, -1, 86401, "soon", True, None, [], float("nan"), float("inf"), 10**400)
        ),
        ({}, None, DEFAULT_LIFE),
    ],
)
def test_the_first_sane_source_says_how_long_a_token_lives(data, date, life):
    assert token_life(data, date=date) == life


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "expiresAt": json_values,
            "access_token": st.text() | st.just(jwt(iat=5, exp=9)) | st.text().map("a.{}.c".format),
            "expires_in": json_values,
            "expiresIn": json_values,
        },
    ),
    st.none() | st.text() | st.just(DATE),
)
def test_no_reply_makes_a_token_that_is_dead_on_arrival_or_lives_for_ever(data, date):
    assert 0 < token_life(data, date=date) <= MAX_LIFE


@given(st.integers(0, 4_000_000_000), st.integers(1, int(MAX_LIFE)))
def test_our_own_clock_has_no_say_in_a_tokens_life(issuer_now, life):
    expires = datetime.fromtimestamp(issuer_now + life, UTC)
    data = {"expiresAt": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}
    assert token_life(data, date=formatdate(issuer_now, usegmt=True)) == life


def test_the_zone_of_a_date_is_minded():
    lagos = timezone(timedelta(hours=1))
    data = {"expiresAt": "2022-07-08T14:33:00Z"}
    date = format_datetime(datetime.fromtimestamp(MOMENT - 60, lagos))
    assert token_life(data, date=date) == 60


# -- when to renew ---------------------------------------------------------------------

lives = st.floats(1, MAX_LIFE)
clocks = st.floats(0, 1e9)
jitters = st.floats(0, 1)
earlies = st.floats(0.001, 86400)


def begin(life, *, now=0.0, wall=0.0, early=300.0, jitter=0.0):
    return Lifetime.begin(life, now=now, wall=wall, early=early, jitter=jitter)


@pytest.mark.parametrize(
    ("life", "early", "jitter", "renew"),
    [
        (3600, 300, 0, 3300),
        (3600, 300, 1, 3270),
        (1800, 300, 0, 1500),
        (1200, 300, 0, 900),
        (600, 300, 0, 450),
        (60, 300, 0, 45),
        (60, 300, 1, 45),
        (3600, 60, 0, 3540),
    ],
)
def test_a_token_is_renewed_early_but_by_no_more_than_a_quarter_of_its_life(
    life, early, jitter, renew
):
    times = begin(life, now=1000, wall=5000, early=early, jitter=jitter)
    assert (times.renew_at, times.dies_at, times.renew_wall) == (
        1000 + renew,
        1000 + life,
        5000 + renew,
    )


@given(lives, clocks, earlies, jitters)
@example(300.0, 0.0, 300.0, 1.0)
def test_a_renewal_leaves_its_margin_and_never_comes_before_half_of_life(life, now, early, jitter):
    times = begin(life, now=now, early=early, jitter=jitter)
    assert times.dies_at - times.renew_at >= min(early, life / 4) - 1e-6
    assert times.renew_at - now >= life / 2


@given(lives, earlies, jitters)
def test_jitter_only_makes_a_renewal_earlier(life, early, jitter):
    assert begin(life, early=early, jitter=jitter).renew_at <= begin(life, early=early).renew_at


@pytest.mark.parametrize(
    ("now", "wall", "due"),
    [
        (3299, 3299, False),
        (3300, 3299, True),
        (3299, 3300, True),
        (0, 10**9, True),
        (3300, -(10**9), True),
        (0, -(10**9), False),
    ],
)
def test_a_jump_of_the_wall_clock_can_only_renew_earlier(now, wall, due):
    assert (begin(3600).due_in(now=now, wall=wall) <= 0) is due


@given(lives, st.floats(0, 2 * MAX_LIFE), st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_the_wall_clock_never_puts_a_renewal_off(life, now, wall, jump):
    times = begin(life)
    if times.due_in(now=now, wall=min(wall, wall + jump)) <= 0:
        assert times.due_in(now=now, wall=max(wall, wall + jump)) <= 0


@pytest.mark.parametrize(("now", "dead"), [(0, False), (59.999, False), (60, True), (61, True)])
def test_a_token_is_dead_from_the_end_of_its_life_on(now, dead):
    assert begin(60).dead(now=now) is dead


@given(lives, clocks, earlies, jitters)
def test_a_fresh_token_is_neither_dead_nor_due(life, now, early, jitter):
    times = begin(life, now=now, wall=now, early=early, jitter=jitter)
    assert not times.dead(now=now)
    assert times.due_in(now=now, wall=now) > 0


# -- after failures --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "delay"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60), (10**9, 60)]
)
def test_a_delay_doubles_up_to_its_cap(failures, delay):
    assert Backoff(first=1, cap=60).delay(failures, jitter=0) == delay


@given(st.integers(1, 10**6), jitters)
def test_jitter_lengthens_a_delay_by_a_quarter_at_most(failures, jitter):
    backoff = Backoff(first=0.5, cap=300)
    plain = backoff.delay(failures, jitter=0)
    assert plain <= backoff.delay(failures, jitter=jitter) <= plain * 1.25
