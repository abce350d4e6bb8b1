"""Whether the CA's answer is what was asked for (Istio: IstioCertificateResponse.cert_chain).

The elements are the leaf, each intermediate, and last the root bundle, which may hold several
roots. The CA has proven who it is, but a mistake there must not become an identity here: ztunnel
checks the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from agent.csr import SigningRequest
from agent.errors import (
    AnswerExpired,
    AnswerForeignIdentity,
    AnswerForeignKey,
    AnswerIncomplete,
    AnswerNotYetValid,
    AnswerUnreadable,
    AnswerUntrusted,
)
from mesh.bundle import InvalidBundle, TrustBundle
from mesh.svid import (
    InvalidSvid,
    X509Svid,
    certificates_pem,
    leaf_id,
    parse_certificates_pem,
    private_key_pem,
)
from mesh.verify import PeerExpired, PeerNotYetValid, PeerRejected, verify_chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate with its key and the roots it came with.

    `created` is the local time of the request: life is counted from it, not from NotBefore, which
    the CA backdates.
    """

    svid: X509Svid
    bundle: TrustBundle
    created: datetime


def check_answer(
    elements: Sequence[str], request: SigningRequest, *, created: datetime, now: datetime
) -> Issued:
    """Return what the CA issued for `request`, ready to be served. Raises AnswerRefused leaves.

    The chain to serve has no root in it: whoever trusts the root has it, and each handshake would
    carry it in vain.
    """
    if len(elements) < 2:
        raise AnswerIncomplete(
            f"the CA's answer for {request.identity} has {len(elements)} elements, where the "
            "certificate and the root bundle are due: check what listens at the CA's address"
        )
    *signed, roots = elements
    chain = _parse_chain(signed, request)
    bundle = _parse_bundle(roots, request)
    _check_leaf(chain[0], request)
    _check_validity(chain[0], request, now)
    _check_path(chain, bundle, request, now)
    return Issued(svid=_svid(chain, bundle, request), bundle=bundle, created=created)


def _parse_chain(elements: Sequence[str], request: SigningRequest) -> tuple[x509.Certificate, ...]:
    try:
        return parse_certificates_pem("\n".join(elements).encode())
    except InvalidSvid as error:
        raise AnswerUnreadable(f"the CA's chain for {request.identity} is {error}") from error


def _parse_bundle(element: str, request: SigningRequest) -> TrustBundle:
    try:
        bundle = TrustBundle.from_pem(request.identity.trust_domain, element.encode())
    except InvalidBundle as error:
        raise AnswerUnreadable(f"the last element of the CA's answer: {error}") from error
    for root in bundle.authorities:
        if not _is_ca(root):
            raise AnswerUntrusted(
                f"the last element of the CA's answer for {request.identity} should be its roots, "
                f"but {root.subject.rfc4514_string()!r} in it is not a CA"
            )
    return bundle


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.value.ca


def _check_leaf(leaf: x509.Certificate, request: SigningRequest) -> None:
    try:
        identity = leaf_id(leaf)
    except InvalidSvid as error:
        raise AnswerUnreadable(f"what the CA issued for {request.identity}: {error}") from error
    if identity != request.identity:
        raise AnswerForeignIdentity(
            f"the CA issued a certificate for {identity} where {request.identity} was asked for: "
            "check that --service-account and --trust-domain fit the token and the CA"
        )
    if leaf.public_key() != request.key.public_key():
        raise AnswerForeignKey(
            f"the CA issued a certificate for {identity} on another key than the requested one: "
            "check what listens at the CA's address"
        )


def _check_validity(leaf: x509.Certificate, request: SigningRequest, now: datetime) -> None:
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if now < start:
        raise AnswerNotYetValid(
            f"the certificate that the CA issued for {request.identity} begins {_gap(start, now)} "
            f"from now, at {start:%Y-%m-%dT%H:%M:%SZ}: "
            "this machine's clock is behind the CA's; synchronise them"
        )
    if now >= end:
        raise AnswerExpired(
            f"the certificate that the CA issued for {request.identity} ended {_gap(now, end)} "
            f"ago, at {end:%Y-%m-%dT%H:%M:%SZ}: this machine's clock is ahead of the CA's, or the "
            "CA's own certificate has ended; synchronise the clocks, then look at the CA"
        )


def _gap(later: datetime, earlier: datetime) -> str:
    return f"{(later - earlier).total_seconds():.0f} s"


def _check_path(
    chain: Sequence[x509.Certificate],
    bundle: TrustBundle,
    request: SigningRequest,
    now: datetime,
) -> None:
    complaint = f"the certificate that the CA issued for {request.identity} cannot be used"
    try:
        verify_chain(chain, {bundle.trust_domain: bundle}, now)
    except PeerExpired as error:
        raise AnswerExpired(f"{complaint}: {error}") from error
    except PeerNotYetValid as error:
        raise AnswerNotYetValid(f"{complaint}: {error}") from error
    except PeerRejected as error:
        raise AnswerUntrusted(
            f"{complaint}, since peers with the roots that came with it would refuse it: {error}"
        ) from error


def _svid(
    chain: Sequence[x509.Certificate], bundle: TrustBundle, request: SigningRequest
) -> X509Svid:
    """Build the SVID by the rules its consumers will load it by, the proxy's for one."""
    served = [chain[0], *(link for link in chain[1:] if not _is_root(link, bundle))]
    try:
        return X509Svid.parse_pem(certificates_pem(served), private_key_pem(request.key))
    except InvalidSvid as error:
        raise AnswerUnreadable(f"the CA's chain for {request.identity}: {error}") from error


def _is_root(certificate: x509.Certificate, bundle: TrustBundle) -> bool:
    """Tell a self-signed root from an intermediate that the bundle lists as an anchor.

    A peer may know the intermediate's root alone, so such an intermediate stays in the chain.
    """
    return certificate.subject == certificate.issuer and certificate in bundle.authorities
