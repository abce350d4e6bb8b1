"""When to ask for the next certificate: at half life, and patiently after failures."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

GRACE_RATIO = 0.5
"""Istio: SECRET_GRACE_PERIOD_RATIO, the part of a certificate's life that is left at renewal."""

GRACE_JITTER = 0.01
"""Istio: SECRET_GRACE_PERIOD_RATIO_JITTER. Agents started together drift apart."""

SHORTEST_DELAY = timedelta(seconds=1)
"""A CA that hands out certificates of a second's life is not asked more often than this."""

LONGEST_DELAY = timedelta(seconds=60)
"""Where the growing floor ends: a certificate too short to use is a fault that lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How pauses between attempts grow: from `first` to `longest` seconds, doubling.

    `jitter` spreads each pause by that part of itself, up or down.
    """

    first: float
    longest: float
    jitter: float

    def pauses(self, random: Random) -> Generator[float]:
        """Yield pauses in seconds without end."""
        step = self.first
        while True:
            yield step * (1 + random.uniform(-self.jitter, self.jitter))
            step = min(step * 2, self.longest)


OUTER_BACKOFF = Backoff(first=0.5, longest=60.0, jitter=0.5)
"""Istio: 500 ms to 60 s without end. The wide jitter keeps ten thousand agents from coming back
to a restarted CA in step."""

INNER_BACKOFF = Backoff(first=0.1, longest=1.0, jitter=0.1)
"""Istio: 100 ms doubling with 10 % jitter, within one request for a certificate."""


def rotation_delay(
    *,
    created: datetime,
    not_after: datetime,
    now: datetime,
    random: Random,
    ratio: float = GRACE_RATIO,
    jitter: float = GRACE_JITTER,
) -> timedelta:
    """Return how long to wait before renewing, never negative (Istio: rotateTime).

    Life runs from `created`, the local time of the request, to `not_after`; what is left of it at
    renewal is `ratio`, give or take `jitter`, of the whole, kept within 0 and 1.
    """
    part = min(max(ratio + random.uniform(-jitter, jitter), 0.0), 1.0)
    grace = (not_after - created) * part
    return max(not_after - grace - now, timedelta())


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time between a certificate and the next request, against short-lived storms.

    It grows for as long as every certificate is due again before SHORTEST_DELAY.
    """

    least: timedelta = SHORTEST_DELAY

    def apply(self, delay: timedelta) -> tuple[timedelta, Floor]:
        """Return the delay to keep and the floor for the next one."""
        if delay >= SHORTEST_DELAY:
            return delay, Floor()
        return self.least, Floor(min(self.least * 2, LONGEST_DELAY))
