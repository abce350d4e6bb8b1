"""What is captured and what is not: the inputs of the rule set, typed and checked.

The names, defaults and meanings are those of istio-iptables, so that a pod's annotations mean here
what they mean there.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Literal

from mesh.errors import ConfigError

Network = IPv4Network | IPv6Network

WILDCARD: Literal["*"] = "*"

OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
HBONE_PORT = 15008
"""Istio's tunnel port: TLS of the mesh already, so never captured."""

PROBE_PORT = 15002
"""Nobody listens here; Istio dials it to see whether capture works."""

PROXY_ID = 1337
"""The uid and gid whose connections are never captured: the proxy's own."""

OWN_PORTS = frozenset({15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090})
"""Ports of a sidecar. A captured connection *to* one of them is a loop or an attack."""

UNCAPTURED_INBOUND = (15090, 15021, 15020)
"""Metrics, readiness and health: scraped by those who are outside of the mesh. Istio's order."""

TPROXY_MARK = 1337
"""On packets that TPROXY took, and on the proxy's connections to the app in the client's name."""

SELF_CALL_MARK = 1338
"""On packets that the proxy sends to its own pod: the only ones on lo that are to be captured."""

TPROXY_TABLE = 133
"""The routing table that makes marked packets local, whatever their destination."""

INBOUND_SOURCES = (ip_network("127.0.0.6/32"), ip_network("::6/128"))
"""Where the proxy dials the app from: how the rules know these connections from all others."""

LOOPBACKS = (ip_network("127.0.0.1/32"), ip_network("::1/128"))
"""Exactly these, not 127.0.0.0/8: Istio's default."""

MAX_ID = 2**32 - 2
"""The largest uid; the one above means "unchanged" to the kernel."""

MAX_ENTRIES = 1000
"""Of one list: the kernel walks them one by one for every new connection."""

MAX_INTERFACE_NAME = 15
"""IFNAMSIZ without its final zero."""


class InterceptionMode(enum.StrEnum):
    """How inbound connections reach the proxy. Outbound ones are always redirected."""

    REDIRECT = "REDIRECT"
    TPROXY = "TPROXY"
    """The app sees the client's own address; the proxy needs CAP_NET_ADMIN for it."""
    NONE = "NONE"


class Family(enum.StrEnum):
    """An IP version."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"

    @classmethod
    def of(cls, network: Network) -> Family:
        """Return the family of a network."""
        return cls.IPV4 if network.version == 4 else cls.IPV6


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """The inputs of the rule set; the defaults capture everything, as Istio's do."""

    mode: InterceptionMode = InterceptionMode.REDIRECT
    families: tuple[Family, ...] = (Family.IPV4, Family.IPV6)
    outbound_port: int = OUTBOUND_PORT
    inbound_port: int = INBOUND_PORT
    proxy_uids: tuple[int, ...] = (PROXY_ID,)
    proxy_gids: tuple[int, ...] = (PROXY_ID,)
    include_outbound_ranges: tuple[Network, ...] | Literal["*"] = WILDCARD
    exclude_outbound_ranges: tuple[Network, ...] = ()
    include_outbound_ports: tuple[int, ...] = ()
    """Captured even when their address is outside of the included ranges."""
    exclude_outbound_ports: tuple[int, ...] = ()
    include_inbound_ports: tuple[int, ...] | Literal["*"] = WILDCARD
    """None at all means that nothing is captured inbound."""
    exclude_inbound_ports: tuple[int, ...] = ()
    """Only of use while every other port is included."""
    include_users: tuple[int, ...] | Literal["*"] = WILDCARD
    exclude_users: tuple[int, ...] = ()
    include_groups: tuple[int, ...] | Literal["*"] = WILDCARD
    exclude_groups: tuple[int, ...] = ()
    exclude_interfaces: tuple[str, ...] = ()
    virtual_interfaces: tuple[str, ...] = ()
    """Of nested machines: what comes in by them is outbound traffic of the workload."""
    drop_invalid: bool = False
    """Drop packets that belong to no known connection, which otherwise draw resets."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself. Raises ConfigError."""
        if not self.families:
            raise ConfigError("capture: at least one of ipv4 and ipv6 is needed")
        if not self.proxy_uids:
            raise ConfigError(
                "capture: without a proxy uid the proxy's own connections would be captured, "
                "for ever: give the uid it runs as"
            )
        if self.outbound_port == self.inbound_port:
            raise ConfigError(
                f"capture: port {self.inbound_port} cannot be both the inbound and the outbound one"
            )
        _refuse_both("users", self.include_users, self.exclude_users)
        _refuse_both("groups", self.include_groups, self.exclude_groups)

    def networks(self, pair: tuple[Network, ...]) -> tuple[Network, ...]:
        """Return those of `pair` whose family is captured."""
        return tuple(network for network in pair if Family.of(network) in self.families)

    @property
    def captures_loopback(self) -> bool:
        """Whether an included range names loopback addresses, so that calls to them count."""
        ranges = self.include_outbound_ranges
        return not isinstance(ranges, str) and any(network.is_loopback for network in ranges)


def _refuse_both(
    what: str, include: tuple[int, ...] | Literal["*"], exclude: tuple[int, ...]
) -> None:
    if include != WILDCARD and exclude:
        raise ConfigError(
            f"capture: {what} are either included or excluded, not both: "
            f"whoever is not among the included {what} is excluded already"
        )
