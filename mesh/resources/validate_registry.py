"""Istio's admission rules for ServiceEntry, WorkloadEntry and WorkloadGroup."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mesh.resources.checks import dns_label, fqdn, parse_address, parse_network, wildcard_host
from mesh.resources.networking import (
    ReadinessProbe,
    Resolution,
    ServiceEntry,
    ServiceEntrySpec,
    WorkloadEntrySpec,
    WorkloadGroupSpec,
)
from mesh.resources.problem import Finding
from mesh.resources.tree import Path
from mesh.resources.validate_common import export_findings, label_match_findings
from mesh.resources.validate_destination import labels_findings

UNIX = "unix://"
"""Beginning of an address that is a Unix domain socket."""

HTTP_PROTOCOLS = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY"})
TLS_PROTOCOLS = frozenset({"HTTPS", "TLS"})
OTHER_PROTOCOLS = frozenset({"TCP", "UDP", "MONGO", "REDIS", "MYSQL", "HBONE", "DOUBLEHBONE"})

_HEADER = re.compile(r"[-_A-Za-z0-9]+")


def service_entry_findings(entry: ServiceEntry) -> Iterator[Finding]:
    """Yield what is wrong or doubtful in a ServiceEntry."""
    spec = entry.spec
    yield from _hosts(spec)
    yield from _addresses(spec)
    yield from _ports(spec)
    yield from _workloads(spec)
    yield from _resolution(spec)
    yield from export_findings(
        entry.metadata.namespace, spec.export_to, nobody=True, own_only=False
    )


def _hosts(spec: ServiceEntrySpec) -> Iterator[Finding]:
    for index, host in enumerate(spec.hosts):
        path: Path = ("spec", "hosts", index)
        if host == "*" and spec.resolution is not Resolution.DYNAMIC_DNS:
            yield Finding(path, "a service cannot be every host")
        elif wrong := wildcard_host(host):
            yield Finding(path, wrong)
        elif "*" in host and host != "*" and not host.startswith("*."):
            yield Finding(path, f"{host!r} has a wildcard inside a label", warning=True)
        elif spec.resolution is Resolution.DYNAMIC_DNS and "*" not in host:
            yield Finding(path, "DYNAMIC_DNS needs wildcard hosts")


def _addresses(spec: ServiceEntrySpec) -> Iterator[Finding]:
    for index, address in enumerate(spec.addresses):
        path: Path = ("spec", "addresses", index)
        if parse_network(address) is None:
            yield Finding(path, f"{address!r} is not an IP address or CIDR block")
        elif "/" in address and spec.resolution not in {Resolution.NONE, Resolution.STATIC}:
            yield Finding(path, "CIDR blocks go only with the resolutions NONE and STATIC")


def _ports(spec: ServiceEntrySpec) -> Iterator[Finding]:
    names: set[str] = set()
    numbers: set[int] = set()
    for index, port in enumerate(spec.ports):
        path: Path = ("spec", "ports", index)
        if wrong := dns_label(port.name):
            yield Finding((*path, "name"), wrong)
        if port.name in names:
            yield Finding((*path, "name"), f"the port name {port.name!r} is given twice")
        if port.number in numbers:
            yield Finding((*path, "number"), f"the port {port.number} is given twice")
        if not known_protocol(port.protocol):
            yield Finding((*path, "protocol"), f"there is no protocol {port.protocol!r}")
        if port.target_port and spec.resolution is Resolution.NONE:
            message = "has no effect with the resolution NONE"
            yield Finding((*path, "targetPort"), message, warning=True)
        names.add(port.name)
        numbers.add(port.number)
    if len(spec.hosts) > 1 and spec.resolution is not Resolution.NONE:
        yield from _several_hosts(spec)


def _several_hosts(spec: ServiceEntrySpec) -> Iterator[Finding]:
    """Over plain TCP nothing tells which of several hosts is meant."""
    for index, port in enumerate(spec.ports):
        if port.protocol.upper() not in HTTP_PROTOCOLS | TLS_PROTOCOLS:
            message = "several hosts need HTTP or TLS ports, which name the host they mean"
            yield Finding(("spec", "ports", index), message)
            return


def known_protocol(name: str) -> bool:
    """Tell whether a port's protocol is one that Istio knows; none at all means detection."""
    known = HTTP_PROTOCOLS | TLS_PROTOCOLS | OTHER_PROTOCOLS
    return not name or name.upper() in known


