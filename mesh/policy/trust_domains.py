"""The mesh's trust domains: its own and its aliases, which stand for one another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from mesh.resources.mesh_config import MeshConfig
from mesh.spiffe import SCHEME

LOCAL = "cluster.local"
"""Istio: in a principal this is a pointer to the mesh's own trust domain, whatever its name."""


@dataclass(frozen=True, slots=True)
class TrustDomains:
    """The mesh's own trust domain first, then its aliases."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, config: MeshConfig) -> Self:
        """Take the names from the mesh settings; empty ones and repetitions are dropped."""
        names = (config.trust_domain, *config.trust_domain_aliases)
        return cls(tuple(dict.fromkeys(name for name in names if name)))

    def accepts(self, uri: str) -> bool:
        """Tell whether a client certificate's URI is of this mesh (Istio: prefix with slash)."""
        return uri.startswith(tuple(f"{SCHEME}{name}/" for name in self.names))

    def migrate_principals(self, patterns: Iterable[str]) -> tuple[str, ...]:
        """Replace each pattern about this mesh by one for every trust domain.

        Istio: only patterns of exactly five parts whose first is not a lone `*` are touched, and
        only if that part matches a known trust domain, in either direction, or is cluster.local.
        """
        migrated: list[str] = []
        for pattern in patterns:
            domain, *rest = pattern.split("/")
            if len(rest) == 4 and domain != "*" and (domain == LOCAL or self._knows(domain)):
                migrated.extend(self._copies(domain, "/".join(rest)))
            else:
                migrated.append(pattern)
        return tuple(migrated)

    def expand(self, values: Iterable[str]) -> tuple[str, ...]:
        """Expand each value that is a known trust domain to all of them."""
        expanded: list[str] = []
        for value in values:
            expanded.extend(self.names if value in self.names else (value,))
        return tuple(dict.fromkeys(expanded))

    def expand_identities(self, sans: Iterable[str]) -> tuple[str, ...]:
        """Repeat each workload identity for every alias of the trust domain.

        Istio: entries that are not `spiffe://TD/ns/NS/sa/SA` stay as they are.
        """
        expanded: list[str] = []
        for san in sans:
            expanded.append(san)
            parts = san.removeprefix(SCHEME).split("/")
            if san.startswith(SCHEME) and len(parts) == 5 and parts[1::2] == ["ns", "sa"]:
                rest = "/".join(parts[1:])
                expanded.extend(f"{SCHEME}{alias}/{rest}" for alias in self.names[1:])
        return tuple(dict.fromkeys(expanded))

    def _knows(self, domain: str) -> bool:
        return any(
            domain == name or _wild(domain, name) or _wild(name, domain) for name in self.names
        )

    def _copies(self, domain: str, rest: str) -> list[str]:
        """Write a pattern once for each trust domain; `*suffix` stays where it covers the name."""
        suffix = domain[1:] if domain.startswith("*") else None
        copies = [
            f"{domain if suffix is not None and name.endswith(suffix) else name}/{rest}"
            for name in self.names
        ]
        return list(dict.fromkeys(copies))


def _wild(text: str, pattern: str) -> bool:
    """Match `prefix*` or `*suffix`."""
    return (pattern.endswith("*") and text.startswith(pattern[:-1])) or (
        pattern.startswith("*") and text.endswith(pattern[1:])
    )
