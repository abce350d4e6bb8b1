"""Replacing a self-signed root A by a new one B with no outage: three steps, each when it is safe.

    prepare    B is made. Peers are told to trust A and B; A goes on signing.
    activate   once every workload trusts B: B signs. A stays trusted.
    retire     once no workload shows a certificate that A signed: only B is trusted.

Pure: the decisions. What workloads have is known from the ledger.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ca.errors import RotationRefused, RotationTooEarly
from ca.ledger import IssuedRecord, anchor_id
from ca.material import OwnRoot
from ca.template import Signer
from mesh.bundle import TrustBundle

NAMED = 3
"""How many workloads a refusal names; `status` lists them all."""


class Phase(enum.StrEnum):
    """Where a rotation stands."""

    STEADY = "steady"
    PREPARED = "prepared"
    ACTIVATED = "activated"


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationStatus:
    """Where a rotation stands, and which certificates the next step waits for."""

    phase: Phase
    own: OwnRoot
    waiting_for: tuple[IssuedRecord, ...]

    @property
    def ready(self) -> bool:
        """Whether the next step would be taken now."""
        return not self.waiting_for

    @property
    def next_step(self) -> str:
        """The command that comes next."""
        return {
            Phase.STEADY: "prepare",
            Phase.PREPARED: "activate",
            Phase.ACTIVATED: "retire",
        }[self.phase]

    @property
    def ready_at(self) -> datetime | None:
        """When the next step becomes safe at the latest, None if it is."""
        return max((record.not_after for record in self.waiting_for), default=None)


def status(own: OwnRoot, in_use: Sequence[IssuedRecord]) -> RotationStatus:
    """Tell where a rotation stands, given the certificates that workloads may be using."""
    phase, waiting = Phase.STEADY, list[IssuedRecord]()
    if own.upcoming is not None:
        phase = Phase.PREPARED
        upcoming = anchor_id(own.upcoming.certificate)
        waiting = [record for record in in_use if upcoming not in record.roots]
    elif own.former is not None:
        phase = Phase.ACTIVATED
        former = anchor_id(own.former.certificate)
        waiting = [record for record in in_use if record.signer == former]
    return RotationStatus(phase=phase, own=own, waiting_for=tuple(waiting))


def prepare(own: OwnRoot, upcoming: Signer) -> OwnRoot:
    """Begin: trust `upcoming` too. Raises RotationRefused."""
    _expect(own, Phase.STEADY)
    roots = [*own.roots.authorities, upcoming.certificate]
    return replace(own, upcoming=upcoming, roots=TrustBundle.of(own.roots.trust_domain, roots))


def activate(own: OwnRoot, in_use: Sequence[IssuedRecord]) -> OwnRoot:
    """Let the prepared root sign. Raises RotationRefused, RotationTooEarly."""
    _expect(own, Phase.PREPARED)
    _check(
        status(own, in_use),
        "are in use by workloads that may not trust the new root yet. They get it with their "
        "next certificate",
    )
    if own.upcoming is None:
        raise RotationRefused("no root is prepared")
    return replace(own, signer=own.upcoming, upcoming=None, former=own.signer)


def retire(own: OwnRoot, in_use: Sequence[IssuedRecord]) -> OwnRoot:
    """Trust the old root no more. Raises RotationRefused, RotationTooEarly."""
    _expect(own, Phase.ACTIVATED)
    _check(
        status(own, in_use),
        "that the old root signed are in use. Their workloads get others by themselves",
    )
    if own.former is None:
        raise RotationRefused("no root is to be retired")
    former = anchor_id(own.former.certificate)
    roots = [root for root in own.roots.authorities if anchor_id(root) != former]
    return replace(own, former=None, roots=TrustBundle.of(own.roots.trust_domain, roots))


def _expect(own: OwnRoot, expected: Phase) -> None:
    found = status(own, ())
    if found.phase is not expected:
        raise RotationRefused(
            f"the rotation of the root is {found.phase}, so the next step is "
            f"`remora ca root {found.next_step}`"
        )


def _check(found: RotationStatus, what: str) -> None:
    if found.ready:
        return
    names = ", ".join(sorted({record.identity for record in found.waiting_for})[:NAMED])
    raise RotationTooEarly(
        f"too early: {len(found.waiting_for)} certificates {what}, at the latest at "
        f"{found.ready_at:%Y-%m-%dT%H:%M:%SZ}. Among them: {names}. `remora ca root status` lists "
        "them; revoke those of workloads that are gone"
    )
