"""A proxy's side of SDS, without I/O: which secrets it holds, and what it answers the agent.

Certificate and roots are two resources and may come in two responses. They are put to use
together, once the certificate leads to the roots: never a new one of the one beside an old one of
the other. Until then the last good pair stays in use.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import ClassVar

from google.protobuf.message import DecodeError

from mesh.api import BUNDLE_RESOURCE, SECRET_TYPE_URL, SVID_RESOURCE
from mesh.bundle import InvalidBundle, TrustBundle
from mesh.errors import RemoraError
from mesh.grpc import Status
from mesh.protos.discovery_pb2 import DiscoveryRequest, DiscoveryResponse, ErrorDetail, Node
from mesh.protos.secret_pb2 import DataSource, Secret
from mesh.spiffe import TrustDomain
from mesh.svid import InvalidSvid, X509Svid
from mesh.verify import PeerRejected, verify_chain
from proxy.identity import Identity

RESOURCES = (SVID_RESOURCE, BUNDLE_RESOURCE)


class SecretRefused(RemoraError):
    """The agent delivered something that cannot be used."""

    reason: ClassVar[str] = "secret_refused"


class SecretsState:
    """One proxy's subscription. Kept over reconnections, so nothing good is lost with a stream."""

    def __init__(
        self,
        node_id: str,
        aliases: Collection[TrustDomain] = (),
        federated: Collection[TrustDomain] = (),
    ) -> None:
        self._node_id = node_id
        self._aliases = frozenset(aliases)
        self._federated = {domain.id: domain for domain in sorted(federated)}
        self._foreign: dict[TrustDomain, TrustBundle] = {}
        self._version = ""
        self._svid: X509Svid | None = None
        self._roots_pem: bytes | None = None

    def subscribe(self) -> DiscoveryRequest:
        """Return the first request of a stream."""
        return self._request(nonce="")

    def take(self, response: DiscoveryResponse) -> DiscoveryRequest:
        """Keep what a response brings and return its acknowledgement.

        A response with anything unusable in it is refused whole, by a NACK that says why.
        """
        try:
            svid, roots, foreign = self._read(response)
        except SecretRefused as refusal:
            request = self._request(nonce=response.nonce)
            detail = ErrorDetail(code=Status.INVALID_ARGUMENT, message=str(refusal))
            request.error_detail.CopyFrom(detail)
            return request
        self._svid = svid or self._svid
        self._roots_pem = roots or self._roots_pem
        self._foreign |= foreign
        self._version = response.version_info
        return self._request(nonce=response.nonce)

    def identity(self, now: datetime) -> Identity | None:
        """Return certificate and roots as one, None while one is missing.

        Raises SecretRefused while the two do not belong together, or not at this time.
        """
        if self._svid is None or self._roots_pem is None:
            return None
        own = self._svid.id.trust_domain
        bundles = {
            domain: TrustBundle.from_pem(domain, self._roots_pem)
            for domain in {own} | self._aliases
        }
        try:
            verify_chain(self._svid.chain, bundles, now)
        except PeerRejected as error:
            raise SecretRefused(f"our own certificate does not fit our roots: {error}") from error
        foreign = {d: bundle for d, bundle in self._foreign.items() if d not in bundles}
        return Identity(
            svid=self._svid, bundles={**bundles, **foreign}, federated=frozenset(foreign)
        )

    def _request(self, nonce: str) -> DiscoveryRequest:
        return DiscoveryRequest(
            version_info=self._version,
            node=Node(id=self._node_id),
            resource_names=(*RESOURCES, *self._federated),
            type_url=SECRET_TYPE_URL,
            response_nonce=nonce,
        )

    def _read(
        self, response: DiscoveryResponse
    ) -> tuple[X509Svid | None, bytes | None, dict[TrustDomain, TrustBundle]]:
        svid: X509Svid | None = None
        roots: bytes | None = None
        foreign: dict[TrustDomain, TrustBundle] = {}
        for resource in response.resources:
            secret = _decode(resource.type_url, resource.value)
            if secret.name == SVID_RESOURCE:
                svid = _svid(secret)
            elif secret.name == BUNDLE_RESOURCE:
                roots = _roots(secret)
            elif domain := self._federated.get(secret.name):
                foreign[domain] = TrustBundle.from_pem(domain, _roots(secret))
        return svid, roots, foreign


def _decode(type_url: str, value: bytes) -> Secret:
    if type_url != SECRET_TYPE_URL:
        raise SecretRefused(f"the agent sent a resource of type {type_url!r}, which is no secret")
    try:
        return Secret.FromString(value)
    except DecodeError as error:
        raise SecretRefused("the agent sent a secret that cannot be decoded") from error


def _svid(secret: Secret) -> X509Svid:
    certificate = secret.tls_certificate
    chain, key = _inline(certificate.certificate_chain), _inline(certificate.private_key)
    try:
        return X509Svid.parse_pem(chain, key)
    except InvalidSvid as error:
        raise SecretRefused(f"the secret {secret.name!r} cannot be used: {error}") from error


def _roots(secret: Secret) -> bytes:
    context = secret.validation_context
    pem = _inline(context.trusted_ca) + _inline(context.crl)
    try:
        TrustBundle.from_pem(TrustDomain("any"), pem)
    except InvalidBundle as error:
        raise SecretRefused(f"the secret {secret.name!r} cannot be used: {error}") from error
    return pem


def _inline(source: DataSource) -> bytes:
    return source.inline_bytes or source.inline_string.encode()
