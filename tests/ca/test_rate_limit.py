from __future__ import annotations

from datetime import timedelta

import pytest

import ca.rate_limit
from ca.config import parse_rate
from ca.errors import RateLimited
from ca.rate_limit import DEFAULT_TOTAL, Rate, RateLimiter
from mesh.errors import ConfigError
from mesh.spiffe import SpiffeId
from tests.ca.workshop import WEB
from tests.pki import NOW

OTHER = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/other")
SECOND = timedelta(seconds=1)


def passed(limiter: RateLimiter, identity: SpiffeId, count: int, after: timedelta) -> int:
    """How many of `count` requests get through."""
    through = 0
    for _ in range(count):
        try:
            limiter.check(identity, NOW + after)
        except RateLimited:
            continue
        through += 1
    return through


def test_a_burst_then_the_rate() -> None:
    limiter = RateLimiter(None, Rate(per_second=2, burst=5), NOW)
    assert passed(limiter, WEB, 10, 0 * SECOND) == 5
    assert passed(limiter, WEB, 10, 1 * SECOND) == 2
    assert passed(limiter, WEB, 10, 1.5 * SECOND) == 1
    assert passed(limiter, WEB, 10, 1000 * SECOND) == 5


def test_one_that_has_gone_wild_does_not_cost_the_others() -> None:
    limiter = RateLimiter(Rate(per_second=1, burst=10), Rate(per_second=1, burst=5), NOW)
    assert passed(limiter, WEB, 1000, 0 * SECOND) == 5
    assert passed(limiter, OTHER, 1000, 0 * SECOND) == 5
    assert passed(limiter, WEB, 1000, 1 * SECOND) == 1


def test_the_limit_of_all() -> None:
    limiter = RateLimiter(Rate(per_second=1, burst=3), None, NOW)
    assert passed(limiter, WEB, 2, 0 * SECOND) + passed(limiter, OTHER, 5, 0 * SECOND) == 3


def test_no_limit() -> None:
    assert passed(RateLimiter(None, None, NOW), WEB, 10_000, 0 * SECOND) == 10_000


def test_a_clock_that_was_set_back_neither_fills_nor_drains() -> None:
    limiter = RateLimiter(None, Rate(per_second=1, burst=2), NOW)
    assert passed(limiter, WEB, 1, 0 * SECOND) == 1
    assert passed(limiter, WEB, 5, -1000 * SECOND) == 1
    assert passed(limiter, WEB, 5, -999 * SECOND) == 1


def test_identities_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca.rate_limit, "MAX_IDENTITIES", 2)
    limiter = RateLimiter(None, Rate(per_second=1, burst=1), NOW)
    names = [SpiffeId.parse(f"spiffe://cluster.local/{number}") for number in range(3)]
    assert [passed(limiter, name, 2, 0 * SECOND) for name in names] == [1, 1, 1]
    assert passed(limiter, names[2], 1, 0 * SECOND) == 0
    assert passed(limiter, names[0], 1, 0 * SECOND) == 1, "the one that was quiet longest"


def test_rates_an_operator_may_set() -> None:
    assert parse_rate("--rate-limit", 0, DEFAULT_TOTAL) is None
    assert parse_rate("--rate-limit", 10, DEFAULT_TOTAL) == Rate(per_second=10, burst=40)
    assert parse_rate("--rate-limit", 0.1, DEFAULT_TOTAL) == Rate(per_second=0.1, burst=1)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--rate-limit"):
            parse_rate("--rate-limit", wrong, DEFAULT_TOTAL)
