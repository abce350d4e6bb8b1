"""Which way a destination leads: by the registry, DestinationRules and the mesh settings.

A destination is a host name, as `--outbound` gives it, or an IP address, as captured traffic has
it: the virtual address of a service, or the address of one of its endpoints. What nothing knows
goes where it wants in plaintext (ALLOW_ANY) or nowhere (REGISTRY_ONLY), as in Istio.

Something that cannot be read puts every destination that it may be about out of reach: not
knowing how to secure a connection is no reason to make one in plaintext.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from mesh.address import Address
from mesh.policy.destination import Client, DestinationRules, Settings, host_matches
from mesh.policy.outbound import Endpoint, OutboundPolicies, OutboundTls, Security
from mesh.policy.peer_authentication import PeerAuthentications
from mesh.resources.mesh_config import MeshConfig, OutboundMode
from mesh.resources.networking import Balancing
from proxy.received import Received, Unread
from proxy.registry import Instance, IpAddress, Registry, ServiceAt
from proxy.route import (
    Blocked,
    Candidate,
    Forward,
    NoEndpoints,
    OutboundBlocked,
    RegistryNotUnderstood,
    Route,
    cluster_name,
)
from proxy.traffic import Traffic, traffic_for

PASSTHROUGH = "PassthroughCluster"
"""Istio: the name of the way to what the registry does not know."""


class Router:
    """The ways out of one workload. It never changes; a change of configuration makes another."""

    def __init__(self, received: Received, client: Client) -> None:
        config = received.config or MeshConfig()
        self._client = client
        self._config = None if received.config is None else config
        self._only_registry = config.outbound_traffic_policy.mode is OutboundMode.REGISTRY_ONLY
        self._registry = Registry(
            received.service_entries,
            received.workload_entries,
            namespace=client.namespace,
            trust_domain=config.trust_domain,
        )
        self._policies = OutboundPolicies(
            config=config,
            rules=DestinationRules(
                received.destination_rules, root_namespace=config.root_namespace
            ),
            modes=PeerAuthentications(
                received.peer_authentications, root_namespace=config.root_namespace
            ),
        )
        self._unread = _Unreadable.of(received.unread)
        self._known: dict[tuple[str, str, int, str], Route] = {}

    def route(self, destination: Address, subset: str = "", *, named: bool = False) -> Route:
        """Return the way to a host name or an IP address, and a SERVICE port.

        ALLOW_ANY is for what apps call by themselves. A destination that the operator `named` is
        one that the registry must know: were it not there, or not any more, its traffic would go
        out in plaintext without a word.
        """
        found = self._route(destination, subset)
        if named and isinstance(found, Forward) and found.name == PASSTHROUGH:
            return Blocked(
                kind=OutboundBlocked,
                why=f"the registry does not know {destination}: add a ServiceEntry with this host "
                "and port, or say @plaintext behind it in --outbound",
            )
        return found

    def _route(self, destination: Address, subset: str) -> Route:
        if self._config is None:
            return _not_understood(destination, "the mesh settings")
        if (ip := _ip(destination.host)) is not None:
            return self._to_address(destination, ip, subset)
        if wrong := self._unread.about(destination.host):
            return _not_understood(destination, wrong)
        service = self._registry.by_host(destination.host, destination.port)
        return (
            self._unknown(destination)
            if service is None
            else self._to(service, destination, subset)
        )

    def _to_address(self, destination: Address, ip: IpAddress, subset: str) -> Route:
        service = self._registry.by_address(ip, destination.port)
        if service is not None:
            return self._to(service, destination, subset)
        found = self._registry.by_endpoint(ip, destination.port)
        if found is not None:
            service, instance = found
            return self._to(service, destination, subset, only=instance)
        if wrong := self._unread.of_any_address():
            return _not_understood(destination, wrong)
        return self._unknown(destination)

    def _unknown(self, destination: Address) -> Route:
        if self._only_registry:
            return Blocked(
                kind=OutboundBlocked,
                why=f"the registry does not know {destination}, and the mesh settings are "
                "REGISTRY_ONLY: add a ServiceEntry with this host and port",
            )
        why = "plaintext: the registry does not know the destination"
        tls = OutboundTls(security=Security.PLAINTEXT, why=why)
        return _straight(PASSTHROUGH, destination, destination.host, tls)

    def _to(
        self,
        service: ServiceAt,
        destination: Address,
        subset: str,
        *,
        only: Instance | None = None,
    ) -> Route:
        wrong = (
            self._unread.about(service.host)
            or self._unread.behind(service)
            or self._unread.deciding_for(service, self._policies.config.root_namespace)
        )
        if wrong:
            return _not_understood(destination, wrong)
        if only is not None or service.passthrough:
            return self._build(service, destination, subset, only)
        key = service.entry.key, service.host, service.port.number, subset
        if key not in self._known:
            self._known[key] = self._build(service, destination, subset, None)
        return self._known[key]

    def _build(
        self, service: ServiceAt, destination: Address, subset: str, only: Instance | None
    ) -> Route:
        port = service.port.number
        settings = self._policies.rules.settings_for(
            service.host, self._client, service_namespace=service.service.namespace
        )
        traffic = traffic_for(settings, port, subset)
        name = cluster_name(service.host, port, subset)
        host = service.host if _ip(destination.host) is not None else destination.host
        if service.passthrough or traffic.balancing is Balancing.PASSTHROUGH:
            # Auto mTLS goes by all endpoints here; that the one dialled takes it is implied.
            endpoint = Endpoint(service.service.namespace, destination.port, takes_mtls=True)
            tls = self._tls(service, endpoint, subset)
            return _straight(name, destination, host, tls, traffic)
        instances = (only,) if only is not None else _of_subset(service, settings, subset)
        if not instances:
            return _nobody(service, subset)
        return Forward(
            name=name,
            host=host,
            candidates=tuple(
                Candidate(
                    address=one.address,
                    port=one.endpoint.port,
                    tls=self._tls(service, one.endpoint, subset),
                    weight=one.weight,
                )
                for one in instances
            ),
            balancing=traffic.balancing,
            ejection=traffic.ejection,
            connect_timeout=traffic.connect_timeout,
            kept=only is None,
        )

    def _tls(self, service: ServiceAt, endpoint: Endpoint, subset: str) -> OutboundTls:
        return self._policies.tls_for(
            self._client,
            service.service,
            endpoint,
            service_port=service.port.number,
            subset=subset,
        )


def _straight(
    name: str,
    destination: Address,
    host: str,
    tls: OutboundTls,
    traffic: Traffic | None = None,
) -> Forward:
    """Return the way to the very address that was asked for."""
    return Forward(
        name=name,
        host=host,
        candidates=(Candidate(address=destination.host, port=destination.port, tls=tls),),
        ejection=None,
        connect_timeout=None if traffic is None else traffic.connect_timeout,
        kept=False,
    )


def _of_subset(service: ServiceAt, settings: Settings | None, subset: str) -> tuple[Instance, ...]:
    """Return the instances with a subset's labels; a subset that nobody defined has none."""
    if not subset:
        return service.instances
    for named in settings.subsets if settings is not None else ():
        if named.name == subset:
            wanted = named.labels.items()
            return tuple(one for one in service.instances if wanted <= one.endpoint.labels.items())
    return ()


