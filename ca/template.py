"""What Remora's certificates contain (X509-SVID, sections 2 to 4; Istio's generate_cert).

Every certificate that this CA makes is built here and nowhere else.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.csr import WorkloadPublicKey
from ca.errors import SignerNotValid
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import PrivateKey

BACKDATE = timedelta(minutes=2)
"""Istio: certificates begin this long ago, so that peers whose clocks are behind accept them."""

SERIAL_BITS = 127
"""Istio stays under 2**128. Random serials of this size need no record of those given out."""

MAX_COMMON_NAME = 64
"""RFC 5280, appendix A.1, ub-common-name: a longer one is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """When a certificate begins and ends: UTC, whole seconds."""

    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A CA certificate and its private key."""

    certificate: x509.Certificate
    key: PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafNames:
    """Every name in a leaf. `identity` is the only URI; the others are for the CA's own server."""

    identity: SpiffeId
    common_name: bool = False
    others: Sequence[x509.GeneralName] = ()


def leaf_validity(now: datetime, ttl: timedelta, chain: Sequence[x509.Certificate]) -> Validity:
    """Return the validity of a leaf, `ttl` long from `now`, ending no later than any of `chain`.

    `chain` is the signer's certificate and those above it. Raises SignerNotValid when one of them
    is itself not valid at `now`.
    """
    now = now.replace(microsecond=0)
    for link in chain:
        begins, ends = link.not_valid_before_utc, link.not_valid_after_utc
        if now >= ends:
            raise SignerNotValid(f"the CA's certificate expired at {ends}: renew the CA")
        if now < begins:
            raise SignerNotValid(
                f"the CA's certificate begins only at {begins} and it is {now}: set the clock"
            )
    ends = min(link.not_valid_after_utc for link in chain)
    return Validity(not_before=now - BACKDATE, not_after=min(now + ttl, ends))


def root_validity(now: datetime, life: timedelta) -> Validity:
    """Return a root's validity. Backdated like a leaf's, so that no leaf begins before it."""
    now = now.replace(microsecond=0)
    return Validity(not_before=now - BACKDATE, not_after=now + life)


def leaf_certificate(
    names: LeafNames, public_key: WorkloadPublicKey, validity: Validity, signer: Signer
) -> x509.Certificate:
    """Sign an X.509-SVID for `names`."""
    sans = [x509.UniformResourceIdentifier(str(names.identity)), *names.others]
    builder = (
        _builder(_leaf_subject(names), signer.certificate.subject, public_key, validity)
        .add_extension(x509.SubjectAlternativeName(sans), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True, key_encipherment=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_BOTH_ROLES), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(authority_key_id(signer), critical=False)
    )
    return builder.sign(signer.key, hashes.SHA256())


def root_certificate(
    trust_domain: TrustDomain, key: PrivateKey, validity: Validity
) -> x509.Certificate:
    """Sign a root with its own key. Subject `O=<trust domain>`, no SAN, no EKU: as Istio's."""
    name = root_name(trust_domain)
    public_key = key.public_key()
    builder = (
        _builder(name, name, public_key, validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        # cRLSign besides Istio's keyCertSign: a root must be able to revoke what it signed.
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def root_name(trust_domain: TrustDomain) -> x509.Name:
    """Return the subject of a trust domain's self-signed root."""
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain.name)])


def new_serial() -> int:
    """Return a random serial number in [1, 2**127]."""
    return secrets.randbits(SERIAL_BITS) + 1


_BOTH_ROLES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: WorkloadPublicKey, validity: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(new_serial())
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
    )


def _leaf_subject(names: LeafNames) -> x509.Name:
    text = str(names.identity)
    if not names.common_name or len(text) > MAX_COMMON_NAME:
        return x509.Name([])
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def authority_key_id(signer: Signer) -> x509.AuthorityKeyIdentifier:
    """Name the signer's key by its own identifier, which need not be the hash we would compute."""
    try:
        own = signer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)