def _workloads(spec: ServiceEntrySpec) -> Iterator[Finding]:
    selector = spec.workload_selector
    if selector is None:
        return
    path: Path = ("spec", "workloadSelector")
    yield from label_match_findings(selector.labels, (*path, "labels"))
    if spec.endpoints is not None:
        yield Finding(path, "only one of workloadSelector and endpoints can be set")
    if spec.resolution is not Resolution.STATIC:
        message = f"should not be set with the resolution {spec.resolution}"
        yield Finding(path, message, warning=True)


def _resolution(spec: ServiceEntrySpec) -> Iterator[Finding]:
    path: Path = ("spec", "endpoints")
    endpoints = spec.endpoints or ()
    by_dns = spec.resolution in {Resolution.DNS, Resolution.DNS_ROUND_ROBIN}
    if spec.resolution is Resolution.NONE and spec.endpoints is not None:
        yield Finding(path, "the resolution NONE has no endpoints")
        return
    if spec.resolution is Resolution.DNS_ROUND_ROBIN and len(endpoints) > 1:
        yield Finding(path, "DNS_ROUND_ROBIN has at most one endpoint")
    if by_dns and not endpoints:
        for index, host in enumerate(spec.hosts):
            if fqdn(host):
                message = "without endpoints, DNS needs hosts without wildcard"
                yield Finding(("spec", "hosts", index), message)
    for index, endpoint in enumerate(endpoints):
        yield from _endpoint(endpoint, spec, (*path, index), names=by_dns)


def _endpoint(
    endpoint: WorkloadEntrySpec, spec: ServiceEntrySpec, path: Path, *, names: bool
) -> Iterator[Finding]:
    yield from _workload(endpoint, path, names=names)
    service_ports = {port.name for port in spec.ports}
    for name in endpoint.ports:
        if name not in service_ports:
            yield Finding((*path, "ports", name), f"the service has no port named {name!r}")
    if endpoint.address.startswith(UNIX):
        if names:
            yield Finding((*path, "address"), "a Unix socket cannot be found by DNS")
        elif len(spec.ports) != 1:
            yield Finding((*path, "address"), "a Unix socket needs exactly one service port")


def workload_entry_findings(spec: WorkloadEntrySpec) -> Iterator[Finding]:
    """Yield what is wrong or doubtful in a WorkloadEntry."""
    yield from _workload(spec, ("spec",), names=True)


def _workload(spec: WorkloadEntrySpec, path: Path, *, names: bool) -> Iterator[Finding]:
    address = spec.address
    place = (*path, "address")
    if not address:
        if not spec.network:
            yield Finding(place, "an address is required")
        else:
            yield Finding(place, "is not set, only the network", warning=True)
    elif address.startswith(UNIX):
        yield from _unix_address(spec, place)
    elif parse_address(address) is None and (not names or fqdn(address)):
        allowed = "an IP address or a host name" if names else "an IP address"
        yield Finding(place, f"{address!r} is not {allowed}")
    for name in spec.ports:
        if wrong := dns_label(name):
            yield Finding((*path, "ports", name), wrong)
    yield from labels_findings(spec.labels, (*path, "labels"))


def _unix_address(spec: WorkloadEntrySpec, place: Path) -> Iterator[Finding]:
    socket = spec.address.removeprefix(UNIX)
    abstract = socket.startswith("@")
    if not abstract and (not socket.startswith("/") or socket.endswith("/")):
        yield Finding(place, f"{spec.address!r} is not the absolute path of a socket")
    if spec.ports:
        yield Finding(place, "a Unix socket has no ports")


def workload_group_findings(spec: WorkloadGroupSpec) -> Iterator[Finding]:
    """Yield what is wrong or doubtful in a WorkloadGroup."""
    yield from labels_findings(spec.metadata.labels, ("spec", "metadata", "labels"))
    if spec.probe is not None:
        yield from _probe(spec.probe)


def _probe(probe: ReadinessProbe) -> Iterator[Finding]:
    path: Path = ("spec", "probe")
    methods = [probe.http_get, probe.tcp_socket, probe.exec, probe.grpc]
    if sum(method is not None for method in methods) != 1:
        yield Finding(path, "must have exactly one of httpGet, tcpSocket, exec and grpc")
    if probe.http_get is None:
        return
    if probe.http_get.scheme not in {"", "HTTP", "HTTPS"}:
        yield Finding((*path, "httpGet", "scheme"), "must be HTTP or HTTPS")
    for index, header in enumerate(probe.http_get.http_headers):
        if not _HEADER.fullmatch(header.name):
            place = (*path, "httpGet", "httpHeaders", index, "name")
            yield Finding(place, f"{header.name!r} is not a header name")
