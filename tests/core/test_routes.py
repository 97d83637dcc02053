import csv
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

import proxy.data
from proxy.core.routes import LOGIN_PATHS, Kind, RouteTable, login_call
from proxy.core.target import parse_target
from proxy.errors import ProxyError, TargetAmbiguous

TABLE = RouteTable()
CSV = Path(proxy.data.__file__).with_name("endpoints.csv")
ROWS = [
    (row["method"], row["path"].partition("?")[0], row["money"])
    for row in csv.DictReader(CSV.read_text("utf-8").splitlines())
]
OLDER = [
    ("POST", f"/v1/transfers/{kind}{tail}", "OUT")
    for kind in ("bank", "wallet")
    for tail in ("", "/{subAccountId}")
]


def parse(raw):
    return parse_target(raw, is_own_authority=lambda _: False)


def classify(method, path):
    return TABLE.classify(method, parse(path.encode()))


def forwards(raw):
    """Whether a path would reach Nomba: neither refused nor answered as a login."""
    try:
        return login_call(parse(raw).decoded) is None
    except ProxyError:
        return False


def shape(template):
    """A template without what the table itself cannot tell apart."""
    return re.sub(r"\{\w+\}", "{}", template.replace("/sandbox/", "/"))


def filled(template, value="a1b2c3d4-0000"):
    return re.sub(r"\{\w+\}", value, template)


# -- classes ---------------------------------------------------------------------------


# What is asked for with POST and only lists something (facts, section 4).
LISTS = {
    ("POST", "/v1/accounts/virtual/list"),
    ("POST", "/v1/transactions/accounts"),
    ("POST", "/v1/transactions/accounts/{subAccountId}"),
}


def test_a_list_in_another_case_could_be_another_operation():
    assert classify("POST", "/v1/accounts/virtual/list").kind is Kind.READ
    assert classify("POST", "/v1/transfers/bank;/lookup").kind is Kind.MONEY
    for spelling in ("/v1/accounts/virtual/LIST", "/v1/accounts/virtual/list;x"):
        assert classify("POST", spelling).kind is Kind.WRITE  # one for a sub-account


def test_the_table_is_complete():
    assert len(ROWS) == 109


@pytest.mark.parametrize(("method", "template", "money"), ROWS + OLDER)
def test_every_operation_has_its_own_template_and_class(method, template, money):
    plain = Kind.READ if method == "GET" or (method, template) in LISTS else Kind.WRITE
    route = classify(method, filled(template))
    assert shape(route.template) == shape(template)
    assert route.kind is (Kind.MONEY if money else plain)


@pytest.mark.parametrize(("method", "template", "money"), [row for row in ROWS if row[2]])
def test_no_spelling_makes_a_money_operation_harmless(method, template, money):
    path = filled(template)
    encoded = "".join(one if one == "/" else f"%{ord(one):02X}" for one in path)
    for spelling in (path.upper(), path + "/", path.replace("/", "//"), path + ";x=1", encoded):
        assert classify(method, spelling).kind is Kind.MONEY, spelling


@pytest.mark.parametrize(
    "spelling",
    ["lookup;x", "lookup;", "LOOKUP", "Lookup", "loo%4Bup", "lookup%3bx", "lookup%20", "lookup%2f"],
)
def test_a_sub_account_that_resembles_a_harmless_operation_is_money(spelling):
    # An upstream that knows no path parameters or minds the case routes these to
    # POST /v1/transfers/bank/{subAccountId}.
    assert classify("POST", f"/v1/transfers/bank/{spelling}").kind is Kind.MONEY


@pytest.mark.parametrize(
    ("method", "path", "template"),
    [
        ("GET", "/v1/accounts/parent", "/v1/accounts/parent"),
        ("GET", "/v1/accounts/balance", "/v1/accounts/balance"),
        ("GET", "/v1/accounts/x/balance", "/v1/accounts/{subAccountId}/balance"),
        ("POST", "/v1/transfers/bank/lookup", "/v1/transfers/bank/lookup"),
        ("POST", "/v1/transfers/bank/x", "/v1/transfers/bank/{subAccountId}"),
        ("POST", "/v1/accounts/virtual/list", "/v1/accounts/virtual/list"),
        ("PUT", "/v1/accounts/virtual/list", "/v1/accounts/virtual/{identifier}"),
    ],
)
def test_a_literal_segment_wins_over_a_variable_where_the_method_fits(method, path, template):
    assert classify(method, path).template == template


