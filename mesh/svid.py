"""X.509-SVIDs: a certificate chain that names one SPIFFE ID, and its private key.

Rules of the X509-SVID standard, sections 2 to 5. What is judged here is structure: whether a
chain leads to a trusted root is `mesh.verify`'s question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.errors import RemoraError
from mesh.spiffe import InvalidSpiffeId, SpiffeId

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
"""The keys a workload may hold: what every TLS stack in the field takes, Envoy's included."""

UNREADABLE = (
    ValueError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises, some of it late, for a certificate that OpenSSL still reads."""

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


class InvalidSvid(RemoraError):
    """A certificate, chain or key does not have the form of an X.509-SVID."""

    reason = "invalid_svid"


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Svid:
    """An identity document with its key: `chain` has the leaf first, then its intermediates."""

    id: SpiffeId
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey

    @classmethod
    def parse_pem(cls, chain_pem: bytes, key_pem: bytes) -> Self:
        """Load chain and key from PEM; the two may be one text. Raises InvalidSvid.

        Checks X509-SVID sections 4 and 5 and that the key belongs to the leaf. Trust and time
        are not judged.
        """
        chain = parse_certificates_pem(chain_pem)
        key = parse_private_key_pem(key_pem)
        identity = leaf_id(chain[0])
        for certificate in chain[1:]:
            _check_signing(certificate)
        if chain[0].public_key() != key.public_key():
            raise InvalidSvid(
                f"the private key does not belong to the certificate of {identity}: "
                "key and certificate must come from the same request"
            )
        return cls(id=identity, chain=chain, key=key)

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate that names the workload."""
        return self.chain[0]

    @property
    def not_before(self) -> datetime:
        """Start of the leaf's validity, UTC."""
        return self.leaf.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """End of the leaf's validity, UTC."""
        return self.leaf.not_valid_after_utc

    @property
    def serial(self) -> int:
        """The leaf's serial number."""
        return self.leaf.serial_number

    def chain_pem(self) -> bytes:
        """Return leaf and intermediates as PEM blocks."""
        return certificates_pem(self.chain)

    def key_pem(self) -> bytes:
        """Return the private key as unencrypted PKCS#8 PEM. Keep it in memory."""
        return private_key_pem(self.key)


def parse_certificates_pem(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return every certificate in `pem`, at least one. Raises InvalidSvid."""
    try:
        certificates = tuple(x509.load_pem_x509_certificates(pem))
    except UNREADABLE as error:
        raise InvalidSvid(f"not a PEM file of certificates: {error}") from error
    for certificate in certificates:
        _check_validity_readable(certificate)
    return certificates


def _check_validity_readable(certificate: x509.Certificate) -> None:
    """X.509 knows years that `datetime` does not; whoever compares times shall not meet one."""
    try:
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except UNREADABLE as error:
        raise InvalidSvid(f"the validity of a certificate cannot be read: {error}") from error


def certificates_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return certificates as concatenated PEM blocks, each ending in a newline."""
    return b"".join(
        certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates
    )


def parse_private_key_pem(pem: bytes) -> PrivateKey:
    """Return the unencrypted EC or RSA key in `pem`. Raises InvalidSvid."""
    try:
        key = serialization.load_pem_private_key(_key_block(pem), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidSvid(f"not an unencrypted PEM private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise InvalidSvid(f"a {type(key).__name__} cannot be used: give an EC or RSA key")
    return key


def private_key_pem(key: PrivateKey) -> bytes:
    """Return `key` as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def subject_text(certificate: x509.Certificate) -> str:
    """Return the subject for a message, in RFC 4514's notation. Never raises."""
    try:
        return certificate.subject.rfc4514_string()
    except UNREADABLE:
        return "(unreadable subject)"


def leaf_id(certificate: x509.Certificate) -> SpiffeId:
    """Return the SPIFFE ID of a leaf certificate (X509-SVID 2 to 4, 5.2). Raises InvalidSvid.

    Exactly one URI SAN, which is an ID with a path; not a CA; no signing key usage; an extended
    key usage, where there is one, allows both ends of a TLS connection.
    """
    try:
        extensions = certificate.extensions
    except UNREADABLE as error:
        raise InvalidSvid(f"the certificate's extensions cannot be read: {error}") from error
    identity = _single_uri_id(certificate)
    if not identity.path:
        raise InvalidSvid(f"{identity} names a trust domain, not a workload: the ID has no path")
    _check_leaf_usage(extensions, identity)
    return identity


def _single_uri_id(certificate: x509.Certificate) -> SpiffeId:
    uris = _uri_sans(certificate)
    if len(uris) != 1:
        raise InvalidSvid(
            f"the certificate has {len(uris)} URI names where an SVID has exactly one: "
            "it was not issued for a mesh workload"
        )
    try:
        return SpiffeId.parse(uris[0])
    except InvalidSpiffeId as error:
        raise InvalidSvid(f"the certificate's URI name is not a SPIFFE ID: {error}") from error


def _uri_sans(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def _check_leaf_usage(extensions: x509.Extensions, identity: SpiffeId) -> None:
    basic = _find(extensions, x509.BasicConstraints)
    if basic is not None and basic.ca:
        raise InvalidSvid(f"the certificate of {identity} is a CA and must not authenticate")
    usage = _find(extensions, x509.KeyUsage)
    if usage is None:
        raise InvalidSvid(f"the certificate of {identity} has no key usage, which an SVID must set")
    if usage.key_cert_sign or usage.crl_sign:
        raise InvalidSvid(f"the certificate of {identity} may sign, which a leaf must not")
    if not usage.digital_signature:
        raise InvalidSvid(f"the certificate of {identity} lacks the digitalSignature key usage")
    extended = _find(extensions, x509.ExtendedKeyUsage)
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    if extended is not None and not both <= set(extended):
        raise InvalidSvid(
            f"the certificate of {identity} limits its extended key usage: "
            "an SVID allows both serverAuth and clientAuth"
        )


def _check_signing(certificate: x509.Certificate) -> None:
    subject = subject_text(certificate) or "(empty subject)"
    try:
        extensions = certificate.extensions
    except UNREADABLE as error:
        raise InvalidSvid(f"the extensions of {subject} cannot be read: {error}") from error
    basic = _find(extensions, x509.BasicConstraints)
    if basic is None or not basic.ca:
        raise InvalidSvid(f"chain certificate {subject} is not a CA: only CAs may follow the leaf")
    usage = _find(extensions, x509.KeyUsage)
    if usage is None or not usage.key_cert_sign:
        raise InvalidSvid(f"chain certificate {subject} lacks the keyCertSign key usage")


def _find(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _key_block(pem: bytes) -> bytes:
    """Return the private key's block, since PEM files may hold certificates before the key."""
    for line in pem.splitlines():
        if line.startswith(b"-----BEGIN ") and line.rstrip().endswith(b"PRIVATE KEY-----"):
            return pem[pem.index(line) :]
    return pem
