import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.heads import (
    CHUNKED,
    CallerHead,
    field_value,
    named_by_connection,
)
from proxy.core.origin import Origin
from proxy.core.reply_heads import ReplyHead, own_location
from proxy.errors import HeadInvalid, HeadTooLarge

HOP_BY_HOP = [
    b"Connection",
    b"Proxy-Connection",
    b"Proxy-Authenticate",
    b"Proxy-Authorization",
    b"Keep-Alive",
    b"TE",
    b"Trailer",
    b"Transfer-Encoding",
    b"Upgrade",
    b"HTTP2-Settings",
]
OWN_LOOK_ALIKES = [
    b"Authorization",
    b"authorization",
    b"AUTHORIZATION",
    b"Author_ization",
    b"accountId",
    b"accountid",
    b"Accountid",
    b"ACCOUNTID",
    b"account_id",
    b"Account-Id",
    b"ACCOUNT_ID",
]
OURS_ALONE = [
    *(b"Expect", b"X-HTTP-Method-Override", b"X-HTTP-Method", b"X_Method_Override"),
    *(b"Forwarded", b"X-Forwarded-For", b"x-forwarded-anything", b"X_Forwarded_Proto"),
    *(b"X-Real-IP", b"X_Real_Ip", b"X.HTTP.Method.Override", b"X~HTTP~Method~Override"),
    *(b"XHTTPMethodOverride", b"X-HTTP-Method-Override-", b"X.Original.URL", b"X-Original-Path"),
    *(b"X-Original-Method", b"X-Envoy-Original-Path", b"Proxy.Authorization", b"X.Nomba.Proxy.Key"),
]
PLAIN = [
    *(
        b"Accept",
        b"accept",
        b"ACCEPT",
        b"User-Agent",
        b"Cookie",
        b"X-Idempotent-key",
        b"X_Under_Score",
    ),
    *(
        b"X-Custom",
        b"x-custom",
        b"Content-Type",
        b"Content-Encoding",
        b"Origin",
        b"Via",
        b"Accounts",
    ),
]

values = st.binary(max_size=12).map(lambda raw: bytes(one for one in raw if one not in b"\r\n"))
connection_values = st.lists(
    st.sampled_from(
        [b"close", b"keep-alive", b"x-custom", b"X-CUSTOM", b"cookie", b"authorization"]
    )
    | st.sampled_from([b"accountId", b"host", b"content-length", b"", b"user-agent"]),
    max_size=4,
).map(b" ,\t".join)
fields = st.tuples(st.sampled_from(PLAIN + HOP_BY_HOP[1:] + OWN_LOOK_ALIKES + OURS_ALONE), values)
headers = st.lists(
    fields | st.tuples(st.sampled_from([b"Connection", b"CONNECTION"]), connection_values)
)


def sent(head):
    """The fields of a finished request head, after its request line."""
    data = head.with_token("tok.en", account="acc")
    lines, end = data[:-4].split(b"\r\n"), data[-4:]
    assert end == b"\r\n\r\n"
    return [tuple(line.split(b": ", 1)) for line in lines[1:]]


def request(*pairs, method=b"GET", target=b"/x", body_length=None):
    coded = [one for one in pairs if one[0].lower() == b"transfer-encoding"]
    pairs = [one for one in pairs if one not in coded]
    head = CallerHead(pairs + [(name, b"chunked") for name, _ in coded[:1]])
    return head.forward(method, target=target, host=b"up", body_length=body_length)


def named(pairs):
    told = b",".join(value for name, value in pairs if name.lower() == b"connection")
    return {one.strip().lower() for one in told.split(b",")}


# -- what goes out ---------------------------------------------------------------------


@given(headers)
def test_our_pair_is_there_exactly_once_and_last_whatever_the_caller_sends(pairs):
    out = sent(request(*pairs))
    alike = [
        one
        for one in out
        if one[0].lower().replace(b"_", b"").replace(b"-", b"") in {b"authorization", b"accountid"}
    ]
    assert alike == out[-2:] == [(b"Authorization", b"Bearer tok.en"), (b"accountId", b"acc")]


@given(headers)
def test_hop_by_hop_fields_and_what_connection_names_are_gone(pairs):
    names = {name.lower() for name, _ in sent(request(*pairs))[1:-2]}
    assert not names & ({name.lower() for name in HOP_BY_HOP} | named(pairs))


@given(headers)
def test_everything_else_goes_out_with_the_same_bytes_order_and_case(pairs):
    kept = [one for one in pairs if one[0] in PLAIN and one[0].lower() not in named(pairs)]
    assert sent(request(*pairs)) == [(b"Host", b"up"), *kept, *sent(request())[-2:]]


def test_nothing_is_invented_for_the_caller():
    assert sent(request()) == [
        (b"Host", b"up"),
        (b"Authorization", b"Bearer tok.en"),
        (b"accountId", b"acc"),
    ]