def test_head_is_classed_as_the_get_it_asks_about():
    assert classify("HEAD", "/v1/accounts/parent") == classify("GET", "/v1/accounts/parent")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND", "get", "QUERY"])
@pytest.mark.parametrize(
    "path", ["/", "/v9/new", "/v1/accounts/parent", "/v1//", "/v1/accounts/%2f"]
)
def test_an_unknown_operation_that_is_no_read_counts_as_money(method, path):
    route = classify(method, path)
    assert (route.template, route.kind) == ("other", Kind.MONEY)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_an_unknown_read_is_a_read_without_a_template(method):
    route = classify(method, "/v9/new/0123456789")
    assert (route.template, route.kind) == ("other", Kind.READ)


@given(
    st.sampled_from(["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "LINK"]),
    st.lists(
        st.sampled_from(["v1", "v2", "accounts", "transfers", "bank", "x", "", "virtual", "{id}"]),
        max_size=6,
    ),
)
def test_the_template_is_never_taken_from_the_request(method, segments):
    route = classify(method, "/" + "/".join(segments))
    known = {template for _, template, _ in ROWS + OLDER} | {"other"}
    assert route.template in known
    assert (route.kind is Kind.READ) == (method in {"GET", "HEAD", "OPTIONS"})


def test_an_empty_segment_is_no_sub_account():
    assert classify("GET", "/v1/accounts//balance").template == "/v1/accounts/balance"


# -- logins ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "call"),
    [
        (b"/v1/auth/token", "issue"),
        (b"/v1/auth/token/issue", "issue"),
        (b"/v1/auth/token/refresh", "refresh"),
        (b"/v1/auth/token/revoke", "revoke"),
    ],
)
@pytest.mark.parametrize(
    "spell",
    [
        lambda path: path,
        lambda path: path + b"/",
        lambda path: path + b"//",
        lambda path: path.upper(),
        lambda path: path.replace(b"/", b"//"),
        lambda path: b"/sandbox" + path,
        lambda path: path.replace(b"/auth", b"/Sandbox/auth"),
        lambda path: path.replace(b"/auth", b";v=1/auth;w") + b";x",
        lambda path: path.replace(b"auth", b"%61ut%68"),
        lambda path: path.replace(b"auth", b"%2561uth"),
        lambda path: path.replace(b"/auth", b"%2fauth"),
        lambda path: path.replace(b"/auth", b"%252Fauth"),
        lambda path: path.replace(b"/auth", b"%5cauth"),
        lambda path: path + b"%2f",
        lambda path: path + b"%3bx",
        lambda path: path + b"?grant_type=client_credentials",
    ],
)
def test_a_login_is_recognised_in_every_spelling(path, call, spell):
    assert login_call(parse(spell(path)).decoded) == call


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/auth/token/issue/x",
        b"/v1/auth/token/unknown",
        b"/v1/auth/token.json",
        b"/v1/auth/token/issue.json",
        b"/v1/auth/token/issue%3fx",
        b"/v1/auth/token/issue%23x",
        b"/v1/auth/token,/issue",
        b"/v1/auth/token/iss%c5%bfue",
        b"/v1/auth/token/i%u0073sue",
    ],
)
def test_a_path_too_close_to_a_login_is_refused(path):
    with pytest.raises(TargetAmbiguous):
        login_call(parse(path).decoded)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/auth",
        b"/v1/auth/tokens",
        b"/v1/auth/token-info",
        b"/v1/auth/token_info/issue",
        b"/v2/auth/token/issue",
        b"/v1/accounts?next=/v1/auth/token/issue",
        b"/v1/checkout/tokenized-card-data",
        b"/",
    ],
)
def test_what_is_no_login_is_forwarded(path):
    assert forwards(path)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/auth;a%2fb/token/issue",
        b"/v1/auth;a%5cb/token/issue",
        b"/v1/auth;a%252fb/token/issue",
        b"/v1/auth%3ba%252fb/token/issue",
        b"/v1;a%2fb/auth%3bq/token/refresh",
    ],
)
def test_a_slash_inside_a_path_parameter_hides_no_login(path):
    # Tomcat and its kin drop parameters first and decode what is left.
    assert not forwards(path)


