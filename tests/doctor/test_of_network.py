"""What is said of the way to an upstream: where it could not be brought about on this machine."""

import errno
import ssl

import pytest

from proxy.doctor.certificate import Certificate, read_certificate
from proxy.doctor.of_network import (
    WayOut,
    of_addresses,
    of_clock,
    of_connection,
    of_no_addresses,
    of_no_connection,
    of_no_tls,
    of_tls,
)
from proxy.errors import UpstreamUnreachable
from proxy.settings import parse_origin

NOMBA = WayOut(parse_origin("https://api.nomba.com"))
SANDBOX = WayOut(parse_origin("https://sandbox.nomba.com"))
CUSTOM = WayOut(parse_origin("https://nomba.test"))
SHOWN = Certificate("api.nomba.com", "A Firewall", ("api.nomba.com",), 1_000_000.0, 2_000_000.0)
V4, V6 = "203.0.113.9", "2001:db8::9"


def refused(code, message="self-signed certificate"):
    error = ssl.SSLCertVerificationError(1, "refused")
    error.verify_code, error.verify_message = code, message
    return error


@pytest.mark.parametrize(
    ("way", "found", "ok"),
    [
        (NOMBA, [V4], True),
        (NOMBA, [V6, V4], True),
        (NOMBA, [V6], False),
        (SANDBOX, [V6], False),
        (CUSTOM, [V6], True),  # nobody knows of an allowlist there
        (NOMBA, [f"{V6}%eth0"], False),
    ],
)
def test_ipv6_alone_is_no_way_to_nomba(way, found, ok):
    step = of_addresses(way, found, ignored=[])
    assert step.ok is ok
    assert found[0] in step.seen


def test_addresses_that_are_set_are_not_looked_up():
    way = WayOut(NOMBA.origin, fixed=True)
    assert of_addresses(way, [V4], ignored=[]).seen == f"not asked: upstream.addresses says {V4}"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(-2, "Name or service not known"), "Name or service not known"),
        (TimeoutError(), "no answer in time"),
        (UnicodeError(), "no host name"),
        (
            UpstreamUnreachable(
                "A hosts entry leads here.", hint="The request may be repeated. Look."
            ),
            "hosts",
        ),
    ],
)
def test_no_addresses(error, text):
    step = of_no_addresses(NOMBA, error)
    assert step.ok is False
    assert text in step.seen
    assert step.next
    assert "repeated" not in step.next


def test_without_ipv4_it_says_that_only_that_was_asked_for():
    way = WayOut(NOMBA.origin, ipv4_only=True)
    assert "no address of IPv4" in of_no_addresses(way, OSError(-5, "No address")).seen


@pytest.mark.parametrize(("address", "advised"), [(V4, False), (V6, True)])
def test_a_connection_over_ipv6_is_good_with_advice(address, advised):
    step = of_connection(NOMBA, address=address, took=0.0123)
    assert step.ok is True
    assert f"over IPv{6 if advised else 4} in 12 ms" in step.seen
    assert ("upstream.ipv4_only" in step.next) is advised


@pytest.mark.parametrize(
    ("error", "text", "todo"),
    [
        (TimeoutError(), "in time", "firewall"),
        (OSError(errno.ETIMEDOUT, "timed out"), "in time", "firewall"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refuses", "NOMBA_BASE_URL"),
        (OSError("Multiple exceptions: [Errno 111] Connection refused, …"), "refuses", "port"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "unreachable", "ipv4_only"),
    ],
)
def test_no_connection(error, text, todo):
    step = of_no_connection(NOMBA, error)
    assert (step.name, step.ok) == ("tcp", False)
    assert text in step.seen
    assert todo in step.next


def test_a_proxy_on_the_way_is_named():
    way = WayOut(NOMBA.origin, proxy="proxy.test:3128")
    assert "proxy.test:3128" in of_no_connection(way, TimeoutError()).seen
    assert "proxy.test:3128" in of_connection(way, address="", took=0.1).seen


@pytest.mark.parametrize(
    ("code", "text", "todo"),
    [
        (10, "has expired on 1970-01-24", "NTP"),
        (9, "is not valid before 1970-01-12", "NTP"),
        (62, "is not for api.nomba.com", "hosts file"),
        (64, "is not for api.nomba.com", "hosts file"),
        (20, "nobody this machine trusts", "upstream.ca_file"),
        (18, "nobody this machine trusts", "upstream.ca_file"),
        (19, "nobody this machine trusts", "upstream.ca_file"),
        (99, "is refused: self-signed certificate", "https server"),
    ],
)
def test_a_certificate_that_is_refused(code, text, todo):
    step = of_no_tls(NOMBA, refused(code), shown=SHOWN, now=1_500_000.0)
    assert (step.name, step.ok) == ("tls", False)
    assert text in step.seen
    assert "by A Firewall" in step.seen
    assert todo in step.next
    assert of_no_tls(NOMBA, refused(code), shown=None, now=1_500_000.0).ok is False


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "no TLS"),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), "the connection ended: reset"),
        (ConnectionAbortedError("SSL handshake is taking longer than 5 s"), "in time"),
    ],
)
def test_no_tls(error, text):
    assert text in of_no_tls(NOMBA, error, shown=None, now=0.0).seen


def test_the_days_that_a_certificate_has_left_are_counted():
    day = 86400.0
    assert of_tls(NOMBA, version="TLSv1.3", shown=SHOWN, now=2_000_000 - 15 * day).next == ""
    step = of_tls(NOMBA, version="TLSv1.3", shown=SHOWN, now=2_000_000 - 13 * day)
    assert "(13 days)" in step.seen
    assert step.next


def test_what_is_no_certificate_is_none():
    assert read_certificate(b"nothing") is None
    assert read_certificate(b"-----BEGIN CERTIFICATE-----\nnothing") is None


@pytest.mark.parametrize(
    ("told", "ok", "advised"),
    [
        (None, None, False),
        (999, True, False),
        (990, True, True),
        (1010, True, True),
        (900, False, True),
        (1100, False, True),
    ],
)
def test_a_clock_is_compared_with_the_middle_of_the_call(told, ok, advised):
    step = of_clock(told, before=999.5, after=1000.5)
    assert step.ok is ok
    assert bool(step.next) is advised


def test_a_slow_reply_is_no_wrong_clock():
    assert of_clock(1000, before=1000.0, after=1020.0).next == ""
