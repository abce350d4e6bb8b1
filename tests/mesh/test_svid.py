"""X509-SVID, sections 2 to 5: what a chain and a key must look like."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.svid import InvalidSvid, X509Svid, certificates_pem, leaf_id, private_key_pem
from tests.pki import Leaf, make_root, svid_pem

ID = "spiffe://example.org/ns/default/sa/web"
ROOT = make_root()

BAD_LEAVES = {
    "no SAN": Leaf(subject="web"),
    "only a DNS name": Leaf(sans=["example.org"]),
    "two SPIFFE IDs": Leaf(sans=[ID, "spiffe://example.org/other"]),
    "the same ID twice": Leaf(sans=[ID, ID]),
    "a second URI that is no SPIFFE ID": Leaf(sans=[ID, "https://example.org/"]),
    "a URI that is no SPIFFE ID": Leaf(sans=["https://example.org/"]),
    "no path": Leaf(sans=["spiffe://example.org"]),
    "capitals in the trust domain": Leaf(sans=["spiffe://Example.org/x"]),
    "a CA": Leaf(sans=[ID], ca=True),
    "no key usage": Leaf(sans=[ID], usage=None),
    "may sign certificates": Leaf(sans=[ID], usage=["digital_signature", "key_cert_sign"]),
    "may sign CRLs": Leaf(sans=[ID], usage=["digital_signature", "crl_sign"]),
    "cannot sign at all": Leaf(sans=[ID], usage=["key_encipherment"]),
    "server only": Leaf(sans=[ID], extended=[ExtendedKeyUsageOID.SERVER_AUTH]),
    "client only": Leaf(sans=[ID], extended=[ExtendedKeyUsageOID.CLIENT_AUTH]),
}

GOOD_LEAVES = {
    "plain": Leaf(sans=[ID]),
    "with other names": Leaf(sans=[ID, "web.example.org", "127.0.0.1"]),
    "with a subject": Leaf(sans=[ID], subject="web"),
    "without extended key usage": Leaf(sans=[ID], extended=None),
    "without basic constraints": Leaf(sans=[ID], ca=None),
    "key agreement too": Leaf(sans=[ID], usage=["digital_signature", "key_agreement"]),
}


@pytest.mark.parametrize("case", GOOD_LEAVES)
def test_a_good_leaf_names_its_workload(case: str) -> None:
    assert str(leaf_id(ROOT.sign(GOOD_LEAVES[case]))) == ID


@pytest.mark.parametrize("case", BAD_LEAVES)
def test_a_bad_leaf_is_refused(case: str) -> None:
    with pytest.raises(InvalidSvid):
        leaf_id(ROOT.sign(BAD_LEAVES[case]))


def test_pem_makes_the_round_trip() -> None:
    svid = ROOT.intermediate().issue(ID)
    again = X509Svid.parse_pem(svid.chain_pem(), svid.key_pem())
    assert again.id == svid.id
    assert again.chain == svid.chain
    assert len(again.chain) == 2
    assert again.key.private_numbers() == svid.key.private_numbers()
    assert again.not_before < again.not_after
    assert again.serial == svid.leaf.serial_number


def test_key_and_certificates_may_share_a_file() -> None:
    svid = ROOT.issue(ID)
    chain, key = svid_pem(svid)
    for together in (chain + key, key + chain):
        assert X509Svid.parse_pem(together, together).id == svid.id


def test_an_rsa_key_will_do() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    leaf = ROOT.sign(Leaf(sans=[ID], key=key))
    svid = X509Svid.parse_pem(certificates_pem([leaf]), private_key_pem(key))
    assert isinstance(svid.key, rsa.RSAPrivateKey)


def test_a_key_of_another_certificate_is_refused() -> None:
    with pytest.raises(InvalidSvid, match="does not belong"):
        X509Svid.parse_pem(ROOT.issue(ID).chain_pem(), ROOT.issue(ID).key_pem())


def test_only_cas_may_follow_the_leaf() -> None:
    svid = ROOT.issue(ID)
    other = ROOT.issue("spiffe://example.org/other")
    with pytest.raises(InvalidSvid, match="not a CA"):
        X509Svid.parse_pem(svid.chain_pem() + other.chain_pem(), svid.key_pem())


@pytest.mark.parametrize(
    "pem", [b"", b"not a pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_certificates_that_cannot_be_read_are_refused(pem: bytes) -> None:
    with pytest.raises(InvalidSvid):
        X509Svid.parse_pem(pem, ROOT.issue(ID).key_pem())


def test_keys_that_cannot_be_used_are_refused() -> None:
    svid = ROOT.issue(ID)
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    odd = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for key in (b"", b"nonsense", svid.chain_pem(), locked, odd):
        with pytest.raises(InvalidSvid):
            X509Svid.parse_pem(svid.chain_pem(), key)
