"""How often certificates may be asked for: token buckets, one for all and one for each identity.

Pure: time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from ca.errors import RateLimited
from mesh.spiffe import SpiffeId

MAX_IDENTITIES = 100_000
"""Identities whose buckets are remembered; beyond it the one that was quiet longest is forgotten,
and so has a full bucket again. About 20 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`per_second` in the long run, `burst` at once after a quiet time."""

    per_second: float
    burst: int


DEFAULT_TOTAL = Rate(per_second=5000, burst=20_000)
"""Above what one CA can sign, and a burst of every agent of a large mesh at once: a fuse."""

DEFAULT_PER_IDENTITY = Rate(per_second=20, burst=1000)
"""One service account may run as a thousand workloads that all start at once. A workload that has
gone wild asks more often than these need in the long run."""


class Bucket:
    """One token bucket."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: Rate, now: datetime) -> None:
        self._rate = rate
        self._left = float(rate.burst)
        self._at = now

    def take(self, now: datetime) -> bool:
        """Take one token, False if there is none."""
        # A clock that was set back must neither fill the bucket nor drain it.
        passed = max((now - self._at).total_seconds(), 0.0)
        self._at = now
        self._left = min(self._left + passed * self._rate.per_second, self._rate.burst)
        if self._left < 1:
            return False
        self._left -= 1
        return True


class RateLimiter:
    """Both limits together; None is no limit."""

    def __init__(self, total: Rate | None, per_identity: Rate | None, now: datetime) -> None:
        self._total = None if total is None else Bucket(total, now)
        self._per_identity = per_identity
        self._buckets: OrderedDict[SpiffeId, Bucket] = OrderedDict()

    def check(self, identity: SpiffeId, now: datetime) -> None:
        """Count one request. Raises RateLimited.

        The identity's own limit comes first: one that has gone wild must not use up the limit of
        all.
        """
        own = self._per_identity
        if own is not None and not self._bucket(identity, own, now).take(now):
            raise RateLimited(
                f"{identity} asks for certificates more often than {own.per_second:g} times a "
                "second: find out why it does"
            )
        if self._total is not None and not self._total.take(now):
            raise RateLimited("this CA is asked more often than its limit allows")

    def _bucket(self, identity: SpiffeId, rate: Rate, now: datetime) -> Bucket:
        bucket = self._buckets.get(identity)
        if bucket is None:
            bucket = self._buckets[identity] = Bucket(rate, now)
            if len(self._buckets) > MAX_IDENTITIES:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(identity)
        return bucket
