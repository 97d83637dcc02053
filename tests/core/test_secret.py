import copy
import json
import logging
import pickle
import traceback
from dataclasses import asdict, dataclass

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.core.secret import Imprint, Secret, SecretMisuse, mask

ORIGIN = "https://api.nomba.com"
MARK = "MARKED-SECRET-1234567890"


@pytest.fixture
def secret():
    return Secret(MARK, origin=ORIGIN)


def test_a_secret_is_revealed_to_its_own_origin(secret):
    assert secret.reveal(to=ORIGIN) == MARK


@pytest.mark.parametrize(
    "other",
    [
        "https://sandbox.nomba.com",
        "http://api.nomba.com",
        "https://api.nomba.com/",
        "https://api.nomba.com:443",
        "https://API.nomba.com",
        "https://api.nomba.com.evil.example",
        "",
    ],
)
def test_a_secret_is_revealed_to_nobody_else(secret, other):
    with pytest.raises(SecretMisuse) as caught:
        secret.reveal(to=other)
    assert MARK not in str(caught.value)


@pytest.mark.parametrize(
    "show",
    [
        str,
        repr,
        ascii,
        "{}".format,
        "{!r:>40}".format,
        "{:>100}".format,
        lambda one: f"{one}{one!r}{one:s}",
        lambda one: "%s %r" % (one, one),  # noqa: UP031 - this is how loggers print
        lambda one: str([one, {"key": one}]),
        lambda one: "".join(traceback.format_exception(ValueError(one))),
        lambda one: logging.makeLogRecord({"msg": "%s", "args": (one,)}).getMessage(),
        lambda one: json.dumps(one, default=str),
        lambda one: orjson.dumps({"a": one}, default=repr).decode(),
    ],
)
def test_a_secret_does_not_print(secret, show):
    assert MARK not in show(secret)


def test_a_secret_does_not_print_as_part_of_a_dataclass(secret):
    @dataclass
    class Holder:
        secret: Secret

    assert "***" in repr(Holder(secret))
    assert MARK not in repr(Holder(secret))


@pytest.mark.parametrize(
    "leak", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, orjson.dumps, vars]
)
def test_a_secret_is_not_serialised_or_copied(secret, leak):
    with pytest.raises(TypeError) as caught:
        leak(secret)
    assert MARK not in str(caught.value)


def test_a_dataclass_with_a_secret_is_not_turned_into_a_dictionary(secret):
    @dataclass
    class Holder:
        secret: Secret

    with pytest.raises(TypeError):
        asdict(Holder(secret))


def test_secrets_are_equal_by_value_and_origin(secret):
    assert secret == Secret(MARK, origin=ORIGIN)
    assert secret != Secret(MARK, origin="https://sandbox.nomba.com")
    assert secret != Secret("other", origin=ORIGIN)
    assert secret != MARK


def test_whatever_is_no_secret_is_compared_without_a_fault(secret):
    assert secret.holds(MARK)
    for text in ("", MARK[:-1], "é", "\udcff\udcfe", "\ud800"):
        assert not secret.holds(text)


def test_a_secret_is_no_key(secret):
    with pytest.raises(TypeError):
        hash(secret)


def test_an_empty_secret_is_false(secret):
    assert secret
    assert not Secret("", origin=ORIGIN)


def test_a_digest_tells_secrets_apart_without_naming_them(secret):
    assert secret.digest() == Secret(MARK, origin="x").digest()
    assert secret.digest() != Secret(MARK + "!", origin=ORIGIN).digest()
    assert len(secret.digest()) == 12


@given(st.text(min_size=4))
def test_no_secret_shows_in_its_text(value):
    secret = Secret(value, origin=ORIGIN)
    assume(value not in "Secret(***)")
    assert value not in f"{secret} {secret!r}"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("", "…"),
        ("short", "…"),
        ("elevenchars", "…"),
        ("twelve-chars", "twel…hars"),
        ("0b0b0b0b-0000-4000-8000-acc000000001", "0b0b…0001"),
    ],
)
def test_a_mask_shows_the_ends_of_long_texts_only(text, masked):
    assert mask(text) == masked


TEXTS = st.text(st.sampled_from("ab\u00e9\u2022\ud800"), max_size=40)


@given(TEXTS, st.lists(st.tuples(st.sampled_from(["abbaab", "aaaaaa", "ab"]), TEXTS), max_size=4))
@pytest.mark.parametrize("value", ["abbaab", "aaaaaa", "ab"])
def test_an_imprint_masks_what_the_secret_would(value, before, parts):
    text = before + "".join(secret + after for secret, after in parts)
    secret = Secret(value, origin=ORIGIN)
    assert secret.imprint().veil(text, "\u2022") == secret.veil(text, "\u2022")


def test_an_imprint_does_not_hold_the_secret(secret):
    imprint = secret.imprint()
    assert MARK not in repr(imprint)
    assert imprint == Secret(MARK, origin="https://elsewhere").imprint()
    assert imprint.digest != Secret(MARK[::-1], origin=ORIGIN).imprint().digest
    assert Imprint(imprint.length, imprint.total, "0" * 64).veil(MARK, "***") == MARK
