"""Which DestinationRule a client follows for a host, and the TLS settings in it.

Istio looks in the client's namespace, then in the service's, then in the root namespace, and in
each takes the most specific host. Rules for the very same host and clients are merged: the oldest
traffic policy counts, and of each subset the oldest definition.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh.policy.selection import selects
from mesh.resources.networking import (
    Balancing,
    ClientTls,
    DestinationRule,
    Subset,
    TrafficPolicy,
)
from mesh.resources.values import Labels, age_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who is calling: its namespace, and its labels for rules that select clients."""

    namespace: str
    labels: Labels = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the rules for one host say together; `rule` is the oldest of them."""

    rule: DestinationRule
    traffic_policy: TrafficPolicy | None
    subsets: tuple[Subset, ...]

    def tls_for(self, service_port: int, subset: str = "") -> ClientTls | None:
        """Return the TLS block for a SERVICE port, None if the rules leave it to auto mTLS."""
        for named in self.subsets:
            if subset and named.name == subset:
                tls = _tls_in(named.traffic_policy, service_port)
                if tls is not None:
                    return tls
        return _tls_in(self.traffic_policy, service_port)

    @property
    def passthrough(self) -> bool:
        """Whether connections go to the very address the client dialled."""
        balancer = None if self.traffic_policy is None else self.traffic_policy.load_balancer
        return balancer is not None and balancer.simple is Balancing.PASSTHROUGH


class DestinationRules:
    """All DestinationRules of a mesh, sorted once for many questions."""

    def __init__(
        self,
        rules: Iterable[DestinationRule],
        *,
        root_namespace: str,
        domain: str = "cluster.local",
    ) -> None:
        """Take the rules; short hosts belong to their rule's namespace under `domain`."""
        self._root = root_namespace
        self._by_namespace: dict[str, dict[str, list[DestinationRule]]] = {}
        for rule in sorted(rules, key=age_order):
            hosts = self._by_namespace.setdefault(rule.metadata.namespace, {})
            hosts.setdefault(full_host(rule, domain), []).append(rule)

    def settings_for(self, host: str, client: Client, *, service_namespace: str) -> Settings | None:
        """Return what a client must do for a host, or None if no rule is about it."""
        for namespace in dict.fromkeys((client.namespace, service_namespace, self._root)):
            hosts = self._by_namespace.get(namespace, {})
            matching = (name for name in hosts if host_matches(name, host))
            for name in sorted(matching, key=_specificity):
                if rules := _for_client(hosts[name], client):
                    return _merged(rules)
        return None


def full_host(rule: DestinationRule, domain: str) -> str:
    """Return a rule's host in full: a bare name is a service of the rule's own namespace."""
    host = rule.spec.host
    if "." in host or host.startswith("*"):
        return host
    return f"{host}.{rule.metadata.namespace}.svc.{domain}"


def host_matches(pattern: str, host: str) -> bool:
    """Match a host with an exact name or a name whose beginning is `*`, in any case."""
    pattern, host = pattern.lower(), host.lower()
    if pattern.startswith("*"):
        return host.endswith(pattern[1:])
    return pattern == host


def _specificity(pattern: str) -> tuple[bool, int]:
    """Sort exact names before wildcards, and longer wildcards before shorter ones."""
    return pattern.startswith("*"), -len(pattern)


def _for_client(rules: list[DestinationRule], client: Client) -> list[DestinationRule]:
    """Return the rules that reach a client; those that select it beat those for everyone.

    Istio: a rule with a workload selector is only for clients of its own namespace.
    """
    visible = [rule for rule in rules if _exported(rule, client.namespace)]
    selecting = [
        rule
        for rule in visible
        if rule.spec.workload_selector is not None
        and rule.metadata.namespace == client.namespace
        and selects(rule.spec.workload_selector, client.labels)
    ]
    return selecting or [rule for rule in visible if rule.spec.workload_selector is None]


def _exported(rule: DestinationRule, namespace: str) -> bool:
    own = rule.metadata.namespace
    exports = {own if export == "." else export for export in rule.spec.export_to}
    return not exports or "*" in exports or namespace in exports


def _merged(rules: list[DestinationRule]) -> Settings:
    policies = (rule.spec.traffic_policy for rule in rules)
    subsets: dict[str, Subset] = {}
    for rule in rules:
        for subset in rule.spec.subsets:
            subsets.setdefault(subset.name, subset)
    return Settings(
        rule=rules[0],
        traffic_policy=next((policy for policy in policies if policy is not None), None),
        subsets=tuple(subsets.values()),
    )


def _tls_in(policy: TrafficPolicy | None, service_port: int) -> ClientTls | None:
    if policy is None:
        return None
    for settings in policy.port_level_settings or ():
        if settings.port is not None and settings.port.number == service_port and settings.tls:
            return settings.tls
    return policy.tls
