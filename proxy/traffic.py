"""What a DestinationRule says of a service port beside TLS: balancing, ejection, timeouts."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.policy.destination import Settings
from mesh.resources.checks import go_duration
from mesh.resources.networking import (
    Balancing,
    ConnectionPool,
    LoadBalancer,
    OutlierDetection,
    TrafficPolicy,
)
from proxy.route import DEFAULT_EJECTION, Ejection

DEFAULT_BALANCING = Balancing.LEAST_REQUEST
"""Istio's, since 1.14."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How connections to a service port are spread; `connect_timeout` in seconds."""

    balancing: Balancing = DEFAULT_BALANCING
    ejection: Ejection | None = DEFAULT_EJECTION
    connect_timeout: float | None = None


@dataclass(frozen=True, slots=True)
class _Parts:
    balancer: LoadBalancer | None = None
    pool: ConnectionPool | None = None
    outliers: OutlierDetection | None = None


def traffic_for(settings: Settings | None, service_port: int, subset: str = "") -> Traffic:
    """Return what the rules for a host say of one SERVICE port and perhaps a subset.

    Istio: a subset's blocks replace the destination's one by one; the settings of a port replace
    them all, and what they leave out has its default.
    """
    parts = _Parts()
    if settings is not None:
        parts = _parts(settings.traffic_policy, service_port, parts)
        for named in settings.subsets:
            if subset and named.name == subset:
                parts = _parts(named.traffic_policy, service_port, parts)
    return Traffic(
        balancing=_balancing(parts.balancer),
        ejection=_ejection(parts.outliers),
        connect_timeout=_connect_timeout(parts.pool),
    )


def _parts(policy: TrafficPolicy | None, service_port: int, before: _Parts) -> _Parts:
    if policy is None:
        return before
    for port in policy.port_level_settings or ():
        if port.port is not None and port.port.number == service_port:
            return _Parts(port.load_balancer, port.connection_pool, port.outlier_detection)
    return _Parts(
        policy.load_balancer or before.balancer,
        policy.connection_pool or before.pool,
        policy.outlier_detection or before.outliers,
    )


def _balancing(balancer: LoadBalancer | None) -> Balancing:
    """Return an algorithm. The old name LEAST_CONN means the same as the new one."""
    if balancer is None or balancer.simple in {Balancing.UNSPECIFIED, Balancing.LEAST_CONN}:
        return DEFAULT_BALANCING
    return balancer.simple


def _ejection(outliers: OutlierDetection | None) -> Ejection | None:
    """Return when endpoints are ejected.

    A connection that cannot be made counts for TCP as an error of every sort that Istio has, so the
    smallest of the thresholds decides; 0 switches one off. Without a rule Istio ejects nobody;
    here Envoy's defaults hold, since a dead endpoint helps no one.
    """
    if outliers is None:
        return DEFAULT_EJECTION
    failures = _threshold(outliers)
    if not failures:
        return None
    return Ejection(
        failures=failures,
        base=_seconds(outliers.base_ejection_time) or DEFAULT_EJECTION.base,
        interval=_seconds(outliers.interval) or DEFAULT_EJECTION.interval,
        max_percent=outliers.max_ejection_percent or DEFAULT_EJECTION.max_percent,
    )


def _threshold(outliers: OutlierDetection) -> int:
    if outliers.split_external_local_origin_errors:
        local = outliers.consecutive_local_origin_failures
        return DEFAULT_EJECTION.failures if local is None else local
    server = outliers.consecutive_5xx_errors
    if server is None:
        server = outliers.consecutive_errors or DEFAULT_EJECTION.failures
    given = [limit for limit in (server, outliers.consecutive_gateway_errors) if limit]
    return min(given, default=0)


def _connect_timeout(pool: ConnectionPool | None) -> float | None:
    if pool is None or pool.tcp is None:
        return None
    return _seconds(pool.tcp.connect_timeout)


def _seconds(written: str | None) -> float | None:
    nanoseconds = None if written is None else go_duration(written)
    return nanoseconds / 1e9 if nanoseconds else None
