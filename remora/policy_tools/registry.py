"""Who is in the mesh, from ServiceEntries and WorkloadEntries: workloads, services, and both ways.

Istio's rules for what an entry leaves out: a workload's port is its own by the service port's
name, else the service's target port, else the same number; and it takes mutual TLS if its label
says so, or else if it has a service account.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from msgspec.structs import replace

from mesh.policy.destination import host_matches
from mesh.policy.outbound import TLS_MODE_LABEL, Endpoint, Service
from mesh.policy.selection import Workload
from mesh.resources.networking import (
    Location,
    Resolution,
    ServiceEntry,
    ServicePort,
    WorkloadEntry,
    WorkloadEntrySpec,
    WorkloadGroup,
)
from mesh.resources.values import Labels, age_order
from mesh.spiffe import SCHEME


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One workload; `name` is `NAMESPACE/NAME` of its entry, or how else it was given."""

    name: str
    namespace: str
    labels: Labels = field(default_factory=dict[str, str])
    service_account: str = ""
    has_proxy: bool = True
    address: str = ""
    ports: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def workload(self) -> Workload:
        """What policies know of it."""
        return Workload(namespace=self.namespace, labels=self.labels)

    def identity(self, trust_domain: str) -> str:
        """Return its SPIFFE ID, or an empty text if its service account is not known."""
        if not self.service_account:
            return ""
        return f"{SCHEME}{trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """A workload behind a port of a service, and the port of its own that this means."""

    host: str
    entry: ServiceEntry
    port: ServicePort
    member: Member

    @property
    def target_port(self) -> int:
        """The workload's own port."""
        return target_port(self.member, self.port)


class Registry:
    """All services and workloads of a mesh; what is asked for often is worked out once."""

    def __init__(
        self,
        services: Iterable[ServiceEntry],
        workloads: Iterable[WorkloadEntry],
        groups: Iterable[WorkloadGroup] = (),
        *,
        trust_domain: str,
    ) -> None:
        """Take the entries."""
        self._trust_domain = trust_domain
        self.members: Mapping[str, Member] = {
            entry.key: _member(entry.key, entry.metadata.namespace, _labelled(entry))
            for entry in sorted(workloads, key=age_order)
        }
        self._by_namespace: dict[str, list[Member]] = {}
        for member in self.members.values():
            self._by_namespace.setdefault(member.namespace, []).append(member)
        self.services: tuple[tuple[str, ServiceEntry], ...] = tuple(
            (host.lower(), entry)
            for entry in sorted(services, key=age_order)
            for host in entry.spec.hosts
        )
        self._supposed = tuple(map(_supposed, groups))
        self._behind: dict[str, tuple[Member, ...]] = {}

    def entry_for(self, host: str, client_namespace: str) -> ServiceEntry | None:
        """Return the service of a host for a client, of those that it may see.

        Istio: exact names before wildcards, longer ones before shorter, and of several for one
        host the client's own namespace before others, then the oldest.
        """
        matching = [
            (name.startswith("*"), -len(name), entry.metadata.namespace != client_namespace, entry)
            for name, entry in self.services
            if host_matches(name, host) and visible(entry, client_namespace)
        ]
        return min(matching, key=lambda one: one[:3])[3] if matching else None

    def members_of(self, entry: ServiceEntry) -> tuple[Member, ...]:
        """Return the workloads behind a service: its own list, or those that it selects.

        Where it selects none yet, one stands for those that will register from a WorkloadGroup.
        """
        if entry.key not in self._behind:
            self._behind[entry.key] = tuple(self._members_of(entry))
        return self._behind[entry.key]

    def _members_of(self, entry: ServiceEntry) -> Iterator[Member]:
        namespace, spec = entry.metadata.namespace, entry.spec
        if spec.workload_selector is None:
            for index, endpoint in enumerate(spec.endpoints or ()):
                yield _member(f"{entry.key} endpoint {index}", namespace, endpoint)
            return
        wanted = spec.workload_selector.labels.items()
        members = self._by_namespace.get(namespace, ())
        found = [member for member in members if wanted <= member.labels.items()]
        yield from found or (
            member
            for member in self._supposed
            if member.namespace == namespace and wanted <= member.labels.items()
        )

    def backings(self, member: Member) -> tuple[Backing, ...]:
        """Return every service port that a workload stands behind."""
        return tuple(self._backings.get(member.name, ()))

    @cached_property
    def _backings(self) -> Mapping[str, list[Backing]]:
        found: dict[str, list[Backing]] = {}
        for host, entry in self.services:
            for member in self.members_of(entry):
                found.setdefault(member.name, []).extend(
                    Backing(host=host, entry=entry, port=port, member=member)
                    for port in entry.spec.ports
                )
        return found

    def service(self, host: str, entry: ServiceEntry, port: ServicePort) -> Service:
        """Return what a client must know of one port of a service."""
        members = self.members_of(entry)
        names = (member.identity(self._trust_domain) for member in members)
        return Service(
            host=host,
            namespace=entry.metadata.namespace,
            mesh_external=entry.spec.location is Location.MESH_EXTERNAL,
            passthrough=entry.spec.resolution in {Resolution.NONE, Resolution.DYNAMIC_DNS},
            identities=tuple(dict.fromkeys(name for name in names if name)),
            subject_alt_names=entry.spec.subject_alt_names,
            endpoints=tuple(endpoint_of(one, target_port(one, port)) for one in members),
        )


def target_port(member: Member, port: ServicePort) -> int:
    """Return the workload's own port that a service port means."""
    return member.ports.get(port.name) or port.target_port or port.number


def endpoint_of(member: Member, port: int) -> Endpoint:
    """Return a workload's port as clients see it."""
    return Endpoint(member.namespace, port, member.labels, member.has_proxy)


def visible(entry: ServiceEntry, namespace: str) -> bool:
    """Tell whether a service is exported to a namespace (Istio: to all, if it does not say)."""
    own = entry.metadata.namespace
    exports = {own if export == "." else export for export in entry.spec.export_to}
    return not exports or "*" in exports or namespace in exports


def _labelled(entry: WorkloadEntry) -> WorkloadEntrySpec:
    """Return a workload with all its labels. Istio: those of the metadata win."""
    return replace(entry.spec, labels={**entry.spec.labels, **entry.metadata.labels})


def _supposed(group: WorkloadGroup) -> Member:
    """Return what a workload will be that registers from a group, with no labels of its own."""
    template, namespace = group.spec.template, group.metadata.namespace
    labels = {**template.labels, **group.spec.metadata.labels, TLS_MODE_LABEL: "istio"}
    name = f"{group.key} (any of this WorkloadGroup)"
    return _member(name, namespace, replace(template, labels=labels))


def _member(name: str, namespace: str, spec: WorkloadEntrySpec) -> Member:
    label = spec.labels.get(TLS_MODE_LABEL)
    return Member(
        name=name,
        namespace=namespace,
        labels=spec.labels,
        service_account=spec.service_account,
        has_proxy=label == "istio" if label is not None else bool(spec.service_account),
        address=spec.address,
        ports=spec.ports,
    )
