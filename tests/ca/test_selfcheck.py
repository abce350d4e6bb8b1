from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca.errors import CertificateUnsound
from ca.selfcheck import check_authority, check_issued, check_leaf
from ca.template import LeafNames, Signer, Validity, leaf_certificate
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import PrivateKey
from tests.ca.workshop import CLUSTER, WEB, make_authority
from tests.pki import BOTH, NOW, Leaf, key_usage, make_root, name, new_key

HOUR = timedelta(hours=1)
ROOT = make_root()
SIGNER = make_authority().signer
WEB_TEXT = str(WEB)
VALIDITY = Validity(not_before=NOW - HOUR, not_after=NOW + HOUR)


@pytest.mark.parametrize(
    "leaf",
    [
        pytest.param(Leaf(sans=[WEB_TEXT]), id="plain"),
        pytest.param(Leaf(sans=[WEB_TEXT, "web.foo.svc", "10.0.0.1"]), id="more-names"),
        pytest.param(Leaf(sans=[WEB_TEXT], usage=["digital_signature"]), id="one-usage"),
        pytest.param(
            Leaf(sans=[WEB_TEXT], usage=["digital_signature", "key_agreement"]), id="key-agreement"
        ),
        pytest.param(Leaf(sans=[WEB_TEXT], extended=None), id="no-extended-usage"),
        pytest.param(Leaf(sans=[WEB_TEXT], ca=None), id="no-basic-constraints"),
        pytest.param(Leaf(sans=[WEB_TEXT], subject="web"), id="subject-and-san-not-critical"),
    ],
)
def test_sound_leaves_pass(leaf: Leaf) -> None:
    check_leaf(ROOT.sign(leaf), expected=WEB, now=NOW)


@pytest.mark.parametrize(
    ("leaf", "sentence"),
    [
        pytest.param(Leaf(sans=[WEB_TEXT], ca=True), "is a CA", id="ca"),
        pytest.param(Leaf(sans=[WEB_TEXT], usage=None), "no critical key usage", id="no-usage"),
        pytest.param(
            Leaf(sans=[WEB_TEXT], usage=["key_encipherment"]),
            "lacks the key usage digital_signature",
            id="no-digital-signature",
        ),
        pytest.param(
            Leaf(sans=[WEB_TEXT], usage=["digital_signature", "key_cert_sign"]),
            "key_cert_sign, which it must not",
            id="may-sign",
        ),
        pytest.param(
            Leaf(sans=[WEB_TEXT], usage=["digital_signature", "crl_sign"]),
            "crl_sign",
            id="may-sign-crls",
        ),
        pytest.param(
            Leaf(sans=[WEB_TEXT], usage=["digital_signature", "data_encipherment"]),
            "data_encipherment",
            id="odd-usage",
        ),
        pytest.param(
            Leaf(sans=[WEB_TEXT], extended=[ExtendedKeyUsageOID.SERVER_AUTH]),
            "not serverAuth and clientAuth",
            id="server-only",
        ),
        pytest.param(
            Leaf(sans=[WEB_TEXT], extended=[*BOTH, ExtendedKeyUsageOID.CODE_SIGNING]),
            "not serverAuth and clientAuth",
            id="code-signing",
        ),
        pytest.param(Leaf(), "does not name", id="no-san"),
        pytest.param(Leaf(sans=["web.foo.svc"]), "does not name", id="dns-only"),
        pytest.param(
            Leaf(sans=["spiffe://cluster.local/ns/foo/sa/other"]), "does not name", id="other-id"
        ),
        pytest.param(Leaf(sans=["spiffe://cluster.local"]), "does not name", id="trust-domain"),
        pytest.param(Leaf(sans=[WEB_TEXT, "spiffe://x/y"]), "no other identity", id="two-uris"),
        pytest.param(Leaf(sans=[WEB_TEXT, WEB_TEXT]), "no other identity", id="twice-the-same"),
        pytest.param(Leaf(sans=[WEB_TEXT], not_after=NOW), "and it is", id="expired"),
        pytest.param(
            Leaf(sans=[WEB_TEXT], not_before=NOW + timedelta(seconds=1)),
            "and it is",
            id="too-early",
        ),
    ],
)
def test_unsound_leaves_are_caught(leaf: Leaf, sentence: str) -> None:
    with pytest.raises(CertificateUnsound, match=sentence):
        check_leaf(ROOT.sign(leaf), expected=WEB, now=NOW)


def test_an_expected_id_without_path_is_never_sound() -> None:
    domain = SpiffeId(CLUSTER)
    with pytest.raises(CertificateUnsound, match="names a trust domain"):
        check_leaf(ROOT.sign(Leaf(sans=[str(domain)])), expected=domain, now=NOW)


