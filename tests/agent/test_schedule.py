from __future__ import annotations

import itertools
from datetime import timedelta
from random import Random

import pytest

from agent.schedule import (
    INNER_BACKOFF,
    LONGEST_DELAY,
    OUTER_BACKOFF,
    SHORTEST_DELAY,
    Floor,
    rotation_delay,
)
from tests.pki import NOW


def seconds(
    created: float, expires: float, *, ratio: float = 0.5, jitter: float = 0.0, seed: int = 1
) -> float:
    delay = rotation_delay(
        created=NOW + timedelta(seconds=created),
        not_after=NOW + timedelta(seconds=expires),
        now=NOW,
        random=Random(seed),
        ratio=ratio,
        jitter=jitter,
    )
    return delay.total_seconds()


@pytest.mark.parametrize(
    ("created", "expires", "ratio", "expected"),
    [
        pytest.param(0, 86400, 0.5, 43200, id="half of a day"),
        pytest.param(0, 3600, 0.75, 900, id="three quarters left"),
        pytest.param(0, 3600, 0.0, 3600, id="at its end"),
        pytest.param(0, 3600, 1.0, 0, id="at once"),
        pytest.param(0, 3600, 1.7, 0, id="ratio above one counts as one"),
        pytest.param(0, 3600, -0.3, 3600, id="ratio below nought counts as nought"),
        pytest.param(-1800, 1800, 0.5, 0, id="exactly at half life"),
        pytest.param(-3000, 600, 0.5, 0, id="inside the grace part"),
        pytest.param(-7200, -3600, 0.5, 0, id="long expired"),
        pytest.param(-900, 2700, 0.5, 900, id="a quarter lived"),
    ],
)
def test_delay(created: float, expires: float, ratio: float, expected: float) -> None:
    assert seconds(created, expires, ratio=ratio) == expected


def test_jitter_spreads_both_ways_within_bounds() -> None:
    delays = [seconds(0, 1000, jitter=0.1, seed=seed) for seed in range(200)]
    assert all(400 <= delay <= 600 for delay in delays)
    assert min(delays) < 450
    assert max(delays) > 550


def test_jitter_never_passes_the_ends_of_life() -> None:
    assert all(0 <= seconds(0, 1000, ratio=0, jitter=0.5, seed=s) <= 1000 for s in range(100))
    assert all(0 <= seconds(0, 1000, ratio=1, jitter=0.5, seed=s) <= 1000 for s in range(100))


def test_outer_backoff_doubles_from_half_a_second_to_a_minute() -> None:
    steps = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    pauses = list(itertools.islice(OUTER_BACKOFF.pauses(Random(7)), len(steps)))
    for step, pause in zip(steps, pauses, strict=True):
        assert step / 2 <= pause <= step * 1.5


def test_outer_backoff_differs_between_agents() -> None:
    firsts = {next(OUTER_BACKOFF.pauses(Random(seed))) for seed in range(20)}
    assert len(firsts) == 20


def test_inner_backoff_is_istios() -> None:
    pauses = list(itertools.islice(INNER_BACKOFF.pauses(Random(7)), 4))
    for step, pause in zip([0.1, 0.2, 0.4, 0.8], pauses, strict=True):
        assert step * 0.9 <= pause <= step * 1.1


def test_floor_leaves_a_reasonable_delay_alone() -> None:
    assert Floor().apply(timedelta(hours=12)) == (timedelta(hours=12), Floor())
    assert Floor().apply(SHORTEST_DELAY) == (SHORTEST_DELAY, Floor())


def test_floor_grows_while_certificates_are_too_short() -> None:
    floor = Floor()
    waits: list[float] = []
    for _ in range(9):
        wait, floor = floor.apply(timedelta(milliseconds=10))
        waits.append(wait.total_seconds())
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert floor.least == LONGEST_DELAY


def test_floor_forgets_a_storm_after_one_good_certificate() -> None:
    _, floor = Floor().apply(timedelta())
    assert floor.least > SHORTEST_DELAY
    _, floor = floor.apply(timedelta(seconds=5))
    assert floor == Floor()
