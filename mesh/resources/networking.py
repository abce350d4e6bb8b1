"""The kinds of networking.istio.io that matter to security: services, workloads, client TLS."""

# ruff: noqa: RUF012  msgspec gives every instance an empty dict of its own

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from msgspec import Meta, field

from mesh.resources.values import Labels, Resource, Text, Value, WorkloadSelector

NETWORKING_VERSIONS = (
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
)

MAX_ENTRIES = 256
"""Istio: hosts, addresses or ports of a ServiceEntry, and labels of a workload."""

MAX_ENDPOINTS = 4096
"""Istio: endpoints of a ServiceEntry."""

MAX_PORTS = 128
"""Istio: ports of a workload."""

Opaque = Mapping[str, Any]
"""A block that Istio knows and nothing here acts on: taken as it is, and handed on."""

Port = Annotated[int, Meta(ge=1, le=65535)]


class TlsMode(StrEnum):
    """How a client secures its connections to a destination."""

    DISABLE = "DISABLE"
    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"


class ClientTls(Value, frozen=True, kw_only=True):
    """The `tls` block of a DestinationRule; where there is one, it decides alone."""

    mode: TlsMode = TlsMode.DISABLE
    client_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    ca_crl: str = ""
    credential_name: str = ""
    subject_alt_names: tuple[str, ...] = ()
    sni: str = ""
    insecure_skip_verify: bool = False


class PortSelector(Value, frozen=True, kw_only=True):
    """A service port, by number."""

    number: int = 0


class Balancing(StrEnum):
    """How connections are spread over endpoints."""

    UNSPECIFIED = "UNSPECIFIED"
    RANDOM = "RANDOM"
    PASSTHROUGH = "PASSTHROUGH"
    ROUND_ROBIN = "ROUND_ROBIN"
    LEAST_REQUEST = "LEAST_REQUEST"
    LEAST_CONN = "LEAST_CONN"


class LoadBalancer(Value, frozen=True, kw_only=True):
    """The `loadBalancer` block; of its algorithms only the simple ones are acted on."""

    simple: Balancing = Balancing.UNSPECIFIED
    consistent_hash: Opaque | None = None
    locality_lb_setting: Opaque | None = None
    warmup_duration_secs: str = ""
    warmup: Opaque | None = None


class OutlierDetection(Value, frozen=True, kw_only=True):
    """When a failing endpoint is left alone, and for how long."""

    consecutive_errors: int = 0
    split_external_local_origin_errors: bool = False
    consecutive_local_origin_failures: int | None = None
    consecutive_gateway_errors: int | None = None
    consecutive_5xx_errors: int | None = field(name="consecutive5xxErrors", default=None)
    interval: str | None = None
    base_ejection_time: str | None = None
    max_ejection_percent: int = 0
    min_health_percent: int = 0


class TcpPool(Value, frozen=True, kw_only=True):
    """Limits on the connections to a destination."""

    max_connections: int = 0
    connect_timeout: str | None = None
    tcp_keepalive: Opaque | None = None
    max_connection_duration: str | None = None
    idle_timeout: str | None = None


class ConnectionPool(Value, frozen=True, kw_only=True):
    """The `connectionPool` block; of its HTTP half nothing is acted on."""

    tcp: TcpPool | None = None
    http: Opaque | None = None


class PortTrafficPolicy(Value, frozen=True, kw_only=True):
    """Settings for one SERVICE port; its `tls` beats the destination's."""

    port: PortSelector | None = None
    tls: ClientTls | None = None
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None


class TrafficPolicy(Value, frozen=True, kw_only=True):
    """How clients talk to a destination or a subset of it."""

    tls: ClientTls | None = None
    port_level_settings: tuple[PortTrafficPolicy, ...] | None = None
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tunnel: Opaque | None = None
    proxy_protocol: Opaque | None = None
    retry_budget: Opaque | None = None


class Subset(Value, frozen=True, kw_only=True):
    """A named part of a destination's endpoints."""

    name: str
    labels: Labels = {}
    traffic_policy: TrafficPolicy | None = None


class DestinationRuleSpec(Value, frozen=True, kw_only=True):
    """Settings of clients for one host, or for all hosts under a wildcard."""

    host: str
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[str, ...] = ()
    workload_selector: WorkloadSelector | None = None


class DestinationRule(Resource, frozen=True, kw_only=True, tag_field="kind", tag=True):
    """How clients connect to a destination."""

    spec: DestinationRuleSpec
    groups: ClassVar[tuple[str, ...]] = NETWORKING_VERSIONS


