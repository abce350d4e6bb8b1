"""Is the agent ready, and if not, what is missing? Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from agent.holdings import Holdings
from mesh.spiffe import SpiffeId, TrustDomain


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A certificate that the agent is to have, and why the last attempt to get it failed.

    `identity` is None while it has not been read from the token.
    """

    identity: SpiffeId | None
    failure: str | None = None


def missing(
    holdings: Holdings, wanted: Sequence[Wanted], trust_domain: TrustDomain, now: datetime
) -> tuple[str, ...]:
    """Return one sentence for each thing that callers could ask for and would not get."""
    return tuple(_missing(holdings, wanted, trust_domain, now))


def _missing(
    holdings: Holdings, wanted: Sequence[Wanted], trust_domain: TrustDomain, now: datetime
) -> Iterator[str]:
    for one in wanted:
        why = one.failure or "no answer yet"
        if one.identity is None:
            yield f"the identity is not known yet: {why}"
        elif one.identity not in holdings.svids:
            yield f"no certificate for {one.identity}: {why}"
        elif holdings.svid(one.identity, now) is None:
            yield f"the certificate for {one.identity} has expired: {why}"
    if wanted and trust_domain not in holdings.roots:
        yield f"no roots of trust domain {trust_domain}"
