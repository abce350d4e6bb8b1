"""SDS: secret discovery as Envoy speaks it (envoy.service.secret.v3.SecretDiscoveryService)."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from agent.delta_state import DeltaState
from agent.entitlement import OpenSession, Session, refusal
from agent.errors import AttestationFailed, BadSubscription, NoIdentity
from agent.offer import Offer
from agent.resources import Resource
from agent.sds_messages import ask_of, delta_ask_of, secret_of
from agent.sds_state import Ask, Meaning, StreamState
from agent.store import SecretStore, Wakeup
from mesh.api import DELTA_SECRETS, FETCH_SECRETS, SECRET_TYPE_URL, STREAM_SECRETS
from mesh.clock import Now
from mesh.grpc import GrpcError, ServerCall, Service, Status, StreamingCall
from mesh.log import get_logger
from mesh.protos.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from mesh.spiffe import TrustDomain

log = get_logger("agent.sds")

SecretCall = StreamingCall[DiscoveryRequest, DiscoveryResponse]
DeltaCall = StreamingCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]

NONCE_BYTES = 16
"""Random, so that a nonce of an earlier connection cannot be taken for one of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretService:
    """Serves the secrets of `store`, to each caller what it may have."""

    store: SecretStore
    open_session: OpenSession
    trust_domain: TrustDomain
    now: Now
    _count: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def register(self, service: Service) -> None:
        """Add the methods to a gRPC service."""
        service.streaming(STREAM_SECRETS, self.stream)
        service.streaming(DELTA_SECRETS, self.delta)
        service.unary(FETCH_SECRETS, self.fetch)

    async def stream(self, call: SecretCall) -> None:
        """Answer a state-of-the-world stream."""
        await _WholeStream(call, self).run()

    async def delta(self, call: DeltaCall) -> None:
        """Answer an incremental stream."""
        await _DeltaStream(call, self).run()

    async def fetch(self, request: DiscoveryRequest, call: ServerCall) -> DiscoveryResponse:
        """Answer one request at once, with what there is.

        Raises GrpcError UNAVAILABLE if that is not all that was asked for.
        """
        state = StreamState(SECRET_TYPE_URL)
        ask = ask_of(request)
        try:
            offer = await self.offer(self.open_session(call.peer))
            # A single request has no conversation before it, whatever its nonce says.
            fresh = Ask(node_id=ask.node_id, type_url=ask.type_url, names=ask.names, nonce="")
            state.take(fresh, offer)
        except BadSubscription as error:
            raise _bad(error) from error
        resources = state.due(offer)
        if len(resources) < len(ask.names or offer.everything()):
            raise GrpcError(Status.UNAVAILABLE, "not every secret is there yet")
        return self.response(resources, secrets.token_hex(NONCE_BYTES))

    async def offer(self, session: Session) -> Offer:
        """Return what the caller is offered now. Raises GrpcError."""
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

    def response(self, resources: Sequence[Resource], nonce: str) -> DiscoveryResponse:
        """Return secrets in the state-of-the-world form."""
        response = DiscoveryResponse(
            version_info=self.version(), type_url=SECRET_TYPE_URL, nonce=nonce
        )
        for resource in resources:
            response.resources.add(
                type_url=SECRET_TYPE_URL, value=secret_of(resource).SerializeToString()
            )
        return response

    def version(self) -> str:
        """Return a new version of everything, as Istio writes it: time and count."""
        return f"{self.now():%Y-%m-%dT%H:%M:%SZ}/{next(self._count)}"


class _Stream:
    """One client's stream: a task that reads requests, and one that sends what is due.

    A secret that is not there yet is waited for: Envoy keeps its listeners warming so long,
    whereas a failed stream would make it back off.
    """

    def __init__(
        self, state: StreamState | DeltaState, service: SecretService, session: Session
    ) -> None:
        self._state = state
        self._service = service
        self._session = session
        self._wakeup = Wakeup()

    async def run(self) -> None:
        """Serve until the client ends its side.

        Raises GrpcError for requests that make no sense, and for a caller that may not have, or no
        longer have, what it is subscribed to.
        """
        await self._service.offer(self._session)
        with self._service.store.subscribed(self._wakeup):
            try:
                await self._converse()
            except* GrpcError as group:
                raise _first(group) from group

    async def _converse(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._push)
            try:
                await self._read()
            except BadSubscription as error:
                raise _bad(error) from error
            nursery.cancel_scope.cancel()

    async def _read(self) -> None:
        raise NotImplementedError

    async def _send(self, resources: Sequence[Resource]) -> None:
        raise NotImplementedError

    async def _push(self) -> None:
        while True:
            offer = await self._service.offer(self._session)
            self._check_still(offer)
            resources = self._state.due(offer)
            if resources:
                await self._send(resources)
                names = [resource.name for resource in resources]
                log.debug("secrets sent", node=self._state.node_id, names=names)
            else:
                await self._wakeup.wait()

    def _check_still(self, offer: Offer) -> None:
        """Raise GrpcError if the caller has lost what it is subscribed to."""
        try:
            for name in self._state.names:
                offer.check(name)
        except BadSubscription as error:
            log.warning("secret withdrawn", node=self._state.node_id, error=str(error))
            raise GrpcError(Status.PERMISSION_DENIED, str(error)) from error

    def _note(self, meaning: Meaning, error: str | None) -> None:
        node = self._state.node_id
        if meaning is Meaning.NACK:
            log.warning("client refused a secret", node=node, error=error)
        else:
            log.debug("secret request", node=node, meaning=meaning.value)
        self._wakeup.set()


class _WholeStream(_Stream):
    """The state-of-the-world form."""

    def __init__(self, call: SecretCall, service: SecretService) -> None:
        state = StreamState(SECRET_TYPE_URL)
        super().__init__(state, service, service.open_session(call.peer))
        self._call = call
        self._whole = state

    async def _read(self) -> None:
        async for request in self._call:
            ask = ask_of(request)
            offer = await self._service.offer(self._session)
            self._note(self._whole.take(ask, offer), ask.error)

    async def _send(self, resources: Sequence[Resource]) -> None:
        nonce = secrets.token_hex(NONCE_BYTES)
        self._whole.sending(resources, nonce)
        await self._call.send(self._service.response(resources, nonce))


class _DeltaStream(_Stream):
    """The incremental form."""

    def __init__(self, call: DeltaCall, service: SecretService) -> None:
        state = DeltaState(SECRET_TYPE_URL)
        super().__init__(state, service, service.open_session(call.peer))
        self._call = call
        self._delta = state

    async def _read(self) -> None:
        async for request in self._call:
            ask = delta_ask_of(request)
            offer = await self._service.offer(self._session)
            self._note(self._delta.take(ask, offer), ask.error)

    async def _send(self, resources: Sequence[Resource]) -> None:
        response = DeltaDiscoveryResponse(
            system_version_info=self._service.version(),
            type_url=SECRET_TYPE_URL,
            nonce=secrets.token_hex(NONCE_BYTES),
        )
        for resource in resources:
            added = response.resources.add(name=resource.name, version=resource.version)
            added.resource.type_url = SECRET_TYPE_URL
            added.resource.value = secret_of(resource).SerializeToString()
        self._delta.sending(resources)
        await self._call.send(response)


def _first(group: BaseExceptionGroup[GrpcError]) -> GrpcError:
    """Return one error of a stream whose two tasks may both have failed."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _bad(error: BadSubscription) -> GrpcError:
    log.warning("secret request refused", reason=error.reason, error=str(error))
    return GrpcError(Status.INVALID_ARGUMENT, str(error))
