"""Whose certificate or uid it is: patterns, and what real handshakes say of odd certificates."""

import math
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from certificates import Authority, name, raw_names, told
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.caller import Caller, Digest
from proxy.core.certificate import names_of, parse_pattern, pattern_text
from proxy.core.peer import NOBODY, OVERFLOW_UID, KnownPeers, Peer, of_no_caller, says_of_itself
from proxy.errors import CallerUnknown

CN, O, OU = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME  # noqa: E741
DNS, URI, MAIL = x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name
SHORT = st.sampled_from(("CN", "O", "OU", "C", "L", "ST", "emailAddress", "serialNumber", "UID"))


def known_by(caller, *patterns, **more):
    return Caller(caller, certificates=tuple(parse_pattern(one) for one in patterns), **more)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


# -- patterns ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("subject:CN=billing", {"subject:CN=billing"}),
        ("subject:CN=billing,O=Acme", {"subject:CN=billing", "subject:O=Acme"}),
        ("subject: CN = billing , O = Acme Ltd ", {"subject:CN=billing", "subject:O=Acme Ltd"}),
        ("Subject:commonName=billing,uid=7", {"subject:CN=billing", "subject:UID=7"}),
        (r"subject:O=Acme\, Inc,CN=a=b", {"subject:O=Acme, Inc", "subject:CN=a=b"}),
        (r"subject:CN=a\\,O=b", {"subject:CN=a\\", "subject:O=b"}),
        (r"subject:CN=\ a\ ", {"subject:CN= a "}),
        (r"subject:CN=a\\ ", {"subject:CN=a\\"}),
        ("subject:DC=acme,DC=internal", {"subject:DC=acme", "subject:DC=internal"}),
        ("subject:CN=Żółw", {"subject:CN=Żółw"}),
        ("subject:CN=dns:x", {"subject:CN=dns:x"}),
        ("dns:Billing.Internal", {"dns:billing.internal"}),
        ("dns:localhost", {"dns:localhost"}),
        ("dns: xn--bcher-kva.example", {"dns:xn--bcher-kva.example"}),
        ("uri:spiffe://acme/Billing", {"uri:spiffe://acme/Billing"}),
        ("email:Ops@Acme.Example", {"email:Ops@acme.example"}),
    ],
)
def test_what_a_pattern_asks_for(text, names):
    assert parse_pattern(text).names == names
    assert parse_pattern(text).text == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "write subject:"),
        ("billing", "write subject:"),
        ("CN=billing", "write subject:"),
        ("ip:10.0.0.1", "write subject:"),
        ("subject", "is no attribute"),
        ("subject:", "is no attribute"),
        ("subject:billing", "is no attribute"),
        ("subject:CN=a,", "is no attribute"),
        ("subject:,CN=a", "is no attribute"),
        ("subject:O=Acme, Inc", "' Inc' is no attribute"),
        ("subject:CN=", "CN has no value"),
        ("subject:CN=  ,O=a", "CN has no value"),
        ("subject:SN=7", "no attribute 'SN'; there are: CN, O"),
        ("subject:1.2.3=x", "no attribute '1.2.3'"),
        ("subject:CN=a\\", "a \\ stands before"),
        (r"subject:CN=a\2cb", "a \\ stands before"),
        ("dns:*.internal", "without *"),
        ("dns:billing.internal.", "a dot at its end"),
        ("dns:.internal", "whole name"),
        ("dns:10.0.0.1", "no address"),
        ("dns:bücher.example", "xn--"),
        ("dns:billin\u212a", "xn--"),
        ("dns:a b", "whole name"),
        ("dns:", "whole name"),
        ("uri:billing", "uri:spiffe://"),
        ("uri:spiffe://a b", "uri:spiffe://"),
        ("uri:spiffe://bücher", "uri:spiffe://"),
        ("email:ops", "email:ops@"),
        ("email:a@b@c", "email:ops@"),
    ],
)
def test_what_is_no_pattern_is_told_so(text, why):
    with pytest.raises(ValueError) as found:
        parse_pattern(text)
    assert why in str(found.value)


VALUE = st.text(st.sampled_from(" \\,=+a\n") | st.characters(), min_size=1)


@given(st.dictionaries(SHORT, VALUE, min_size=1))
@example({"CN": " a"})
@example({"CN": "  "})
@example({"CN": "a\\ "})
def test_every_subject_can_be_written(attributes):
    """Attribute by attribute, and all of them in one pattern."""
    names = {f"subject:{short}={value}" for short, value in attributes.items()}
    written = [pattern_text(one) for one in sorted(names)]
    assert [parse_pattern(one).names for one in written] == [{one} for one in sorted(names)]
    together = "subject:" + ",".join(one.removeprefix("subject:") for one in written)
    assert parse_pattern(together).names == names


