from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.errors import SignerNotValid
from ca.template import (
    BACKDATE,
    LeafNames,
    Signer,
    Validity,
    leaf_certificate,
    leaf_validity,
    new_serial,
    root_certificate,
    root_validity,
)
from mesh.spiffe import SpiffeId, TrustDomain
from tests.ca.workshop import CLUSTER, WEB, make_authority
from tests.pki import NOW, make_root, new_key

HOUR = timedelta(hours=1)
SIGNER = make_authority().signer


def make_leaf(names: LeafNames, signer: Signer = SIGNER) -> x509.Certificate:
    validity = Validity(not_before=NOW - BACKDATE, not_after=NOW + HOUR)
    return leaf_certificate(names, new_key().public_key(), validity, signer)


def usages(certificate: x509.Certificate) -> set[str]:
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    names = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
    ]
    return {name for name in names if getattr(usage.value, name)}


def test_a_leaf_has_every_extension_of_an_svid_and_no_other() -> None:
    leaf = make_leaf(LeafNames(identity=WEB))
    extensions = leaf.extensions
    assert leaf.subject == x509.Name([])
    assert leaf.issuer == SIGNER.certificate.subject
    assert leaf.version is x509.Version.v3
    assert isinstance(leaf.signature_hash_algorithm, hashes.SHA256)
    sans = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert sans.critical
    assert list(sans.value) == [x509.UniformResourceIdentifier(str(WEB))]
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca
    assert usages(leaf) == {"digital_signature", "key_encipherment"}
    extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert not extended.critical
    assert set(extended.value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert len(extensions) == 6, "these four and the two key identifiers"


def test_key_identifiers_name_the_key_and_the_signer() -> None:
    leaf = make_leaf(LeafNames(identity=WEB))
    own = leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    named = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    signers = SIGNER.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert own == x509.SubjectKeyIdentifier.from_public_key(leaf.public_key())
    assert named.key_identifier == signers.value.digest


def test_a_signer_without_key_identifier_is_named_by_its_key() -> None:
    key = new_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "old")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "old")]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + HOUR)
        .sign(key, hashes.SHA256())
    )
    leaf = make_leaf(LeafNames(identity=WEB), Signer(certificate=certificate, key=key))
    named = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    expected = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    assert named.key_identifier == expected.key_identifier


def test_other_names_follow_the_identity() -> None:
    others = (x509.DNSName("localhost"), x509.IPAddress(ip_address("::1")))
    leaf = make_leaf(LeafNames(identity=WEB, others=others))
    sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(sans) == [x509.UniformResourceIdentifier(str(WEB)), *others]


def test_a_common_name_is_the_identity_and_left_out_when_too_long() -> None:
    leaf = make_leaf(LeafNames(identity=WEB, common_name=True))
    assert leaf.subject.rfc4514_string() == f"CN={WEB}"
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
    exact = SpiffeId(CLUSTER, "/" + "a" * (64 - len("spiffe://cluster.local/")))
    assert make_leaf(LeafNames(identity=exact, common_name=True)).subject.rfc4514_string()
    longer = SpiffeId(CLUSTER, exact.path + "a")
    assert make_leaf(LeafNames(identity=longer, common_name=True)).subject == x509.Name([])


def test_a_root_is_as_istios_but_for_its_key() -> None:
    key = new_key()
    root = root_certificate(CLUSTER, key, root_validity(NOW, timedelta(days=3650)))
    root.verify_directly_issued_by(root)
    assert root.subject.rfc4514_string() == "O=cluster.local"
    assert usages(root) == {"key_cert_sign", "crl_sign"}
    basic = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert basic.value.ca
    assert basic.value.path_length is None
    assert len(root.extensions) == 3, "these two and the subject key identifier"
    assert root.not_valid_before_utc == NOW - BACKDATE
    assert root.not_valid_after_utc == NOW + timedelta(days=3650)


def test_the_longest_trust_domain_has_a_root() -> None:
    longest = TrustDomain("a" * 255)
    root = root_certificate(longest, new_key(), root_validity(NOW, HOUR))
    assert root.subject.rfc4514_string() == "O=" + "a" * 255


def test_fractions_of_seconds_never_reach_a_certificate() -> None:
    late = NOW + timedelta(microseconds=999_999)
    validity = leaf_validity(late, HOUR, [SIGNER.certificate])
    assert validity == Validity(not_before=NOW - BACKDATE, not_after=NOW + HOUR)
    assert root_validity(late, HOUR) == validity


def test_a_leaf_ends_with_its_signer() -> None:
    signer = make_authority(life=timedelta(minutes=30)).signer.certificate
    assert leaf_validity(NOW, HOUR, [signer]).not_after == signer.not_valid_after_utc
    shorter = timedelta(minutes=10)
    assert leaf_validity(NOW, shorter, [signer]).not_after == NOW + shorter


def test_a_signer_outside_its_own_validity_signs_nothing() -> None:
    signer = make_root(now=NOW).certificate  # from a day ago, for 365 days
    with pytest.raises(SignerNotValid, match="expired at"):
        leaf_validity(signer.not_valid_after_utc, HOUR, [signer])
    with pytest.raises(SignerNotValid, match="begins only at"):
        leaf_validity(signer.not_valid_before_utc - timedelta(seconds=1), HOUR, [signer])
    last = signer.not_valid_after_utc - timedelta(seconds=1)
    assert leaf_validity(last, HOUR, [signer]).not_after == signer.not_valid_after_utc


def test_serials_are_positive_large_and_never_the_same() -> None:
    serials = [new_serial() for _ in range(1000)]
    assert len(set(serials)) == 1000
    assert all(0 < serial <= 2**127 for serial in serials)
    assert max(serials).bit_length() > 120
