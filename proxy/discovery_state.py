"""A proxy's side of resource discovery, without I/O: what it holds, and what it answers.

Incremental xDS over one aggregated stream (ADS). What was received outlives the stream: a new one
begins by telling what is held, and only the difference is sent.

A resource that this version does not understand does not undo the others of its response: they
are put to use, and the response is refused (NACK) by naming it. It stays among what is held, as
something unread, so that whoever enforces policy can tell it from one that was never there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from mesh.discovery.codec import decode_mesh_config, decode_resource, hosts_named
from mesh.discovery.errors import NotUnderstood
from mesh.discovery.node import ProxyNode, encode_node
from mesh.discovery.types import (
    EVERYTHING,
    MESH_CONFIG_NAME,
    MESH_CONFIG_URL,
    RESOURCE_URLS,
    URL_OF,
)
from mesh.grpc import Status
from mesh.protos.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    ErrorDetail,
)
from mesh.protos.discovery_pb2 import Resource as Enveloped
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import DestinationRule, ServiceEntry, WorkloadEntry
from mesh.resources.security import (
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
)
from mesh.resources.values import Resource
from proxy.received import Received, Unread

POLICY_TYPES = (
    MESH_CONFIG_URL,
    URL_OF[PeerAuthentication],
    URL_OF[AuthorizationPolicy],
    URL_OF[RequestAuthentication],
)
"""What a proxy must know to let anybody in."""

REGISTRY_TYPES = (URL_OF[WorkloadEntry], URL_OF[ServiceEntry], URL_OF[DestinationRule])
"""What a proxy must know to call services. Who calls none does not ask: xDS takes a subscription
to no names at all for one to everything."""

SUBSCRIBED = POLICY_TYPES + REGISTRY_TYPES
"""All types, policies first."""

MAX_WHY = 2000
"""Characters of a NACK's message: enough for a dozen resources, small beside any message limit."""

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """One resource as it came, and what it was read as."""

    envelope: Enveloped
    value: Resource | MeshConfig | Unread


@dataclass(slots=True)
class _Type:
    """All resources of one type; `answered` once the control plane has spoken about the type."""

    held: dict[str, _Held] = field(default_factory=dict[str, _Held])
    answered: bool = False
    values: tuple[Resource | MeshConfig | Unread, ...] = ()

    def settle(self) -> None:
        """Take note of a change."""
        self.values = tuple(held.value for _, held in sorted(self.held.items()))


