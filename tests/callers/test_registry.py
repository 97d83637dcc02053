"""Who is calling where the connection says it too: what goes before what."""

import base64
import math

import pytest

from proxy.callers.registry import Door, Registry
from proxy.callers.revoked import Revoked
from proxy.core.caller import Caller, Digest, Roster
from proxy.core.certificate import parse_pattern
from proxy.core.heads import CallerHead
from proxy.core.peer import NOBODY, Peer
from proxy.core.phantom import Phantoms
from proxy.errors import CallerUnknown

KEY, BASIC = "npk_keyed_" + "k" * 43, "npk_basic_" + "b" * 43
PHANTOMS = Phantoms(b"k" * 32, lifetime=100, refresh_lifetime=1000)
NOW = 1000.0
BY_CERTIFICATE = Peer(frozenset({"dns:machine"}), expires=NOW + 50)
BY_UID = Peer.of_uid(7)
STRANGERS = [NOBODY, Peer(frozenset({"dns:other"}), expires=NOW + 50), Peer.of_uid(8)]
STRANGERS += [Peer(expires=NOW + 50), Peer.of_uid(65534)]


def machine(**more):
    patterns = (parse_pattern("dns:machine"),)
    return Caller("machine", certificates=patterns, uids=frozenset({7}), **more)


KEYED = Caller("keyed", (Digest.of(KEY, salt="0" * 16),))
PAIRED = Caller("basic", (Digest.of(BASIC, salt="1" * 16),))


class World:
    def __init__(self, folder):
        self.now = NOW
        self.registry = None
        self._revoked = Revoked(folder / "revoked", wall=lambda: self.now, monotonic=lambda: 0.0)

    def given(self, *callers, anonymous=False):
        roster = Roster(callers, anonymous)
        if self.registry is not None:
            self.registry.replace(roster)
            return
        self.registry = Registry(
            roster,
            doors={"nomba": Door(anonymous=True)},
            phantoms=PHANTOMS,
            revoked=self._revoked,
            wall=lambda: self.now,
            monotonic=lambda: 0.0,
        )

    def who(self, *fields, peer=NOBODY):
        head = CallerHead(((b"Host", b"localhost"), *fields))
        return self.registry.identify(head, upstream="nomba", peer=peer)


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    made.given(machine(), KEYED, PAIRED)
    return made


def key(value=KEY):
    return b"X-Nomba-Proxy-Key", value.encode()


def basic(secret=BASIC):
    return b"Authorization", b"Basic " + base64.b64encode(f"basic:{secret}".encode())


def phantom(now=NOW):
    name = KEYED.secrets[0].id
    pair = PHANTOMS.issue("keyed", upstream="nomba", secret=name, now=now, chance=b"c" * 56)
    return b"Authorization", b"Bearer " + pair.access.encode()


def named(identity):
    return identity.caller.name, identity.way, identity.ambient


@pytest.mark.parametrize(
    ("peer", "expected"),
    [(BY_CERTIFICATE, ("machine", "certificate", True)), (BY_UID, ("machine", "uid", False))],
)
@pytest.mark.parametrize("anonymous", [True, False])
def test_the_connection_says_who_is_calling(world, peer, expected, anonymous):
    """A browser sends its certificate for any page's request, and reaches no Unix socket."""
    world.given(machine(), anonymous=anonymous)
    assert named(world.who(peer=peer)) == expected


@pytest.mark.parametrize("peer", [BY_CERTIFICATE, BY_UID])
def test_what_a_request_says_goes_before_what_its_connection_says(world, peer):
    assert named(world.who(key(), peer=peer)) == ("keyed", "key", False)
    assert named(world.who((b"Authorization", KEY.encode()), peer=peer))[1] == "key"
    assert named(world.who(phantom(), peer=peer)) == ("keyed", "phantom", False)
    assert named(world.who(basic(), peer=peer)) == ("basic", "basic", True)


@pytest.mark.parametrize("peer", [BY_CERTIFICATE, BY_UID])
@pytest.mark.parametrize("anonymous", [True, False])
def test_a_wrong_key_is_refused_whatever_the_connection_says(world, peer, anonymous):
    world.given(machine(), KEYED, anonymous=anonymous)
    for fields in ([key(KEY[:-1])], [key(""), key()], [(b"Authorization", b"npk_keyed_x")]):
        with pytest.raises(CallerUnknown, match="key"):
            world.who(*fields, peer=peer)