def test_uncritical_extensions_that_must_be_critical_are_caught() -> None:
    usage, sans = key_usage("digital_signature"), x509.UniformResourceIdentifier(WEB_TEXT)
    for critical_usage, critical_sans in ((False, True), (True, False)):
        leaf = (
            bare_builder()
            .add_extension(usage, critical=critical_usage)
            .add_extension(x509.SubjectAlternativeName([sans]), critical=critical_sans)
            .sign(ROOT.key, hashes.SHA256())
        )
        with pytest.raises(CertificateUnsound, match="critical"):
            check_leaf(leaf, expected=WEB, now=NOW)


def test_extensions_that_cannot_be_read_are_caught() -> None:
    junk = x509.UnrecognizedExtension(x509.BasicConstraints.oid, b"\x30")
    leaf = bare_builder().add_extension(junk, critical=True).sign(ROOT.key, hashes.SHA256())
    with pytest.raises(CertificateUnsound, match="cannot be read"):
        check_leaf(leaf, expected=WEB, now=NOW)


def issue(signer: Signer, key: PrivateKey, validity: Validity = VALIDITY) -> x509.Certificate:
    return leaf_certificate(LeafNames(identity=WEB), key.public_key(), validity, signer)


def check(leaf: x509.Certificate, key: PrivateKey) -> None:
    check_issued(
        leaf, expected=WEB, public_key=key.public_key(), signer=SIGNER.certificate, now=NOW
    )


def test_what_the_template_makes_is_sound() -> None:
    key = new_key()
    check(issue(SIGNER, key), key)


def test_another_key_than_asked_for_is_caught() -> None:
    with pytest.raises(CertificateUnsound, match="another key"):
        check(issue(SIGNER, new_key()), new_key())


def test_a_leaf_that_outlives_its_signer_is_caught() -> None:
    key = new_key()
    ends = SIGNER.certificate.not_valid_after_utc + timedelta(seconds=1)
    with pytest.raises(CertificateUnsound, match="outlive"):
        check(issue(SIGNER, key, Validity(not_before=NOW, not_after=ends)), key)


def test_a_signature_by_another_key_or_name_is_caught() -> None:
    key = new_key()
    impostor = Signer(certificate=SIGNER.certificate, key=new_key())
    namesake = make_authority(trust_domain=TrustDomain("other.test")).signer
    for signer in (impostor, namesake):
        with pytest.raises(CertificateUnsound, match="does not verify"):
            check(issue(signer, key), key)


def test_missing_or_wrong_key_identifiers_are_caught() -> None:
    key = new_key()
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    signers = x509.SubjectKeyIdentifier.from_public_key(SIGNER.key.public_key())
    right = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signers)
    wrong = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    for extensions in ([own], [right], [own, wrong]):
        builder = bare_builder(key, SIGNER.certificate.subject)
        builder = builder.add_extension(key_usage("digital_signature"), critical=True)
        sans = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(WEB_TEXT)])
        builder = builder.add_extension(sans, critical=True)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        with pytest.raises(CertificateUnsound, match="key identifier"):
            check(builder.sign(SIGNER.key, hashes.SHA256()), key)


@pytest.mark.parametrize(
    "certificate",
    [
        pytest.param(SIGNER.certificate, id="ours"),
        pytest.param(make_root().certificate, id="anybodys"),
        pytest.param(
            ROOT.sign(Leaf(ca=True, usage=["key_cert_sign"], sans=[CLUSTER.id])), id="own-id"
        ),
        pytest.param(
            ROOT.sign(Leaf(ca=True, usage=["key_cert_sign", "digital_signature"])), id="usages"
        ),
    ],
)
def test_authorities_that_may_sign(certificate: x509.Certificate) -> None:
    check_authority(certificate, trust_domain=CLUSTER, now=NOW)


@pytest.mark.parametrize(
    ("leaf", "sentence"),
    [
        pytest.param(Leaf(usage=["key_cert_sign"]), "not a CA", id="no-ca"),
        pytest.param(Leaf(usage=["key_cert_sign"], ca=None), "not a CA", id="no-constraints"),
        pytest.param(Leaf(ca=True), "lacks the key usage key_cert_sign", id="may-not-sign"),
        pytest.param(
            Leaf(ca=True, usage=["key_cert_sign", "key_encipherment"]),
            "key_encipherment",
            id="odd-usage",
        ),
        pytest.param(
            Leaf(ca=True, usage=["key_cert_sign"], sans=["spiffe://other.test"]),
            "URI name",
            id="foreign-id",
        ),
        pytest.param(
            Leaf(ca=True, usage=["key_cert_sign"], sans=[CLUSTER.id + "/ca"]),
            "URI name",
            id="id-with-path",
        ),
        pytest.param(
            Leaf(ca=True, usage=["key_cert_sign"], not_after=NOW), "and it is", id="expired"
        ),
    ],
)
def test_authorities_that_may_not_sign(leaf: Leaf, sentence: str) -> None:
    with pytest.raises(CertificateUnsound, match=sentence):
        check_authority(ROOT.sign(leaf), trust_domain=CLUSTER, now=NOW)


def bare_builder(
    key: PrivateKey | None = None, issuer: x509.Name | None = None
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer or name("root"))
        .public_key((key or new_key()).public_key())
        .serial_number(7)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
    )
