import contextlib
import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.target import canonical_path, parse_target, strip_mount
from proxy.errors import HostRefused, ProxyError, TargetAmbiguous

OWN = "127.0.0.1:8080"

# What a hostile path is made of: separators, dots, parameters, each in several encodings.
PIECES = [
    *("/", "//", "%2f", "%2F", "%252f", "%5c", "%255C"),
    *(".", "..", "%2e", "%2E%2e", "%252e", "%25252e", "%%32e"),
    *(";", ";x=1", "%3b", "%253b", "%", "%25", "%zz", "a", "v1", "A~", "%61", "%C3%A9", "sandbox"),
]
hostile_paths = st.lists(st.sampled_from(PIECES), max_size=8).map(
    lambda parts: b"/" + "".join(parts).encode()
)
visible_bytes = st.binary(max_size=40).map(lambda raw: b"/" + raw) | st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40
).map(lambda text: b"/" + text.encode())


def parse(raw):
    return parse_target(raw, is_own_authority=OWN.__eq__)


def parse_or_none(raw):
    try:
        return parse(raw)
    except ProxyError:
        return None


def every_decoding(path):
    seen = [path]
    while (decoded := unquote_to_bytes(seen[-1])) != seen[-1]:
        seen.append(decoded)
    return seen


@pytest.mark.parametrize(
    "raw",
    [
        b"/",
        b"/?",
        b"/v1/accounts?",
        b"/v1/accounts?a=1&a=2&&=",
        b"/v1//accounts///x/",
        b"/v1/%41%2F%2f%zz%",
        b"/v1/caf%C3%A9;v=2;w",
        b"/v1/a...b/.well-known/x.",
        b"/v1/a?next=http://evil/../..&x=%2e%2e",
        b"/v1/a:b@c!$&'()*+,=[]{}|^`\"<>",
        b"/http://evil.example/x",
    ],
)
def test_an_unambiguous_target_is_forwarded_byte_for_byte(raw):
    assert parse(raw).raw == raw


@given(visible_bytes | hostile_paths)
def test_any_target_is_forwarded_identical_or_refused(raw):
    target = parse_or_none(raw)
    assert target is None or target.raw == raw


@given(visible_bytes)
def test_the_path_that_is_judged_is_the_path_that_is_sent(raw):
    target = parse_or_none(raw)
    assert target is None or target.path == target.raw.split(b"?", 1)[0]


@pytest.mark.parametrize("byte", [*range(0x21), ord("#"), ord("\\"), *range(0x7F, 0x100)])
@pytest.mark.parametrize("where", [b"/v1/%b/x", b"/v1/x?q=%b"])
def test_a_raw_byte_that_no_target_may_hold_is_refused(byte, where):
    with pytest.raises(TargetAmbiguous):
        parse(where % bytes([byte]))


@pytest.mark.parametrize(
    "path",
    [
        b"/..",
        b"/.",
        b"/v1/../admin",
        b"/v1/./x",
        b"/v1/%2e%2e/x",
        b"/v1/.%2E/x",
        b"/v1/%252e%252e/x",
        b"/v1/%25252e%25252e/x",
        b"/v1/%%32e%%32e/x",
        b"/v1/..;a=1/x",
        b"/v1/..%3ba/x",
        b"/v1/.;/x",
        b"/v1%2f..%2fx",
        b"/v1%5c..%5cx",
        b"/v1/..%5cx",
        b"/v1/x%252f..",
    ],
)
def test_a_dot_segment_is_refused_in_every_disguise(path):
    with pytest.raises(TargetAmbiguous, match="dot segment"):
        parse(path)


@given(hostile_paths)
def test_nothing_with_a_dot_segment_in_any_decoding_passes(raw):
    target = parse_or_none(raw)
    for path in every_decoding(target.path) if target else ():
        segments = [one.split(b";")[0] for one in re.split(rb"[/\\]", path)]
        assert not {b".", b".."} & set(segments)


def test_a_dot_segment_in_the_query_is_the_upstreams_business():
    assert parse(b"/v1/x?file=../../y").raw == b"/v1/x?file=../../y"


