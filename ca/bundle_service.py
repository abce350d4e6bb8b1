"""JWT-SVIDs and trust bundles over SPIRE's server API, for which Istio has nothing like."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import trio
from cryptography.hazmat.primitives import serialization

from ca.acting import may_act_for
from ca.audit import AuditLog
from ca.authenticate import Caller
from ca.bundle_publisher import BundlePublisher
from ca.errors import AuditFailed
from ca.service import REVOKED
from mesh.api import GET_BUNDLE, LIST_FEDERATED_BUNDLES, MINT_JWT_SVID
from mesh.bundle_document import BundleDocument, JwtKey
from mesh.clock import Now
from mesh.grpc import GrpcError, ServerCall, Service, Status
from mesh.jwt_svid import InvalidJwtSvid, JwtSvid, sign_jwt_svid
from mesh.log import get_logger
from mesh.protos.spire_server_pb2 import (
    JWTSVID,
    SPIFFEID,
    Bundle,
    GetBundleRequest,
    JWTKey,
    ListFederatedBundlesRequest,
    ListFederatedBundlesResponse,
    MintJWTSVIDRequest,
    MintJWTSVIDResponse,
    X509Certificate,
)
from mesh.spiffe import InvalidSpiffeId, ServiceAccount, SpiffeId, TrustDomain

DEFAULT_JWT_TTL = timedelta(minutes=5)
"""SPIRE: default_jwt_svid_ttl. A token is a bearer's, so short."""

MAX_JWT_TTL = timedelta(hours=1)
"""No token outlives the time that its key stays published after being replaced."""

MAX_AUDIENCES = 32

log = get_logger("ca.jwt")

Identify = Callable[[ServerCall], Awaitable[Caller]]
"""Returns who is calling. Raises GrpcError UNAUTHENTICATED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleService:
    """Answers MintJWTSVID, for the caller itself or a workload of its node, and bundle requests.

    Bundles are public: whoever asks may know whom we trust.
    """

    publisher: BundlePublisher
    identify: Identify
    trusted_nodes: frozenset[ServiceAccount] = frozenset()
    federated: Callable[[], Sequence[BundleDocument]] = tuple
    is_revoked: Callable[[SpiffeId], bool] = lambda _identity: False
    audit: AuditLog | None = None
    now: Now

    def register(self, service: Service) -> None:
        """Add the methods to a gRPC service."""
        service.unary(MINT_JWT_SVID, self.mint_jwt_svid)
        service.unary(GET_BUNDLE, self.get_bundle)
        service.unary(LIST_FEDERATED_BUNDLES, self.list_federated_bundles)

    async def get_bundle(self, _request: GetBundleRequest, _call: ServerCall) -> Bundle:
        """Return the bundle of our own trust domain."""
        await trio.lowlevel.checkpoint()
        return _bundle(self.publisher.document)

    async def list_federated_bundles(
        self, _request: ListFederatedBundlesRequest, _call: ServerCall
    ) -> ListFederatedBundlesResponse:
        """Return the bundles of the trust domains that we federate with, as far as known."""
        await trio.lowlevel.checkpoint()
        return ListFederatedBundlesResponse(bundles=[_bundle(one) for one in self.federated()])

    async def mint_jwt_svid(
        self, request: MintJWTSVIDRequest, call: ServerCall
    ) -> MintJWTSVIDResponse:
        """Issue a JWT-SVID. Raises GrpcError. Every decision about a known caller is recorded."""
        caller = await self.identify(call)
        if caller.spend is not None:
            raise GrpcError(Status.PERMISSION_DENIED, "a join token is for a certificate alone")
        identity = self._whose(request.id, caller, call)
        if self.is_revoked(identity) or self.is_revoked(caller.identity):
            raise GrpcError(Status.PERMISSION_DENIED, REVOKED)
        ttl, now = _ttl(request.ttl), self.now()
        signer = self.publisher.keyring.signing(now)
        try:
            svid = sign_jwt_svid(
                signer.key,
                signer.kid,
                identity=identity,
                audiences=_audiences(request.audience),
                ttl=ttl,
                now=now,
            )
        except InvalidJwtSvid as error:
            raise GrpcError(Status.INVALID_ARGUMENT, str(error)) from error
        self._record(
            "jwt_svid_issued",
            identity=str(identity),
            authenticator=caller.authenticator,
            audience=" ".join(svid.audiences),
            expires=svid.expires.isoformat(),
            peer=call.peer.address,
        )
        return MintJWTSVIDResponse(svid=_jwt_svid(svid))

    def _record(self, event: str, **facts: str) -> None:
        """Write a decision into the log and the audit log. Raises GrpcError: then it is void."""
        log.info(event.replace("_", " "), **facts)
        if self.audit is None:
            return
        try:
            self.audit.record(event, self.now(), **facts)
        except AuditFailed as error:
            log.exception("a decision could not be recorded")
            raise GrpcError(Status.INTERNAL, "the decision cannot be recorded") from error

    def _whose(self, asked: SPIFFEID, caller: Caller, call: ServerCall) -> SpiffeId:
        """Return whose token is asked for: the caller's own, unless it may act for others."""
        try:
            identity = SpiffeId(TrustDomain(asked.trust_domain), asked.path)
        except InvalidSpiffeId as error:
            raise GrpcError(Status.INVALID_ARGUMENT, str(error)) from error
        own = identity == caller.identity
        if own or may_act_for(caller.identity, identity, self.trusted_nodes):
            return identity
        self._record(
            "jwt_svid_refused",
            reason="impersonation_refused",
            identity=str(caller.identity),
            asked_for=str(identity),
            peer=call.peer.address,
        )
        raise GrpcError(Status.PERMISSION_DENIED, "this identity is not the caller's")


def _ttl(seconds: int) -> timedelta:
    if seconds <= 0:
        return DEFAULT_JWT_TTL
    if seconds > MAX_JWT_TTL.total_seconds():
        raise GrpcError(
            Status.INVALID_ARGUMENT,
            f"a life of {seconds} s was asked for, and a JWT-SVID lives at most "
            f"{MAX_JWT_TTL.total_seconds():.0f} s",
        )
    return timedelta(seconds=seconds)


def _audiences(asked: Sequence[str]) -> tuple[str, ...]:
    audiences = tuple(dict.fromkeys(asked))
    if len(audiences) > MAX_AUDIENCES:
        raise GrpcError(Status.INVALID_ARGUMENT, f"more than {MAX_AUDIENCES} audiences")
    return audiences


def _jwt_svid(svid: JwtSvid) -> JWTSVID:
    return JWTSVID(
        token=svid.token,
        id=SPIFFEID(trust_domain=svid.id.trust_domain.name, path=svid.id.path),
        expires_at=int(svid.expires.timestamp()),
        issued_at=int(svid.claims["iat"]),
    )


def _bundle(document: BundleDocument) -> Bundle:
    hint = document.refresh_hint or timedelta()
    return Bundle(
        trust_domain=document.trust_domain.name,
        x509_authorities=[
            X509Certificate(asn1=root.public_bytes(serialization.Encoding.DER))
            for root in document.roots.authorities
        ],
        jwt_authorities=[
            JWTKey(key_id=kid, public_key=_pkix(key)) for kid, key in document.jwt_keys.items()
        ],
        refresh_hint=int(hint.total_seconds()),
        sequence_number=document.sequence or 0,
        crls=[one.der for one in document.roots.revoked],
    )


def _pkix(key: JwtKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
