"""Everything the agent has to give, as one value that does not change.

The version of a thing is made from its content, so a thing and its successor never have the same,
and a client that comes back after the agent was restarted is right about what it has already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from agent.answer import Issued
from agent.resources import KeyPair, Roots
from mesh.bundle import TrustBundle
from mesh.bundle_document import JwtKey
from mesh.spiffe import SpiffeId, TrustDomain


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSvid:
    """A certificate with its key, in the form it was issued in and in the one Envoy takes."""

    version: str
    issued: Issued
    pair: KeyPair


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRoots:
    """The roots of one trust domain."""

    version: str
    bundle: TrustBundle
    roots: Roots


JwtKeys = Mapping[str, JwtKey]
"""The keys that sign one trust domain's JWT-SVIDs, by `kid`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What there is now: certificates by identity, roots and keys by trust domain."""

    svids: Mapping[SpiffeId, HeldSvid] = field(default_factory=dict[SpiffeId, HeldSvid])
    roots: Mapping[TrustDomain, HeldRoots] = field(default_factory=dict[TrustDomain, HeldRoots])
    jwt_keys: Mapping[TrustDomain, JwtKeys] = field(default_factory=dict[TrustDomain, JwtKeys])

    def svid(self, identity: SpiffeId, now: datetime) -> HeldSvid | None:
        """Return the certificate of `identity`: never an expired one."""
        held = self.svids.get(identity)
        return held if held is not None and now < held.pair.not_after else None
