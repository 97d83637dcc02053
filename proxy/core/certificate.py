"""The names in a caller's certificate, and the patterns that callers are known by.

    subject:CN=billing,O=Acme      every attribute named is in the subject, with that value
    dns:billing.internal           a dNSName of the subjectAltName, in any case
    uri:spiffe://acme/billing      a URI of it, to the byte
    email:ops@acme.example         an rfc822Name of it; what is behind the @ in any case

What a certificate says is a set of single names (`subject:CN=billing`, `subject:O=Acme`,
`dns:…`), and so is a pattern: it fits if all of its names are there. Values are compared as they
are: with a NUL, a wildcard or a letter that only looks alike it is another name.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

# OpenSSL's name, and what people write for it (RFC 4514 section 3, or OpenSSL's short name). Not
# SN: that is a surname, and is taken for the serial number.
_SHORT = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "postalCode": "postalCode",
    "emailAddress": "emailAddress",
    "serialNumber": "serialNumber",
    "userId": "UID",
    "domainComponent": "DC",
    "title": "title",
    "dnQualifier": "dnQualifier",
    "organizationIdentifier": "organizationIdentifier",
}
_WRITTEN = {one.lower(): short for long, short in _SHORT.items() for one in (long, short)}
_KINDS = {"DNS": "dns", "URI": "uri", "email": "email"}
_ESCAPE = re.compile(r"\\([\\, ])")
_PART = re.compile(r"(?:\A|,)((?:[^\\,]|\\.)*)", re.DOTALL)
_VALUE = re.compile(r" *((?:[^\\]|\\.)*?) *", re.DOTALL)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_VERSION, _UTC_TIME = 0xA0, 0x17  # tags in DER (X.690)
_DNS = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{0,62}[a-z_-][a-z0-9_-]{0,62}")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_EMAIL = re.compile(r"[!-?A-~]+@[!-?A-~]+")


@dataclass(frozen=True, slots=True)
class CertificatePattern:
    """What a caller's certificate has to say.

    Attributes:
        text: as it was written.
        names: all of them have to be in it; there is at least one.
    """

    text: str
    names: frozenset[str]


def names_of(found: Mapping[str, Any]) -> frozenset[str]:
    """The names in a certificate; those that no pattern can ask for are left out.

    Args:
        found: what `ssl.SSLObject.getpeercert` says of a verified certificate.
    """
    names = {
        f"subject:{_SHORT[attribute]}={value}"
        for several in found.get("subject", ())  # one place may hold several (RFC 5280, 4.1.2.4)
        for attribute, value in several
        if attribute in _SHORT
    }
    names |= {
        _alternative(_KINDS[sort], value)
        for sort, value in found.get("subjectAltName", ())
        # They are ASCII (RFC 5280 section 4.2.1.6). What is not may become it in lower case.
        if sort in _KINDS and value.isascii()
    }
    return frozenset(names)


def expires_at(pem: bytes) -> float | None:
    """When the first certificate in PEM expires, in epoch seconds; None if it cannot be read.

    Only its `notAfter` is looked for (RFC 5280 section 4.1): whether it is any good is for those to
    find who use it.
    """
    found = _PEM.search(pem)
    if found is None:
        return None
    try:
        _, certificate, _ = _element(base64.b64decode(found[1]))
        _, rest, _ = _element(certificate)
        tag, _, behind = _element(rest)
        if tag == _VERSION:
            rest = behind
        for _ in range(3):  # the serial number, the algorithm, the issuer
            rest = _element(rest)[2]
        _, validity, _ = _element(rest)
        tag, value, _ = _element(_element(validity)[2])
        text = value.decode("ascii")
        if tag == _UTC_TIME:  # two digits of the year: until 2049
            text = ("19" if text >= "5" else "20") + text
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except (ValueError, IndexError, binascii.Error):
        return None


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """The tag and content of the first element in DER, and what is behind it."""
    tag, length, at = data[0], data[1], 2
    if length >= 0x80:
        at += length - 0x80
        length = int.from_bytes(data[2:at])
    return tag, data[at : at + length], data[at + length :]


def parse_pattern(text: str) -> CertificatePattern:
    """Read a pattern.

    Raises:
        ValueError: it is none; the text says why and what to write.
    """
    kind, _, value = text.partition(":")
    kind, value = kind.strip().lower(), value.strip(" ")
    if kind == "subject":
        # Not without its spaces: the last one can be escaped.
        return CertificatePattern(text, frozenset(_attributes(text.partition(":")[2])))
    if kind == "dns":
        if not _DNS.fullmatch(value.lower()) or not value.isascii():
            raise ValueError(
                "write a whole name as the certificate has it, without *, without a dot at its "
                "end, xn--… where it is not ASCII, and no address: dns:billing.internal"
            )
    elif kind == "uri":
        if not _URI.fullmatch(value):
            raise ValueError("write a URI as the certificate has it: uri:spiffe://acme/billing")
    elif kind == "email":
        if not _EMAIL.fullmatch(value):
            raise ValueError("write an address as the certificate has it: email:ops@acme.example")
    else:
        raise ValueError("write subject:CN=NAME,O=NAME, dns:NAME, uri:URI or email:ADDRESS")
    return CertificatePattern(text, frozenset({_alternative(kind, value)}))


def pattern_text(name: str) -> str:
    """The pattern for one of the names of a certificate."""
    attribute, equals, value = name.partition("=")
    if not attribute.startswith("subject:"):
        return name
    escaped = re.sub(r"[\\,]|\A +| +\Z", lambda one: re.sub(r"(.)", r"\\\1", one[0]), value)
    return f"{attribute}{equals}{escaped}"


def _alternative(kind: str, value: str) -> str:
    if kind == "dns":
        value = value.lower()
    elif kind == "email":
        local, at, domain = value.rpartition("@")
        value = f"{local}{at}{domain.lower()}"
    return f"{kind}:{value}"


def _attributes(text: str) -> Iterator[str]:
    if "\\" in _ESCAPE.sub("", text):
        raise ValueError(r"a \ stands before a comma, a space or another \ only")
    for part in _PART.findall(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(rf"{part!r} is no attribute: write CN=billing, and \, for a comma")
        short = _WRITTEN.get(name.strip(" ").lower())
        if short is None:
            known = ", ".join(_SHORT.values())
            raise ValueError(f"no attribute {name.strip(' ')!r}; there are: {known}")
        bare = _VALUE.fullmatch(value)
        plain = _ESCAPE.sub(r"\1", bare[1]) if bare is not None else ""
        if not plain:
            raise ValueError(f"{short} has no value")
        yield f"subject:{short}={plain}"
