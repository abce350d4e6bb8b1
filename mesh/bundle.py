"""Trust bundles: the root certificates of one trust domain (SPIFFE Trust Domain and Bundle)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from cryptography import x509

from mesh.errors import RemoraError
from mesh.spiffe import TrustDomain
from mesh.svid import InvalidSvid, certificates_pem, parse_certificates_pem


class InvalidBundle(RemoraError):
    """A trust bundle cannot be read."""

    reason = "invalid_bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The roots that vouch for `trust_domain`, without duplicates.

    An empty bundle is valid and means that nothing from that trust domain is trusted (4.1).
    """

    trust_domain: TrustDomain
    authorities: tuple[x509.Certificate, ...]

    @classmethod
    def of(cls, trust_domain: TrustDomain, authorities: Iterable[x509.Certificate]) -> Self:
        """Build a bundle, dropping repeated certificates and keeping their order."""
        return cls(trust_domain=trust_domain, authorities=tuple(dict.fromkeys(authorities)))

    @classmethod
    def from_pem(cls, trust_domain: TrustDomain, pem: bytes) -> Self:
        """Load the roots of `trust_domain` from PEM, at least one. Raises InvalidBundle."""
        try:
            return cls.of(trust_domain, parse_certificates_pem(pem))
        except InvalidSvid as error:
            raise InvalidBundle(f"the trust bundle of {trust_domain} is {error}") from error

    def pem(self) -> bytes:
        """Return the roots as PEM blocks."""
        return certificates_pem(self.authorities)


Bundles = Mapping[TrustDomain, TrustBundle]
"""Every trust domain with its own roots. They are never merged: a root speaks for one domain."""