class WorkloadEntrySpec(Value, frozen=True, kw_only=True):
    """One workload's address, ports (name to number), labels and identity."""

    address: Annotated[str, Meta(max_length=MAX_ENTRIES)] = ""
    ports: Annotated[Mapping[str, Port], Meta(max_length=MAX_PORTS)] = {}
    labels: Annotated[Labels, Meta(max_length=MAX_ENTRIES)] = {}
    network: Annotated[str, Meta(max_length=2048)] = ""
    locality: Annotated[str, Meta(max_length=2048)] = ""
    weight: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    service_account: Annotated[str, Meta(max_length=253)] = ""


class WorkloadEntry(Resource, frozen=True, kw_only=True, tag_field="kind", tag=True):
    """One workload that the registry knows."""

    spec: WorkloadEntrySpec
    groups: ClassVar[tuple[str, ...]] = NETWORKING_VERSIONS


class Location(StrEnum):
    """Whether a service is part of the mesh."""

    MESH_EXTERNAL = "MESH_EXTERNAL"
    MESH_INTERNAL = "MESH_INTERNAL"


class Resolution(StrEnum):
    """How the addresses behind a service are found."""

    NONE = "NONE"
    STATIC = "STATIC"
    DNS = "DNS"
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"
    DYNAMIC_DNS = "DYNAMIC_DNS"


class ServicePort(Value, frozen=True, kw_only=True):
    """A port that clients call, and the port it means on the workloads."""

    number: Port
    name: Annotated[str, Meta(max_length=MAX_ENTRIES)]
    protocol: Annotated[str, Meta(max_length=MAX_ENTRIES)] = ""
    target_port: Annotated[int, Meta(ge=0, le=65535)] = 0


class EntrySelector(Value, frozen=True, kw_only=True):
    """The workloads behind a ServiceEntry, by their labels."""

    labels: Labels = {}


class ServiceEntrySpec(Value, frozen=True, kw_only=True):
    """A service: its hosts, ports, and the workloads or addresses behind it."""

    hosts: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_ENTRIES)]
    addresses: Annotated[
        tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=MAX_ENTRIES)
    ] = ()
    ports: Annotated[tuple[ServicePort, ...], Meta(max_length=MAX_ENTRIES)] = ()
    location: Location = Location.MESH_EXTERNAL
    resolution: Resolution = Resolution.NONE
    endpoints: Annotated[tuple[WorkloadEntrySpec, ...], Meta(max_length=MAX_ENDPOINTS)] | None = (
        None
    )
    workload_selector: EntrySelector | None = None
    export_to: tuple[str, ...] = ()
    subject_alt_names: tuple[str, ...] = ()


class ServiceEntry(Resource, frozen=True, kw_only=True, tag_field="kind", tag=True):
    """One service of the registry."""

    spec: ServiceEntrySpec
    groups: ClassVar[tuple[str, ...]] = NETWORKING_VERSIONS


class GroupMetadata(Value, frozen=True, kw_only=True):
    """Labels and annotations for every entry of a group."""

    labels: Annotated[Labels, Meta(max_length=MAX_ENTRIES)] = {}
    annotations: Annotated[Labels, Meta(max_length=MAX_ENTRIES)] = {}


class HttpHeader(Value, frozen=True, kw_only=True):
    """A header of a health probe."""

    name: str = ""
    value: str = ""


class HttpProbe(Value, frozen=True, kw_only=True):
    """A health probe by an HTTP request."""

    port: Port
    path: str = ""
    host: str = ""
    scheme: str = ""
    http_headers: tuple[HttpHeader, ...] = ()


class TcpProbe(Value, frozen=True, kw_only=True):
    """A health probe by a connection."""

    port: Port
    host: str = ""


class ExecProbe(Value, frozen=True, kw_only=True):
    """A health probe by a command."""

    command: Annotated[tuple[Text, ...], Meta(min_length=1)]


class GrpcProbe(Value, frozen=True, kw_only=True):
    """A health probe by gRPC."""

    port: Port | None = None
    service: str = ""


Seconds = Annotated[int, Meta(ge=0, lt=2**31)]


class ReadinessProbe(Value, frozen=True, kw_only=True):
    """How a workload's health is found; one method of the four."""

    initial_delay_seconds: Seconds = 0
    timeout_seconds: Seconds = 0
    period_seconds: Seconds = 0
    success_threshold: Seconds = 0
    failure_threshold: Seconds = 0
    http_get: HttpProbe | None = None
    tcp_socket: TcpProbe | None = None
    exec: ExecProbe | None = None
    grpc: GrpcProbe | None = None


class WorkloadGroupSpec(Value, frozen=True, kw_only=True):
    """The template that workloads of a group are registered from."""

    metadata: GroupMetadata = GroupMetadata()
    template: WorkloadEntrySpec
    probe: ReadinessProbe | None = None


class WorkloadGroup(Resource, frozen=True, kw_only=True, tag_field="kind", tag=True):
    """A collection of workloads that register themselves."""

    spec: WorkloadGroupSpec
    groups: ClassVar[tuple[str, ...]] = NETWORKING_VERSIONS
