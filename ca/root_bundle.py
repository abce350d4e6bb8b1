"""Which changes of a set of roots can do no harm, and when a root must be renewed. Pure."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from cryptography import x509

from ca.ledger import anchor_id

GRACE_PERCENT = 20
"""Istio: CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE. A self-signed root is renewed when
this part of its life is left: two years of ten."""


def safe_change(current: Collection[x509.Certificate], new: Collection[x509.Certificate]) -> bool:
    """Tell whether no peer can be cut off: one set must contain the other, and neither be empty.

    Istio's rule for roots that are replaced under a running control plane. Order does not matter.
    A root that got a new life counts as the same: what verifies is its name and its key.
    """
    before, after = (frozenset(anchor_id(root) for root in roots) for roots in (current, new))
    return bool(before and after) and (before <= after or after <= before)


def renewal_time(root: x509.Certificate, grace_percent: int = GRACE_PERCENT) -> datetime:
    """Return when a self-signed root is due to be renewed."""
    begins, ends = root.not_valid_before_utc, root.not_valid_after_utc
    return ends - (ends - begins) * grace_percent / 100
