"""What to do with a captured connection, by where it was going: pure decisions.

A captured port is open to everybody, so it is also dialed directly, by mistake or on purpose, and
whoever could make the proxy dial itself could make it loop for ever. Istio's proxies refuse what
was going to the port that it arrived at; ztunnel refuses all of its own ports.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from mesh.address import Address
from mesh.spiffe import SpiffeId
from proxy.capture.options import (
    INBOUND_PORT,
    OUTBOUND_PORT,
    OWN_PORTS,
    InterceptionMode,
    Network,
)
from proxy.errors import SelfCall
from proxy.mode import MtlsMode

SERVER_FIRST_WAIT = 0.2
"""Seconds. On a port whose server speaks first, a client that is silent this long is not a mesh
client, which begins TLS at once: long enough for a lost segment, short enough not to be felt."""


class OutboundPolicy(enum.StrEnum):
    """What becomes of unknown destinations: the modes of Istio's outboundTrafficPolicy."""

    ALLOW_ANY = "ALLOW_ANY"
    """They are reached as if there were no proxy, without mutual TLS."""
    REGISTRY_ONLY = "REGISTRY_ONLY"
    """They are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """The settings of the captured ports."""

    interception: InterceptionMode = InterceptionMode.REDIRECT
    inbound_port: int = INBOUND_PORT
    outbound_port: int = OUTBOUND_PORT
    mode: MtlsMode | None = MtlsMode.PERMISSIVE
    """Of every port of the app; with None the control plane decides, also on destinations."""
    port_modes: Mapping[int, MtlsMode] = field(default_factory=dict[int, MtlsMode])
    destinations: Mapping[Address, frozenset[SpiffeId]] = field(
        default_factory=dict[Address, frozenset[SpiffeId]]
    )
    outbound_policy: OutboundPolicy = OutboundPolicy.ALLOW_ANY
    server_first_ports: frozenset[int] = frozenset()
    proxy_protocol_ports: frozenset[int] = frozenset()
    """Of the app: where it wants to be told in a PROXY header who is calling."""
    balancers: tuple[Network, ...] = ()
    """Whose connections begin with a PROXY header that is believed."""

    @property
    def own_ports(self) -> frozenset[int]:
        """The ports that no captured connection may be going to."""
        return OWN_PORTS | {self.inbound_port, self.outbound_port}

    def mode_of(self, port: int) -> MtlsMode | None:
        """Return the mutual TLS mode of a port of the app, None if the control plane decides."""
        return self.port_modes.get(port, self.mode)

    def detect_timeout_of(self, port: int, usual: float) -> float:
        """Return how many seconds to wait for a client's first bytes on a port of the app."""
        return min(SERVER_FIRST_WAIT, usual) if port in self.server_first_ports else usual


def refuse_inbound_loop(destination: Address, own_ports: Collection[int]) -> None:
    """Raise SelfCall if an inbound connection was going to one of the proxy's own ports."""
    if destination.port in own_ports:
        raise SelfCall(str(destination))


def refuse_outbound_loop(destination: Address, arrived_at: int, own_ports: Collection[int]) -> None:
    """Raise SelfCall if an outbound connection would come back to this proxy.

    Other machines have ports of these numbers too, so only loopback ones are known to be ours,
    besides the very port that the connection arrived at.
    """
    own = destination.port in own_ports and ip_address(destination.host).is_loopback
    if own or destination.port == arrived_at:
        raise SelfCall(str(destination))
