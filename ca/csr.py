"""Reading certificate signing requests (PKCS#10), which anyone may have made.

What comes out is a public key and one yes or no. Nothing else of a request can reach a
certificate, because nothing else leaves this module: no name, no extension, no CA flag.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from ca.errors import CsrKeyRefused, CsrSignatureInvalid, CsrTooLarge, CsrUnreadable

WorkloadPublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
"""Keys that get certificates: those that every TLS stack in a mesh can use, Envoy's included."""

MAX_CSR_BYTES = 64 * 1024
"""A request for an RSA-8192 key has 3 KiB. gRPC itself would let 4 MiB through to the parser."""

MIN_RSA_BITS = 2048
"""NIST SP 800-131A and the CA/Browser Forum: anything shorter is forbidden."""

MAX_RSA_BITS = 8192
"""Larger keys make every peer's handshake slow; Go's TLS refuses them from 8193 bits on."""

MIN_RSA_EXPONENT = 65537
"""FIPS 186-5, A.1.1: public exponents begin above 2**16."""

MAX_RSA_EXPONENT = 2**33 - 1
"""BoringSSL, and so Envoy, takes at most 33 bits; long exponents also slow down every check."""

CURVES = (ec.SECP256R1, ec.SECP384R1)
"""P-521 is left out: BoringSSL does not verify with it unless it is told to."""

SIGNATURE_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
"""Hashes a request may be signed with: no MD5, no SHA-1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRequest:
    """What a signing request may say: which key, and whether a common name is wanted.

    `wants_common_name` tells that the request had one. Its text is not kept: Istio answers such
    a request with the caller's own identity as common name, for software that knows no SANs.
    """

    public_key: WorkloadPublicKey
    wants_common_name: bool


def parse_csr(untrusted_pem: bytes) -> KeyRequest:
    """Check a PEM request: size, form, self-signature, kind of key, strength of key; in this order.

    Raises CsrTooLarge, CsrUnreadable, CsrSignatureInvalid, CsrKeyRefused; nothing else.
    """
    if len(untrusted_pem) > MAX_CSR_BYTES:
        raise CsrTooLarge(
            f"the signing request has {len(untrusted_pem)} bytes, more than the {MAX_CSR_BYTES} "
            "allowed: send one PEM request and nothing else"
        )
    request = _load(untrusted_pem)
    key = _usable_key(_proven_key(request))
    return KeyRequest(public_key=key, wants_common_name=_has_common_name(request))


def _load(untrusted_pem: bytes) -> x509.CertificateSigningRequest:
    try:
        return x509.load_pem_x509_csr(untrusted_pem)
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise CsrUnreadable(
            "the signing request cannot be read: send a PEM block CERTIFICATE REQUEST, "
            "as `openssl req -new` writes it"
        ) from error


def _proven_key(request: x509.CertificateSigningRequest) -> CertificatePublicKeyTypes:
    """Return the key whose private half the asker holds, by a signature worth its name."""
    try:
        key = request.public_key()
        valid = request.is_signature_valid
        algorithm = request.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CsrSignatureInvalid(
            "the signing request's own signature cannot be checked, since its key or its algorithm "
            "is of no known kind: use an EC P-256 key and SHA-256"
        ) from error
    # An Ed25519 request has no hash of its own; its key is refused by name further down.
    if algorithm is not None and not isinstance(algorithm, SIGNATURE_HASHES):
        raise CsrSignatureInvalid(
            f"the signing request is signed with {algorithm.name}: use SHA-256, SHA-384 or SHA-512"
        )
    if not valid:
        raise CsrSignatureInvalid(
            "the signing request's own signature is wrong: it was changed after it was signed, "
            "or was not signed with the key that it names"
        )
    return key


def _usable_key(key: CertificatePublicKeyTypes) -> WorkloadPublicKey:
    if isinstance(key, rsa.RSAPublicKey):
        _check_rsa(key)
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, CURVES):
            raise CsrKeyRefused(f"the key is on curve {key.curve.name}: use P-256 or P-384")
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        raise CsrKeyRefused(
            "the key is an Ed25519 key, which Envoy does not accept in a TLS handshake: "
            "use EC P-256 or P-384"
        )
    raise CsrKeyRefused(
        "the key is neither EC nor RSA: use EC P-256 or P-384, or RSA with at least 2048 bits"
    )


def _check_rsa(key: rsa.RSAPublicKey) -> None:
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise CsrKeyRefused(
            f"the RSA key has {key.key_size} bits: use {MIN_RSA_BITS} to {MAX_RSA_BITS}, "
            "or an EC P-256 key"
        )
    exponent = key.public_numbers().e
    if not MIN_RSA_EXPONENT <= exponent <= MAX_RSA_EXPONENT or exponent % 2 == 0:
        raise CsrKeyRefused(
            f"the RSA key's public exponent is unusual ({exponent.bit_length()} bits): use 65537"
        )


def _has_common_name(request: x509.CertificateSigningRequest) -> bool:
    try:
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise CsrUnreadable("the subject of the signing request cannot be read") from error
    return any(name.value for name in names)