@given(st.text())
def test_whatever_is_written_is_a_pattern_or_a_problem(text):
    for kind in ("subject:", "subject:CN=", "dns:", "uri:", "email:", ""):
        try:
            found = parse_pattern(kind + text)
        except ValueError:
            continue
        assert found.names
        for one in found.names:  # nothing in a value makes it another kind of name
            assert one.startswith(kind.partition(":")[0])


@given(VALUE, VALUE)
def test_a_value_makes_no_second_attribute(common, other):
    """A certificate with one odd attribute has not the names of one with two."""
    found = names_of({"subject": ((("commonName", f"{common},O={other}"),),)})
    wanted = {f"subject:CN={common}", f"subject:O={other}"}
    assert not wanted <= found


# -- certificates, as `ssl` tells them ---------------------------------------------------


def test_every_attribute_that_patterns_know_is_in_what_a_handshake_tells(authority):
    oids = {
        "CN": CN,
        "O": O,
        "OU": OU,
        "L": NameOID.LOCALITY_NAME,
        "ST": NameOID.STATE_OR_PROVINCE_NAME,
        "street": NameOID.STREET_ADDRESS,
        "postalCode": NameOID.POSTAL_CODE,
        "emailAddress": NameOID.EMAIL_ADDRESS,
        "serialNumber": NameOID.SERIAL_NUMBER,
        "UID": NameOID.USER_ID,
        "DC": NameOID.DOMAIN_COMPONENT,
        "title": NameOID.TITLE,
        "dnQualifier": NameOID.DN_QUALIFIER,
        "organizationIdentifier": NameOID.ORGANIZATION_IDENTIFIER,
    }
    file = authority.issue(
        name(*((oid, short) for short, oid in oids.items()), (NameOID.COUNTRY_NAME, "NG"))
    )
    expected = {f"subject:{short}={short}" for short in oids} | {"subject:C=NG"}
    peer = Peer.of_certificate(told(authority, file))
    assert peer.names == expected
    for short in oids:  # and each can be asked for
        assert parse_pattern(f"subject:{short}={short}").names <= peer.names


def test_every_alternative_name_that_patterns_know(authority):
    file = authority.issue(
        alternatives=[
            *(DNS("Billing.Internal"), DNS("*.acme.internal"), DNS("xn--bcher-kva.example")),
            *(URI("spiffe://acme/Billing"), MAIL("Ops@Acme.Example")),
            *(x509.IPAddress(ip_address("10.0.0.1")), x509.RegisteredID(CN)),
            x509.DirectoryName(name((CN, "billing"))),
            x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x05dns:x"),
        ]
    )
    peer = Peer.of_certificate(told(authority, file))
    assert peer.names == {
        *("dns:billing.internal", "dns:*.acme.internal", "dns:xn--bcher-kva.example"),
        *("uri:spiffe://acme/Billing", "email:Ops@acme.example"),
    }
    assert peer.uid is None


def test_a_certificate_is_good_until_its_end(authority):
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    peer = Peer.of_certificate(told(authority, authority.issue(until=until)))
    assert (peer.names, peer.expires) == (frozenset(), until.timestamp())
    never = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280 section 4.1.2.5
    peer = Peer.of_certificate(told(authority, authority.issue(until=never)))
    assert peer.expires == never.timestamp()


@pytest.mark.parametrize(
    "text", ["", "soon", "Foo  5 09:34:43 2018 GMT", "Jan 41 09:34:43 2018 GMT"]
)
def test_a_certificate_of_which_nobody_knows_the_end_is_over(text):
    assert Peer.of_certificate({"subject": (), "notAfter": text}).expires == 0


@given(st.integers(min_value=0, max_value=253_402_300_799))
def test_the_end_of_a_certificate_is_read_as_ssl_reads_it(epoch):
    moment = datetime.fromtimestamp(epoch, UTC)
    text = f"{moment:%b} {moment.day:2} {moment:%H:%M:%S} {moment.year} GMT"
    assert Peer.of_certificate({"notAfter": text}).expires == epoch
    assert Peer.of_certificate({"notAfter": text}).expires == ssl.cert_time_to_seconds(text)


