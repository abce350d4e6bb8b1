"""Secrets in the form they are served in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from agent.answer import Issued
from mesh.bundle import TrustBundle
from mesh.revocation import lists_pem
from mesh.spiffe import TrustDomain
from mesh.svid import certificates_pem

VERSION_DIGITS = 16
"""Hexadecimal digits of a version: 64 bits, so that no two are ever alike by chance."""


def version_of(content: bytes) -> str:
    """Return a version that stands for `content`."""
    return hashlib.sha256(content).hexdigest()[:VERSION_DIGITS]


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
    """A trust bundle: roots and revocation lists as PEM, the latter empty if there are none."""

    pem: bytes
    lists_pem: bytes = b""

    @classmethod
    def of(cls, bundle: TrustBundle) -> Roots:
        """Take the roots and lists of a bundle, sorted, since their order means nothing."""
        roots = sorted(certificates_pem([root]) for root in bundle.authorities)
        lists = sorted(lists_pem([one]) for one in bundle.revoked)
        return cls(pem=b"".join(roots), lists_pem=b"".join(lists))


@dataclass(frozen=True, slots=True, kw_only=True)
class AllRoots:
    """The roots of several trust domains, each for its own domain alone."""

    by_domain: Mapping[TrustDomain, Roots]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One named secret as it is now; another form of it has another version."""

    name: str
    version: str
    value: KeyPair | Roots | AllRoots