@given(st.binary(min_size=1, max_size=30).filter(lambda raw: not set(raw) & set(b" \r\n")))
def test_the_request_line_holds_the_targets_own_bytes(target):
    head = request(method=b"PROPFIND", target=target).with_token("t", account="a")
    assert head.startswith(b"PROPFIND " + target + b" HTTP/1.1\r\n")


@pytest.mark.parametrize("name", OURS_ALONE)
def test_what_would_tell_the_upstream_another_story_is_dropped(name):
    assert sent(request((name, b"1"))) == sent(request())


@pytest.mark.parametrize("option", [b"host", b"content-length", b"Content-Length, Host"])
def test_connection_cannot_remove_the_framing_or_the_host(option):
    out = sent(
        request((b"Connection", option), (b"Host", b"me"), (b"content-length", b"2"), body_length=2)
    )
    assert out[:2] == [(b"Host", b"up"), (b"content-length", b"2")]


@pytest.mark.parametrize("name", [b"x_foo", b"X_Foo", b"x-foo_bar"])
def test_connection_can_name_a_field_with_an_underscore(name):
    assert sent(request((b"Connection", b"close, x_foo, X-Foo_Bar"), (name, b"1"))) == sent(
        request()
    )


def test_the_host_is_the_upstreams_in_the_callers_place_and_case():
    out = sent(request((b"Accept", b"*"), (b"HOST", b"evil"), (b"Cookie", b"a")))
    assert out[:3] == [(b"Accept", b"*"), (b"HOST", b"up"), (b"Cookie", b"a")]


@pytest.mark.parametrize(
    ("pairs", "length", "expected"),
    [
        ([], None, []),
        ([], 0, [(b"Content-Length", b"0")]),
        ([(b"content-length", b"007")], 7, [(b"content-length", b"7")]),
        ([(b"Transfer-Encoding", b"chunked")], 5, [(b"Content-Length", b"5")]),
        ([(b"Content-Length", b"9")], None, []),
    ],
)
def test_the_length_is_that_of_the_body_that_is_sent(pairs, length, expected):
    out = sent(request(*pairs, body_length=length))
    assert [one for one in out if one[0].lower() == b"content-length"] == expected


def test_one_head_serves_a_replay_with_another_token():
    head = request((b"Accept", b"*"))
    first, second = head.with_token("one", account="a"), head.with_token("two", account="a")
    assert first.replace(b"Bearer one", b"Bearer two") == second


def test_the_callers_fields_are_not_changed():
    pairs = [(b"Authorization", b"x"), (b"Host", b"y"), (b"Connection", b"close")]
    before = list(pairs)
    CallerHead(pairs).forward(b"GET", target=b"/", host=b"up", body_length=None)
    assert pairs == before


# -- what comes in ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "length"),
    [
        ([], None),
        ([(b"Content-Length", b"0")], 0),
        ([(b"content-length", b"17")], 17),
        ([(b"Transfer-Encoding", b"Chunked")], CHUNKED),
        ([(b"X-Content-Length", b"junk")], None),
    ],
)
def test_a_sound_framing_is_read(pairs, length):
    assert CallerHead(pairs, target_length=1, limit=1000).length == length


@pytest.mark.parametrize(
    "pairs",
    [
        [(b"Content-Length", b"1"), (b"Content-Length", b"1")],
        [(b"Content-Length", b"1"), (b"content-length", b"2")],
        [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"1")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Transfer-Encoding", b"identity")],
        [(b"Transfer-Encoding", b"")],
        [(b"Transfer_Encoding", b"chunked")],
        [(b"Content_Length", b"1")],
        *(
            [(b"Content-Length", value)]
            for value in (b"", b"+1", b"-1", b"1_0", b"0x1", b"1, 1", b"\xb2")
        ),
    ],
)
def test_a_framing_that_can_be_read_two_ways_is_refused_and_the_connection_closed(pairs):
    with pytest.raises(HeadInvalid) as caught:
        CallerHead(pairs, target_length=1, limit=1000)
    assert caught.value.close


HEAD_OF_40 = [(b"A" * 6, b"b" * 4), (b"C" * 6, b"d" * 4)]  # 2 x 14, and 12 of the target


def test_a_head_of_exactly_the_limit_is_read():
    assert CallerHead(HEAD_OF_40, target_length=12, limit=40).length is None


def test_a_head_one_byte_over_the_limit_is_refused_and_the_connection_closed():
    with pytest.raises(HeadTooLarge) as caught:
        CallerHead(HEAD_OF_40, target_length=12, limit=39)
    assert caught.value.close


def test_what_connection_names_is_read_over_all_its_fields():
    pairs = [(b"Connection", b"a, B"), (b"connection", b",C\t,"), (b"Accept", b"d")]
    assert named_by_connection(pairs) == {b"a", b"b", b"c"}