def test_a_session_that_goes_on_over_another_connection_is_of_the_same_peer(authority):
    """It is not verified anew, so its end is for us to look at."""
    file = authority.issue(name((CN, "billing")))
    peer = Peer.of_certificate(told(authority, file, again=True))
    assert peer == Peer.of_certificate(told(authority, file))
    assert (peer.names, peer.expires < math.inf) == ({"subject:CN=billing"}, True)


def test_no_certificate_is_nobody(authority):
    assert Peer.of_certificate(told(authority, None)) is NOBODY
    unasked = told(authority, authority.issue(name((CN, "x"))), mode=ssl.CERT_NONE)
    assert Peer.of_certificate(unasked) is NOBODY
    assert Peer.of_certificate({}) is NOBODY  # what `ssl` says of one that was not verified
    assert NOBODY.expires == math.inf


@pytest.mark.parametrize(
    ("subject", "fits"),
    [
        (name((CN, "billing"), (O, "Acme")), True),
        (name((CN, "other"), (CN, "billing"), (OU, "x"), (O, "Acme")), True),
        (name((O, "Acme"), (CN, "billing")), True),
        (
            x509.Name(
                [
                    x509.RelativeDistinguishedName(
                        [x509.NameAttribute(CN, "billing"), x509.NameAttribute(O, "Acme")]
                    )
                ]
            ),
            True,
        ),
        (name((CN, "billing")), False),
        (name((CN, "billing"), (OU, "Acme")), False),
        (name((CN, "Billing"), (O, "Acme")), False),
        (name((CN, "billing "), (O, "Acme")), False),
        (name((CN, "billing\0"), (O, "Acme")), False),
        (name((CN, "billing\0.evil"), (O, "Acme")), False),
        (name((CN, "billing,O=Acme")), False),
        (name((CN, "b\u0456lling"), (O, "Acme")), False),
        (name((x509.ObjectIdentifier("1.2.3.4"), "billing"), (O, "Acme")), False),
        (name(), False),
    ],
)
def test_which_subjects_fit(authority, subject, fits):
    peers = KnownPeers([known_by("app", "subject:CN=billing,O=Acme")])
    found = peers.find(Peer.of_certificate(told(authority, authority.issue(subject))))
    assert (found is not None) is fits


@pytest.mark.parametrize(
    ("pattern", "alternatives", "fits"),
    [
        ("dns:billing.internal", [DNS("billing.internal")], True),
        ("dns:BILLING.internal", [DNS("x"), DNS("Billing.INTERNAL")], True),
        ("dns:billing.internal", [DNS("*.internal")], False),
        ("dns:billing.internal", [DNS("a.billing.internal")], False),
        ("dns:billing.internal", [MAIL("a@billing.internal"), URI("dns:billing.internal")], False),
        ("dns:billing.internal", raw_names((2, b"billing.internal\0.evil")), False),
        ("dns:billing.internal", raw_names((2, b"billing.internal.")), False),
        ("dns:bank", raw_names((2, "ban\u212a".encode())), False),
        ("dns:bank", raw_names((2, b"")), False),
        ("dns:xn--bcher-kva.example", [DNS("xn--BCHER-kva.example")], True),
        ("uri:spiffe://acme/billing", [URI("spiffe://acme/billing")], True),
        ("uri:spiffe://acme/billing", [URI("spiffe://acme/billing/")], False),
        ("uri:spiffe://acme/billing", [URI("spiffe://ACME/billing")], False),
        ("uri:spiffe://acme/billing", raw_names((6, b"spiffe://acme/billing\0")), False),
        ("uri:spiffe://acme/billing", raw_names((6, b"x\nURI:spiffe://acme/billing")), False),
        ("email:ops@acme.example", [MAIL("ops@ACME.example")], True),
        ("email:ops@acme.example", [MAIL("Ops@acme.example")], False),
        ("email:ops@acme.example", [DNS("acme.example")], False),
    ],
)
def test_which_alternative_names_fit(authority, pattern, alternatives, fits):
    """None of them is taken from the subject."""
    file = authority.issue(name((CN, pattern.partition(":")[2])), alternatives=alternatives)
    peers = KnownPeers([known_by("app", pattern)])
    found = peers.find(Peer.of_certificate(told(authority, file)))
    assert (found is not None) is fits


# -- whose they are ----------------------------------------------------------------------


def peer(*names, uid=None):
    return Peer(frozenset(names), uid=uid, expires=9e9 if names else math.inf)


