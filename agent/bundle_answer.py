"""A bundle as the CA's API gives it, turned into one that can be served; nothing odd gets by."""

from __future__ import annotations

from datetime import timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from agent.errors import AnswerForeignIdentity, AnswerUnreadable
from mesh.bundle import TrustBundle
from mesh.bundle_document import BundleDocument, JwtKey
from mesh.protos.spire_server_pb2 import Bundle, JWTKey
from mesh.revocation import parse_list_der
from mesh.spiffe import InvalidSpiffeId, TrustDomain
from mesh.svid import UNREADABLE

MAX_MEMBERS = 1000
"""Roots or keys of one trust domain; a real bundle has three."""


def own_bundle(bundle: Bundle, trust_domain: TrustDomain) -> BundleDocument:
    """Read the bundle of our own trust domain. Raises AnswerRefused leaves.

    One without any root is refused: it would cut us off from the CA itself.
    """
    document = _read(bundle)
    if document.trust_domain != trust_domain:
        raise AnswerForeignIdentity(
            f"the CA's bundle is of trust domain {document.trust_domain}, where that of "
            f"{trust_domain} was asked for: check --trust-domain"
        )
    if not document.roots.authorities:
        raise AnswerUnreadable(f"the CA's bundle of {trust_domain} holds no root")
    return document


def federated_bundle(bundle: Bundle, own: TrustDomain) -> BundleDocument:
    """Read the bundle of another trust domain. Raises AnswerRefused leaves."""
    document = _read(bundle)
    if document.trust_domain == own:
        raise AnswerForeignIdentity(f"the CA calls our own trust domain {own} a foreign one")
    return document


def _read(bundle: Bundle) -> BundleDocument:
    try:
        domain = TrustDomain(bundle.trust_domain)
    except InvalidSpiffeId as error:
        raise AnswerUnreadable(f"a bundle of the CA: {error}") from error
    members = (bundle.x509_authorities, bundle.jwt_authorities, bundle.crls)
    if max(len(part) for part in members) > MAX_MEMBERS:
        raise AnswerUnreadable(f"the bundle of {domain} has more than {MAX_MEMBERS} members")
    try:
        roots = [x509.load_der_x509_certificate(one.asn1) for one in bundle.x509_authorities]
        revoked = [parse_list_der(der) for der in bundle.crls]
    except UNREADABLE as error:
        raise AnswerUnreadable(f"a root or list of trust domain {domain}: {error}") from error
    return BundleDocument(
        roots=TrustBundle.of(domain, roots, revoked),
        jwt_keys={key.key_id: _jwt_key(key, domain) for key in bundle.jwt_authorities},
        sequence=bundle.sequence_number,
        refresh_hint=timedelta(seconds=bundle.refresh_hint) if bundle.refresh_hint > 0 else None,
    )


def _jwt_key(entry: JWTKey, domain: TrustDomain) -> JwtKey:
    try:
        key = load_der_public_key(entry.public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AnswerUnreadable(f"a token key of trust domain {domain}: {error}") from error
    if not entry.key_id or not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise AnswerUnreadable(
            f"a token key of trust domain {domain} has no id, or is no EC or RSA"
        )
    return key
