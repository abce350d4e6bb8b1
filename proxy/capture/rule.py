"""A rule of the packet filter, independent of the program that installs it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Generic, TypeVar

from proxy.capture.options import Family, Network


class Chain(enum.Enum):
    """A chain: the kernel's own two, and Istio's, by the name that iptables knows."""

    PREROUTING = "PREROUTING"
    OUTPUT = "OUTPUT"
    INBOUND = "ISTIO_INBOUND"
    REDIRECT = "ISTIO_REDIRECT"
    IN_REDIRECT = "ISTIO_IN_REDIRECT"
    OUTBOUND = "ISTIO_OUTPUT"
    DIVERT = "ISTIO_DIVERT"
    TPROXY = "ISTIO_TPROXY"
    DROP = "ISTIO_DROP"

    @property
    def built_in(self) -> bool:
        """Whether the kernel calls it, rather than a jump of ours."""
        return self in {Chain.PREROUTING, Chain.OUTPUT}


class Table(enum.StrEnum):
    """Which of the kernel's tables."""

    MANGLE = "mangle"
    NAT = "nat"


class Verb(enum.Enum):
    """What a rule does that needs no argument."""

    RETURN = enum.auto()
    ACCEPT = enum.auto()
    DROP = enum.auto()
    SAVE_MARK = enum.auto()
    """Remember the packet's mark in its connection."""
    RESTORE_MARK = enum.auto()
    """Give the packet its connection's mark."""


@dataclass(frozen=True, slots=True)
class Jump:
    """Go on in another chain."""

    chain: Chain


@dataclass(frozen=True, slots=True)
class RedirectTo:
    """Deliver to this port of this machine."""

    port: int


@dataclass(frozen=True, slots=True)
class TproxyTo:
    """Deliver to this port without changing the packet, and mark it."""

    port: int
    mark: int


@dataclass(frozen=True, slots=True)
class SetMark:
    """Mark the packet."""

    mark: int


Action = Verb | Jump | RedirectTo | TproxyTo | SetMark


class OwnerKind(enum.StrEnum):
    """Of the process that owns the socket."""

    UID = "uid"
    GID = "gid"


@dataclass(frozen=True, slots=True)
class Owner:
    """The packet's socket belongs to this user or group."""

    kind: OwnerKind
    number: int
    negated: bool = False


Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Not(Generic[Value]):
    """Everything but this network, port or mark."""

    value: Value


class Protocol(enum.StrEnum):
    """Transport protocols that rules tell apart."""

    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule; a field that is None matches everything."""

    chain: Chain
    action: Action
    family: Family | None = None
    protocol: Protocol | None = None
    in_interface: str | None = None
    out_interface: str | None = None
    source: Network | None = None
    destination: Network | Not[Network] | None = None
    port: int | Not[int] | None = None
    """The destination's."""
    owners: tuple[Owner, ...] = ()
    mark: int | Not[int] | None = None
    connection_mark: int | None = None
    states: tuple[str, ...] = ()
    """Of the connection: `established`, `related`, `invalid`."""

    def for_family(self, family: Family) -> bool:
        """Tell whether the rule concerns packets of `family`."""
        return self.family in {None, family}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """All rules of one table, each chain's in order."""

    table: Table
    chains: tuple[Chain, ...]
    rules: tuple[Rule, ...]
