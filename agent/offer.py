"""What one caller is offered over SDS, by the names that Istio and SPIRE have for it.

`default` is the caller's own certificate and `ROOTCA` the roots of its trust domain, as in Istio.
As in SPIRE, a SPIFFE ID names the certificate of that identity, a trust domain's ID its roots, and
`ALL` the roots of every trust domain that the caller deals with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from agent.errors import BadSubscription
from agent.grants import Grants
from agent.holdings import Holdings
from agent.resources import AllRoots, Resource
from mesh.api import ALL_BUNDLES_RESOURCE, BUNDLE_RESOURCE, SVID_RESOURCE
from mesh.spiffe import SCHEME, InvalidSpiffeId, SpiffeId, TrustDomain


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What there is for a caller at `now`.

    `grants` is None while it is not known yet who the caller is, which only an agent of a single
    identity lets happen: it reads that from the token.
    """

    holdings: Holdings
    grants: Grants | None
    trust_domain: TrustDomain
    now: datetime

    def everything(self) -> tuple[str, ...]:
        """Return the names that a subscription without names stands for."""
        others = () if self.grants is None else self.grants.identities[1:]
        return (SVID_RESOURCE, BUNDLE_RESOURCE, *(str(identity) for identity in others))

    def check(self, name: str) -> None:
        """Raise BadSubscription for a name that this caller cannot have, now or later."""
        if name in {SVID_RESOURCE, BUNDLE_RESOURCE, ALL_BUNDLES_RESOURCE}:
            return
        if self.grants is not None:
            identity = _parse(name)
            if identity is not None and self._may_have(identity):
                return
        raise BadSubscription(
            f"there is no secret {name[:120]!r} for this caller, only {', '.join(self._named())}"
        )

    def get(self, name: str) -> Resource | None:
        """Return a secret as it is now, None if it is not there."""
        if name == SVID_RESOURCE:
            known = self.grants.identities if self.grants is not None else ()
            return self._svid(name, known[0]) if known else None
        if name == BUNDLE_RESOURCE:
            return self._roots(name, self.trust_domain)
        if name == ALL_BUNDLES_RESOURCE:
            return self._all_roots()
        identity = _parse(name)
        if identity is None or not self._may_have(identity):
            return None
        if identity.path:
            return self._svid(name, identity)
        return self._roots(name, identity.trust_domain)

    def deals_with(self, domain: TrustDomain) -> bool:
        """Tell whether the caller may have the bundle of a trust domain."""
        if domain == self.trust_domain:
            return True
        return self.grants is not None and self.grants.federates_with(domain)

    def _may_have(self, identity: SpiffeId) -> bool:
        if self.grants is None:
            return False
        if identity.path:
            return identity in self.grants.identities
        return self.deals_with(identity.trust_domain)

    def _named(self) -> Iterator[str]:
        yield from (SVID_RESOURCE, BUNDLE_RESOURCE, ALL_BUNDLES_RESOURCE)
        if self.grants is not None:
            yield from (str(identity) for identity in self.grants.identities)
            yield from (domain.id for domain in self._domains())

    def _domains(self) -> Iterator[TrustDomain]:
        for domain in self.holdings.roots:
            if self.deals_with(domain):
                yield domain

    def _svid(self, name: str, identity: SpiffeId) -> Resource | None:
        held = self.holdings.svid(identity, self.now)
        if held is None:
            return None
        return Resource(name=name, version=held.version, value=held.pair)

    def _roots(self, name: str, domain: TrustDomain) -> Resource | None:
        held = self.holdings.roots.get(domain)
        if held is None:
            return None
        return Resource(name=name, version=held.version, value=held.roots)

    def _all_roots(self) -> Resource | None:
        if self.trust_domain not in self.holdings.roots:
            return None
        held = {domain: self.holdings.roots[domain] for domain in sorted(self._domains())}
        return Resource(
            name=ALL_BUNDLES_RESOURCE,
            version="+".join(f"{domain}={one.version}" for domain, one in held.items()),
            value=AllRoots(by_domain={domain: one.roots for domain, one in held.items()}),
        )


def _parse(name: str) -> SpiffeId | None:
    if not name.startswith(SCHEME):
        return None
    try:
        return SpiffeId.parse(name)
    except InvalidSpiffeId:
        return None
