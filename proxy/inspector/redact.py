"""What is shown of names and values: which are secret, and what they become.

A text is gone through as it stands and only values are replaced: numbers, spaces and order stay
what they were, and a text that was cut off is masked as far as it goes. A value is masked for
its name (`pin`), or for what it looks like under any name (a card number, a JWT).
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal
from urllib.parse import quote, unquote, unquote_plus

MASK = "•••"
_LAST = 4  # digits of an account or phone number that are shown

Mode = Literal["", "part", "whole"]

# Compared by letters and digits only, lower case. These anywhere in a name …
_SECRET_PARTS = (
    *("secret", "password", "passwd", "passphrase", "passcode", "pincode", "token", "authoriz"),
    *("authoris", "signature", "apikey", "privatekey", "signingkey", "proxykey", "cookie"),
    *("credential", "cardnumber", "cardno", "cardpan", "maskedpan", "securitycode", "cvv", "jwt"),
    *("bearer", "bankverification", "nationalid"),
)
# … these as a word of it (`cardPin`, `otp_code`) or at its end (`transactionpin`) …
_SECRET_WORDS = frozenset(
    {"pin", "pins", "otp", "otps", "cvc", "cvc2", "bvn", "nin", "pan", "pwd", "csc"}
)
_SECRET_ENDS = ("pin", "otp", "bvn", "cvc", "pwd")
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
# References look like numbers at times, and are what one looks for.
_REFERENCES = re.compile(r"(?i)(?:ref|reference|id|rrn|time|date|timestamp)$")

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+\d?|\d+")
_TOKENIZED = re.compile(r"tokeni[sz](?:ed?|ation)?")
_NO_LETTERS = re.compile(r"[^a-z0-9]+")
_DIGITS = re.compile(r"\d")

# A JSON text in its tokens; what fits nowhere is a token too, so that none is left out.
TOKEN = re.compile(r'"(?:[^"\\]|\\.|\\$)*(?:"|$)|[{}\[\]:,]|[^\s"{}\[\]:,]+|\s+', re.DOTALL)
_JSON_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")

_JWT = re.compile(r"\beyJ[\w-]{4,}\.[\w-]{4,}(?:\.[\w-]*)?")
_KEYS = re.compile(
    r"\bnpk_\w{6,}|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END[^-]*-----|$)", re.DOTALL
)
_SCHEME = re.compile(r"(?i)\b(bearer|basic)[ +]+([\w.~+/=-]{6,})")
_USERINFO = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s/:@]*):([^\s/@]+)@")
_CARD = re.compile(r"(?<!\d)[2-6]\d{3}(?:[ -]?\d){10,15}(?!\d)")
_NUMBER = re.compile(r"(?<![\w.-])\+?(?:234\d{10}|0\d{10}|\d{10})(?![\w-]|\.\d)")
# `name=value` and `name: value`, `<name>value<`, and the parts of a multipart body.
_NAMED = re.compile(r"""([A-Za-z][\w.-]{1,63})["']?\s{0,3}[=:]\s{0,3}["']?""")
_VALUE = re.compile(r"""[^\s"'&,;<>{}\[\]]+""")
_ELEMENT = re.compile(r"(<(?:[\w-]{1,64}:)?([\w.-]{1,64})(?:\s[^<>]{0,500})?>)([^<>]+)(?=<)")
_MULTIPART = re.compile(r'(name="([^"\r\n]{1,64})"[^\r\n]*(?:\r?\n[^\r\n]+)*\r?\n\r?\n)([^\r\n]*)')


class Redactor:
    """Masks.

    Args:
        secret: further names whose values are hidden.
        partial: further names whose values are shown by their last digits.
        patterns: regular expressions of what is hidden under any name.
        reveal: mask nothing at all.
    """

    def __init__(
        self,
        *,
        secret: Iterable[str] = (),
        partial: Iterable[str] = (),
        patterns: Iterable[str] = (),
        reveal: bool = False,
    ) -> None:
        self._secret = tuple(filter(None, map(_plain, secret)))
        self._partial = tuple(filter(None, map(_plain, partial)))
        self._patterns = tuple(re.compile(one) for one in patterns)
        self.reveal = reveal
        self._mode: Callable[[str], Mode] = lru_cache(4096)(self._decide)

    def is_secret(self, name: bytes) -> bool:
        """Whether a header of this name is cut at once, whoever may see the rest."""
        return self._decide(name.decode("latin-1")) == "whole"

    def mode(self, name: str) -> Mode:
        """What becomes of a value of this name."""
        return "" if self.reveal else self._mode(name[:256])

    def value(self, name: str, value: str) -> str:
        """A value, whatever its name asks for; and in any case what it looks like."""
        mode = self.mode(name)
        if mode == "whole":
            return MASK if value else value
        if mode == "part":
            return _last_digits(value)
        return self.text(value, loose=bool(_REFERENCES.search(name)))

    def text(self, text: str, *, loose: bool = False) -> str:
        """A text that may hold anything.

        Args:
            text: in itself, or encoded as JSON, Base64 or with percent signs.
            loose: whether numbers that could be those of an account or a phone stay.
        """
        if self.reveal or not text:
            return text
        inner = text.lstrip()
        if inner[:1] in {"{", "["} and len(inner) > 1:
            return self.json(text)
        if _PERCENT.search(text):
            plain = unquote_plus(text)
            if plain != text and self.text(plain, loose=loose) != plain:
                return MASK
        elif _BASE64.fullmatch(text) and self._hides(text):
            return MASK
        return self._plainly(text, loose=loose)

    def target(self, target: str) -> str:
        """A request target: its path and its query."""
        path, mark, query = target.partition("?")
        shown = "/".join(
            part if (plain := unquote(part)) == (masked := self.text(plain)) else _quoted(masked)
            for part in path.split("/")
        )
        return shown + mark + self.form(query)

    def form(self, text: str) -> str:
        """`name=value` pairs (a query, or a form)."""
        if self.reveal or not text:
            return text
        shown = []
        for pair in re.split(r"([&;])", text):
            name, equals, value = pair.partition("=")
            plain = unquote_plus(value)
            masked = self.value(unquote_plus(name), plain)
            if not equals:
                shown.append(pair if self.text(unquote_plus(name)) == unquote_plus(name) else MASK)
            else:
                shown.append(pair if masked == plain else f"{name}={_quoted(masked)}")
        return "".join(shown)

    def json(self, text: str) -> str:
        """A JSON text, whole or cut off; only values change."""
        if self.reveal:
            return text
        shown: list[str] = []
        # Of each open object or array: the mode its values have, and the name they stand under.
        open_: list[tuple[str, Mode, str]] = []
        name = ""
        mode: Mode = ""
        key_next = False
        for token in TOKEN.findall(text):
            kind = token[0]
            if kind in "{[":
                open_.append((kind, mode, name))
                key_next = kind == "{"
            elif kind in "}]":
                if open_:
                    _, mode, name = open_.pop()
                key_next = False
            elif kind == ",":
                if open_:
                    kind_of, mode, name = open_[-1]
                    key_next = kind_of == "{"
            elif kind == ":":
                key_next = False
            elif kind == '"':
                if key_next and open_:
                    name = _unquoted(token)
                    mode, key_next = self._deeper(open_[-1][1], name), False
                    masked = self.text(name, loose=True)
                    shown.append(
                        token if masked == name else json.dumps(masked, ensure_ascii=False)
                    )
                    continue
                shown.append(self._json_string(token, name, mode))
                continue
            elif not kind.isspace() and key_next and open_:  # a key without quotes is no JSON
                name = token.strip("'")
                mode, key_next = self._deeper(open_[-1][1], name), False
                shown.append(self.text(token, loose=True))
                continue
            elif not kind.isspace():
                shown.append(self._json_literal(token, name, mode, strict=bool(open_)))
                continue
            shown.append(token)
        return "".join(shown)

    # -- one value ---------------------------------------------------------------------------

    def _json_string(self, token: str, name: str, mode: Mode) -> str:
        plain = _unquoted(token)
        if mode == "whole":
            masked = MASK if plain else plain
        elif mode == "part":
            masked = _last_digits(plain)
        else:
            masked = self.text(plain, loose=bool(_REFERENCES.search(name)))
        return token if masked == plain else json.dumps(masked, ensure_ascii=False)

    def _json_literal(self, token: str, name: str, mode: Mode, *, strict: bool) -> str:
        if token in {"true", "false", "null"}:
            return token
        number = _JSON_NUMBER.fullmatch(token) is not None
        quotes = '"' if number and strict else ""
        if mode == "whole":
            return f"{quotes}{MASK}{quotes}"
        if mode == "part":
            return f"{quotes}{_last_digits(token)}{quotes}"
        if number:
            return f"{quotes}{MASK}{quotes}" if _is_card(token) else token
        return self.text(token, loose=bool(_REFERENCES.search(name)))

    def _plainly(self, text: str, *, loose: bool) -> str:
        text = _JWT.sub(MASK, text)
        text = _KEYS.sub(MASK, text)
        text = _SCHEME.sub(rf"\1 {MASK}", text)
        text = _USERINFO.sub(rf"\1:{MASK}@", text)
        if '"' in text:
            text = _MULTIPART.sub(lambda m: m[1] + self._paired(m[2], m[3]), text)
        if "<" in text:
            text = _ELEMENT.sub(lambda m: m[1] + self._paired(m[2], m[3]), text)
        text = self._pairs(text)
        text = _CARD.sub(lambda m: MASK if _is_card(m[0]) else m[0], text)
        if not loose:
            text = _NUMBER.sub(lambda m: _last_digits(m[0]), text)
        for pattern in self._patterns:
            text = pattern.sub(MASK, text)
        return text

    def _pairs(self, text: str) -> str:
        shown: list[str] = []
        done = 0
        for found in _NAMED.finditer(text):
            if found.start() < done or not self._mode(found[1]):
                continue
            value = _VALUE.match(text, found.end())
            if value is not None:
                shown += (text[done : found.end()], self._paired(found[1], value[0]))
                done = value.end()
        return "".join((*shown, text[done:])) if done else text

    def _paired(self, name: str, value: str) -> str:
        mode = self._mode(name[:256])
        if mode == "whole":
            return MASK
        return _last_digits(value) if mode == "part" else value

    def _hides(self, text: str) -> bool:
        """Whether a text is Base64 of one that would be masked."""
        padded = text.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            plain = base64.b64decode(padded + "=" * (-len(padded) % 4)).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return plain.isprintable() and self.text(plain) != plain

    def _deeper(self, outer: Mode, name: str) -> Mode:
        own = self._mode(name[:256])
        return "whole" if "whole" in {outer, own} else outer or own

    def _decide(self, name: str) -> Mode:
        plain = _plain(name)
        if any(one in plain for one in self._secret):
            return "whole"
        words = {one.lower() for one in _WORDS.findall(name)}
        card = _TOKENIZED.sub("", plain)  # a tokenized card's data is no token
        named = any(one in card for one in _SECRET_PARTS)
        if named or words & _SECRET_WORDS or plain.endswith(_SECRET_ENDS):
            return "" if plain.endswith(_ABOUT) else "whole"
        if any(one in plain for one in (*_PARTIAL_PARTS, *self._partial)):
            return "part"
        return ""


def _plain(name: str) -> str:
    return _NO_LETTERS.sub("", name.lower())


def _quoted(text: str) -> str:
    """A text in a target; the mask stays what it is, to be seen."""
    return MASK.join(quote(part, safe="+:@!$'()*,~") for part in text.split(MASK))


def _unquoted(token: str) -> str:
    """What a JSON string says; as much as can be read of one that is cut off or faulty."""
    try:
        plain = json.loads(token, strict=False)
    except ValueError:
        return token.strip('"')
    return plain if isinstance(plain, str) else token


def _last_digits(text: str) -> str:
    """The mask and the last digits; a text with few of them is hidden whole."""
    digits = _DIGITS.findall(text)
    if not text:
        return text
    return MASK + ("".join(digits[-_LAST:]) if len(digits) >= 2 * _LAST else "")


def _is_card(text: str) -> bool:
    """Whether digits are those of a payment card (ISO/IEC 7812: Luhn)."""
    digits = [int(one) for one in _DIGITS.findall(text)]
    if not 14 <= len(digits) <= 19 or digits[0] not in {2, 3, 4, 5, 6} or "." in text:
        return False
    doubled = [sum(divmod(2 * one, 10)) for one in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