class DiscoveryState:
    """One proxy's subscription to everything that concerns it.

    `hosts` are the services it calls: None asks for all that it may see, and none at all for
    nothing of the registry.
    """

    def __init__(self, node: ProxyNode, hosts: Iterable[str] | None = None) -> None:
        self._node = node
        self._hosts = (EVERYTHING,) if hosts is None else tuple(sorted(set(hosts)))
        own_entry = (URL_OF[WorkloadEntry],) if node.group else ()
        asked = SUBSCRIBED if self._hosts else POLICY_TYPES + own_entry
        self._types = {url: _Type() for url in asked}
        self._version = ""
        self._received = Received()

    @property
    def node(self) -> ProxyNode:
        """The proxy that this is the state of."""
        return self._node

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names that ServiceEntries are asked for by."""
        return self._hosts

    @property
    def complete(self) -> bool:
        """Whether the control plane has said what there is of every type, if only nothing."""
        return all(held.answered for held in self._types.values())

    @property
    def received(self) -> Received:
        """What is in force now; the same object until something changes."""
        return self._received

    def subscribe(self) -> list[DeltaDiscoveryRequest]:
        """Return the first requests of a stream: one for each type, the first with the node."""
        requests = [
            DeltaDiscoveryRequest(
                type_url=url,
                resource_names_subscribe=self._names(url),
                initial_resource_versions={
                    name: held.envelope.version for name, held in self._types[url].held.items()
                },
            )
            for url in self._types
        ]
        requests[0].node.CopyFrom(encode_node(self._node))
        return requests

    def take(self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest:
        """Put a response to use, as a whole, and return its acknowledgement.

        What cannot be understood is held as unread, and named in a NACK.
        """
        answer = DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        kind = self._types.get(response.type_url)
        if kind is None:
            self._refuse(answer, [f"nobody asked for the type {response.type_url!r}"])
            return answer
        faults = self._apply(kind, response)
        kind.answered = True
        self._version = response.system_version_info or self._version
        kind.settle()
        self._received = self._gather()
        if faults:
            self._refuse(answer, faults)
        return answer

    def envelopes(self) -> Mapping[str, Sequence[Enveloped]]:
        """Return everything that is held, by type, to be kept for the next start."""
        return {
            url: [held.envelope for _, held in sorted(kind.held.items())]
            for url, kind in self._types.items()
        }

    def restore(self, version: str, envelopes: Mapping[str, Iterable[Enveloped]]) -> None:
        """Begin with what an earlier run of this proxy held when it was complete.

        It is read anew: what that version could not understand, this one may.
        """
        for url, kind in self._types.items():
            for envelope in envelopes.get(url, ()):
                kind.held[envelope.name] = _read(url, envelope)
            kind.answered = True
            kind.settle()
        self._version = version
        self._received = self._gather()

    def _names(self, url: str) -> tuple[str, ...]:
        return self._hosts if url == URL_OF[ServiceEntry] else (EVERYTHING,)

    def _apply(self, kind: _Type, response: DeltaDiscoveryResponse) -> list[str]:
        """Change what is held, and return a sentence for each resource that is not understood."""
        faults: list[str] = []
        for name in response.removed_resources:
            kind.held.pop(name, None)
        for envelope in response.resources:
            held = kind.held.get(envelope.name)
            if held is None or held.envelope != envelope:
                held = _read(response.type_url, envelope)
                kind.held[envelope.name] = held
            if isinstance(held.value, Unread):
                faults.append(f"{held.value}: {held.value.why}")
        return faults

    def _gather(self) -> Received:
        unread = [
            value
            for kind in self._types.values()
            for value in kind.values
            if isinstance(value, Unread)
        ]
        settings = self._types[MESH_CONFIG_URL]
        config = next((value for value in settings.values if isinstance(value, MeshConfig)), None)
        if settings.answered and not settings.held:
            why = "the control plane does not send the mesh settings"
            unread.append(Unread(kind="MeshConfig", name=MESH_CONFIG_NAME, why=why))
        last = self._received
        return Received(
            version=self._version,
            config=config,
            peer_authentications=self._all(PeerAuthentication, last.peer_authentications),
            authorization_policies=self._all(AuthorizationPolicy, last.authorization_policies),
            request_authentications=self._all(RequestAuthentication, last.request_authentications),
            destination_rules=self._all(DestinationRule, last.destination_rules),
            service_entries=self._all(ServiceEntry, last.service_entries),
            workload_entries=self._all(WorkloadEntry, last.workload_entries),
            unread=tuple(unread),
        )

    def _all(self, kind: type[R], before: tuple[R, ...]) -> tuple[R, ...]:
        """Return the readable resources of a kind: the tuple of before, if they are the same."""
        asked = self._types.get(URL_OF[kind])
        values = () if asked is None else asked.values
        found = tuple(value for value in values if isinstance(value, kind))
        unchanged = len(found) == len(before) and all(
            one is other for one, other in zip(found, before, strict=True)
        )
        return before if unchanged else found

    @staticmethod
    def _refuse(answer: DeltaDiscoveryRequest, faults: list[str]) -> None:
        message = "; ".join(faults)
        if len(message) > MAX_WHY:
            message = message[:MAX_WHY] + "..."
        answer.error_detail.CopyFrom(ErrorDetail(code=Status.INVALID_ARGUMENT, message=message))


def _read(url: str, envelope: Enveloped) -> _Held:
    try:
        if url == MESH_CONFIG_URL:
            return _Held(envelope=envelope, value=_read_config(envelope))
        return _Held(envelope=envelope, value=decode_resource(url, envelope))
    except NotUnderstood as error:
        return _Held(
            envelope=envelope,
            value=Unread(
                kind=_kind_name(url),
                name=envelope.name,
                why=error.why,
                hosts=hosts_named(envelope),
            ),
        )


def _read_config(envelope: Enveloped) -> MeshConfig:
    if envelope.name != MESH_CONFIG_NAME:
        raise NotUnderstood(
            MESH_CONFIG_URL, envelope.name, f"the settings are named {MESH_CONFIG_NAME!r}"
        )
    return decode_mesh_config(envelope)


def _kind_name(url: str) -> str:
    kind = RESOURCE_URLS.get(url)
    return url.rpartition("/")[2] if kind is None else kind.__name__
