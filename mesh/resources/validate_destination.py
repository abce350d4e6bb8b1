"""Istio's admission rules for a DestinationRule."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.resources.checks import dns_label, label_pair, positive_duration, wildcard_host
from mesh.resources.networking import (
    ClientTls,
    ConnectionPool,
    DestinationRule,
    OutlierDetection,
    PortTrafficPolicy,
    TlsMode,
    TrafficPolicy,
)
from mesh.resources.problem import Finding
from mesh.resources.tree import Path
from mesh.resources.validate_common import export_findings, label_match_findings
from mesh.resources.values import Labels


def destination_rule_findings(rule: DestinationRule) -> Iterator[Finding]:
    """Yield what is wrong or doubtful in a DestinationRule."""
    spec = rule.spec
    if wrong := wildcard_host(spec.host):
        yield Finding(("spec", "host"), wrong)
    yield from _traffic_policy(spec.traffic_policy, ("spec", "trafficPolicy"))
    names: set[str] = set()
    for index, subset in enumerate(spec.subsets):
        path: Path = ("spec", "subsets", index)
        if wrong := dns_label(subset.name):
            yield Finding((*path, "name"), wrong)
        if subset.name in names:
            yield Finding((*path, "name"), f"the subset {subset.name!r} is given twice")
        names.add(subset.name)
        yield from labels_findings(subset.labels, (*path, "labels"))
        yield from _traffic_policy(subset.traffic_policy, (*path, "trafficPolicy"))
    selector = spec.workload_selector
    yield from export_findings(
        rule.metadata.namespace, spec.export_to, nobody=False, own_only=selector is not None
    )
    if selector is not None:
        path = ("spec", "workloadSelector", "matchLabels")
        yield from label_match_findings(selector.match_labels, path)


def labels_findings(labels: Labels, path: Path) -> Iterator[Finding]:
    """Check the labels of workloads."""
    for key, value in labels.items():
        if wrong := label_pair(key, value):
            yield Finding((*path, key), wrong)


def _traffic_policy(policy: TrafficPolicy | None, path: Path) -> Iterator[Finding]:
    if policy is None:
        return
    if policy == TrafficPolicy():
        yield Finding(path, "a traffic policy must set something")
    if policy.tunnel is not None and policy.proxy_protocol is not None:
        yield Finding(path, "tunnel and proxyProtocol cannot stand together")
    yield from _settings(policy, path)
    for index, settings in enumerate(policy.port_level_settings or ()):
        place = (*path, "portLevelSettings", index)
        if settings.port is None:
            yield Finding((*place, "port"), "the settings of a port need its number")
        if settings == PortTrafficPolicy(port=settings.port):
            yield Finding(place, "the settings of a port must set something")
        yield from _settings(settings, place)


def _settings(policy: TrafficPolicy | PortTrafficPolicy, path: Path) -> Iterator[Finding]:
    if policy.tls is not None:
        yield from tls_findings(policy.tls, (*path, "tls"))
    if policy.connection_pool is not None:
        yield from _pool(policy.connection_pool, (*path, "connectionPool"))
    if policy.outlier_detection is not None:
        yield from _outliers(policy.outlier_detection, (*path, "outlierDetection"))


def tls_findings(tls: ClientTls, path: Path) -> Iterator[Finding]:
    """Check a client `tls` block; ISTIO_MUTUAL and DISABLE use none of the file settings."""
    if tls.mode not in {TlsMode.SIMPLE, TlsMode.MUTUAL}:
        return
    if tls.insecure_skip_verify:
        yield from _skipping(tls, path)
    if tls.credential_name:
        files = (tls.client_certificate, tls.private_key, tls.ca_certificates, tls.ca_crl)
        if any(files):
            yield Finding((*path, "credentialName"), "credentialName excludes certificate files")
    elif tls.mode is TlsMode.MUTUAL:
        if not tls.client_certificate:
            yield Finding((*path, "clientCertificate"), "MUTUAL needs a client certificate")
        if not tls.private_key:
            yield Finding((*path, "privateKey"), "MUTUAL needs a private key")


def _skipping(tls: ClientTls, path: Path) -> Iterator[Finding]:
    unused = {
        "caCertificates": bool(tls.ca_certificates),
        "subjectAltNames": bool(tls.subject_alt_names),
        "credentialName": bool(tls.credential_name) and tls.mode is TlsMode.SIMPLE,
    }
    for name, given in unused.items():
        if given:
            yield Finding((*path, name), f"insecureSkipVerify excludes {name}")


def _pool(pool: ConnectionPool, path: Path) -> Iterator[Finding]:
    if pool == ConnectionPool():
        yield Finding(path, "a connection pool must set something")
    if pool.tcp is None:
        return
    if pool.tcp.max_connections < 0:
        yield Finding((*path, "tcp", "maxConnections"), "must not be negative")
    durations = {
        "connectTimeout": pool.tcp.connect_timeout,
        "maxConnectionDuration": pool.tcp.max_connection_duration,
        "idleTimeout": pool.tcp.idle_timeout,
    }
    for name, text in durations.items():
        if text is not None and (wrong := positive_duration(text)):
            yield Finding((*path, "tcp", name), wrong)


def _outliers(outliers: OutlierDetection, path: Path) -> Iterator[Finding]:
    durations = {
        "baseEjectionTime": outliers.base_ejection_time,
        "interval": outliers.interval,
    }
    for name, text in durations.items():
        if text is not None and (wrong := positive_duration(text)):
            yield Finding((*path, name), wrong)
    if outliers.consecutive_errors:
        message = "use consecutiveGatewayErrors or consecutive5xxErrors instead"
        yield Finding((*path, "consecutiveErrors"), message, warning=True)
    local = outliers.consecutive_local_origin_failures
    if local and not outliers.split_external_local_origin_errors:
        message = "needs splitExternalLocalOriginErrors: true"
        yield Finding((*path, "consecutiveLocalOriginFailures"), message)
    percentages = {
        "maxEjectionPercent": outliers.max_ejection_percent,
        "minHealthPercent": outliers.min_health_percent,
    }
    for name, percent in percentages.items():
        if not 0 <= percent <= 100:
            yield Finding((*path, name), f"{percent} is not from 0 to 100")
