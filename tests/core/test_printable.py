"""What a terminal gets of what others wrote."""

import json
import sys
import unicodedata

import pytest

from proxy.core.printable import printable

DIRECTION = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"


@pytest.mark.parametrize(
    "one", [*map(chr, (*range(0x20), *range(0x7F, 0xA0))), *DIRECTION, "\u2028", "\ud800"]
)
def test_what_a_terminal_acts_on_stands_there_as_its_number(one):
    assert printable(f"a{one}b") == f"a\\u{ord(one):04x}b"


def test_newlines_stay_only_where_they_are_meant():
    assert printable("a\nb") == "a\\u000ab"
    assert printable("a\r\nb\t", lines=True) == "a\\u000d\nb\\u0009"


@pytest.mark.parametrize(
    "text", ["", "plain", "naïve ₦5,000 “ok” ✓ …", "日本語", "\N{GRINNING FACE}"]
)
def test_what_people_write_stays(text):
    assert printable(text) == text


def test_nothing_that_has_no_sign_of_its_own_comes_through():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    found = {unicodedata.category(one) for one in printable(every)}
    assert not found & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_json_stays_json_and_says_the_same():
    value = {"text": "\x1b[2J\x7f\x9b\u202e\n"}
    shown = printable(json.dumps(value, indent=2), lines=True)
    assert json.loads(shown) == value
    assert "\x7f" not in shown
