"""A local CA, and a certificate of it for the names that apps call Nomba by.

The CA may vouch for servers of those names and for nothing else: it says so itself (RFC 5280
sections 4.2.1.10 and 4.2.1.12), so its key is of little use to a thief, and a mistake here breaks no other host.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=3650)
# What apps and systems take of a local CA at most (Apple: 825 days); nobody renews it by itself.
LEAF_LIFE = timedelta(days=820)
_EARLIER = timedelta(hours=1)  # clocks that are behind
_USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


class Unfit(ValueError):
    """A certificate or key that cannot be used here; the text says why."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> str:
        """The certificate as a file has it."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        """The key as a file has it; never to be printed."""
        data = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return data.decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, as tools show it: pairs of hex digits with colons."""
        return self.certificate.fingerprint(SHA256()).hex(":").upper()

    @property
    def ends(self) -> datetime:
        """Until when the certificate is valid, in UTC."""
        return self.certificate.not_valid_after_utc

    @property
    def names(self) -> tuple[str, ...]:
        """Names and addresses that a CA may vouch for.

        Raises:
            Unfit: it is not bound to any.
        """
        try:
            found = self.certificate.extensions.get_extension_for_class(x509.NameConstraints)
        except x509.ExtensionNotFound:
            raise Unfit("it may vouch for any name") from None
        names = []
        for one in found.value.permitted_subtrees or ():
            if isinstance(one, x509.IPAddress):
                names.append(str(one.value).partition("/")[0])
            elif isinstance(one, x509.DNSName):
                names.append(one.value)
        return tuple(names)


def new_authority(names: Sequence[str], *, now: datetime) -> Pair:
    """A CA for names and addresses (and what is below the names), for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    subject = _subject(f"nomba-proxy local CA {identifier.digest[:4].hex()}")
    constraints = x509.NameConstraints([_permitted(one) for one in names], None)
    certificate = (
        _builder(subject, issuer=subject, key=key, start=now, end=now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(constraints, critical=True)
        # Kinds of names that are not constrained are free: addresses of mail, URIs of callers.
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(key, SHA256())
    )
    return Pair(certificate, key)


def new_leaf(
    authority: Pair, *, now: datetime, key: ec.EllipticCurvePrivateKey | None = None
) -> Pair:
    """A server's certificate for all that the CA may vouch for, for 820 days at most.

    Args:
        authority: the CA.
        now: the time.
        key: that the certificate had before; it stays, so only one file changes.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    names = authority.names
    end = min(now + LEAF_LIFE, authority.ends)
    certificate = (
        _builder(_subject(names[0]), issuer=issuer.subject, key=key, start=now, end=end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_alternative(one) for one in names]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(authority.key, SHA256())
    )
    return Pair(certificate, key)


def read_pair(certificate: str, key: str) -> Pair:
    """A certificate and its key from their files.

    Raises:
        Unfit: they are no PEM, or do not belong together.
    """
    try:
        read = x509.load_pem_x509_certificate(certificate.encode())
        secret = load_pem_private_key(key.encode(), None)
    except (ValueError, TypeError):
        raise Unfit("it is no certificate with a key of its own") from None
    if not isinstance(secret, ec.EllipticCurvePrivateKey) or secret.public_key() != (
        read.public_key()
    ):
        raise Unfit("certificate and key do not belong together")
    return Pair(read, secret)


def vouches(authority: Pair, leaf: Pair) -> bool:
    """Whether a certificate is the CA's."""
    try:
        leaf.certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _builder(
    subject: x509.Name,
    *,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=start - _EARLIER,
        not_valid_after=end,
    )


def _subject(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "nomba-proxy"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{one: one in allowed for one in _USES})


def _permitted(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_network(name))  # of one address
    except ValueError:
        return x509.DNSName(name)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
