"""What a caller may have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.registration import Entry
from mesh.spiffe import SpiffeId, TrustDomain


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One identity that a caller may use, and the foreign trust domains it deals with.

    None for `federates_with` means all that there are.
    """

    identity: SpiffeId
    hint: str = ""
    federates_with: frozenset[TrustDomain] | None = frozenset()


@dataclass(frozen=True, slots=True)
class Grants:
    """Everything one caller may have; the first grant is its default identity."""

    all: tuple[Grant, ...]

    @property
    def identities(self) -> tuple[SpiffeId, ...]:
        """The caller's identities, its default one first."""
        return tuple(grant.identity for grant in self.all)

    def federates_with(self, domain: TrustDomain) -> bool:
        """Tell whether the caller may have the bundle of a foreign trust domain."""
        return any(
            grant.federates_with is None or domain in grant.federates_with for grant in self.all
        )


NOTHING = Grants(())
"""What an unknown caller may have."""


def grants_of(entries: Iterable[Entry]) -> Grants:
    """Return what the entries of a caller give it. Each identity counts once, each hint too.

    Of two identities with one hint the first keeps it (SPIFFE Workload API, 5.2.1).
    """
    grants: dict[SpiffeId, Grant] = {}
    hints: set[str] = set()
    for entry in entries:
        known = grants.get(entry.identity)
        if known is None:
            hint = entry.hint if entry.hint not in hints else ""
            hints.add(hint)
            grants[entry.identity] = Grant(
                identity=entry.identity, hint=hint, federates_with=entry.federates_with
            )
        else:
            grants[entry.identity] = Grant(
                identity=known.identity,
                hint=known.hint,
                federates_with=(known.federates_with or frozenset()) | entry.federates_with,
            )
    return Grants(tuple(grants.values()))
