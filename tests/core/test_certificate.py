"""When a certificate expires, read by nothing but its structure."""

import base64
from datetime import UTC, datetime

import pytest
from certificates import Authority
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.certificate import expires_at


@pytest.mark.parametrize("year", [2026, 2049, 2050, 2151])  # the form changes with 2050
def test_its_time_is_read_in_both_forms(tmp_path, year):
    until = datetime(year, 12, 31, 23, 59, 58, tzinfo=UTC)
    pem = Authority(tmp_path).issue(until=until).read_bytes()
    assert b"PRIVATE KEY" in pem  # before it, and no matter
    assert expires_at(pem) == until.timestamp()


def test_of_a_chain_the_first_one_counts(tmp_path):
    authority = Authority(tmp_path)
    until = datetime(2031, 2, 3, tzinfo=UTC)
    chain = authority.issue(until=until).read_bytes() + authority.pem
    assert expires_at(chain) == until.timestamp()


def wrapped(data):
    return b"-----BEGIN CERTIFICATE-----\n%b\n-----END CERTIFICATE-----\n" % base64.b64encode(data)


@pytest.mark.parametrize("pem", [b"", b"no certificate", wrapped(b"\x30"), wrapped(b"\x30\x80")])
def test_what_is_none_has_none(pem):
    assert expires_at(pem) is None


@given(st.binary(max_size=200))
def test_rubbish_has_none_whatever_it_is(data):
    assert expires_at(wrapped(data)) is None


def test_a_certificate_that_was_cut_has_none(tmp_path):
    pem = Authority(tmp_path).issue().read_bytes()
    data = base64.b64decode(pem.partition(b"CERTIFICATE-----")[2].partition(b"-----END")[0])
    whole = expires_at(wrapped(data))
    assert whole is not None
    assert {expires_at(wrapped(data[:size])) for size in range(100)} == {None}
