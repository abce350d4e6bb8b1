"""Path validation by the leaf's own trust domain, and at the time we say it is."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mesh.bundle import InvalidBundle, TrustBundle
from mesh.spiffe import TrustDomain
from mesh.verify import (
    MAX_CHAIN,
    PeerExpired,
    PeerInvalid,
    PeerNotTrusted,
    PeerNotYetValid,
    describe,
    verify_chain,
)
from tests.pki import NOW, Leaf, make_root

ID = "spiffe://cluster.local/ns/foo/sa/web"
ROOT = make_root()
OTHER = make_root("other")


def test_a_chain_proves_its_identity() -> None:
    assert str(verify_chain(ROOT.issue(ID).chain, ROOT.bundle(), NOW)) == ID
    deep = ROOT.intermediate("one").intermediate("two")
    assert str(verify_chain(deep.issue(ID).chain, ROOT.bundle(), NOW)) == ID


def test_a_root_that_the_peer_sends_along_changes_nothing() -> None:
    chain = (*ROOT.issue(ID).chain, ROOT.certificate)
    assert str(verify_chain(chain, ROOT.bundle(), NOW)) == ID
    foreign = (*OTHER.issue(ID).chain, OTHER.certificate)
    with pytest.raises(PeerNotTrusted):
        verify_chain(foreign, ROOT.bundle(), NOW)


def test_a_foreign_root_or_a_missing_intermediate_is_not_trusted() -> None:
    with pytest.raises(PeerNotTrusted, match="O=other"):
        verify_chain(OTHER.issue(ID).chain, ROOT.bundle(), NOW)
    with pytest.raises(PeerNotTrusted):
        verify_chain(ROOT.intermediate().issue(ID).chain[:1], ROOT.bundle(), NOW)


def test_a_lookalike_root_of_the_same_name_is_not_trusted() -> None:
    with pytest.raises(PeerNotTrusted):
        verify_chain(make_root("root").issue(ID).chain, ROOT.bundle(), NOW)


def test_a_leaf_cannot_sign_another() -> None:
    signer = ROOT.issue("spiffe://cluster.local/ns/foo/sa/evil")
    forger = make_root("forger")
    forger.certificate, forger.key = signer.leaf, signer.key  # type: ignore[assignment]
    chain = (*forger.issue(ID).chain, signer.leaf)
    with pytest.raises(PeerNotTrusted):
        verify_chain(chain, ROOT.bundle(), NOW)


def test_a_root_speaks_for_its_own_trust_domain_only() -> None:
    bundles = {**ROOT.bundle("cluster.local"), **OTHER.bundle("other.test")}
    assert str(verify_chain(ROOT.issue(ID).chain, bundles, NOW)) == ID
    claimed = OTHER.issue(ID)
    with pytest.raises(PeerNotTrusted):
        verify_chain(claimed.chain, bundles, NOW)
    with pytest.raises(PeerNotTrusted, match="trust domain third"):
        verify_chain(ROOT.issue("spiffe://third/x").chain, bundles, NOW)


def test_an_empty_bundle_trusts_nothing() -> None:
    domain = TrustDomain("cluster.local")
    with pytest.raises(PeerNotTrusted):
        verify_chain(ROOT.issue(ID).chain, {domain: TrustBundle.of(domain, [])}, NOW)


def test_time_is_the_time_it_is_given() -> None:
    svid = ROOT.issue(ID)
    for inside in (svid.not_before, svid.not_after - timedelta(seconds=1)):
        assert verify_chain(svid.chain, ROOT.bundle(), inside) == svid.id
    with pytest.raises(PeerExpired, match=r"expired 30 s ago.*check the clocks"):
        verify_chain(svid.chain, ROOT.bundle(), svid.not_after + timedelta(seconds=30))
    with pytest.raises(PeerNotYetValid, match="valid only in 5 min"):
        verify_chain(svid.chain, ROOT.bundle(), svid.not_before - timedelta(minutes=5))
    with pytest.raises(PeerExpired):
        verify_chain(svid.chain, ROOT.bundle(), NOW + timedelta(days=400))


def test_an_expired_intermediate_ends_the_chain() -> None:
    middle = ROOT.intermediate()
    leaf = middle.issue(ID, not_after=NOW + timedelta(days=800))
    with pytest.raises(PeerExpired):
        verify_chain(leaf.chain, ROOT.bundle(), NOW + timedelta(days=500))


def test_chains_of_odd_length_are_refused() -> None:
    svid = ROOT.issue(ID)
    with pytest.raises(PeerInvalid, match="no certificate"):
        verify_chain([], ROOT.bundle(), NOW)
    with pytest.raises(PeerInvalid, match=f"more than {MAX_CHAIN}"):
        verify_chain(svid.chain * (MAX_CHAIN + 1), ROOT.bundle(), NOW)


def test_a_certificate_that_is_no_svid_is_refused_before_any_trust() -> None:
    with pytest.raises(PeerInvalid):
        verify_chain([ROOT.sign(Leaf(sans=["example.org"]))], ROOT.bundle(), NOW)


def test_any_certificate_can_be_described() -> None:
    assert describe(ROOT.issue(ID).leaf) == ID
    assert describe(ROOT.certificate) == "O=root"
    assert describe(ROOT.sign(Leaf(sans=["example.org"]))).startswith("serial ")


def test_a_bundle_keeps_each_root_once_and_its_order() -> None:
    domain = TrustDomain("cluster.local")
    bundle = TrustBundle.from_pem(domain, OTHER.pem + ROOT.pem + OTHER.pem)
    assert bundle.authorities == (OTHER.certificate, ROOT.certificate)
    assert bundle.pem() == OTHER.pem + ROOT.pem
    for bad in (b"", b"junk"):
        with pytest.raises(InvalidBundle, match=r"cluster\.local"):
            TrustBundle.from_pem(domain, bad)
