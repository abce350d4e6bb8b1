"""The services that a proxy may call: ServiceEntries, and the WorkloadEntries behind them.

Found by host and port, by virtual address, and by the address of an endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from mesh.policy.destination import host_matches
from mesh.policy.outbound import TLS_MODE_LABEL, Endpoint, Service
from mesh.resources.networking import (
    Location,
    Resolution,
    ServiceEntry,
    ServicePort,
    WorkloadEntry,
    WorkloadEntrySpec,
)
from mesh.resources.values import age_order
from mesh.spiffe import SCHEME
from proxy.workloads import Workloads

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

_BY_NAME = frozenset({Resolution.DNS, Resolution.DNS_ROUND_ROBIN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One endpoint of a service port, at its own address and TARGET port."""

    address: str
    endpoint: Endpoint
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAt:
    """One port of a service. `entry` is where it is defined; `host` may be a wildcard."""

    entry: ServiceEntry
    host: str
    port: ServicePort
    service: Service
    instances: tuple[Instance, ...]

    @property
    def by_selector(self) -> bool:
        """Whether WorkloadEntries decide what is behind the service."""
        return self.entry.spec.workload_selector is not None

    @property
    def passthrough(self) -> bool:
        """Whether connections go to the very address that the app asked for."""
        return self.entry.spec.resolution in {Resolution.NONE, Resolution.DYNAMIC_DNS}


