"""Secrets in the form they are served in."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from agent.answer import Issued
from mesh.api import BUNDLE_RESOURCE, SVID_RESOURCE
from mesh.svid import certificates_pem

SERVED = (SVID_RESOURCE, BUNDLE_RESOURCE)
"""Istio's names of the workload's own certificate and of the roots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """An SVID: PEM, usable until `not_after`."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    not_after: datetime

    @classmethod
    def of(cls, issued: Issued) -> KeyPair:
        """Take leaf, intermediates and key of what the CA issued."""
        svid = issued.svid
        return cls(chain_pem=svid.chain_pem(), key_pem=svid.key_pem(), not_after=svid.not_after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """A trust bundle: PEM."""

    pem: bytes

    @classmethod
    def of(cls, issued: Issued) -> Roots:
        """Take the roots of what the CA issued, sorted, since their order means nothing."""
        return cls(
            pem=b"".join(sorted(certificates_pem([root]) for root in issued.bundle.authorities))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One named secret in the form it has had since `version`, which only ever grows."""

    name: str
    version: int
    value: KeyPair | Roots
