"""A proxy as far as it matters for what it is sent."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.discovery.node import ProxyNode
from mesh.policy.destination import host_matches
from mesh.resources.values import Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """A workload, where it runs, and what it calls.

    `labels` are all that policies may select it by. `hosts` are in lower case; None is for whoever
    may call everything it sees. `own` names its WorkloadEntry if it registered one.
    """

    namespace: str
    labels: Labels
    addresses: tuple[str, ...] = ()
    hosts: frozenset[str] | None = frozenset()
    own: str = ""

    @classmethod
    def of(cls, node: ProxyNode, hosts: frozenset[str] | None, own: str = "") -> Viewer:
        """See through the eyes of a proxy."""
        return cls(
            namespace=node.namespace,
            labels=node.labels,
            addresses=node.addresses,
            hosts=hosts,
            own=own,
        )

    def calls(self, host: str) -> bool:
        """Tell whether a service of this host, maybe a wildcard, is asked for."""
        if self.hosts is None:
            return True
        return host.lower() in self.hosts or (
            host.startswith("*") and any(host_matches(host, one) for one in self.hosts)
        )
