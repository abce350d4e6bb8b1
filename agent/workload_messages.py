"""What a caller gets over the SPIFFE Workload API, as messages. Each is the full state."""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.hazmat.primitives import serialization
from google.protobuf.struct_pb2 import Struct

from agent.holdings import JwtKeys
from agent.offer import Offer
from mesh.bundle import TrustBundle
from mesh.bundle_document import BundleDocument
from mesh.jwt_svid import JwtSvid, KeysByDomain
from mesh.protos.workload_pb2 import (
    X509SVID,
    JWTBundlesResponse,
    ValidateJWTSVIDResponse,
    X509BundlesResponse,
    X509SVIDResponse,
)
from mesh.spiffe import TrustDomain
from mesh.svid import PrivateKey, X509Svid


def x509_svids(offer: Offer) -> X509SVIDResponse | None:
    """Return the caller's certificates with their bundles; None while there is none to return."""
    own = offer.holdings.roots.get(offer.trust_domain)
    if own is None or offer.grants is None:
        return None
    response = X509SVIDResponse()
    for grant in offer.grants.all:
        held = offer.holdings.svid(grant.identity, offer.now)
        if held is not None:
            svid = _x509_svid(held.issued.svid, own.bundle, grant.hint)
            response.svids.append(svid)
    for bundle in _bundles(offer):
        if bundle.trust_domain != offer.trust_domain:
            response.federated_bundles[bundle.trust_domain.id] = _roots_der(bundle)
    response.crl.extend(_lists_der(own.bundle))
    return response if response.svids else None


def x509_bundles(offer: Offer) -> X509BundlesResponse | None:
    """Return the roots of every trust domain that the caller deals with; None without our own."""
    if offer.trust_domain not in offer.holdings.roots:
        return None
    return X509BundlesResponse(
        crl=[der for bundle in _bundles(offer) for der in _lists_der(bundle)],
        bundles={bundle.trust_domain.id: _roots_der(bundle) for bundle in _bundles(offer)},
    )


def jwt_bundles(offer: Offer) -> JWTBundlesResponse | None:
    """Return the token keys of every trust domain the caller deals with; None without our own."""
    keys = jwt_keys(offer)
    if offer.trust_domain not in keys:
        return None
    bundles = {domain.id: _jwk_set(domain, members) for domain, members in keys.items()}
    return JWTBundlesResponse(bundles=bundles)


def jwt_keys(offer: Offer) -> KeysByDomain:
    """Return the keys by which the caller may have tokens judged."""
    known = offer.holdings.jwt_keys
    return {domain: known[domain] for domain in sorted(known) if offer.deals_with(domain)}


def validated(svid: JwtSvid) -> ValidateJWTSVIDResponse:
    """Return what a good token says."""
    claims = Struct()
    claims.update(dict(svid.claims))
    return ValidateJWTSVIDResponse(spiffe_id=str(svid.id), claims=claims)


def _x509_svid(svid: X509Svid, bundle: TrustBundle, hint: str) -> X509SVID:
    chain = b"".join(link.public_bytes(serialization.Encoding.DER) for link in svid.chain)
    return X509SVID(
        spiffe_id=str(svid.id),
        x509_svid=chain,
        x509_svid_key=_key_der(svid.key),
        bundle=_roots_der(bundle),
        hint=hint,
    )


def _key_der(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _roots_der(bundle: TrustBundle) -> bytes:
    """Return the roots in an order of their own, so that the same set is the same message."""
    return b"".join(
        sorted(root.public_bytes(serialization.Encoding.DER) for root in bundle.authorities)
    )


def _lists_der(bundle: TrustBundle) -> list[bytes]:
    return sorted(one.der for one in bundle.revoked)


def _bundles(offer: Offer) -> Iterator[TrustBundle]:
    for domain, held in sorted(offer.holdings.roots.items(), key=lambda item: item[0]):
        if offer.deals_with(domain):
            yield held.bundle


def _jwk_set(domain: TrustDomain, keys: JwtKeys) -> bytes:
    return BundleDocument(roots=TrustBundle.of(domain, ()), jwt_keys=keys).to_json()
