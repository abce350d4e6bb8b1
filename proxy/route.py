"""Where a connection of the app may go, and how: the router's answer, the balancer's question."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.policy.outbound import OutboundTls
from mesh.resources.networking import Balancing
from proxy.errors import ConnectionFailed


class OutboundRefused(ConnectionFailed):
    """There is no way to a destination; the leaves say why."""

    reason = "outbound_refused"


class OutboundBlocked(OutboundRefused):
    """REGISTRY_ONLY, and the registry does not know the destination."""

    reason = "outbound_blocked"


class NoEndpoints(OutboundRefused):
    """The registry knows the service, and nobody who runs it."""

    reason = "no_endpoints"


class RegistryNotUnderstood(OutboundRefused):
    """Something about the destination cannot be read, so it is not known how to reach it."""

    reason = "registry_not_understood"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One endpoint, an IP address or a host name, and how to secure a connection to it."""

    address: str
    port: int
    tls: OutboundTls
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ejection:
    """When a failing endpoint is left alone, and for how long; times in seconds.

    Envoy: `base` times the number of ejections, which is forgotten one by one with each `interval`
    without another.
    """

    failures: int = 5
    base: float = 30.0
    interval: float = 10.0
    max_percent: int = 10


DEFAULT_EJECTION = Ejection()


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A way out: the endpoints to choose from.

    `name` is Istio's name of the cluster. `host` is what the app asked for, as far as it is known:
    the name that a server of SIMPLE and MUTUAL must have when no other is demanded. A way with
    `kept` False is to an address and not to a service: nothing is remembered of it.
    `connect_timeout` is in seconds, None for the proxy's own.
    """

    name: str
    host: str
    candidates: tuple[Candidate, ...]
    balancing: Balancing = Balancing.LEAST_REQUEST
    ejection: Ejection | None = DEFAULT_EJECTION
    connect_timeout: float | None = None
    kept: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """No way out, and the error to say it with."""

    kind: type[OutboundRefused]
    why: str


Route = Forward | Blocked


def cluster_name(host: str, port: int, subset: str = "") -> str:
    """Name a service port as Istio's sidecars do."""
    return f"outbound|{port}|{subset}|{host}"
