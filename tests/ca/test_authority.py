from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from ca.authenticate import Caller
from ca.authority import Authority, Issued, TtlLimits
from ca.errors import CsrKeyRefused, Fault, IdentityRefused, SignerNotValid, TtlTooLong
from ca.template import BACKDATE, Signer
from mesh.bundle import TrustBundle
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import PrivateKey, leaf_id, parse_certificates_pem
from mesh.verify import verify_chain
from tests.ca.workshop import (
    CLUSTER,
    LIMITS,
    WEB,
    WEB_CALLER,
    csr_pem,
    make_authority,
    needs_openssl,
    openssl,
    rsa_key,
)
from tests.pki import NOW, make_root, new_key

AUTHORITY = make_authority()
HOUR = timedelta(hours=1)


def sign(authority: Authority = AUTHORITY, csr: bytes | None = None, ttl: int = 3600) -> Issued:
    return authority.sign(WEB_CALLER, csr or csr_pem(), ttl, NOW)


def caller(text: str) -> Caller:
    return Caller(identity=SpiffeId.parse(text), authenticator="test")


def foreign_csr() -> bytes:
    """Asks to be a CA, under somebody else's name."""
    uri = x509.UniformResourceIdentifier("spiffe://cluster.local/ns/kube-system/sa/admin")
    return csr_pem(
        extensions=[
            (x509.SubjectAlternativeName([uri, x509.DNSName("bank.example")]), True),
            (x509.BasicConstraints(ca=True, path_length=0), True),
        ]
    )


def test_the_certificate_is_for_the_caller_whatever_the_request_says() -> None:
    for csr in (csr_pem(), foreign_csr()):
        leaf = sign(csr=csr).certificate
        assert leaf_id(leaf) == WEB
        sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert len(sans) == 1
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert leaf.subject == x509.Name([])


def test_a_common_name_in_the_request_gives_the_callers_identity_as_common_name() -> None:
    admin = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    leaf = sign(csr=csr_pem(subject=admin)).certificate
    assert leaf.subject.rfc4514_string() == f"CN={WEB}"


def test_the_same_request_is_bound_to_whoever_brings_it() -> None:
    csr = csr_pem()
    other = caller("spiffe://cluster.local/ns/bar/sa/thief")
    assert leaf_id(AUTHORITY.sign(other, csr, 3600, NOW).certificate) == other.identity


@pytest.mark.parametrize(
    ("ttl", "life"),
    [
        pytest.param(0, LIMITS.default, id="zero-is-default"),
        pytest.param(-1, LIMITS.default, id="negative-is-default"),
        pytest.param(-(2**63), LIMITS.default, id="least-int64-is-default"),
        pytest.param(1, timedelta(seconds=1), id="one-second"),
        pytest.param(3600, HOUR, id="an-hour"),
        pytest.param(2160 * 3600, LIMITS.maximum, id="the-most"),
    ],
)
def test_how_long_certificates_live(ttl: int, life: timedelta) -> None:
    leaf = sign(ttl=ttl).certificate
    assert leaf.not_valid_after_utc == NOW + life
    assert leaf.not_valid_before_utc == NOW - BACKDATE


@pytest.mark.parametrize("ttl", [2160 * 3600 + 1, 2**40, 2**63 - 1, 9223372037])
def test_too_long_a_life_is_refused_not_cut(ttl: int) -> None:
    """9223372037 s is where a count of nanoseconds wraps in 64 bits."""
    with pytest.raises(TtlTooLong, match="2160h") as caught:
        sign(ttl=ttl)
    assert caught.value.fault is Fault.TTL


def test_no_leaf_outlives_its_signer() -> None:
    short = make_authority(life=timedelta(minutes=10))
    for ttl in (0, 3600):
        leaf = sign(short, ttl=ttl).certificate
        assert leaf.not_valid_after_utc == NOW + timedelta(minutes=10)


def test_an_expired_signer_is_an_internal_error() -> None:
    short = make_authority(life=timedelta(minutes=10))
    with pytest.raises(SignerNotValid) as caught:
        short.sign(WEB_CALLER, csr_pem(), 60, NOW + timedelta(minutes=10))
    assert caught.value.fault is Fault.GENERATION


def test_the_request_is_judged_before_the_life() -> None:
    with pytest.raises(CsrKeyRefused):
        sign(csr=csr_pem(rsa_key(1024)), ttl=2**40)


@pytest.mark.parametrize(
    "identity",
    ["spiffe://other.test/ns/foo/sa/web", "spiffe://cluster.local", "spiffe://cluster.local.x/ns"],
)
def test_identities_that_are_not_ours_to_give_are_refused(identity: str) -> None:
    with pytest.raises(IdentityRefused) as caught:
        AUTHORITY.sign(caller(identity), csr_pem(), 60, NOW)
    assert caught.value.fault is Fault.GENERATION


def test_the_answer_is_leaf_then_roots() -> None:
    issued = sign()
    leaf, roots = issued.elements
    assert parse_certificates_pem(leaf.encode()) == (issued.certificate,)
    assert parse_certificates_pem(roots.encode()) == AUTHORITY.roots.authorities
    assert leaf.endswith("-----END CERTIFICATE-----\n")