@pytest.mark.parametrize(
    "path", [b"//x/v1/auth/token/issue", b"///x/v1/auth/token", b"//v1/v1/auth/token"]
)
def test_a_path_that_begins_like_an_authority_hides_no_login(path):
    # `new URL(request.url, base)` and java.net.URI read `//x` as a host (RFC 3986 section 4.2).
    assert not forwards(path)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/auth/to%E2%84%AAen/issue",  # KELVIN SIGN: lower case is `k`
        b"/v1/auth/to%EF%BD%8Ben/issue",  # FULLWIDTH k: NFKC is `k`
        b"/v1/auth%EF%BC%8Ftoken/issue",  # FULLWIDTH SOLIDUS
    ],
)
def test_a_letter_that_folds_to_ascii_hides_no_login(path):
    assert not forwards(path)


@pytest.mark.parametrize("byte", ["%00", "%09", "%0a", "%0D", "%20", "%7f"])
@pytest.mark.parametrize("path", ["/v1/auth{}/token/issue", "/v1/auth/token{}", "/v1/{}auth/token"])
def test_a_byte_that_servers_trim_hides_no_login(byte, path):
    assert not forwards(path.format(byte).encode())


def encode(text, times):
    for _ in range(times):
        text = "".join(f"%{ord(one):02x}" for one in text)
    return text


@st.composite
def login_spellings(draw):
    """A login path with case, encodings, slashes, parameters and sandboxes to taste."""
    path = draw(st.sampled_from(sorted(LOGIN_PATHS)))
    out = draw(st.sampled_from(["", "/sandbox", "/", "/;x", "/SandBox;y"]))
    for segment in path[1:].split("/"):
        out += draw(st.sampled_from(["/", "//", "/;a=b/", "%2f", "%252F", "%5c", "/sandbox/"]))
        for letter in segment:
            cased = draw(st.sampled_from([letter, letter.upper()]))
            out += encode(cased, draw(st.sampled_from([0, 0, 0, 1, 2])))
        out += draw(st.sampled_from(["", "", ";", ";v=1", "%3bw", "%253B"]))
    return (out + draw(st.sampled_from(["", "/", "//", "%2f", ";z", "?q=/x", "?"]))).encode()


@given(login_spellings())
def test_no_spelling_of_a_login_reaches_nomba(raw):
    assert not forwards(raw)


def readings(raw):
    """Every path an upstream could make of `raw`.

    It may take `//x` for an authority, then decode and drop parameters in any order.
    """
    path = raw.split(b"?")[0]
    found, left = set(), [path, re.sub(rb"^//+[^/]*", b"", path)]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += [unquote_to_bytes(path), re.sub(rb";[^/]*", b"", path)]
            left.append(path.replace(b"\\", b"/"))
    return {re.sub(rb"/+", b"/", path).rstrip(b"/").lower().decode("latin-1") for path in found}


LENIENT = ["/v1", "/auth", "/token", "/issue", "/x", "/", "//", ";a", ";a%2fb", "%3b", "%3ba%252fb"]


@given(st.lists(st.sampled_from(LENIENT), max_size=4), st.data())
def test_no_reading_of_what_is_forwarded_is_a_login(junk, data):
    parts = ["/v1", "/auth", "/token", "/issue"]
    for piece in junk:
        parts.insert(data.draw(st.integers(0, len(parts))), piece)
    raw = "".join(parts).encode()
    if forwards(raw):
        assert not readings(raw) & set(LOGIN_PATHS), raw