class Registry:
    """All services that clients of one namespace see, sorted once for many questions."""

    def __init__(
        self,
        entries: Iterable[ServiceEntry],
        workloads: Iterable[WorkloadEntry],
        *,
        namespace: str,
        trust_domain: str,
    ) -> None:
        """Take the entries. Where two define a host, Istio's order: own namespace, then age."""
        self._trust_domain = trust_domain.replace("@", ".")
        visible = [entry for entry in entries if _exported(entry, namespace)]
        self._entries = sorted(
            visible, key=lambda entry: (entry.metadata.namespace != namespace, age_order(entry))
        )
        self._workloads = Workloads(workloads)
        self._hosts: dict[str, list[tuple[str, ServiceEntry]]] = {}
        for entry in self._entries:
            for host in entry.spec.hosts:
                self._hosts.setdefault(host.lower(), []).append((host, entry))
        self._wildcards = sorted((host for host in self._hosts if "*" in host), key=len)
        self._built: dict[tuple[str, str, int], ServiceAt] = {}

    def by_host(self, host: str, port: int) -> ServiceAt | None:
        """Return the service of a host name, the most specific first; None if it has no such port.

        Istio: exact names before wildcards, and longer wildcards before shorter ones.
        """
        name = host.lower()
        names = [name] if name in self._hosts else []
        names += [one for one in reversed(self._wildcards) if host_matches(one, name)]
        for one in names:
            for written, entry in self._hosts[one]:
                if found := self._port_of(entry, port):
                    return self._service(entry, written, found)
        return None

    def by_address(self, address: IpAddress, port: int) -> ServiceAt | None:
        """Return the service with a virtual address, the narrowest block first."""
        best: tuple[int, ServiceEntry, ServicePort] | None = None
        for length, entry in self._virtual(address):
            found = self._port_of(entry, port)
            if found is not None and (best is None or length > best[0]):
                best = length, entry, found
        if best is None:
            return None
        _, entry, found = best
        return self._service(entry, entry.spec.hosts[0], found)

    def by_endpoint(self, address: IpAddress, port: int) -> tuple[ServiceAt, Instance] | None:
        """Return the service that has an endpoint at an address, and the endpoint."""
        return self._endpoints.get((address, port))

    def _virtual(self, address: IpAddress) -> Iterator[tuple[int, ServiceEntry]]:
        """Yield whoever has an address, with the length of the prefix that covers it."""
        single, blocks = self._networks
        yield from ((address.max_prefixlen, entry) for entry in single.get(address, ()))
        for network, entry in blocks:
            if address in network:
                yield network.prefixlen, entry

    @cached_property
    def _networks(
        self,
    ) -> tuple[dict[IpAddress, list[ServiceEntry]], list[tuple[IpNetwork, ServiceEntry]]]:
        """Sort virtual addresses into single ones, which are most, and blocks."""
        single: dict[IpAddress, list[ServiceEntry]] = {}
        blocks: list[tuple[IpNetwork, ServiceEntry]] = []
        for entry in self._entries:
            for written in entry.spec.addresses:
                network = _network(written)
                if network is None:
                    continue
                if network.prefixlen == network.max_prefixlen:
                    single.setdefault(network.network_address, []).append(entry)
                else:
                    blocks.append((network, entry))
        return single, blocks

    @cached_property
    def _endpoints(self) -> dict[tuple[IpAddress, int], tuple[ServiceAt, Instance]]:
        found: dict[tuple[IpAddress, int], tuple[ServiceAt, Instance]] = {}
        for entry in self._entries:
            for port in entry.spec.ports:
                service = self._service(entry, entry.spec.hosts[0], port)
                for instance in service.instances:
                    if (address := _ip(instance.address)) is not None:
                        found.setdefault((address, instance.endpoint.port), (service, instance))
        return found

    @staticmethod
    def _port_of(entry: ServiceEntry, number: int) -> ServicePort | None:
        return next((port for port in entry.spec.ports if port.number == number), None)

    def _service(self, entry: ServiceEntry, host: str, port: ServicePort) -> ServiceAt:
        key = entry.key, host, port.number
        if key not in self._built:
            self._built[key] = self._build(entry, host, port)
        return self._built[key]

    def _build(self, entry: ServiceEntry, host: str, port: ServicePort) -> ServiceAt:
        workloads = list(self._behind(entry))
        instances = tuple(_instance(namespace, one, port) for namespace, one in workloads)
        if not instances and not entry.spec.workload_selector and entry.spec.resolution in _BY_NAME:
            endpoint = Endpoint(entry.metadata.namespace, port.target_port or port.number)
            instances = (Instance(address=host, endpoint=endpoint, weight=1),)
        accounts = dict.fromkeys(
            f"{SCHEME}{self._trust_domain}/ns/{namespace}/sa/{one.service_account}"
            for namespace, one in workloads
            if one.service_account
        )
        service = Service(
            host=host,
            namespace=entry.metadata.namespace,
            mesh_external=entry.spec.location is Location.MESH_EXTERNAL,
            passthrough=entry.spec.resolution in {Resolution.NONE, Resolution.DYNAMIC_DNS},
            identities=tuple(accounts),
            subject_alt_names=entry.spec.subject_alt_names,
            endpoints=tuple(instance.endpoint for instance in instances),
        )
        return ServiceAt(entry=entry, host=host, port=port, service=service, instances=instances)

    def _behind(self, entry: ServiceEntry) -> Iterator[tuple[str, WorkloadEntrySpec]]:
        """Yield the workloads of a service with their namespace, which is always the entry's."""
        namespace, selector = entry.metadata.namespace, entry.spec.workload_selector
        if selector is None:
            yield from ((namespace, one) for one in entry.spec.endpoints or () if one.address)
            return
        for one in self._workloads.selected(namespace, selector.labels):
            yield namespace, one


def _instance(namespace: str, workload: WorkloadEntrySpec, port: ServicePort) -> Instance:
    """Place one workload behind a service port.

    Istio: the workload's own port of that name, else the service's target port, else the same.
    """
    number = workload.ports.get(port.name) or port.target_port or port.number
    endpoint = Endpoint(namespace, number, workload.labels, _takes_mtls(workload))
    return Instance(address=workload.address, endpoint=endpoint, weight=workload.weight or 1)


def _takes_mtls(workload: WorkloadEntrySpec) -> bool:
    """Istio: by the workload's label, and without one by whether it has a service account."""
    mode = workload.labels.get(TLS_MODE_LABEL)
    return bool(workload.service_account) if mode is None else mode == "istio"


def _exported(entry: ServiceEntry, namespace: str) -> bool:
    own = entry.metadata.namespace
    exports = {own if export == "." else export for export in entry.spec.export_to}
    return not exports or "*" in exports or namespace in exports


def _network(text: str) -> IpNetwork | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _ip(text: str) -> IpAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