def test_intermediates_stand_alone_and_all_roots_are_one_element() -> None:
    root, other = make_root(), make_root("other")
    middle = root.intermediate()
    authority = Authority(
        signer=Signer(certificate=middle.certificate, key=middle.key),
        intermediates=middle.chain,
        roots=TrustBundle.of(CLUSTER, [root.certificate, other.certificate]),
        limits=LIMITS,
    )
    issued = sign(authority)
    assert [parse_certificates_pem(element.encode()) for element in issued.elements] == [
        (issued.certificate,),
        (middle.certificate,),
        (root.certificate, other.certificate),
    ]
    chain = [issued.certificate, middle.certificate]
    assert verify_chain(chain, {CLUSTER: authority.roots}, NOW) == WEB


def test_limits_are_the_configured_ones() -> None:
    limits = TtlLimits(default=timedelta(seconds=30), maximum=timedelta(seconds=60))
    authority = make_authority(limits=limits)
    assert sign(authority, ttl=0).certificate.not_valid_after_utc == NOW + limits.default
    with pytest.raises(TtlTooLong, match="at most 60 s"):
        sign(authority, ttl=61)


def test_serials_differ() -> None:
    csr = csr_pem()
    assert len({sign(csr=csr).certificate.serial_number for _ in range(50)}) == 50


KEYS = [
    pytest.param(new_key(), id="p256"),
    pytest.param(ec.generate_private_key(ec.SECP384R1()), id="p384"),
    pytest.param(rsa_key(), id="rsa2048"),
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("signer_key", KEYS)
def test_every_kind_of_leaf_convinces_independent_verifiers(
    key: PrivateKey, signer_key: PrivateKey
) -> None:
    authority = make_authority(key=signer_key)
    issued = sign(authority, csr_pem(key))
    assert verify_chain([issued.certificate], {CLUSTER: authority.roots}, NOW) == WEB
    verifier = PolicyBuilder().store(Store(list(authority.roots.authorities))).time(NOW)
    verified = verifier.build_client_verifier().verify(issued.certificate, [])
    assert verified.subjects == [x509.UniformResourceIdentifier(str(WEB))]


def test_another_ca_of_the_same_name_convinces_nobody() -> None:
    impostor = make_authority()
    with pytest.raises(Exception, match="not trusted"):
        verify_chain([sign().certificate], {CLUSTER: impostor.roots}, NOW)


@needs_openssl
@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_the_openssl_command_verifies_leaf_and_root(tmp_path: Path, purpose: str) -> None:
    leaf, roots = sign().elements
    (tmp_path / "leaf.pem").write_text(leaf)
    (tmp_path / "roots.pem").write_text(roots)
    at = str(int(NOW.timestamp()))
    options = ("-x509_strict", "-check_ss_sig", "-attime", at, "-purpose", purpose)
    done = openssl("verify", *options, "-CAfile", "roots.pem", "leaf.pem", cwd=tmp_path)
    assert done == b"leaf.pem: OK\n"


@needs_openssl
def test_the_openssl_command_reads_what_is_meant() -> None:
    text = openssl("x509", "-text", "-noout", stdin=sign().elements[0].encode()).decode()
    flat = " ".join(text.split())
    for expected in (
        "Issuer: O = cluster.local",
        "Subject: Subject Public Key Info",
        "X509v3 Subject Alternative Name: critical URI:spiffe://cluster.local/ns/foo/sa/web",
        "X509v3 Basic Constraints: critical CA:FALSE",
        "X509v3 Key Usage: critical Digital Signature, Key Encipherment",
        "X509v3 Extended Key Usage: TLS Web Server Authentication, TLS Web Client Authentication",
        "Not Before: Jun 1 11:58:00 2026 GMT",
        "Not After : Jun 1 13:00:00 2026 GMT",
    ):
        assert expected in flat.replace("O=", "O = "), flat


def test_the_cas_own_certificate_carries_its_names() -> None:
    identity = SpiffeId.parse("spiffe://cluster.local/ns/istio-system/sa/istiod")
    key = new_key()
    issued = AUTHORITY.issue_own(identity, [x509.DNSName("localhost")], key.public_key(), NOW)
    sans = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert sans.value.get_values_for_type(x509.DNSName) == ["localhost"]
    assert issued.certificate.not_valid_after_utc == NOW + LIMITS.default
    verifier = PolicyBuilder().store(Store(list(AUTHORITY.roots.authorities))).time(NOW)
    verifier.build_server_verifier(x509.DNSName("localhost")).verify(issued.certificate, [])


def test_the_longest_names_fit() -> None:
    domain = TrustDomain("a" * 255)
    authority = make_authority(trust_domain=domain)
    identity = SpiffeId(domain, "/ns/" + "n" * 63 + "/sa/" + "s" * 253)
    issued = authority.sign(Caller(identity=identity, authenticator="test"), csr_pem(), 60, NOW)
    assert verify_chain([issued.certificate], {domain: authority.roots}, NOW) == identity
