"""The SPIFFE Workload API, for everybody who is not Envoy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio
from google.protobuf.message import Message

from agent.entitlement import OpenSession, Session, refusal
from agent.errors import AttestationFailed, JwtUnavailable, NoIdentity
from agent.offer import Offer
from agent.store import SecretStore, Wakeup
from agent.workload_messages import jwt_bundles, jwt_keys, validated, x509_bundles, x509_svids
from mesh.api import (
    FETCH_JWT_BUNDLES,
    FETCH_JWT_SVID,
    FETCH_X509_BUNDLES,
    FETCH_X509_SVID,
    VALIDATE_JWT_SVID,
    WORKLOAD_HEADER,
)
from mesh.clock import Now
from mesh.grpc import GrpcError, Method, ServerCall, Service, Status, StreamingCall
from mesh.jwt_svid import InvalidJwtSvid, JwtSvid, verify_jwt_svid
from mesh.log import get_logger
from mesh.protos.workload_pb2 import (
    JWTSVID,
    JWTSVIDRequest,
    JWTSVIDResponse,
    ValidateJWTSVIDRequest,
    ValidateJWTSVIDResponse,
)
from mesh.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain

log = get_logger("agent.workload_api")

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)

MAX_AUDIENCES = 32
"""JWT-SVID 3.2 advises one; each is a word in a token that has to fit a header."""

MAX_AUDIENCE = 1024
"""Characters of one audience: a URL, or a SPIFFE ID."""


class JwtIssuer(Protocol):
    """Where JWT-SVIDs come from."""

    async def fetch(self, identity: SpiffeId, audiences: tuple[str, ...]) -> JwtSvid:
        """Return a token for `identity` that is good for a while. Raises JwtUnavailable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadApi:
    """Serves what `store` holds, to each caller what it may have.

    A stream sends the full state at once and again when it has changed. A certificate that is not
    there yet is waited for, and one that has expired is not sent.
    """

    store: SecretStore
    open_session: OpenSession
    trust_domain: TrustDomain
    jwt_issuer: JwtIssuer
    now: Now

    def register(self, service: Service) -> None:
        """Add the methods to a gRPC service."""
        self._stream(service, FETCH_X509_SVID, x509_svids)
        self._stream(service, FETCH_X509_BUNDLES, x509_bundles)
        self._stream(service, FETCH_JWT_BUNDLES, jwt_bundles)
        self._unary(service, FETCH_JWT_SVID, self.fetch_jwt_svid)
        self._unary(service, VALIDATE_JWT_SVID, self.validate_jwt_svid)

    def _stream(
        self, service: Service, method: Method[Req, Res], state: Callable[[Offer], Res | None]
    ) -> None:
        async def handler(call: StreamingCall[Req, Res]) -> None:
            _check_header(call)
            async for _ in call:  # the one request, which says nothing
                break
            await self._follow(call, state)

        service.streaming(method, handler)

    def _unary(
        self,
        service: Service,
        method: Method[Req, Res],
        answer: Callable[[Req, Offer], Awaitable[Res]],
    ) -> None:
        async def handler(request: Req, call: ServerCall) -> Res:
            _check_header(call)
            return await answer(request, await self._offer(self.open_session(call.peer)))

        service.unary(method, handler)

    async def _follow(
        self, call: StreamingCall[Req, Res], state: Callable[[Offer], Res | None]
    ) -> None:
        session, wakeup = self.open_session(call.peer), Wakeup()
        sent: Res | None = None
        with self.store.subscribed(wakeup):
            while True:
                response = state(await self._offer(session))
                if response is not None and response != sent:
                    await call.send(response)
                    sent = response
                await wakeup.wait()

    async def _offer(self, session: Session) -> Offer:
        try:
            grants = await session.grants()
        except (AttestationFailed, NoIdentity) as error:
            raise refusal(error) from error
        return Offer(
            holdings=self.store.holdings,
            grants=grants,
            trust_domain=self.trust_domain,
            now=self.now(),
        )

    async def fetch_jwt_svid(self, request: JWTSVIDRequest, offer: Offer) -> JWTSVIDResponse:
        """Return a token for one of the caller's identities, or for each. Raises GrpcError."""
        audiences = tuple(dict.fromkeys(request.audience))
        _check_audiences(audiences)
        wanted = _parse_id(request.spiffe_id) if request.spiffe_id else None
        if offer.grants is None:
            raise GrpcError(Status.UNAVAILABLE, "this agent does not know its identity yet")
        chosen = [g for g in offer.grants.all if wanted is None or g.identity == wanted]
        if not chosen:
            raise GrpcError(Status.PERMISSION_DENIED, "no identity issued")
        response = JWTSVIDResponse()
        for grant in chosen:
            svid = await self._jwt_svid(grant.identity, audiences)
            response.svids.append(
                JWTSVID(spiffe_id=str(grant.identity), svid=svid.token, hint=grant.hint)
            )
        return response

    async def _jwt_svid(self, identity: SpiffeId, audiences: tuple[str, ...]) -> JwtSvid:
        try:
            return await self.jwt_issuer.fetch(identity, audiences)
        except JwtUnavailable as error:
            log.warning(
                "no JWT-SVID", identity=str(identity), reason=error.reason, error=str(error)
            )
            raise GrpcError(error.status, "the CA issued no JWT-SVID") from error

    async def validate_jwt_svid(
        self, request: ValidateJWTSVIDRequest, offer: Offer
    ) -> ValidateJWTSVIDResponse:
        """Return what a token says, if it is good for `audience`. Raises GrpcError."""
        await trio.lowlevel.checkpoint()
        if not request.audience or not request.svid:
            raise GrpcError(Status.INVALID_ARGUMENT, "audience and svid must be given")
        try:
            svid = verify_jwt_svid(request.svid, jwt_keys(offer), [request.audience], self.now())
        except InvalidJwtSvid as error:
            raise GrpcError(Status.INVALID_ARGUMENT, str(error)) from error
        return validated(svid)


def _check_header(call: ServerCall) -> None:
    if call.metadata.get_all(WORKLOAD_HEADER) != ["true"]:
        raise GrpcError(Status.INVALID_ARGUMENT, f"the metadata {WORKLOAD_HEADER}: true is missing")


def _check_audiences(audiences: tuple[str, ...]) -> None:
    if not audiences or not all(audiences):
        raise GrpcError(Status.INVALID_ARGUMENT, "audience must be given, and not be empty")
    if len(audiences) > MAX_AUDIENCES or max(map(len, audiences)) > MAX_AUDIENCE:
        raise GrpcError(
            Status.INVALID_ARGUMENT,
            f"more than {MAX_AUDIENCES} audiences, or one longer than {MAX_AUDIENCE} characters",
        )


def _parse_id(text: str) -> SpiffeId:
    try:
        return SpiffeId.parse(text)
    except InvalidSpiffeId as error:
        raise GrpcError(Status.INVALID_ARGUMENT, str(error)) from error