def test_account_ids_are_found_under_every_spelling_once_each():
    pairs = [
        *((name, b"one") for name in OWN_LOOK_ALIKES[4:]),
        *((b"accountId", b""), (b"account_id", b"two"), (b"Accounts", b"three")),
    ]
    assert CallerHead(pairs).accounts == ("one", "two")


def test_a_second_host_is_not_forwarded():
    out = sent(request((b"Host", b"a"), (b"Accept", b"*"), (b"host", b"b")))
    assert out[:-2] == [(b"Host", b"up"), (b"Accept", b"*")]


# -- what goes back --------------------------------------------------------------------

OWN_REPLY = [(b"X-Request-Id", b"ours"), (b"Nomba-Proxy-Outcome", b"answered")]
FAKES = [
    b"X-Request-Id",
    b"x-request-id",
    b"Nomba-Proxy-Outcome",
    b"nomba-proxy-error",
    b"NOMBA-PROXY-X",
]
reply_fields = st.tuples(
    st.sampled_from([*PLAIN, *HOP_BY_HOP[1:], *FAKES, b"Set-Cookie", b"X-Rate-Limit-Limit"]), values
)
reply_headers = st.lists(
    reply_fields
    | st.tuples(st.just(b"Connection"), connection_values.filter(lambda one: b"length" not in one))
)


def returned(pairs, own=OWN_REPLY):
    lines = b"".join(b"%b: %b\r\n" % one for one in own)
    data = ReplyHead(207, reason=b"As It Is", headers=pairs).render(lines)
    assert data.endswith(b"\r\n\r\n")
    first, *lines = data[:-4].split(b"\r\n")
    assert first == b"HTTP/1.1 207 As It Is"
    return [tuple(line.split(b": ", 1)) for line in lines]


@given(reply_headers)
def test_a_reply_keeps_its_fields_and_ours_come_last_and_once(pairs):
    dropped = {name.lower() for name in HOP_BY_HOP + FAKES} | named(pairs)
    assert returned(pairs) == [one for one in pairs if one[0].lower() not in dropped] + OWN_REPLY


def test_repeated_cookies_of_a_reply_stay_apart():
    pairs = [(b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"Set-Cookie", b"a=1")]
    assert returned(pairs, own=[]) == pairs


def test_connection_cannot_remove_a_replys_length():
    # The caller would wait for the end of a body that has no end.
    pairs = [(b"Connection", b"content-length"), (b"Content-Length", b"5")]
    assert returned(pairs, own=[]) == [(b"Content-Length", b"5")]


def test_a_reply_without_a_reason_keeps_none():
    assert ReplyHead(200, reason=b"", headers=[]).render() == b"HTTP/1.1 200 \r\n\r\n"


# -- where a reply points ----------------------------------------------------------------

NOMBA = Origin("https://api.nomba.com", "api.nomba.com", 443, True, "api.nomba.com", "production")
SIX = Origin("http://[::1]", "::1", 80, False, "[::1]", "loopback")


@pytest.mark.parametrize(
    ("origin", "sent", "got"),
    [
        (NOMBA, b"https://api.nomba.com:443/v1/x", b"/m/v1/x"),
        (NOMBA, b"HTTPS://API.nomba.COM:/v1/x", b"/m/v1/x"),
        (NOMBA, b"//api.nomba.com:443", b"/m/"),
        (NOMBA, b"http://api.nomba.com/v1/x", None),
        (NOMBA, b"https://api.nomba.com:80/v1/x", None),
        (NOMBA, b"https://a@api.nomba.com/v1/x", None),
        (NOMBA, b"https:/v1/x", None),
        (SIX, b"http://[::1]/v1/x", b"/m/v1/x"),
        (SIX, b"http://[::1]:80/v1/x", b"/m/v1/x"),
        (SIX, b"http://[::1]:81/v1/x", None),
    ],
)
def test_an_origin_is_ours_by_scheme_host_and_port(origin, sent, got):
    assert own_location(sent, origin=origin, mount=b"/m") == (sent if got is None else got)


@given(st.binary(max_size=20), st.sampled_from([b"", b"/m"]))
def test_what_is_told_of_a_location_is_a_path_of_ours_or_what_the_upstream_said(tail, mount):
    for start in (b"", b"/", b"//", b"https://api.nomba.com", b"//api.nomba.com"):
        told = own_location(start + tail, origin=NOMBA, mount=mount)
        assert told == start + tail or (told.startswith(mount + b"/") and told[:2] != b"//")


def test_a_field_is_found_by_its_lower_case_name_the_first_one_first():
    pairs = [(b"X-A", b"1"), (b"x-a", b"2")]
    assert (field_value(pairs, b"x-a"), field_value(pairs, b"x-b")) == (b"1", None)
