"""What stands in a certificate."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.core.printable import printable

if TYPE_CHECKING:
    from cryptography import x509


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, as far as people ask about it.

    Attributes:
        subject: whose it is.
        issuer: who vouches for that.
        names: host names and addresses it is for.
        begins: epoch seconds.
        ends: epoch seconds.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    begins: float
    ends: float


def read_certificate(data: bytes) -> Certificate | None:
    """A certificate in DER or PEM; None if it is none."""
    from cryptography import x509  # 7 MiB, and of no use to whoever speaks no TLS

    try:
        if b"-----BEGIN" in data:
            found = x509.load_pem_x509_certificate(data)
        else:
            found = x509.load_der_x509_certificate(data)
        return Certificate(
            _name(found.subject),
            _name(found.issuer),
            _names(found),
            found.not_valid_before_utc.timestamp(),
            found.not_valid_after_utc.timestamp(),
        )
    except ValueError:
        return None


def _name(name: "x509.Name") -> str:
    """The common name of somebody, or else the organisation."""
    from cryptography.x509.oid import NameOID

    for kind in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
        for one in name.get_attributes_for_oid(kind):
            return _plain(str(one.value))
    return _plain(name.rfc4514_string()) or "nobody"


def _names(found: "x509.Certificate") -> tuple[str, ...]:
    from cryptography import x509

    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    hosts = names.get_values_for_type(x509.DNSName)
    addresses = names.get_values_for_type(x509.IPAddress)
    return tuple(_plain(str(one)) for one in (*hosts, *addresses))


def _plain(text: str) -> str:
    """What a stranger wrote, for a terminal, and no more than fits there."""
    return printable(text)[:100]
