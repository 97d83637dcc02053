"""Which names have secret values, in whatever way they are written."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote_plus

Mode = Literal["", "part", "whole"]

CODINGS = 5  # within each other that are looked through; beyond, a value is hidden whole
_REMEMBERED = 256  # characters of a name that is remembered

# Compared by letters and digits only, lower case. These anywhere in a name …
_SECRET_PARTS = (
    *("secret", "password", "passwd", "passphrase", "passcode", "userpass", "token", "authoriz"),
    *("authoris", "authcode", "authkey", "xauth", "signature", "hmac", "xhubsig", "nombasig"),
    *("apikey", "accesskey", "privatekey", "signingkey", "encryptionkey", "proxykey", "cookie"),
    *("credential", "cardnumber", "cardnum", "cardno", "cardpan", "maskedpan", "securitycode"),
    *("track1", "track2", "trackdata", "cvv", "bvn", "jwt", "bearer", "verificationcode"),
    *("bankverification", "nationalid", "identitynumber", "smscode", "verifycode", "passkey"),
    *("codeverifier", "mackey"),
)
# … these as a word of it (`cardPin`, `otp_code`) or, with what may follow, at its end …
_SECRET_WORDS = frozenset(
    {"pin", "pins", "otp", "otps", "cvc", "cvn", "nin", "pan", "pwd", "csc", "pass", "sig"}
)
_SECRET_ENDS = re.compile(
    r"(?:pin|otp|cvc|cvn|nin|pwd)(?:s|\d{1,2}|code|number|num|no|block|value|data|hash)?$"
)
# … unless it is only about them.
_ABOUT = (
    *("type", "version", "algorithm", "status", "length", "count", "expiry", "expires"),
    *("expiresat", "expiresin", "expiration", "lifetime"),
)
# Shown by their last digits.
_PARTIAL_PARTS = (
    *("accountnumber", "accountno", "acctnumber", "acctno", "accountnum", "nuban", "iban"),
    *("phone", "mobile", "msisdn", "telephone", "whatsapp"),
)
_PARTIAL_NAMES = frozenset({"account", "acct", "tel", "destinationaccount", "sourceaccount"})
# `{"name": "pin", "value": "1234"}`: the name of a value can be a value itself.
NAMING = frozenset(
    {
        *("name", "key", "k", "field", "fieldname", "label", "id", "param", "parameter"),
        *("type", "loc", "header"),
    }
)
NAMED_BY = frozenset(
    {
        *(
            "value",
            "val",
            "v",
            "values",
            "fieldvalue",
            "rejectedvalue",
            "rejected",
            "answer",
            "content",
        ),
        *("data", "text", "input", "received", "actual"),
    }
)
# References look like numbers at times, and are what one looks for.
_REFERENCES = re.compile(
    r"(?i)(?:ref|reference|id|rrn|time|date|timestamp|epoch|at|reset|expires|since|until)$"
)

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_TOKENIZED = re.compile(r"tokeni[sz](?:ed?|ation)?")
_NO_LETTERS = re.compile(r"[^a-z0-9]+")
_BRACKETS = re.compile(r"[\[\].]+")


class Names:
    """What becomes of a value for the name it has.

    Args:
        secret: further names whose values are hidden.
        partial: further names whose values are shown by their last digits.
    """

    def __init__(self, *, secret: Iterable[str], partial: Iterable[str]) -> None:
        self._secret = tuple(filter(None, map(bare, secret)))
        self._partial = tuple(filter(None, map(bare, partial)))
        self._remembered: Callable[[str], Mode] = lru_cache(4096)(self._decide)

    def mode(self, name: str) -> Mode:
        """Whether a value of this name is shown, or its last digits only, or nothing of it."""
        return self._remembered(name) if len(name) <= _REMEMBERED else self._decide(name)

    def _decide(self, name: str) -> Mode:
        letters = bare(name)
        if any(one in letters for one in self._secret):
            return "whole"
        words = {one.lower() for one in _WORDS.findall(unicodedata.normalize("NFKC", name))}
        card = _TOKENIZED.sub("", letters)  # a tokenized card's data is no token
        named = any(one in card for one in _SECRET_PARTS)
        if named or words & _SECRET_WORDS or _SECRET_ENDS.search(letters):
            return "" if letters.endswith(_ABOUT) else "whole"
        if letters in _PARTIAL_NAMES or any(
            one in letters for one in (*_PARTIAL_PARTS, *self._partial)
        ):
            return "part"
        return ""


def bare(name: str) -> str:
    """Its letters and digits, lower case."""
    if not name.isascii():
        name = unicodedata.normalize("NFKC", name)
    return _NO_LETTERS.sub("", name.lower())


def decoded(name: str) -> str:
    """A name, however often it was encoded."""
    for _ in range(CODINGS):
        before, name = name, unquote_plus(name)
        if name == before:
            break
    return name


def holder(name: str) -> tuple[str, str]:
    """What a name of a form belongs to, and its last part: `p[0][name]` is `name` of `p 0`."""
    parts = [one for one in _BRACKETS.split(name) if one]
    return " ".join(parts[:-1]), bare(parts[-1]) if parts else ""


def refers(name: str) -> bool:
    """Whether it is that of a reference or a time, whose values may look like account numbers."""
    return _REFERENCES.search(name) is not None
