"""What can be wrong with what a discovery stream brings."""

from __future__ import annotations

from mesh.errors import RemoraError


class DiscoveryError(RemoraError):
    """Something on a discovery stream cannot be used."""

    reason = "bad_discovery"


class NotUnderstood(DiscoveryError):
    """A resource came that this version cannot read.

    Whoever enforces policy must not act as if it had never been there: it may have been the one
    that denies.
    """

    reason = "resource_not_understood"

    def __init__(self, type_url: str, name: str, why: str) -> None:
        super().__init__(f"{type_url.rpartition('/')[2]} {name}: {why}")
        self.type_url = type_url
        self.name = name
        self.why = why


class BadNode(DiscoveryError):
    """The metadata by which a client introduces itself cannot be used."""

    reason = "bad_node"
