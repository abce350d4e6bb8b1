"""What the discovery service refuses."""

from __future__ import annotations

from typing import ClassVar

from ca.errors import CaError


class DiscoveryRefused(CaError):
    """A proxy's stream cannot be served."""

    reason: ClassVar[str] = "discovery_refused"


class SubscriptionRefused(DiscoveryRefused):
    """A request asks for something that is not served, or for too much."""

    reason = "subscription_refused"


class NodeRefused(DiscoveryRefused):
    """A node does not say who it is, or says so in a way that cannot be used."""

    reason = "node_refused"


class ForeignNode(DiscoveryRefused):
    """A node claims a namespace or account that its caller did not prove."""

    reason = "foreign_node"


class TooManyProxies(DiscoveryRefused):
    """No further stream is taken."""

    reason = "too_many_proxies"


class NoSuchGroup(DiscoveryRefused):
    """A proxy wants to register under a WorkloadGroup that is not there."""

    reason = "no_such_group"
