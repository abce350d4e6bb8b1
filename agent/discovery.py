"""Discovery for local proxies: each stream is passed on to the control plane, as it is.

The agent reads none of it. What it adds is the proof of the proxy's identity, and the trust in the
control plane that it has for certificates anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import trio

from agent.ca_client import CaClient
from agent.entitlement import OpenSession, refusal
from agent.errors import AttestationFailed, NoIdentity, RequestFailed
from mesh.api import DELTA_AGGREGATED_RESOURCES, DISCOVERY_MESSAGE_BYTES
from mesh.grpc import ClientCall, GrpcError, Limits, Peer, Service, Status, StreamingCall
from mesh.log import get_logger
from mesh.protos.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from mesh.spiffe import SpiffeId

UPSTREAM = Limits(message_bytes=DISCOVERY_MESSAGE_BYTES)

log = get_logger("agent.discovery")

Downstream = StreamingCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]
Upstream = ClientCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]

SpeakerFor = Callable[[SpiffeId], CaClient | None]
"""Returns who speaks to the control plane in the name of an identity."""


class Discovery(Protocol):
    """Whatever answers the discovery streams of local proxies."""

    def register(self, service: Service) -> None:
        """Add the method to a gRPC service."""
        ...


class NoDiscovery:
    """An agent that asks no CA knows of no control plane: gRPC answers UNIMPLEMENTED."""

    def register(self, service: Service) -> None:
        """Add nothing."""


class DiscoveryForwarder:
    """Passes streams on, and complains of the control plane once for each thing that is wrong."""

    def __init__(self, open_session: OpenSession, speaker_for: SpeakerFor) -> None:
        self._open_session = open_session
        self._speaker_for = speaker_for
        self._complaint = ""

    def register(self, service: Service) -> None:
        """Add the method to a gRPC service."""
        service.streaming(DELTA_AGGREGATED_RESOURCES, self.forward)

    async def forward(self, downstream: Downstream) -> None:
        """Join a proxy's stream with one of its own. Raises GrpcError, the control plane's first.

        The end of either side is the end of both: a proxy has what it needs to begin again.
        """
        client = await self._client(downstream.peer)
        try:
            async with (
                client.channel(UPSTREAM) as (channel, proof),
                channel.stream(DELTA_AGGREGATED_RESOURCES, metadata=proof) as upstream,
            ):
                self._complaint = ""
                await _join(downstream, upstream)
        except RequestFailed as error:
            self._complain(error)
            raise GrpcError(Status.UNAVAILABLE, str(error)) from error

    async def _client(self, peer: Peer) -> CaClient:
        """Return who speaks for a caller's default identity. Raises GrpcError."""
        try:
            grants = await self._open_session(peer).grants()
        except (AttestationFailed, NoIdentity) as error:
            raise refusal(error) from error
        known = () if grants is None else grants.identities
        client = self._speaker_for(known[0]) if known else None
        if client is None:
            raise GrpcError(Status.UNAVAILABLE, "this agent has no identity yet")
        return client

    def _complain(self, error: RequestFailed) -> None:
        said = f"{error.reason}: {error}"
        if said != self._complaint:
            self._complaint = said
            log.warning("discovery not forwarded", reason=error.reason, error=str(error))


async def _join(downstream: Downstream, upstream: Upstream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pass_up, downstream, upstream)
        async for response in upstream:
            await downstream.send(response)
        nursery.cancel_scope.cancel()


async def _pass_up(downstream: Downstream, upstream: Upstream) -> None:
    with suppress(GrpcError):  # why a side is gone, `_join` learns too, or nobody needs to know
        async for request in downstream:
            await upstream.send(request)
        await upstream.done_sending()