def test_a_caller_is_found_by_any_of_its_patterns_and_uids():
    app = known_by("app", "subject:CN=a,O=x", "dns:a", uids=frozenset({5, 6}))
    peers = KnownPeers([app, known_by("other", "subject:CN=b,O=x", "dns:b", uids=frozenset({7}))])
    names = ("subject:CN=a", "subject:O=x")
    assert peers.find(peer(*names, "subject:OU=y")) == (app, "certificate")
    assert peers.find(peer("dns:a")) == (app, "certificate")
    assert peers.find(peer(*names, "dns:a")) == (app, "certificate")
    assert peers.find(peer(uid=6)) == (app, "uid")
    assert peers.find(peer("dns:a", uid=5)) == (app, "certificate")
    for nobody in (peer("subject:CN=a"), peer("subject:O=x"), peer("dns:c"), peer(uid=8), NOBODY):
        assert peers.find(nobody) is None
    assert KnownPeers([Caller("app")]).find(peer("dns:a", uid=1)) is None


@pytest.mark.parametrize(
    ("several", "what"),
    [(peer("dns:a", "dns:b"), "certificate"), (peer("dns:a", uid=7), "certificate")],
)
def test_what_fits_several_callers_is_none_of_them(several, what):
    peers = KnownPeers([known_by("one", "dns:a"), known_by("two", "dns:b", uids=frozenset({7}))])
    with pytest.raises(CallerUnknown, match=f"The {what} .* several callers: one, two"):
        peers.find(several)


NAMES = st.sampled_from([f"dns:{letter}" for letter in "abcde"])
SETS = st.frozensets(NAMES, min_size=1)


@given(st.lists(SETS, max_size=6), SETS)
def test_the_index_finds_what_looking_at_every_pattern_finds(patterns, names):
    callers = [known_by(f"c{at}", "dns:x") for at in range(len(patterns))]
    callers = [
        Caller(one.name, certificates=(type(one.certificates[0])("", wanted),))
        for one, wanted in zip(callers, patterns, strict=True)
    ]
    found = [caller.name for _, caller in KnownPeers(callers).fitting(names)]
    slow = [f"c{at}" for at, wanted in enumerate(patterns) if wanted <= names]
    assert sorted(found) == sorted(slow)


def test_a_caller_known_by_uid_alone_is_of_this_machine_only():
    digest = Digest.of("x", salt="0" * 16)
    assert Caller("app", uids=frozenset({1})).here_only
    assert not Caller("app", (digest,), uids=frozenset({1})).here_only
    assert not known_by("app", "dns:a", uids=frozenset({1})).here_only
    assert not Caller("app").here_only


# -- what is told ------------------------------------------------------------------------


def test_who_is_not_known_is_told_how_to_become_so():
    assert of_no_caller(NOBODY) is None
    error = of_no_caller(peer("subject:CN=a, b", "dns:b"))
    assert "certificate of this connection is of no caller" in str(error)
    assert r"It says dns:b and subject:CN=a\, b." in error.hint
    assert "--certificate" in error.hint
    error = of_no_caller(peer(uid=1001))
    assert "1001, is of no caller" in str(error)
    assert "--uid 1001" in error.hint
    error = of_no_caller(peer(uid=OVERFLOW_UID))
    assert "another user namespace" in error.hint
    assert "--uid" not in error.hint


def test_what_is_logged_of_a_certificate_are_patterns_that_fit_it():
    assert says_of_itself(NOBODY) == ""
    assert says_of_itself(peer(uid=1001)) == ""
    assert "nothing that a pattern" in says_of_itself(Peer(expires=1.0))
    names = ("subject:CN=a, b", "subject:O=Acme", "uri:spiffe://acme/a", "dns:a")
    said = says_of_itself(peer(*names)).removeprefix("The certificate says ").removesuffix(".")
    assert said == r"subject:CN=a\, b,O=Acme; dns:a; uri:spiffe://acme/a"
    for text in said.split("; "):
        assert parse_pattern(text).names <= set(names)


def test_what_is_logged_of_a_certificate_has_an_end_and_moves_no_cursor():
    said = says_of_itself(peer(*(f"dns:{n}" + "\x1b[2J\u009b" * 900 for n in range(40))))
    assert said.isprintable()
    assert len(said) < 1000
    assert "and 32 more" in said


def test_what_is_told_of_a_certificate_can_be_printed():
    error = of_no_caller(peer("subject:CN=\x1b[31m", "dns:\n", *(f"uri:x:{n}" for n in range(9))))
    long = of_no_caller(peer("dns:" + "a" * 5000))
    assert len(long.hint) < 200
    assert error.hint.isprintable()
    assert "\x1b" not in error.hint
    assert "uri:x:3" not in error.hint
    assert "It says" not in of_no_caller(Peer(expires=1.0)).hint
