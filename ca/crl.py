"""Certificate revocation lists (RFC 5280, section 5): made here, one for each key that signed.

Pure. A list is needed of every CA key whose certificates are still out there, also an empty one:
a verifier that checks revocation at all refuses what no list is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ca.ledger import anchor_id
from ca.revocations import RevokedCertificate
from ca.template import BACKDATE, Signer, authority_key_id
from mesh.revocation import RevocationList, is_of

CRL_LIFE = timedelta(days=7)
"""Until a verifier like Envoy's refuses everything for want of a newer list. So much longer than a
workload certificate lives by default that an outage of the CA ends certificates first."""

CRL_RENEWAL = timedelta(days=3)
"""Left of a list's life when it is made anew."""


def make_list(
    signer: Signer, revoked: Iterable[RevokedCertificate], now: datetime
) -> RevocationList:
    """Sign the list of those of `revoked` that `signer` issued."""
    own = anchor_id(signer.certificate)
    now = now.replace(microsecond=0)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(now - BACKDATE)
        .next_update(now + CRL_LIFE)
        .add_extension(authority_key_id(signer), critical=False)
        # Grows with time, and needs no counter that replicas would have to share.
        .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
    )
    for one in revoked:
        if one.signer == own:
            builder = builder.add_revoked_certificate(_entry(one))
    return RevocationList.of(builder.sign(signer.key, hashes.SHA256()))


def is_current(
    lists: Sequence[RevocationList],
    signers: Sequence[Signer],
    revoked: Iterable[RevokedCertificate],
    now: datetime,
) -> bool:
    """Tell whether `lists` say what they should, one for each of `signers`, and for long enough."""
    known = list(revoked)
    if len(lists) != len(signers):
        return False
    for one, signer in zip(lists, signers, strict=True):
        ends = one.crl.next_update_utc
        own = anchor_id(signer.certificate)
        expected = frozenset(each.serial for each in known if each.signer == own)
        if (
            not is_of(one, signer.certificate)
            or ends is None
            or ends - now < CRL_RENEWAL
            or one.serials != expected
        ):
            return False
    return True


def _entry(one: RevokedCertificate) -> x509.RevokedCertificate:
    return (
        x509.RevokedCertificateBuilder()
        .serial_number(one.serial)
        .revocation_date(one.revoked_at)
        .build()
    )
