"""A control plane small enough for a test: real incremental xDS on a real unix socket.

It answers every type once, then sends differences; versions come from the content, as the real
one's do. It shows everybody everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from mesh.api import DELTA_AGGREGATED_RESOURCES
from mesh.discovery.codec import encode_mesh_config, encode_resource, url_of
from mesh.discovery.node import ProxyNode, decode_node
from mesh.discovery.types import MESH_CONFIG_URL
from mesh.grpc import Service, StreamingCall, serve_grpc
from mesh.protos.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from mesh.protos.discovery_pb2 import Resource as Enveloped
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.values import Resource
from mesh.unix_socket import unix_listener
from proxy.discovery_state import SUBSCRIBED
from tests.proxy.control import respond

Call = StreamingCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]


@dataclass(eq=False)
class _Stream:
    call: Call
    sent: dict[str, dict[str, str]] = field(default_factory=dict)


class ControlPlane:
    """Holds resources, and tells every stream of a change."""

    def __init__(self, *resources: Resource, config: MeshConfig | None = None) -> None:
        self.nodes: list[ProxyNode] = []
        self.subscribed: dict[str, list[str]] = {}
        self.known_before: dict[str, dict[str, str]] = {}
        self.acks: list[DeltaDiscoveryRequest] = []
        self.nacks: list[DeltaDiscoveryRequest] = []
        self.responses = 0
        self.hold_back: set[str] = set()
        self._streams: set[_Stream] = set()
        self._version = 0
        self._kick = trio.Event()
        self._held: dict[str, dict[str, Enveloped]] = {}
        self._hold(resources, config, ())

    async def change(
        self,
        *resources: Resource,
        config: MeshConfig | None = None,
        unreadable: Iterable[tuple[str, Enveloped]] = (),
    ) -> None:
        """Hold these resources and no others from now on."""
        self._hold(resources, config, unreadable)
        for stream in list(self._streams):
            for url in [url for url in SUBSCRIBED if url in stream.sent]:
                await self._send(stream, url, always=False)

    def hang_up(self) -> None:
        """End every stream."""
        self._kick.set()
        self._kick = trio.Event()

    def _hold(
        self,
        resources: Iterable[Resource],
        config: MeshConfig | None,
        unreadable: Iterable[tuple[str, Enveloped]],
    ) -> None:
        self._version += 1
        self._held = {url: {} for url in SUBSCRIBED}
        settings = encode_mesh_config(config or MeshConfig(), "")
        given = [(MESH_CONFIG_URL, settings)]
        given += [(url_of(one), encode_resource(one, "")) for one in resources]
        for url, envelope in [*given, *unreadable]:
            content = envelope.resource.SerializeToString(deterministic=True)
            envelope.version = hashlib.sha256(content).hexdigest()[:8]
            self._held[url][envelope.name] = envelope

    async def _send(self, stream: _Stream, url: str, *, always: bool) -> None:
        if url in self.hold_back:
            return
        sent, held = stream.sent[url], self._held[url]
        changed = [one for name, one in held.items() if sent.get(name) != one.version]
        removed = [name for name in sent if name not in held]
        stream.sent[url] = {name: one.version for name, one in held.items()}
        if changed or removed or always:
            self.responses += 1
            await stream.call.send(
                respond(
                    url,
                    *changed,
                    removed=removed,
                    version=str(self._version),
                    nonce=str(self.responses),
                )
            )

    async def _serve(self, call: Call) -> None:
        stream = _Stream(call)
        self._streams.add(stream)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_kicked, nursery.cancel_scope)
                async for request in call:
                    await self._take(stream, request)
                nursery.cancel_scope.cancel()
        finally:
            self._streams.discard(stream)

    async def _until_kicked(self, scope: trio.CancelScope) -> None:
        await self._kick.wait()
        scope.cancel()

    async def _take(self, stream: _Stream, request: DeltaDiscoveryRequest) -> None:
        if request.HasField("node"):
            self.nodes.append(decode_node(request.node))
        if request.response_nonce:
            (self.nacks if request.HasField("error_detail") else self.acks).append(request)
            return
        url = request.type_url
        self.subscribed[url] = list(request.resource_names_subscribe)
        self.known_before[url] = dict(request.initial_resource_versions)
        stream.sent[url] = dict(request.initial_resource_versions)
        await self._send(stream, url, always=True)


@asynccontextmanager
async def served(plane: ControlPlane, socket: Path) -> AsyncIterator[None]:
    """Serve a control plane, as an agent would hand it on, until the block ends."""
    service = Service()
    service.streaming(DELTA_AGGREGATED_RESOURCES, plane._serve)
    async with unix_listener(socket) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve_grpc, service, [listener])
        yield
        nursery.cancel_scope.cancel()