def _nobody(service: ServiceAt, subset: str) -> Blocked:
    of_subset = f" in subset {subset}" if subset else ""
    return Blocked(
        kind=NoEndpoints,
        why=f"the registry has no endpoint of {service.host}{of_subset} "
        f"(ServiceEntry {service.entry.key}): is a workload registered, with the right labels?",
    )


def _not_understood(destination: Address, what: str) -> Blocked:
    return Blocked(
        kind=RegistryNotUnderstood,
        why=f"this proxy does not understand {what}, which may say how to reach {destination}: "
        "correct it, or upgrade this proxy",
    )


def _ip(text: str) -> IpAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """What of the registry cannot be read."""

    entries: tuple[Unread, ...]
    rules: tuple[Unread, ...]
    workloads: tuple[Unread, ...]
    modes: tuple[Unread, ...]

    @classmethod
    def of(cls, unread: Iterable[Unread]) -> _Unreadable:
        def kind(name: str) -> tuple[Unread, ...]:
            return tuple(one for one in unread if one.kind == name)

        return cls(
            entries=kind("ServiceEntry"),
            rules=kind("DestinationRule"),
            workloads=kind("WorkloadEntry"),
            modes=kind("PeerAuthentication"),
        )

    def about(self, host: str) -> str:
        """Name what may be about a host, or return an empty text."""
        for one in (*self.entries, *self.rules):
            if not one.hosts or any(_may_mean(one, name, host) for name in one.hosts):
                return str(one)
        return ""

    def behind(self, service: ServiceAt) -> str:
        """Name a workload that may belong to a service, or return an empty text."""
        namespace = service.entry.metadata.namespace
        for one in self.workloads:
            if service.by_selector and one.namespace == namespace:
                return str(one)
        return ""

    def deciding_for(self, service: ServiceAt, root_namespace: str) -> str:
        """Name what may say that a service takes mutual TLS, or return an empty text."""
        for one in self.modes:
            if one.namespace in {service.service.namespace, root_namespace}:
                return str(one)
        return ""

    def of_any_address(self) -> str:
        """Name what may have any IP address, or return an empty text."""
        return next((str(one) for one in (*self.entries, *self.workloads)), "")


def _may_mean(one: Unread, name: str, host: str) -> bool:
    """Tell whether a name in an unreadable resource may stand for a host.

    A short name is one of the resource's namespace, under whatever domain.
    """
    if host_matches(name, host):
        return True
    return "." not in name and host.lower().startswith(f"{name}.{one.namespace}.".lower())