@pytest.mark.parametrize("peer", [BY_CERTIFICATE, BY_UID])
def test_an_authorization_that_opens_nothing_is_worth_nothing(world, peer):
    for fields in ([phantom(NOW - 200)], [basic("x")], [phantom(), phantom()]):
        assert named(world.who(*fields, peer=peer))[0] == "machine"
        with pytest.raises(CallerUnknown):
            world.who(*fields)


@pytest.mark.parametrize("peer", STRANGERS)
def test_a_connection_of_nobody_is_as_if_it_said_nothing(world, peer):
    with pytest.raises(CallerUnknown) as found:
        world.who(peer=peer)
    what = "uid" if peer.uid else "certificate" if peer.expires != math.inf else "says nothing"
    assert what in str(found.value)
    with pytest.raises(CallerUnknown, match="token is unknown"):  # what it said itself comes first
        world.who(phantom(NOW - 200), peer=peer)
    assert named(world.who(key(), peer=peer))[0] == "keyed"
    world.given(machine(), KEYED, anonymous=True)
    assert named(world.who(peer=peer)) == ("anonymous", "anonymous", True)
    assert named(world.who(phantom(NOW - 200), peer=peer))[0] == "anonymous"


@pytest.mark.parametrize("peer", [BY_CERTIFICATE, BY_UID])
@pytest.mark.parametrize("anonymous", [True, False])
@pytest.mark.parametrize(
    ("changed", "told"), [({"enabled": False}, "disabled"), ({"expires": NOW}, "expired")]
)
def test_who_may_not_call_is_refused_and_not_anonymous(world, peer, anonymous, changed, told):
    world.given(machine(**changed), anonymous=anonymous)
    with pytest.raises(CallerUnknown, match=f"Caller machine .*{told}"):
        world.who(peer=peer)


@pytest.mark.parametrize("anonymous", [True, False])
def test_a_connection_that_fits_several_callers_is_refused(world, anonymous):
    """Where the patterns let that be, no settings can know."""
    other = Caller("other", certificates=(parse_pattern("uri:x:y"),))
    world.given(machine(), other, anonymous=anonymous)
    both = Peer(frozenset({"dns:machine", "uri:x:y"}), expires=NOW + 50)
    with pytest.raises(CallerUnknown, match="several callers: machine, other"):
        world.who(peer=both)


def test_a_certificate_that_ends_while_its_connection_lives_is_over(world):
    identity = world.who(peer=BY_CERTIFICATE)
    assert (identity.expires, world.who(peer=BY_UID).expires) == (NOW + 50, math.inf)
    assert world.registry.knows_still(identity)
    world.now = NOW + 49
    assert world.registry.knows_still(identity)
    world.now = NOW + 50
    assert not world.registry.knows_still(identity)
    for anonymous in (False, True):
        world.given(machine(), KEYED, anonymous=anonymous)
        with pytest.raises(CallerUnknown, match="certificate of caller machine has expired"):
            world.who(peer=BY_CERTIFICATE)
    assert named(world.who(key(), peer=BY_CERTIFICATE))[0] == "keyed"


def test_a_caller_ends_before_its_certificate(world):
    world.given(machine(expires=NOW + 20))
    assert world.who(peer=BY_CERTIFICATE).expires == NOW + 20
    assert world.who(peer=BY_UID).expires == NOW + 20


@pytest.mark.parametrize("peer", [BY_CERTIFICATE, BY_UID])
def test_another_roster_holds_for_connections_that_are_there(world, peer):
    identity = world.who(peer=peer)
    world.given(KEYED)
    assert not world.registry.knows_still(identity)
    with pytest.raises(CallerUnknown, match="is of no caller"):
        world.who(peer=peer)
    world.given(Caller("renamed", certificates=machine().certificates, uids=frozenset({7})))
    identity = world.who(peer=peer)
    assert identity.caller.name == "renamed"
    assert world.registry.knows_still(identity)
