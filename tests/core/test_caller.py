"""Rules, roles, accounts: what a caller may do, and why not."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.caller import (
    Caller,
    Digest,
    Reading,
    Role,
    Roster,
    check_accounts,
    check_upstream,
    parse_rule,
    why_refused,
)
from proxy.core.routes import RouteTable
from proxy.core.target import parse_target
from proxy.errors import AccountMismatch, CallerForbidden

TABLE = RouteTable()


def readings(method, path):
    target = parse_target(path.encode(), is_own_authority=lambda _: False)
    found = [Reading(target.canonical, TABLE.classify(method, target))]
    if target.decoded != target.canonical:
        found.append(Reading(target.decoded, TABLE.reread(method, target.decoded)))
    return tuple(found)


def why(method, path, *rules, role=Role.FULL):
    caller = Caller("app", role=role, rules=tuple(parse_rule(one) for one in rules))
    return why_refused(caller, method=method, readings=readings(method, path))


# -- rules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "method", "path", "fits"),
    [
        ("allow any", "GET", "/v1/x", True),
        ("allow GET any", "POST", "/v1/x", False),
        ("allow GET any", "HEAD", "/v1/x", True),
        ("allow get,POST any", "POST", "/v1/x", True),
        ("allow /v1/accounts/balance", "GET", "/v1/accounts/balance", True),
        ("allow /V1/Accounts//balance/", "GET", "/v1/ACCOUNTS/balance;x", True),
        ("allow /v1/accounts/balance", "GET", "/v1/accounts/balances", False),
        ("allow /v1/accounts/*", "GET", "/v1/accounts/balance", True),
        ("allow /v1/accounts/*", "GET", "/v1/accounts", False),
        ("allow /v1/accounts/*", "GET", "/v1/accounts/a/b", False),
        ("allow /v1/accounts/**", "GET", "/v1/accounts", True),
        ("allow /v1/accounts/**", "GET", "/v1/accounts/a/b", True),
        ("allow /v1/accounts/**", "GET", "/v1/accountsx", False),
        ("allow /**", "GET", "/", True),
        ("allow /v1/*/balance", "GET", "/v1/accounts/balance", True),
        ("allow /v1/a.b", "GET", "/v1/aXb", False),
        ("allow family:transfers", "POST", "/v2/transfers/bank", True),
        ("allow family:transfers", "GET", "/v1/accounts/balance", False),
        ("allow family:other", "GET", "/v9/new", True),
        ("allow family:transfers", "PUT", "/v2/transfers/bank", True),
        ("allow family:transfers", "GET", "/v3/transfers/a/b/c", True),
        ("allow family:transfers", "POST", "/sandbox/v2/Transfers/bank,x", True),
        ("allow family:transfers", "POST", "/transfers/bank", False),
        ("allow /v2/transfers/**", "POST", "/v2%2ftransfers%2fbank%c2%85", False),
        ("allow class:read", "GET", "/v1/accounts/balance", True),
        ("allow class:read", "POST", "/v2/transfers/bank", False),
        ("allow class:money", "POST", "/v9/new/payout", True),
        ("allow POST class:write", "PUT", "/v1/accounts/suspend/x", False),
    ],
)
def test_what_a_rule_speaks_of(rule, method, path, fits):
    assert (why(method, path, rule) == "") is fits


@pytest.mark.parametrize("odd", ["%0a", "%0d", "%20", "%09", "%00", "%23", "%3fx", "."])
@pytest.mark.parametrize("where", ["/v2/transfers{}/bank", "/v2/transfers/bank{}"])
def test_no_rule_judges_a_path_that_a_server_could_cut(odd, where):
    assert why("POST", where.format(odd), "deny /v2/transfers/**", "allow any") != ""


def test_the_first_rule_that_fits_decides():
    rules = ("deny POST /v2/transfers/wallet", "allow family:transfers", "deny any")
    assert why("POST", "/v2/transfers/bank", *rules) == ""
    assert "'deny POST /v2/transfers/wallet'" in why("POST", "/v2/transfers/wallet", *rules)
    assert "'deny any'" in why("GET", "/v1/accounts/balance", *rules)


def test_what_no_rule_allows_is_refused_once_there_are_rules():
    assert why("GET", "/v1/accounts/balance") == ""
    assert why("GET", "/v1/accounts/balance", "deny any") != ""
    assert why("GET", "/v1/accounts/balance", "deny class:money") == "none of its rules allows it"


@pytest.mark.parametrize(
    "text",
    [
        *("", "allow", "permit any", "allow any thing else", "allow G3T any", "allow foo"),
        *("allow family:nothing", "allow class:reads", "allow class", "allow family:"),
        *("allow PSOT any", "deny GET, any", "deny HEAD any"),
        *("allow /v1/a*", "allow /v1/**/x", "allow /v1/***", "allow /v1?x", "allow /v1#x"),
    ],
)
def test_what_is_no_rule_is_told_so(text):
    with pytest.raises(ValueError):
        parse_rule(text)


def test_a_method_that_nobody_has_is_told_with_those_there_are():
    with pytest.raises(ValueError, match="'PSOT' is no method of Nomba's; write some of GET,HEAD,"):
        parse_rule("deny GET,psot /v2/transfers/**")


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        (Role.FULL, {"read", "write", "money"}),
        (Role.NO_MONEY, {"read", "write"}),
        (Role.READ_ONLY, {"read"}),
    ],
)
def test_a_role_is_what_a_caller_may_do_at_most(role, allowed):
    of_kind = {
        "read": ("GET", "/v1/accounts/balance"),
        "write": ("PUT", "/v1/accounts/suspend/x"),
        "money": ("POST", "/v2/transfers/bank"),
    }
    for kind, (method, path) in of_kind.items():
        assert (why(method, path, "allow any", role=role) == "") is (kind in allowed)


# What an upstream could take for another path than the one a rule was written for.
SPELLINGS = [
    "/v2/transfers/bank",
    "/V2/Transfers/BANK",
    "/v2//transfers///bank",
    "/v2/transfers/bank/",
    "/v2/transfers/bank;a=b",
    "/v2;x/transfers;y/bank;z",
    "/v2/%74ransfers/ban%6B",
    "/v2/%2574ransfers/bank",
    "/v2%2ftransfers%2Fbank",
    "/v2/transfers%252fbank",
    "/sandbox/v2/transfers/bank",
    "/v2/sandbox/transfers/bank",
    "/v2/transfers/bank?x=/v1/accounts/balance",
    "/v2/%EF%BD%94ransfers/bank",
]


@pytest.mark.parametrize("path", SPELLINGS)
@pytest.mark.parametrize(
    "rules",
    [
        ("deny /v2/transfers/**", "allow any"),
        ("deny POST /v2/transfers/bank", "allow any"),
        ("deny family:transfers", "allow any"),
        ("deny class:money", "allow any"),
        ("allow class:read", "allow class:write"),
        ("allow GET any",),
    ],
)
def test_no_spelling_passes_a_rule_against_it(path, rules):
    assert why("POST", path, *rules) != ""


@given(st.sampled_from(["/v2/transfers/bank", "/v1/transfers/wallet/x"]), st.data())
def test_no_encoding_of_a_path_passes_a_rule_against_it(path, data):
    ways = {
        "as it is": str,
        "encoded": lambda one: f"%{ord(one):02x}",
        "twice": lambda one: f"%25{ord(one):02X}",
        "upper": str.upper,
    }
    drawn = data.draw(st.lists(st.sampled_from(sorted(ways)), min_size=40, max_size=40))
    spelled = "/" + "".join(ways[how](one) for how, one in zip(drawn, path[1:], strict=False))
    assert why("POST", spelled, "deny class:money", "allow any") != ""
    assert why("POST", spelled, role=Role.NO_MONEY) != ""


# -- upstreams and accounts ----------------------------------------------------------------


def test_a_caller_uses_its_upstreams_only():
    check_upstream(Caller("app"), upstream="any")
    mine = Caller("app", upstreams=frozenset({"mine"}))
    check_upstream(mine, upstream="mine")
    with pytest.raises(CallerForbidden, match="other"):
        check_upstream(mine, upstream="other")


def acts(account, method, path):
    caller = Caller("app", accounts=frozenset({"sub-1", "parent"}))
    check_accounts(caller, account=account, readings=readings(method, path))


@pytest.mark.parametrize(
    ("account", "method", "path"),
    [
        ("parent", "GET", "/v1/accounts/balance"),
        ("PARENT", "POST", "/v2/transfers/bank"),
        ("other", "POST", "/v2/transfers/bank/sub-1"),
        ("other", "GET", "/v1/accounts/SUB-1/balance"),
        ("other", "GET", "/sandbox/v1/accounts/sub-1/balance"),
    ],
)
def test_what_acts_for_an_account_of_the_callers(account, method, path):
    acts(account, method, path)


@pytest.mark.parametrize(
    ("account", "method", "path"),
    [
        ("other", "GET", "/v1/accounts/balance"),
        ("parent", "POST", "/v2/transfers/bank/sub-2"),
        ("parent", "GET", "/v1/accounts/sub-2/balance"),
        ("parent", "GET", "/v1/accounts/sub%2d2/balance"),
        ("parent", "GET", "/v1/accounts/%73ub-2/balance"),
        ("parent", "GET", "/v1%2faccounts/sub-2/balance"),
        ("parent", "GET", "/v1/accounts/sub-1%252fx/balance"),
        ("parent", "POST", "/v2/transfers/bank/sub-1%2f..."),
    ],
)
def test_what_acts_for_another_is_refused(account, method, path):
    with pytest.raises((AccountMismatch, CallerForbidden)):
        acts(account, method, path)


def test_an_operation_nobody_knows_could_act_for_any_account():
    with pytest.raises(CallerForbidden, match="nobody knows"):
        acts("parent", "GET", "/v9/accounts/sub-2")
    check_accounts(Caller("app"), account="x", readings=readings("GET", "/v9/accounts/sub-2"))


# -- secrets -----------------------------------------------------------------------------


def test_a_digest_fits_its_secret_only_and_reads_what_it_wrote():
    digest = Digest.of("npk_app_secret", salt="0123456789abcdef")
    assert digest.fits("npk_app_secret")
    assert not digest.fits("npk_app_secre")
    assert Digest.parse(str(digest)) == digest
    assert Digest.of("npk_app_secret", salt="f123456789abcdef").value != digest.value
    assert "secret" not in repr(digest)


@pytest.mark.parametrize("text", ["", "npk_app_secret", "hmac-sha256:x:y", "sha256:" + "0" * 64])
def test_what_is_no_digest_is_told_so(text):
    with pytest.raises(ValueError, match="caller add"):
        Digest.parse(text)


def test_either_of_two_secrets_is_found():
    one, two = (Digest.of(text, salt="0" * 16) for text in ("one", "two"))
    caller = Caller("app", secrets=(one, two))
    assert (caller.find("one"), caller.find("two"), caller.find("three")) == (one, two, None)
    assert Caller("app").find("") is None


@pytest.mark.parametrize(
    ("callers", "chosen", "stay"),
    [((), None, True), (("a",), None, False), ((), False, False), (("a",), True, True)],
)
def test_strangers_stay_until_there_are_callers_or_somebody_says_otherwise(callers, chosen, stay):
    roster = Roster(tuple(Caller(one) for one in callers), chosen)
    assert roster.keeps_anonymous is stay


def test_a_caller_can_do_everything_until_something_is_said():
    caller = Caller("app")
    assert (caller.enabled, caller.expires, caller.role) == (True, math.inf, Role.FULL)
