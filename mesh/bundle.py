"""Trust bundles: the root certificates of one trust domain (SPIFFE Trust Domain and Bundle)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from cryptography import x509

from mesh.errors import RemoraError
from mesh.revocation import RevocationList, lists_pem, parse_lists_pem
from mesh.spiffe import TrustDomain
from mesh.svid import InvalidSvid, certificates_pem, parse_certificates_pem


class InvalidBundle(RemoraError):
    """A trust bundle cannot be read."""

    reason = "invalid_bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The roots that vouch for `trust_domain`, without duplicates.

    An empty bundle is valid and means that nothing from that trust domain is trusted (4.1).
    `revoked` says which of what they signed is not to be believed any more.
    """

    trust_domain: TrustDomain
    authorities: tuple[x509.Certificate, ...]
    revoked: tuple[RevocationList, ...] = ()

    @classmethod
    def of(
        cls,
        trust_domain: TrustDomain,
        authorities: Iterable[x509.Certificate],
        revoked: Iterable[RevocationList] = (),
    ) -> Self:
        """Build a bundle, dropping repeated certificates and keeping their order."""
        return cls(
            trust_domain=trust_domain,
            authorities=tuple(dict.fromkeys(authorities)),
            revoked=tuple(dict.fromkeys(revoked)),
        )

    @classmethod
    def from_pem(cls, trust_domain: TrustDomain, pem: bytes) -> Self:
        """Load the roots of `trust_domain` from PEM, at least one, and revocation lists, if any.

        Raises InvalidBundle.
        """
        try:
            return cls.of(trust_domain, parse_certificates_pem(pem), parse_lists_pem(pem))
        except InvalidSvid as error:
            raise InvalidBundle(f"the trust bundle of {trust_domain} is {error}") from error
        except ValueError as error:
            raise InvalidBundle(
                f"the trust bundle of {trust_domain} holds an unreadable revocation list: {error}"
            ) from error

    def pem(self) -> bytes:
        """Return the roots as PEM blocks."""
        return certificates_pem(self.authorities)

    def pem_with_revoked(self) -> bytes:
        """Return the roots and then the revocation lists, as Envoy takes them in one file."""
        return self.pem() + lists_pem(self.revoked)


Bundles = Mapping[TrustDomain, TrustBundle]
"""Every trust domain with its own roots. They are never merged: a root speaks for one domain."""
