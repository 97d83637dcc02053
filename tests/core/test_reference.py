"""The reference that a request of unknown fate is asked for again by."""

import json

import pytest

from proxy.core.reference import find_reference


@pytest.mark.parametrize(
    "body",
    [
        {"amount": 1, "merchantTxRef": "ref-1"},
        {"order": {"amount": "1", "orderReference": "ref-1"}},
        {"idempotencyKey": "ref-1"},
        {"merchantTxRef": 7, "idempotencyKey": "ref-1"},
    ],
)
def test_it_is_found_where_the_endpoint_table_says(body):
    assert find_reference(json.dumps(body).encode()) == "ref-1"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[1]",
        b"7",
        b"{}",
        b'{"order": "ref-1"}',
        b'{"merchantTxRef": null}',
        b'{"merchantTxRef": "two words"}',
        b'{"merchantTxRef": "a\\u0000b"}',
        b'{"merchantTxRef": "' + b"x" * 65 + b'"}',
        b"[" * 100_000,
        b'{"password": "merchantTxRef"}',
    ],
)
def test_what_is_none_is_none(body):
    assert find_reference(body) == ""
