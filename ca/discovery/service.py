"""The aggregated discovery service (ADS), incremental: one stream for each proxy."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from ca.authenticate import Caller
from ca.discovery.client import Client
from ca.discovery.errors import (
    DiscoveryRefused,
    ForeignNode,
    NodeRefused,
    NoSuchGroup,
    TooManyProxies,
)
from ca.discovery.fleet import Fleet
from ca.discovery.held import kind_name
from ca.discovery.registrar import Registrar
from ca.discovery.subscription import Meaning, Sending, Subscription
from mesh.api import DELTA_AGGREGATED_RESOURCES
from mesh.clock import Now
from mesh.discovery.errors import BadNode
from mesh.discovery.node import ProxyNode, decode_node
from mesh.grpc import GrpcError, ServerCall, Service, Status, StreamingCall
from mesh.log import get_logger
from mesh.protos.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from mesh.spiffe import InvalidSpiffeId, ServiceAccount, service_account_id

FIRST_REQUEST = 10.0
"""Seconds for a stream's first request. A proxy sends it at once; silence only holds a place."""

NONCE_BYTES = 12
"""Random, so that a nonce of an earlier stream is not taken for one of this."""

_CODES: Mapping[type[DiscoveryRefused], Status] = {
    ForeignNode: Status.PERMISSION_DENIED,
    NoSuchGroup: Status.FAILED_PRECONDITION,
    TooManyProxies: Status.RESOURCE_EXHAUSTED,
}

_log = get_logger("ca.discovery")

Call = StreamingCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]

Identify = Callable[[ServerCall], Awaitable[Caller]]
"""Returns who makes a call. Raises GrpcError UNAUTHENTICATED."""


class DiscoveryService:
    """Serves proxies that prove who they are, each with what concerns it."""

    def __init__(
        self,
        fleet: Fleet,
        registrar: Registrar,
        identify: Identify,
        now: Now,
    ) -> None:
        self._fleet = fleet
        self._registrar = registrar
        self._identify = identify
        self._now = now

    def register(self, service: Service) -> None:
        """Add the method to a gRPC service."""
        service.streaming(DELTA_AGGREGATED_RESOURCES, self.stream)

    async def stream(self, call: Call) -> None:
        """Serve one proxy until it ends its side. Raises GrpcError."""
        caller = await self._identify(call)
        first = await _first_request(call)
        try:
            node = _node_of(first, caller)
            async with self._registered(node) as (own, known):
                client = Client(
                    known, first.node, own=own, peer=call.peer.address, since=self._now()
                )
                with self._fleet.connected(client):
                    await self._converse(call, client, first)
        except DiscoveryRefused as refused:
            _log.warning(
                "discovery refused",
                reason=refused.reason,
                detail=str(refused),
                node=first.node.id[:200],
                identity=str(caller.identity),
                peer=call.peer.address,
            )
            code = _CODES.get(type(refused), Status.INVALID_ARGUMENT)
            raise GrpcError(code, str(refused)) from refused

    @asynccontextmanager
    async def _registered(self, node: ProxyNode) -> AsyncGenerator[tuple[str, ProxyNode]]:
        """Keep the proxy's WorkloadEntry for the block, if it wants one.

        Yields the entry's name, and the node with all labels that policies may select it by.
        Istio: a workload's labels are those of its entry.
        """
        if not node.group:
            yield "", node
            return
        entry, owner = await self._registrar.register(node)
        try:
            yield entry.key, replace(node, labels=entry.spec.labels)
        finally:
            self._registrar.leave(entry.key, owner)

    async def _converse(self, call: Call, client: Client, first: DeltaDiscoveryRequest) -> None:
        _log.info("proxy connected", node=client.node.id, peer=client.peer)
        refusal: DiscoveryRefused | None = None
        try:
            self._take(client, first)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._push, call, client)
                try:
                    async for request in call:
                        self._take(client, request)
                except DiscoveryRefused as error:
                    refusal = error
                nursery.cancel_scope.cancel()
        finally:
            _log.info("proxy disconnected", node=client.node.id, peer=client.peer)
        if refusal is not None:
            raise refusal

    def _take(self, client: Client, request: DeltaDiscoveryRequest) -> None:
        meaning = client.take(request, self._now())
        if meaning is Meaning.NACK:
            _log.warning(
                "proxy refused resources",
                reason="nack",
                node=client.node.id,
                kind=kind_name(request.type_url),
                detail=client.subscriptions[request.type_url].status.complaint,
            )

    async def _push(self, call: Call, client: Client) -> None:
        while True:
            due = client.next(self._fleet.world)
            if due is None:
                await client.wake.wait()
                client.wake = trio.Event()
            else:
                await self._send(call, *due)

    async def _send(self, call: Call, subscription: Subscription, sending: Sending) -> None:
        response = DeltaDiscoveryResponse(
            system_version_info=self._fleet.version,
            type_url=subscription.url,
            nonce=secrets.token_hex(NONCE_BYTES),
            resources=[held.envelope for held in sending.resources],
            removed_resources=sending.removed,
        )
        subscription.sending(
            sending,
            version=response.system_version_info,
            nonce=response.nonce,
            now=self._now(),
        )
        await call.send(response)


async def _first_request(call: Call) -> DeltaDiscoveryRequest:
    with trio.move_on_after(FIRST_REQUEST):
        async for request in call:
            return request
        raise GrpcError(Status.INVALID_ARGUMENT, "the stream ended before its first request")
    raise GrpcError(Status.DEADLINE_EXCEEDED, f"no request came within {FIRST_REQUEST:.0f} s")


def _node_of(first: DeltaDiscoveryRequest, caller: Caller) -> ProxyNode:
    """Return the proxy that calls. Raises NodeRefused, ForeignNode."""
    if not first.HasField("node"):
        raise NodeRefused("the first request of a stream must carry the node")
    try:
        node = decode_node(first.node)
    except BadNode as error:
        raise NodeRefused(str(error)) from error
    try:
        account = ServiceAccount.parse(f"{node.namespace}/{node.service_account}")
        claimed = service_account_id(caller.identity.trust_domain, account)
    except InvalidSpiffeId:
        claimed = None
    if claimed != caller.identity:
        raise ForeignNode(
            f"the node says it is service account {node.service_account!r} of namespace "
            f"{node.namespace!r}, but the caller is {caller.identity}"
        )
    return node
