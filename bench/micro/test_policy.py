"""Who calls, what it is called, and whether it may: decided for every request."""

import os
import time

import pytest

from proxy.callers.registry import Door, Registry
from proxy.callers.revoked import Revoked
from proxy.core.account import AccountRule, decide_account
from proxy.core.caller import Caller, Digest, Reading, Roster, parse_rule, why_refused
from proxy.core.certificate import parse_pattern
from proxy.core.heads import CallerHead
from proxy.core.peer import Peer
from proxy.core.phantom import Phantoms
from proxy.core.routes import Kind, RouteTable
from proxy.core.target import parse_target

PHANTOMS = Phantoms(b"k" * 32, lifetime=3600, refresh_lifetime=86400)


@pytest.fixture(params=[1, 10_000], ids=lambda count: f"callers={count}")
def registry(request, key, tmp_path):
    """Knows `bench` by a key and by certificates, and as many others."""
    digest = Digest.of(key, salt="0" * 16)

    def caller(name):
        patterns = (parse_pattern(f"subject:CN={name},O=Acme"), parse_pattern(f"dns:{name}.test"))
        return Caller(name, (digest,), certificates=patterns)

    callers = [caller(f"caller{number}") for number in range(1, request.param)]
    return Registry(
        Roster((*callers, caller("bench")), anonymous=True),
        doors={"nomba": Door(anonymous=True)},
        phantoms=PHANTOMS,
        revoked=Revoked(tmp_path / "revoked", wall=time.time, monotonic=time.monotonic),
        wall=time.time,
        monotonic=time.monotonic,
    )


def test_identify_anonymous(benchmark, registry, headers):
    head = CallerHead(headers[:-1])
    assert benchmark(registry.identify, head, upstream="nomba").way == "anonymous"


def test_identify_key(benchmark, registry, headers):
    identity = benchmark(registry.identify, CallerHead(headers), upstream="nomba")
    assert (identity.way, identity.caller.name) == ("key", "bench")


def test_identify_key_seen_first(benchmark, registry, headers):
    head, roster = CallerHead(headers), registry.roster

    def identify():
        registry.replace(roster)  # forgets what it has seen
        return registry.identify(head, upstream="nomba")

    assert benchmark(identify).caller.name == "bench"


def test_identify_certificate(benchmark, registry, headers):
    names = {"subject:CN=bench", "subject:O=Acme", "subject:C=NG", "uri:spiffe://acme/bench"}
    peer = Peer(frozenset(names), expires=time.time() + 3600)
    head = CallerHead(headers[:-1])
    identity = benchmark(registry.identify, head, upstream="nomba", peer=peer)
    assert (identity.way, identity.caller.name) == ("certificate", "bench")


def test_knows_still(benchmark, registry, headers):
    identity = registry.identify(CallerHead(headers), upstream="nomba")
    assert benchmark(registry.knows_still, identity)


def test_identify_phantom(benchmark, registry, headers, key):
    pair = PHANTOMS.issue(
        "bench",
        upstream="nomba",
        secret=Digest.of(key, salt="0" * 16).id,
        now=time.time(),
        chance=os.urandom(56),
    )
    sent = (*headers[:-1], (b"Authorization", b"Bearer " + pair.access.encode()))
    identity = benchmark(registry.identify, CallerHead(sent), upstream="nomba")
    assert (identity.way, identity.caller.name) == ("phantom", "bench")


TARGETS = {
    "GET, fixed": ("GET", b"/v1/accounts/balance", Kind.READ),
    "GET, variable": ("GET", b"/v1/accounts/01a10aeb-d989/balance", Kind.READ),
    "POST, money": ("POST", b"/v2/transfers/bank", Kind.MONEY),
    "GET, unknown": ("GET", b"/v9/what/nobody/knows", Kind.READ),
}


@pytest.mark.parametrize("form", TARGETS)
def test_classify(benchmark, form):
    method, raw, kind = TARGETS[form]
    target = parse_target(raw, is_own_authority=bool)
    assert benchmark(RouteTable().classify, method, target).kind is kind


@pytest.mark.parametrize("sent", [(), ("account",)], ids=["none sent", "the same sent"])
def test_decide_account(benchmark, sent):
    decision = benchmark(decide_account, AccountRule("account"), sent=sent, kind=Kind.READ)
    assert (decision.account, decision.replaced) == ("account", None)


@pytest.mark.parametrize("count", [0, 1, 100], ids=lambda count: f"rules={count}")
def test_why_refused(benchmark, count):
    """The last rule is the one that fits."""
    lines = [f"deny POST /v1/nothing/{number}/*" for number in range(1, count)]
    rules = tuple(map(parse_rule, [*lines, "allow GET /v1/accounts/**"] if count else []))
    target = parse_target(b"/v1/accounts/balance", is_own_authority=bool)
    readings = (Reading(target.canonical, RouteTable().classify("GET", target)),)
    caller = Caller("bench", rules=rules)
    assert benchmark(why_refused, caller, method="GET", readings=readings) == ""
