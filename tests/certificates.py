"""Certificates of callers, odd ones too, and what `ssl` says of them after a handshake."""

import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID

_PEM, _PLAIN = serialization.Encoding.PEM, serialization.NoEncryption()
_BEGAN = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
LIFE = timedelta(days=30)


def name(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    """A subject, one attribute a place."""
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def raw_names(*values: tuple[int, bytes]) -> x509.UnrecognizedExtension:
    """A subjectAltName of tags and bytes that need not be right (RFC 5280 section 4.2.1.6)."""
    inner = b"".join(bytes([0x80 | tag, len(value)]) + value for tag, value in values)
    return x509.UnrecognizedExtension(
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes([0x30, len(inner)]) + inner
    )


class Authority:
    """Signs whatever it is asked to."""

    def __init__(self, folder: Path, common_name: str = "an authority of tests") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = name((NameOID.COMMON_NAME, common_name))
        usage = x509.KeyUsage(*(True, *[False] * 4, True, True, False, False))
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        built = self._begun(self._name, self._key, _BEGAN + timedelta(days=400))
        built = built.add_extension(constraints, critical=True)
        built = built.add_extension(usage, critical=True)
        own = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        built = built.add_extension(own, critical=False)
        self.certificate = built.sign(self._key, hashes.SHA256())
        self.pem = self.certificate.public_bytes(_PEM)
        self._count = 0

    def _begun(self, subject, key, until) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGAN)
            .not_valid_after(until)
        )

    def issue(self, subject=None, *, alternatives=None, until=None) -> Path:
        """A file with a key and a certificate for it.

        `alternatives` are general names, or an extension as it is; `until` a time, else in a month.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        until = until or _BEGAN + LIFE
        subject = name() if subject is None else subject
        built = self._begun(subject, key, until)
        if isinstance(alternatives, x509.UnrecognizedExtension):
            built = built.add_extension(alternatives, critical=False)
        elif alternatives:
            names = x509.SubjectAlternativeName(alternatives)
            # Where no subject says whose it is, this has to be looked at (RFC 5280 section 4.2.1.6).
            built = built.add_extension(names, critical=not subject.rdns)
        # Which OpenSSL asks for where it is strict, as Python 3.13 has it.
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        built = built.add_extension(signer, critical=False)
        certificate = built.sign(self._key, hashes.SHA256())
        form = serialization.PrivateFormat.PKCS8
        self._count += 1
        path = self._folder / f"{self._name.rfc4514_string()}-{self._count}.pem"
        pem = certificate.public_bytes(_PEM)
        path.write_bytes(key.private_bytes(_PEM, form, _PLAIN) + pem)
        path.chmod(0o600)
        return path


def told(
    authority: Authority,
    file: Path | None,
    *,
    mode: ssl.VerifyMode = ssl.CERT_OPTIONAL,
    again=False,
):
    """What a server's `getpeercert` says of a caller's certificate once it has been verified.

    `again`: of a second connection that goes on with the session of the first.
    """
    own = authority.issue(alternatives=[x509.DNSName("proxy.test")])
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(own)
    listening.verify_mode = mode
    listening.load_verify_locations(cadata=authority.pem.decode())
    calling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    calling.load_verify_locations(cadata=authority.pem.decode())
    if file is not None:
        calling.load_cert_chain(file)
    server, caller = _connected(listening, calling, session=None)
    if again:
        server, caller = _connected(listening, calling, session=caller.session)
        assert caller.session_reused
    return server.getpeercert()


def _connected(listening, calling, *, session):
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = listening.wrap_bio(up, down, server_side=True)
    caller = calling.wrap_bio(down, up, server_hostname="proxy.test", session=session)
    for _ in range(4):
        for side in (caller, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    server.write(b"!")  # what comes behind the handshake has the session in it
    assert caller.read(1) == b"!"
    return server, caller
