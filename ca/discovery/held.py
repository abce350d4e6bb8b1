"""One resource as it goes over the wire: encoded once, however many proxies get it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from ca.store.catalog import InForce
from mesh.discovery.codec import encode_mesh_config, encode_resource, encode_unreadable
from mesh.discovery.types import MESH_CONFIG_NAME, MESH_CONFIG_URL, RESOURCE_URLS, URL_OF
from mesh.protos.discovery_pb2 import Resource as Enveloped
from mesh.resources.loader import KINDS
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import (
    DestinationRule,
    ServiceEntry,
    WorkloadEntry,
    WorkloadGroup,
)
from mesh.resources.problem import Refused
from mesh.resources.security import (
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
)

PEER_AUTHENTICATION = URL_OF[PeerAuthentication]
AUTHORIZATION_POLICY = URL_OF[AuthorizationPolicy]
REQUEST_AUTHENTICATION = URL_OF[RequestAuthentication]
WORKLOAD_ENTRY = URL_OF[WorkloadEntry]
DESTINATION_RULE = URL_OF[DestinationRule]
SERVICE_ENTRY = URL_OF[ServiceEntry]
WORKLOAD_GROUP = URL_OF[WorkloadGroup]

SERVED = (
    MESH_CONFIG_URL,
    PEER_AUTHENTICATION,
    AUTHORIZATION_POLICY,
    REQUEST_AUTHENTICATION,
    WORKLOAD_ENTRY,
    DESTINATION_RULE,
    SERVICE_ENTRY,
)
"""The types that proxies get, in the order that makes before it breaks: settings and policies
first, and a service only when its workloads and the rules for its clients are there."""

VERSION_CHARACTERS = 16
"""Of a SHA-256 in hexadecimal: 64 bits, and nobody gains by making two contents collide."""


@dataclass(frozen=True)
class Held:
    """A resource, or the name of an unreadable one, under its type URL."""

    url: str
    name: str
    value: InForce | MeshConfig

    @cached_property
    def version(self) -> str:
        """A hash of the content, the same after a restart and on every replica."""
        content = self._encode("").SerializeToString(deterministic=True)
        return hashlib.sha256(content).hexdigest()[:VERSION_CHARACTERS]

    @cached_property
    def envelope(self) -> Enveloped:
        """The resource in its envelope, with its version."""
        return self._encode(self.version)

    def _encode(self, version: str) -> Enveloped:
        match self.value:
            case Refused():
                return encode_unreadable(self.value, version)
            case MeshConfig():
                return encode_mesh_config(self.value, version)
            case resource:
                return encode_resource(resource, version)


def held_of(value: InForce) -> Held:
    """Hold a resource under the type of its kind."""
    if isinstance(value, Refused):
        url = URL_OF[KINDS[value.kind]]
        return Held(url, f"{value.namespace}/{value.name}", value)
    return Held(URL_OF[type(value)], value.key, value)


def held_settings(config: MeshConfig | None) -> Held:
    """Hold the mesh settings; None is for those that are there and cannot be read."""
    unreadable = Refused("MeshConfig", "", MESH_CONFIG_NAME)
    return Held(MESH_CONFIG_URL, MESH_CONFIG_NAME, unreadable if config is None else config)


def kind_name(url: str) -> str:
    """Name a type as people do: AuthorizationPolicy, or MeshConfig."""
    return RESOURCE_URLS[url].__name__ if url in RESOURCE_URLS else url.rpartition("/")[2]
