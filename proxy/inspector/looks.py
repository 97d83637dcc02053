"""What is hidden under any name, for what it looks like."""

import re

MASK = "•••"
_LAST = 4  # digits of an account or phone number that are shown

_DIGITS = re.compile(r"\d")
JSON_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_RUN = re.compile(r"(?<![\w.-])[\w.-]{12,}")
_KEYS = re.compile(
    r"npk_\w{6,}|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END[^-]{0,60}-----|$)", re.DOTALL
)
_SCHEME = re.compile(r"(?i)\b(bearer|basic)[ +]{1,8}(?!realm=|error=|scope=)([\w.~+/=-]{6,})")
_USERINFO = re.compile(
    r"(?i)((?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,20}://[^\s/:@]{0,256}):([^\s/@]{1,256})@"
)
# What a message says of a code or a password.
_CODES = r"(?:pin|otp|bvn|nin|cvv|one[- ]time|(?:verification|security) code)"
_SPOKEN = re.compile(rf"(?i)(\b{_CODES}\b[^\d\r\n]{{1,40}})(\d{{3,11}})\b")
_SPOKEN_OF = re.compile(rf"(?i)\b(\d{{4,11}})(?=[^\d\r\n]{{1,20}}\b{_CODES}\b)")
_TOLD = re.compile(
    r"(?i)(\b(?:password|passcode|pin|otp|\w{0,30}secret)\s{1,3}(?:is\s|was\s)?[\"']?)"
    r"((?=\D{0,40}\d)[^\s\"'<>,;:=]{4,})"
)
# Digits in groups, as people write the number of a card.
_CARD = re.compile(r"(?<!\d)\d(?:[ .\u00a0-]{0,2}\d){13,27}(?!\d)")
_GROUP = re.compile(r"\d+")
_NUMBER = re.compile(r"(?<![\w.-])\+?(?:234\d{10}|\d{10,11})(?![\w-]|\.\d)")
_PHONE = re.compile(r"(?<![\w.])(?:\+?234|\(?0)[ -]?\d{3}\)?[ -]?\d{3}[ -]?\d{4}(?!\d)")


def phrases(text: str) -> str:
    """A text without keys, JWTs and credentials, and without the codes that a message tells."""
    if "eyJ" in text:
        text = _RUN.sub(lambda m: _jwt(m[0]), text)
    text = _KEYS.sub(MASK, text)
    text = _SCHEME.sub(rf"\1 {MASK}", text)
    text = userinfo(text)
    text = _SPOKEN.sub(rf"\1{MASK}", text)
    text = _SPOKEN_OF.sub(MASK, text)
    return _TOLD.sub(rf"\1{MASK}", text)


def userinfo(text: str) -> str:
    """A text without the passwords of the URLs in it."""
    return _USERINFO.sub(rf"\1:{MASK}@", text)


def numbers(text: str, *, loose: bool) -> str:
    """A text without the numbers of cards, and with the last digits of accounts and phones only.

    Args:
        text: any.
        loose: whether those that could be of an account or a phone stay.
    """
    text = _cards_out(text)
    if loose:
        return text
    text = _PHONE.sub(lambda m: last_digits(m[0]), text)
    return _NUMBER.sub(lambda m: last_digits(m[0]), text)


def last_digits(text: str) -> str:
    """The mask and the last digits; a text with few of them is hidden whole."""
    digits = _DIGITS.findall(text)
    if not text:
        return text
    return MASK + ("".join(digits[-_LAST:]) if len(digits) >= 2 * _LAST else "")


def _jwt(run: str) -> str:
    """A run of characters without the JWT in it, if there is one (RFC 7519)."""
    start = run.find("eyJ")
    while start >= 0:
        dot = run.find(".", start)
        if dot < 0:
            break
        if dot >= start + 7 and len(run) >= dot + 5:
            return run[:start] + MASK
        start = run.find("eyJ", dot)
    return run


def _cards(text: str) -> str:
    """Digits in groups, without those that are a card's."""
    groups = [(one.start(), one.end()) for one in _GROUP.finditer(text)]
    if len(groups) == 1:  # no more than a card has, but for what stands before it
        found = len(text) <= 19 and any(is_card(text[at:]) for at in range(len(text) - 13))
        return MASK if found else text
    for start, first in groups:
        for _, end in reversed(groups) if first >= start + 4 else ():  # as they are written
            if end > start and is_card(text[start:end]):
                return text[:start] + MASK + _cards_out(text[end:])
    return text


def _cards_out(text: str) -> str:
    return _CARD.sub(lambda m: _cards(m[0]), text)


def is_card(text: str) -> bool:
    """Whether digits are those of a payment card (ISO/IEC 7812: Luhn)."""
    if JSON_NUMBER.fullmatch(text) and not text.isdecimal():  # 4111111111111111.0, …e0
        try:
            value = float(text)
        except (ValueError, OverflowError):
            return False
        text = str(int(value)) if value.is_integer() and abs(value) < 1e20 else ""
    digits = [int(one) for one in _DIGITS.findall(text)]
    if not 14 <= len(digits) <= 19 or digits[0] not in {2, 3, 4, 5, 6}:
        return False
    doubled = [sum(divmod(2 * one, 10)) for one in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
