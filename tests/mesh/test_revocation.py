from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from mesh.bundle import InvalidBundle, TrustBundle
from mesh.revocation import RevocationList, find_revoked, lists_pem, parse_lists_pem
from mesh.spiffe import TrustDomain
from mesh.tls import TlsSession, client_context, server_context
from mesh.verify import PeerRevoked, verify_chain
from tests.pki import NOW, Authority, make_root

DOMAIN = TrustDomain("cluster.local")
ROOT = make_root()
MIDDLE = ROOT.intermediate("middle")
WEB = "spiffe://cluster.local/ns/foo/sa/web"


def revocation_list(
    issuer: Authority,
    *serials: int,
    signed_by: Authority | None = None,
    until: datetime = NOW + timedelta(days=1),
) -> RevocationList:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(until - timedelta(days=2))
        .next_update(until)
    )
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
        )
    return RevocationList.of(builder.sign((signed_by or issuer).key, hashes.SHA256()))


def bundles(*lists: RevocationList) -> dict[TrustDomain, TrustBundle]:
    return {DOMAIN: TrustBundle.of(DOMAIN, [ROOT.certificate], lists)}


def verify(chain: Sequence[x509.Certificate], *lists: RevocationList) -> None:
    verify_chain(chain, bundles(*lists), NOW)


def test_a_revoked_leaf_is_refused_and_another_is_not() -> None:
    bad, good = ROOT.issue(WEB), ROOT.issue(WEB)
    revoked = revocation_list(ROOT, bad.serial)
    with pytest.raises(PeerRevoked, match=f"{bad.serial:x} was revoked"):
        verify(bad.chain, revoked)
    verify(good.chain, revoked)


def test_a_revoked_intermediate_is_refused() -> None:
    svid = MIDDLE.issue(WEB)
    with pytest.raises(PeerRevoked, match="O=middle"):
        verify(svid.chain, revocation_list(ROOT, MIDDLE.certificate.serial_number))


def test_a_list_counts_only_for_what_its_own_signer_issued() -> None:
    svid = MIDDLE.issue(WEB)
    stranger = make_root("middle")
    verify(svid.chain, revocation_list(ROOT, svid.serial), revocation_list(stranger, svid.serial))
    verify(svid.chain, revocation_list(MIDDLE, svid.serial, signed_by=stranger))
    with pytest.raises(PeerRevoked):
        verify(svid.chain, revocation_list(MIDDLE, svid.serial))


def test_an_overdue_list_still_counts() -> None:
    svid = ROOT.issue(WEB)
    old = revocation_list(ROOT, svid.serial, until=NOW - timedelta(days=30))
    with pytest.raises(PeerRevoked):
        verify(svid.chain, old)
    verify(ROOT.issue(WEB).chain, old)


def test_a_chain_without_its_root_has_nothing_to_be_judged_by() -> None:
    svid = ROOT.issue(WEB)
    assert find_revoked(svid.chain, [revocation_list(ROOT, svid.serial)]) is None
    chain = [*svid.chain, ROOT.certificate]
    assert find_revoked(chain, [revocation_list(ROOT, svid.serial)]) == svid.leaf


def test_lists_travel_with_the_roots_in_one_file() -> None:
    lists = [revocation_list(ROOT, 1, 2), revocation_list(MIDDLE)]
    bundle = TrustBundle.of(DOMAIN, [ROOT.certificate, MIDDLE.certificate], lists)
    assert TrustBundle.from_pem(DOMAIN, bundle.pem_with_revoked()) == bundle
    mixed = lists_pem(lists[:1]) + bundle.pem() + lists_pem(lists[1:])
    assert TrustBundle.from_pem(DOMAIN, mixed) == bundle
    assert parse_lists_pem(bundle.pem()) == ()
    assert bundle.revoked[0].serials == {1, 2}


@pytest.mark.parametrize(
    "junk", [b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", b"-----END X509 CRL-----"]
)
def test_a_list_that_cannot_be_read_spoils_the_bundle(junk: bytes) -> None:
    with pytest.raises(InvalidBundle, match="unreadable revocation list"):
        TrustBundle.from_pem(DOMAIN, ROOT.pem + junk)


def shake_hands(client: TlsSession, server: TlsSession) -> None:
    """Carry bytes to and fro until both are done, or one refuses."""
    done = [False, False]
    while not all(done):
        for index, (one, other) in enumerate([(client, server), (server, client)]):
            done[index] = one.handshake()
            other.feed(one.pending_output())


@pytest.mark.parametrize("server_is_revoked", [True, False])
def test_a_revoked_peer_is_refused_in_the_handshake(server_is_revoked: bool) -> None:
    client, server = ROOT.issue(WEB), ROOT.issue(WEB)

    def try_with(*lists: RevocationList) -> None:
        known = bundles(*lists)
        shake_hands(
            client_context(known, svid=client).session(NOW),
            server_context(server, known).session(NOW),
        )

    try_with(revocation_list(ROOT, 1))
    with pytest.raises(PeerRevoked):
        try_with(revocation_list(ROOT, (server if server_is_revoked else client).serial))
