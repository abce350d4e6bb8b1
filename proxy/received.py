"""What a proxy has received from its control plane, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.resources.mesh_config import MeshConfig
from mesh.resources.networking import DestinationRule, ServiceEntry, WorkloadEntry
from mesh.resources.security import (
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A resource that is there and cannot be read by this version.

    `hosts` are those it seems to be about, none if that is unknown.
    """

    kind: str
    name: str
    why: str
    hosts: tuple[str, ...] = ()

    @property
    def namespace(self) -> str:
        """The namespace in the resource's name."""
        return self.name.partition("/")[0]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """Everything that is in force now. A tuple that did not change is the very same object.

    `config` is None while the mesh settings are missing or not understood.
    """

    version: str = ""
    config: MeshConfig | None = None
    peer_authentications: tuple[PeerAuthentication, ...] = ()
    authorization_policies: tuple[AuthorizationPolicy, ...] = ()
    request_authentications: tuple[RequestAuthentication, ...] = ()
    destination_rules: tuple[DestinationRule, ...] = ()
    service_entries: tuple[ServiceEntry, ...] = ()
    workload_entries: tuple[WorkloadEntry, ...] = ()
    unread: tuple[Unread, ...] = ()