def test_a_path_encoded_without_end_is_refused():
    with pytest.raises(TargetAmbiguous, match="too many times"):
        parse(b"/v1/%" + b"25" * 20 + b"41")


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        (b"/", "/"),
        (b"/V1/Accounts", "/v1/accounts"),
        (b"/v1/accounts/", "/v1/accounts"),
        (b"//v1///accounts//", "/v1/accounts"),
        (b"/v1/accounts;a=1;b/balance;c", "/v1/accounts/balance"),
        (b"/%76%31/%61ccounts", "/v1/accounts"),
        (b"/sandbox/v1/x", "/v1/x"),
        (b"/v1/sandbox/x", "/v1/x"),
        (b"/SANDBOX", "/"),
        (b"/sandboxes/x", "/sandboxes/x"),
        (b"/v1/x%2Fy", "/v1/x%2fy"),
        (b"/v1/x%2561", "/v1/x%2561"),
    ],
)
def test_policy_sees_one_spelling_of_a_path(path, canonical):
    assert canonical_path(path) == canonical


@given(visible_bytes | hostile_paths)
@example(b"/v1/x%%36%31")
def test_the_canonical_path_is_its_own_canonical_path(raw):
    target = parse_or_none(raw)
    if target is not None:
        assert canonical_path(target.canonical.encode("latin-1")) == target.canonical


@pytest.mark.parametrize(
    ("path", "decoded"),
    [
        (b"/v1%2fauth%252ftoken", "/v1/auth/token"),
        (b"/v1%5cauth", "/v1/auth"),
        (b"/v1/%2561uth%3bx", "/v1/auth"),
        (b"/v1%2f%2fx%2f", "/v1/x"),
        (b"/plain/path", "/plain/path"),
    ],
)
def test_the_decoded_path_is_what_a_careless_upstream_could_read(path, decoded):
    assert parse(path).decoded == decoded


@pytest.mark.parametrize(
    ("raw", "forwarded"),
    [
        (b"http://127.0.0.1:8080/v1/x?y", b"/v1/x?y"),
        (b"HTTPS://127.0.0.1:8080/v1//x", b"/v1//x"),
        (b"http://127.0.0.1:8080", b"/"),
        (b"http://127.0.0.1:8080?y=1", b"/?y=1"),
    ],
)
def test_an_absolute_target_for_this_listener_is_its_path(raw, forwarded):
    assert parse(raw).raw == forwarded


@pytest.mark.parametrize(
    "raw",
    [
        b"http://evil.example/v1/x",
        b"https://api.nomba.com/v1/x",
        b"http://127.0.0.1:8080@evil.example/",
        b"http://user@127.0.0.1:8080/",
        b"http://127.0.0.1:8080.evil.example/",
        b"http://127.0.0.1:80/",
        b"http:///v1/x",
    ],
)
def test_an_absolute_target_for_somebody_else_is_refused(raw):
    with pytest.raises(HostRefused) as caught:
        parse(raw)
    assert caught.value.code == "host_refused"


@pytest.mark.parametrize("raw", [b"", b"*", b"v1/x", b"ftp://127.0.0.1:8080/x", b"host:443", b"?x"])
def test_a_target_that_is_neither_path_nor_http_url_is_refused(raw):
    with pytest.raises(TargetAmbiguous):
        parse(raw)


def test_an_absolute_target_does_not_smuggle_a_dot_segment():
    with pytest.raises(TargetAmbiguous):
        parse(b"http://127.0.0.1:8080/v1/%2e%2e/x")


@pytest.mark.parametrize(
    ("raw", "below"),
    [
        (b"/nomba/v1/x?y", b"/v1/x?y"),
        (b"/nomba", b"/"),
        (b"/nomba?y", b"/?y"),
        (b"/nomba//v1", b"//v1"),
        (b"/nomba/%2Fv1;a", b"/%2Fv1;a"),
    ],
)
def test_below_a_mount_the_rest_stays_byte_for_byte(raw, below):
    assert strip_mount(parse(raw), mount=b"/nomba").raw == below


def test_policy_below_a_mount_sees_the_path_below_it():
    assert strip_mount(parse(b"/nomba/v1/auth/token/"), mount=b"/nomba").decoded == "/v1/auth/token"


def test_the_root_mount_changes_nothing():
    target = parse(b"/v1/x?y")
    assert strip_mount(target, mount=b"") is target


@pytest.mark.parametrize("unit", [b";%", b";%2", b"/;", b"%252f", b";a/", b"/.;", b"%25"])
def test_a_long_target_is_read_in_a_time_that_grows_with_its_length(unit):
    """A stranger's 16 KiB once took seconds: a hundred of them would be over the test's time."""
    target = (b"/" + unit * 16_384)[:16_000] + b"%25252525252541"
    for _ in range(100):
        with contextlib.suppress(TargetAmbiguous):
            parse_target(target, is_own_authority=lambda _: False)
