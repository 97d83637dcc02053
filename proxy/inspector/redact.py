"""What is shown of names and values: which are secret, and what they become.

A text is gone through as it stands and only values are replaced: numbers, spaces and order stay
what they were, and a text that was cut off is masked as far as it goes. A value is masked for
its name (`pin`), or for what it looks like under any name (a card number, a JWT).

Every pattern begins only where a run of its characters does, or is bounded: a body is anybody's,
and what takes time here takes it from everybody.
"""

import base64
import binascii
import html
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote, unquote_plus

import orjson

from proxy.inspector.looks import (
    JSON_NUMBER,
    MASK,
    is_card,
    last_digits,
    numbers,
    phrases,
    userinfo,
)
from proxy.inspector.names import (
    CODINGS,
    NAMED_BY,
    NAMING,
    Mode,
    Names,
    bare,
    decoded,
    holder,
    refers,
)

_SOURCE = re.compile(r"\.(?:java|py|js|ts|go|kt|cs|rb|php)$")  # a place in a program is no name
_ARGUMENT = re.compile(r"-{0,2}[A-Za-z][\w-]{1,40}")

# A JSON text in its tokens; what fits nowhere is a token too, so that none is left out.
TOKEN = re.compile(
    r'"(?:[^"\\]|\\.|\\$)*(?:"|$)|'
    r"'(?:[^'\\\n]|\\.)*'|"
    r"[{}\[\]:,]|[^\s\"{}\[\]:,]+|\s+",
    re.DOTALL,
)
_HELD = NAMED_BY | {"string"}  # elements within one that has a secret's name
_SURROGATE = re.compile("[\ud800-\udfff]")
_HEX_ESCAPE = re.compile(r"\\x([0-9A-Fa-f]{2})")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{10,}={0,2}\s{0,2}")
_BASE64_AFTER = re.compile(r"(base64,\s{0,2})([A-Za-z0-9+/_-]{8,}={0,2})")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
# `name=value` and `name: value`, an element of XML, an input of a form, a part of a multipart body.
_NAMED = re.compile(
    r"""(?<![\w.-])([\w.-]{2,128}(?:\[[\w.-]{0,64}\]){0,4})[)"']?\s{0,20}(?:=>?|:)\s{0,20}\(?(["']?)"""
)
_LINE = re.compile(r"[^\r\n]*")
# To the end of the line, or to what begins like another name.
_VALUE = re.compile(r"""(?:(?!\s{1,3}[A-Za-z][\w.-]{0,63}["']?\s?[=:])[^\r\n&<"'])+""")
_QUOTED = {
    '"': re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL),
    "'": re.compile(r"(?:[^'\\]|\\.)*", re.DOTALL),
}
_ATTRIBUTES = r"""(?:"[^"<]{0,2000}"|'[^'<]{0,2000}'|[^<>"']){0,200}"""
_ELEMENT = re.compile(rf"<((?:[A-Za-z_][\w-]{{0,63}}:)?([A-Za-z_][\w.-]{{0,63}}))({_ATTRIBUTES})>")
_ATTRIBUTE = re.compile(
    r"""(?<![\w.-])([A-Za-z][\w.:-]{0,63})(\s{0,3}=\s{0,3})("[^"]*"|'[^']*'|[^\s>"']+)"""
)
_MULTIPART = re.compile(
    r'(\bname="?((?:[^"\r\n;\\]|\\.){1,64})"?[^\r\n]{0,200}(?:\r?\n[^\r\n]{1,200}){0,6}\r?\n\r?\n)'
    r"(.*?)(?=\r?\n--|$)",
    re.DOTALL,
)


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
        self._patterns = tuple(re.compile(one) for one in patterns)
        self.reveal = reveal
        self._mode = Names(secret=secret, partial=partial).mode

    def is_secret(self, name: bytes) -> bool:
        """Whether a header of this name is cut at once, whoever may see the rest."""
        return self._mode(name.decode("latin-1")) == "whole"

    def mode(self, name: str) -> Mode:
        """What becomes of a value of this name."""
        return "" if self.reveal else self._mode(name)

    def value(self, name: str, value: str) -> str:
        """A value, whatever its name asks for; and in any case what it looks like."""
        return self._masked(self.mode(name), name, value, 0)

    def text(self, text: str, *, loose: bool = False, depth: int = 0) -> str:
        """A text that may hold anything.

        Args:
            text: in itself, or encoded as JSON, Base64 or with percent signs.
            loose: whether numbers that could be those of an account or a phone stay.
            depth: in how many other texts it was found.
        """
        if self.reveal or not text:
            return text
        if depth > CODINGS:
            return MASK
        inner = text.lstrip("\ufeff \t\r\n")
        if inner[:1] in {"{", "["} and len(inner) > 1:
            masked = self.json(text, depth=depth + 1)
            # Prose begins with a bracket too, and what is cut off is no JSON any more.
            return masked if _is_json(inner) else self._plainly(masked, loose=loose)
        if inner[:1] == '"' and (plain := _string(inner)) is not None:
            masked = self.text(plain, loose=loose, depth=depth + 1)
            return text if masked == plain else _as_token('"', masked)
        plainer = _unescaped if '\\"' in text else html.unescape if "&lt;" in text else None
        if plainer is not None:
            # What is coded in another way as well is so in there too, and looked through there.
            plain = plainer(text)
            masked = self.text(plain, loose=loose, depth=depth + 1)
            if masked != plain:
                return masked
        elif _PERCENT.search(text):
            plain = unquote_plus(text)
            if plain != text and self.text(plain, loose=loose, depth=depth + 1) != plain:
                return MASK
        elif _BASE64.fullmatch(text) and self._hides(text, depth + 1):
            return MASK
        return self._plainly(text, loose=loose)

    def target(self, target: str) -> str:
        """A request target: its path and its query."""
        if self.reveal:
            return target
        path, mark, query = target.partition("?")
        if "@" in path:
            path = userinfo(path)
        shown, before = [], ""
        for part in path.split("/"):
            plain = unquote(part)
            masked = self.text(plain)
            if self._mode(before) == "whole" and re.search(r"\d", plain):
                masked = MASK  # /v1/bvn/22123456789
            shown.append(part if masked == plain else _quoted(masked))
            before = plain
        return "/".join(shown) + mark + self.form(query)

    def form(self, text: str) -> str:
        """`name=value` pairs (a query, or a form)."""
        if self.reveal or not text:
            return text
        pairs = [pair.partition("=") for pair in text.split("&")]
        names = [decoded(name) for name, _, _ in pairs]
        named = {
            owner
            for name, (_, _, value) in zip(names, pairs, strict=True)
            for owner, last in (holder(name),)
            if last in NAMING and self._mode(unquote_plus(value)) == "whole"
        }
        shown = []
        for name, (raw, equals, value) in zip(names, pairs, strict=True):
            plain = unquote_plus(value)
            owner, last = holder(name)
            mode = self._mode(name)
            if owner in named and last in NAMED_BY:
                mode = "whole"
            masked = self._masked(mode, name, plain, 0)
            if not equals:
                shown.append(raw if self.text(name) == name else MASK)
            else:
                said = raw if self.text(name, loose=True) == name else MASK
                shown.append(f"{said}={value if masked == plain else _quoted(masked)}")
        return "&".join(shown)

    def json(self, text: str, *, depth: int = 0) -> str:
        """A JSON text, whole or cut off; only values change."""
        if self.reveal:
            return text
        shown: list[str] = []
        # Of each open object or array: what it is, the mode its values have, the name they stand
        # under, whether one of its values is the name of a secret, and where those it names are.
        open_: list[_Frame] = [_Frame("", "", "")]
        name = ""
        mode: Mode = ""
        fresh = False
        tokens = TOKEN.findall(text)
        for at, token in enumerate(tokens):
            kind = token[0]
            if kind in "{[":
                if bare(name) in NAMED_BY:
                    mode = "whole" if open_[-1].naming else mode
                open_.append(_Frame(kind, mode, name))
                fresh = kind == "{"
            elif kind in "}]":
                if len(open_) > 1:
                    frame = open_.pop()
                    mode, name = frame.mode, frame.name
                fresh = False
            elif kind == ",":
                mode, name = open_[-1].mode, open_[-1].name
                fresh = open_[-1].kind == "{"
            elif kind != ":" and not kind.isspace():
                # Where a name belongs, a text is one even if its colon is missing.
                if _is_name(tokens, at) or (fresh and kind == '"'):
                    fresh = False
                    name = _unquoted(token)
                    mode = self._deeper(open_[-1].mode, name)
                    masked = self.text(name, loose=True, depth=depth)
                    shown.append(token if masked == name else _as_token(token, masked))
                    continue
                fresh = False
                frame, plain = open_[-1], _unquoted(token)
                about = bare(name)
                secret = _ARGUMENT.fullmatch(plain) and self._mode(plain.lstrip("-")) == "whole"
                around = open_[-2] if frame.kind == "[" else frame
                if about in NAMED_BY:
                    if around.naming:
                        mode = "whole"
                    around.named.append(len(shown))
                elif about in NAMING and secret:
                    around.naming = True
                    for earlier in around.named:
                        shown[earlier] = f'"{MASK}"'
                    around.named.clear()
                here: Mode = "whole" if frame.kind == "[" and frame.naming else mode
                if frame.kind == "[":  # ["--pin", "1234"], ["X-Api-Key", "…"]
                    frame.naming = bool(secret) and not frame.naming
                shown.append(self._token(token, plain, name, here, depth, strict=len(open_) > 1))
                continue
            shown.append(token)
        return "".join(shown)

    # -- one value ---------------------------------------------------------------------------

    def _masked(self, mode: Mode, name: str, value: str, depth: int) -> str:
        if mode == "whole":
            return MASK if value else value
        if mode == "part":
            return last_digits(value)
        return self.text(value, loose=refers(name), depth=depth)

    def _token(
        self, token: str, plain: str, name: str, mode: Mode, depth: int, *, strict: bool
    ) -> str:
        if token in {"true", "false", "null"}:
            return token
        if JSON_NUMBER.fullmatch(token):
            masked = plain
            if mode:
                masked = self._masked(mode, name, plain, depth)
            elif is_card(plain):
                masked = MASK
            if masked == plain:
                return token
            return f'"{masked}"' if strict else masked
        masked = self._masked(mode, name, plain, depth)
        return token if masked == plain else _as_token(token, masked)

    def _plainly(self, text: str, *, loose: bool) -> str:
        text = phrases(text)
        if "base64," in text:
            text = _BASE64_AFTER.sub(
                lambda m: m[1] + (MASK if self._hides(m[2], CODINGS - 1) else m[2]), text
            )
        if "name=" in text:
            text = _MULTIPART.sub(lambda m: m[1] + self._paired(m[2], m[3]), text)
        if "<" in text:
            text = self._elements(text)
        text = self._pairs(text)
        text = numbers(text, loose=loose)
        for pattern in self._patterns:
            text = pattern.sub(MASK, text)
        return text

    def _pairs(self, text: str) -> str:
        shown: list[str] = []
        done = 0
        for found in _NAMED.finditer(text):
            name = found[1]
            if found.start() < done or not self._mode(name) or _SOURCE.search(name):
                continue
            pattern = _QUOTED[found[2]] if found[2] else _VALUE
            whole = "ookie" in name or text[found.end() : found.end() + 1] in {"[", "{"}
            if whole and not found[2]:
                pattern = _LINE
            value = pattern.match(text, found.end())
            if value is not None and value[0] and not value[0].startswith(MASK):
                shown += (text[done : found.end()], self._paired(found[1], value[0]))
                done = value.end()
        return "".join((*shown, text[done:])) if done else text

    def _elements(self, text: str) -> str:
        """XML and HTML: what an element or an input of a secret name holds."""
        shown: list[str] = []
        done = 0
        naming = False  # <name>pin</name><value>1234</value>
        holds = False  # <field name="pin"><value>1234</value></field>
        for found in _ELEMENT.finditer(text):
            if found.start() < done:
                continue
            inside, about = found[3], bare(found[2])
            whole = self._mode(found[2]) == "whole" or (naming and about in NAMED_BY)
            named = any(
                self._mode(one[3].strip("\"'")) == "whole" for one in _named_attributes(inside)
            )
            secret = whole or named or (holds and about in _HELD)
            attributes = _ATTRIBUTE.sub(
                lambda m, secret=secret: self._attribute(m, secret=secret), inside
            )
            shown += (text[done : found.start()], f"<{found[1]}{attributes}>")
            done = found.end()
            if naming and about in NAMED_BY:
                naming = False
            if secret and not inside.endswith("/") and about not in {"input", "meta"}:
                # What only carries a secret's name may hold a page: its own text is hidden then.
                end = text.find(f"</{found[1]}" if whole else "<", done)
                end = len(text) if end < 0 else end
                said = text[done:end]
                shown.append(MASK if said.strip() else said)
                done = end
                holds = named and not (whole or said.strip()) and text[end : end + 2] != "</"
                continue
            holds = False
            if about in NAMING:
                end = text.find("<", done)
                said = text[done : len(text) if end < 0 else end].strip()
                naming = self._mode(said) == "whole"
            elif self._mode(found[2]) == "part":
                end = text.find("<", done)
                end = len(text) if end < 0 else end
                shown.append(last_digits(text[done:end]))
                done = end
        return "".join((*shown, text[done:]))

    def _attribute(self, found: re.Match[str], *, secret: bool) -> str:
        lower = found[1].lower()
        hidden = self._mode(found[1]) == "whole" or (secret and lower in {"value", "content"})
        return f'{found[1]}{found[2]}"{MASK}"' if hidden else found[0]

    def _paired(self, name: str, value: str) -> str:
        mode = self._mode(name)
        if mode == "whole":
            return MASK
        return last_digits(value) if mode == "part" else value

    def _hides(self, text: str, depth: int) -> bool:
        """Whether a text is Base64 of one that would be masked."""
        packed = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
        try:
            data = base64.b64decode(packed + "=" * (-len(packed) % 4))
            plain = data.decode("utf-16" if b"\0" in data[:4] else "utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return False
        readable = all(one.isprintable() or one.isspace() for one in plain)
        return readable and self.text(plain, depth=depth) != plain

    def _deeper(self, outer: Mode, name: str) -> Mode:
        own = self._mode(name)
        return "whole" if "whole" in {outer, own} else own


class _Frame:
    """An open object or array of a JSON text."""

    __slots__ = ("kind", "mode", "name", "named", "naming")

    def __init__(self, kind: str, mode: Mode, name: str) -> None:
        self.kind = kind
        self.mode = mode
        self.name = name
        self.naming = False
        self.named: list[int] = []


def _named_attributes(inside: str) -> list[re.Match[str]]:
    naming = {"name", "id", "key", "type"}
    return [one for one in _ATTRIBUTE.finditer(inside) if one[1].lower() in naming]


def _string(text: str) -> str | None:
    """What a text says that is a JSON string; None if it is none."""
    try:
        plain = json.loads(text, strict=False)
    except ValueError:
        return None
    return plain if isinstance(plain, str) else None


def _unescaped(text: str) -> str:
    """JSON within a text: its quotes are escaped, its backslashes too."""
    return text.replace("\\\\", "\\").replace('\\"', '"')


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True


def _is_name(tokens: list[str], at: int) -> bool:
    """Whether a token is the name of what follows it: a colon does."""
    after = at + 1
    while after < len(tokens) and tokens[after].isspace():
        after += 1
    return after < len(tokens) and tokens[after] == ":"


def _as_token(token: str, masked: str) -> str:
    """What is masked, in quotes if it was."""
    if token[0] != '"':
        return masked
    return json.dumps(masked, ensure_ascii=_SURROGATE.search(masked) is not None)


def _quoted(text: str) -> str:
    """A text in a target; the mask stays what it is, to be seen."""
    parts = text.split(MASK)
    return MASK.join(quote(part, safe="+:@!$'()*,~", errors="replace") for part in parts)


def _unquoted(token: str) -> str:
    """What a JSON string says; as much as can be read of one that is cut off or faulty."""
    if token[0] != '"':
        return token.strip("'") if token[0] == "'" else token
    try:
        plain = json.loads(token, strict=False)
    except ValueError:
        return _HEX_ESCAPE.sub(lambda m: chr(int(m[1], 16)), token.strip('"'))
    return plain if isinstance(plain, str) else token
