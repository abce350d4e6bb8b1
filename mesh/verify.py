"""Whether a peer's certificate chain proves the SPIFFE ID it names (X509-SVID, section 5).

The bundle is chosen by the leaf's trust domain alone, so a root that is trusted for one domain
can never vouch for another. OpenSSL does the RFC 5280 path validation, at the time it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from cryptography import x509
from OpenSSL import crypto

from mesh.bundle import Bundles, TrustBundle
from mesh.errors import RemoraError
from mesh.revocation import find_revoked
from mesh.spiffe import SpiffeId
from mesh.svid import UNREADABLE, InvalidSvid, leaf_id, subject_text

MAX_CHAIN = 10
"""Certificates in a chain: deeper ones only cost time (OpenSSL's own default depth is 100)."""


class PeerRejected(RemoraError):
    """The peer did not prove an identity that we accept."""

    reason = "peer_rejected"


class PeerInvalid(PeerRejected):
    """The peer's certificate is not an X.509-SVID."""

    reason = "peer_invalid_svid"


class PeerNotTrusted(PeerRejected):
    """The peer's chain does not end in a root of its trust domain."""

    reason = "peer_not_trusted"


class PeerRevoked(PeerRejected):
    """A certificate in the peer's chain was revoked by the CA that issued it."""

    reason = "peer_revoked"


class PeerExpired(PeerRejected):
    """A certificate in the peer's chain is past its end."""

    reason = "peer_expired"


class PeerNotYetValid(PeerRejected):
    """A certificate in the peer's chain begins in the future."""

    reason = "peer_not_yet_valid"


TIME_FAULTS = frozenset({9, 10})
"""OpenSSL's results "not yet valid" and "expired", by the system's clock."""

_CHAIN_FAULTS = {
    7: "its signature is wrong",
    18: "it is signed by itself",
    19: "its root is not one of ours",
    20: "its issuer is not one of our roots",
    21: "its issuer is not one of our roots, and no intermediate was sent",
    22: "the chain is too long",
    23: "it is revoked",
    24: "it is used as a CA and is none",
    25: "the chain is longer than a CA in it allows",
    26: "its extended key usage does not allow this role",
    32: "its key usage does not allow signing certificates",
    66: "its key is too weak",
    67: "a CA's key is too weak",
    68: "its signature algorithm is too weak",
    79: "it is used as a CA and is none",
}
"""Results of RFC 5280 validation by OpenSSL's number for them (x509_vfy.h)."""


def verify_chain(chain: Sequence[x509.Certificate], bundles: Bundles, now: datetime) -> SpiffeId:
    """Return the identity that `chain` (leaf first) proves at `now`. Raises PeerRejected."""
    if not chain:
        raise PeerInvalid("the peer sent no certificate")
    if len(chain) > MAX_CHAIN:
        raise PeerInvalid(f"the peer sent {len(chain)} certificates, more than {MAX_CHAIN}")
    identity = peer_leaf_id(chain[0])
    validate_path(chain, bundle_for(identity, bundles), now)
    return identity


def validate_path(chain: Sequence[x509.Certificate], bundle: TrustBundle, now: datetime) -> None:
    """Check that `chain` (leaf first, or a CA) leads to a root of `bundle` at `now` (RFC 5280, 6).

    Raises PeerRejected.
    """
    store = crypto.X509Store()
    add_authorities(store, [bundle])
    store.set_time(now)
    leaf, *others = _for_openssl(chain)
    context = crypto.X509StoreContext(store, leaf, others)
    try:
        verified = context.get_verified_chain()
    except crypto.X509StoreContextError as error:
        certificate = error.certificate.to_cryptography()
        refusal = refusal_by_time(certificate, now) or rejection(int(error.errors[0]), certificate)
        raise refusal from error
    check_not_revoked([link.to_cryptography() for link in verified], bundle)


def check_not_revoked(chain: Sequence[x509.Certificate], bundle: TrustBundle) -> None:
    """Check a verified chain, root last, against the revocation lists. Raises PeerRevoked."""
    revoked = find_revoked(chain, bundle.revoked)
    if revoked is not None:
        raise PeerRevoked(
            f"the certificate of {describe(revoked)} with serial number "
            f"{revoked.serial_number:x} was revoked: its holder needs another one"
        )


def _for_openssl(chain: Sequence[x509.Certificate]) -> list[crypto.X509]:
    try:
        return [crypto.X509.from_cryptography(certificate) for certificate in chain]
    except crypto.Error as error:
        raise PeerInvalid(f"OpenSSL cannot read a certificate of the peer: {error}") from error


def peer_leaf_id(leaf: x509.Certificate) -> SpiffeId:
    """Return the ID of a peer's leaf, judging its form only. Raises PeerInvalid."""
    try:
        return leaf_id(leaf)
    except InvalidSvid as error:
        raise PeerInvalid(str(error)) from error


def bundle_for(identity: SpiffeId, bundles: Bundles) -> TrustBundle:
    """Return the bundle of the identity's own trust domain. Raises PeerNotTrusted."""
    bundle = bundles.get(identity.trust_domain)
    if bundle is None or not bundle.authorities:
        known = ", ".join(sorted(str(domain) for domain in bundles)) or "none"
        raise PeerNotTrusted(
            f"{identity} is of trust domain {identity.trust_domain}, "
            f"for which there are no roots (roots are known for: {known})"
        )
    return bundle


def add_authorities(store: crypto.X509Store, bundles: Iterable[TrustBundle]) -> None:
    """Add all roots in `bundles` to an OpenSSL store.

    Any root is an anchor, self-signed or not, as in Go's verifier and so in Istio's.
    """
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for bundle in bundles:
        for authority in bundle.authorities:
            store.add_cert(crypto.X509.from_cryptography(authority))


def refusal_by_time(certificate: x509.Certificate, now: datetime) -> PeerRejected | None:
    """Return why `certificate` is not valid at `now`, or None if it is. Raises PeerInvalid."""
    try:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except UNREADABLE as error:  # X.509 has a year 0, datetime has none
        raise PeerInvalid(
            f"the validity of a peer's certificate cannot be read: {error}"
        ) from error
    if now > end:
        return PeerExpired(
            f"the certificate of {describe(certificate)} expired {_span(now, end)} ago, "
            f"at {_stamp(end)}: renew it, or check the clocks of both machines"
        )
    if now < start:
        return PeerNotYetValid(
            f"the certificate of {describe(certificate)} is valid only in {_span(start, now)}, "
            f"from {_stamp(start)}: check the clocks of both machines"
        )
    return None


def rejection(code: int, certificate: x509.Certificate) -> PeerRejected:
    """Turn OpenSSL's verification result into a sentence about the certificate at fault."""
    issuer = _issuer_text(certificate) or "(no name)"
    fault = _CHAIN_FAULTS.get(code, f"OpenSSL's verification result is {code}")
    return PeerNotTrusted(
        f"the certificate of {describe(certificate)}, issued by {issuer!r}, is not trusted: {fault}"
    )


def describe(certificate: x509.Certificate) -> str:
    """Name a certificate for a message: its SPIFFE ID, or else its subject. Never raises."""
    try:
        return str(leaf_id(certificate))
    except InvalidSvid:
        return subject_text(certificate) or f"serial {certificate.serial_number:x}"


def _issuer_text(certificate: x509.Certificate) -> str:
    try:
        return certificate.issuer.rfc4514_string()
    except UNREADABLE:
        return "(unreadable name)"


def _stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _span(later: datetime, earlier: datetime) -> str:
    seconds = max(int((later - earlier).total_seconds()), 0)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h"
