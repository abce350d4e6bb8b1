"""What is known of a connection or a request when policy is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Self

from mesh.spiffe import SCHEME, SpiffeId

Address = IPv4Address | IPv6Address

ALWAYS_SPACE_DELIMITED = frozenset({"scope", "permission"})
"""Istio: claims that are lists written with spaces (RFC 8693, section 4.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One inbound connection; ports and addresses are those of the workload.

    `peer` is the identity of the accepted client certificate, None for plaintext. `remote_ip` is
    the original client if a trusted proxy told it, None if it is the TCP peer itself.
    """

    peer: SpiffeId | None
    source_ip: Address
    destination_ip: Address
    destination_port: int
    sni: str | None = None
    remote_ip: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request, as policy sees it: `target` is the normalised path with its query.

    Header names are lower case, each with its lines in order. `claims` is the payload of a token
    that has been verified, None if there is none.
    """

    method: str
    target: str
    authority: str | None
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    scheme: str = "http"
    claims: Mapping[str, Any] | None = None
    space_delimited_claims: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        method: str,
        target: str,
        authority: str | None,
        headers: Iterable[tuple[str, str]] = (),
        *,
        claims: Mapping[str, Any] | None = None,
        space_delimited_claims: Iterable[str] = (),
    ) -> Self:
        """Build a request from header lines in any case and order."""
        lines: dict[str, tuple[str, ...]] = {}
        for name, value in headers:
            lower = name.lower()
            lines[lower] = (*lines.get(lower, ()), value)
        return cls(
            method=method,
            target=target,
            authority=authority,
            headers=lines,
            claims=claims,
            space_delimited_claims=frozenset(space_delimited_claims),
        )

    @property
    def path(self) -> str:
        """The path without query and fragment."""
        return self.target.partition("?")[0].partition("#")[0]

    def header_lines(self, name: str) -> tuple[str, ...]:
        """Return a header's lines, none if it is absent; Envoy's pseudo-headers count too."""
        if name in {":authority", "host"}:
            return () if self.authority is None else (self.authority,)
        if name == ":method":
            return (self.method,)
        if name == ":path":
            return (self.target,)
        if name == ":scheme":
            return (self.scheme,)
        return self.headers.get(name, ())

    def claim(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Return the texts of a claim: one, or those of a list; numbers and booleans are none."""
        value: Any = self.claims
        for name in path:
            if not isinstance(value, Mapping):
                return ()
            value = value.get(name)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(value, str):
            split = len(path) == 1 and (
                path[0] in ALWAYS_SPACE_DELIMITED or path[0] in self.space_delimited_claims
            )
            return tuple(part for part in value.split(" ") if part) if split else (value,)
        if isinstance(value, list):
            return tuple(item for item in value if isinstance(item, str))  # pyright: ignore[reportUnknownVariableType]
        return ()


class Facts:
    """A connection and perhaps a request, in the form that compiled rules compare.

    Plain attributes, because a hundred rules look at them within microseconds.
    """

    __slots__ = ("anchors", "destination", "host", "identity", "path", "port", "remote", "request",
                 "slashed", "sni", "source", "trust_domain")  # fmt: skip

    def __init__(self, connection: Connection, request: HttpRequest | None = None) -> None:
        peer = connection.peer
        self.identity = None if peer is None else str(peer).removeprefix(SCHEME)
        # With the last slash of `spiffe://`: what is looked for in it may begin there.
        self.slashed = None if self.identity is None else f"/{self.identity}"
        self.trust_domain = None if peer is None else peer.trust_domain.name
        self.anchors = anchors_of(self.identity)
        self.source = address_number(connection.source_ip)
        self.remote = (
            self.source if connection.remote_ip is None else address_number(connection.remote_ip)
        )
        self.destination = address_number(connection.destination_ip)
        self.port = connection.destination_port
        self.sni = connection.sni
        self.request = request
        self.path = "" if request is None else request.path
        self.host = (
            None if request is None or request.authority is None else request.authority.lower()
        )


def address_number(address: Address) -> int:
    """Return an address as one number: IPv6 is marked by bit 128, so no two versions compare equal.

    IPv4 that came in over IPv6 counts as IPv4, as it does in Envoy.
    """
    if isinstance(address, IPv4Address):
        return int(address)
    if address.ipv4_mapped is not None:
        return int(address.ipv4_mapped)
    return int(address) | IPV6


IPV6 = 1 << 128
"""The bit that marks an IPv6 address, and the mask of every IPv6 block."""


def anchors_of(identity: str | None) -> tuple[str, ...] | None:
    """Return the names under which rules about this very identity are found; see `rules.RuleSet`.

    None is an identity of another shape than Istio's, which may match in more ways than these.
    """
    if identity is None:
        return ()
    parts = identity.split("/")
    if len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
        return None
    _, _, namespace, _, account = parts
    if namespace == "ns" or parts[0] == "ns":
        return None
    return (f"p:{identity}", f"a:{namespace}/{account}", f"n:{namespace}")
