"""Certificate revocation lists as a verifier reads them (RFC 5280, section 5).

A list counts only for certificates of the very CA key that signed it. One that is overdue still
counts: what was revoked stays revoked, and an outage of the CA must not stop the mesh.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

END_MARKER = b"-----END X509 CRL-----"


@dataclass(frozen=True, slots=True)
class RevocationList:
    """One list, read whole once; compared by its bytes. Make it with `of`."""

    der: bytes
    crl: x509.CertificateRevocationList = field(compare=False, repr=False)
    serials: frozenset[int] = field(compare=False, repr=False)

    @classmethod
    def of(cls, crl: x509.CertificateRevocationList) -> Self:
        """Read a list. Raises ValueError if a part of it cannot be read."""
        return cls(
            crl.public_bytes(serialization.Encoding.DER),
            crl,
            frozenset(entry.serial_number for entry in crl),
        )


def parse_lists_pem(pem: bytes) -> tuple[RevocationList, ...]:
    """Return every list in `pem`, which may hold certificates too. Raises ValueError."""
    blocks = [part + END_MARKER for part in pem.split(END_MARKER)[:-1]]
    return tuple(RevocationList.of(x509.load_pem_x509_crl(_from_begin(b))) for b in blocks)


def parse_list_der(der: bytes) -> RevocationList:
    """Return the list in `der`. Raises ValueError."""
    return RevocationList.of(x509.load_der_x509_crl(der))


def lists_pem(lists: Iterable[RevocationList]) -> bytes:
    """Return lists as PEM blocks."""
    return b"".join(one.crl.public_bytes(serialization.Encoding.PEM) for one in lists)


def find_revoked(
    chain: Sequence[x509.Certificate], lists: Sequence[RevocationList]
) -> x509.Certificate | None:
    """Return the first certificate of a verified chain that is revoked, None if none is.

    `chain` is leaf first and root last; the root is not looked at: it is revoked by removal.
    """
    for link, issuer in itertools.pairwise(chain):
        for one in lists:
            if link.serial_number in one.serials and is_of(one, issuer):
                return link
    return None


@functools.lru_cache(maxsize=256)
def is_of(one: RevocationList, issuer: x509.Certificate) -> bool:
    """Tell whether a list is a CA's own, by name and by signature. Never raises."""
    key = issuer.public_key()
    kinds = (
        rsa.RSAPublicKey,
        ec.EllipticCurvePublicKey,
        ed25519.Ed25519PublicKey,
        ed448.Ed448PublicKey,
    )
    try:
        return (
            isinstance(key, kinds)
            and one.crl.issuer == issuer.subject
            and one.crl.is_signature_valid(key)
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _from_begin(block: bytes) -> bytes:
    start = block.rfind(b"-----BEGIN X509 CRL-----")
    return block[max(start, 0) :]
