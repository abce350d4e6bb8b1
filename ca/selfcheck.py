"""The CA's check of its own work: every certificate is judged before it is used or leaves.

Written from what a certificate must be, without a look at how it is built, so that a mistake in
`ca.template` is caught here (X509-SVID, sections 2 to 5; SPIRE's credvalidator has the idea).
"""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca.csr import WorkloadPublicKey
from ca.errors import CertificateUnsound
from mesh.spiffe import SpiffeId, TrustDomain

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

LEAF_USAGES = frozenset({"digital_signature", "key_encipherment", "key_agreement"})
CA_USAGES = frozenset({"key_cert_sign", "crl_sign", "digital_signature"})
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)


def check_issued(
    leaf: x509.Certificate,
    *,
    expected: SpiffeId,
    public_key: WorkloadPublicKey,
    signer: x509.Certificate,
    now: datetime,
) -> None:
    """Check a leaf that is about to leave: form, identity, key, signature, life within `signer`'s.

    Raises CertificateUnsound.
    """
    check_leaf(leaf, expected=expected, now=now)
    if leaf.public_key() != public_key:
        raise CertificateUnsound(f"the certificate for {expected} holds another key than asked for")
    if leaf.not_valid_after_utc > signer.not_valid_after_utc:
        raise CertificateUnsound(f"the certificate for {expected} would outlive the CA's own")
    _check_signature(leaf, signer)
    _check_key_ids(leaf, signer)


def check_leaf(leaf: x509.Certificate, *, expected: SpiffeId, now: datetime) -> None:
    """Check that `leaf` is a well-formed SVID of `expected`, valid now. Raises CertificateUnsound.

    Leaves judgement of signature and key to `check_issued`.
    """
    extensions = _extensions(leaf)
    basic = _find(extensions, x509.BasicConstraints)
    if basic is not None and basic.value.ca:
        raise CertificateUnsound(f"the certificate for {expected} is a CA")
    _check_usage(extensions, need="digital_signature", allowed=LEAF_USAGES)
    _check_extended_usage(extensions)
    _check_names(leaf, extensions, expected)
    _check_time(leaf, now)


def check_authority(
    authority: x509.Certificate, *, trust_domain: TrustDomain, now: datetime
) -> None:
    """Check that `authority` may sign for `trust_domain` now. Raises CertificateUnsound."""
    extensions = _extensions(authority)
    basic = _find(extensions, x509.BasicConstraints)
    if basic is None or not basic.value.ca:
        raise CertificateUnsound("the CA's certificate is not a CA certificate (cA is not set)")
    _check_usage(extensions, need="key_cert_sign", allowed=CA_USAGES)
    if _uris(extensions) not in ([], [trust_domain.id]):
        raise CertificateUnsound(
            f"the CA's certificate has a URI name other than {trust_domain.id}"
        )
    _check_time(authority, now)


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CertificateUnsound("the certificate's extensions cannot be read") from error


def _find(extensions: x509.Extensions, kind: type[_Extension]) -> x509.Extension[_Extension] | None:
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _check_usage(extensions: x509.Extensions, *, need: str, allowed: frozenset[str]) -> None:
    usage = _find(extensions, x509.KeyUsage)
    if usage is None or not usage.critical:
        raise CertificateUnsound("the certificate has no critical key usage")
    found = {name for name in _USAGES if getattr(usage.value, name)}
    if need not in found:
        raise CertificateUnsound(f"the certificate lacks the key usage {need}")
    if odd := sorted(found - allowed):
        raise CertificateUnsound(f"the certificate has the key usage {odd[0]}, which it must not")


def _check_extended_usage(extensions: x509.Extensions) -> None:
    usage = _find(extensions, x509.ExtendedKeyUsage)
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    if usage is not None and set(usage.value) != both:
        raise CertificateUnsound(
            "the certificate's extended key usage is not serverAuth and clientAuth"
        )


def _check_names(leaf: x509.Certificate, extensions: x509.Extensions, expected: SpiffeId) -> None:
    if not expected.path:
        raise CertificateUnsound(f"{expected} names a trust domain, not a workload")
    if _uris(extensions) != [str(expected)]:
        raise CertificateUnsound(f"the certificate does not name {expected} and no other identity")
    names = _find(extensions, x509.SubjectAlternativeName)
    if names is not None and not names.critical and not list(leaf.subject):
        raise CertificateUnsound(
            "the certificate has an empty subject, so its alternative names must be critical"
        )


def _uris(extensions: x509.Extensions) -> list[str]:
    names = _find(extensions, x509.SubjectAlternativeName)
    return [] if names is None else names.value.get_values_for_type(x509.UniformResourceIdentifier)


def _check_time(certificate: x509.Certificate, now: datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now < ends:
        raise CertificateUnsound(
            f"the certificate is valid from {begins} to {ends}, and it is {now}"
        )


def _check_signature(leaf: x509.Certificate, signer: x509.Certificate) -> None:
    try:
        leaf.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CertificateUnsound("the certificate does not verify with the CA's own") from error


def _check_key_ids(leaf: x509.Certificate, signer: x509.Certificate) -> None:
    own = _find(_extensions(signer), x509.SubjectKeyIdentifier)
    named = _find(_extensions(leaf), x509.AuthorityKeyIdentifier)
    if named is None or _find(_extensions(leaf), x509.SubjectKeyIdentifier) is None:
        raise CertificateUnsound("the certificate lacks a subject or authority key identifier")
    if own is not None and named.value.key_identifier != own.value.digest:
        raise CertificateUnsound("the certificate's authority key identifier is not the CA's")
