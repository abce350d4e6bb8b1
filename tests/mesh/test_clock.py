"""Wall time as an argument: naps that notice when the clock jumps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints

from mesh.clock import MAX_NAP, sleep_until, system_now, trio_now
from tests.pki import NOW, real_now


def test_system_time_is_aware_and_in_utc() -> None:
    assert system_now().tzinfo is UTC
    assert abs(system_now() - real_now()) < timedelta(seconds=5)


async def test_a_trio_clock_keeps_step_with_trio(autojump_clock: MockClock) -> None:
    await trio.sleep(17)
    now = trio_now(NOW)
    assert now() == NOW
    await trio.sleep(3600)
    assert now() == NOW + timedelta(hours=1)


@pytest.mark.parametrize("seconds", [0.001, 1, MAX_NAP, MAX_NAP + 1, 86400])
async def test_sleeping_ends_at_the_time_and_not_before(
    autojump_clock: MockClock, seconds: float
) -> None:
    now = trio_now(NOW)
    when = NOW + timedelta(seconds=seconds)
    await sleep_until(when, now)
    assert when <= now() < when + timedelta(milliseconds=1)


@pytest.mark.parametrize("ago", [timedelta(0), timedelta(days=365)])
async def test_a_time_that_has_come_is_still_a_checkpoint(ago: timedelta) -> None:
    with assert_checkpoints():
        await sleep_until(NOW - ago, lambda: NOW)
    with trio.CancelScope() as scope:
        scope.cancel()
        await sleep_until(NOW - ago, lambda: NOW)
    assert scope.cancelled_caught


class JumpingClock:
    """Wall time that is set forward while trio's clock goes on as ever."""

    def __init__(self) -> None:
        self.offset = timedelta(0)
        self._steady = trio_now(NOW)

    def __call__(self) -> datetime:
        return self._steady() + self.offset


async def test_a_clock_set_forward_is_noticed_within_a_nap(autojump_clock: MockClock) -> None:
    now = JumpingClock()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep_until, NOW + timedelta(hours=10), now)
        await trio.sleep(90)
        now.offset = timedelta(hours=10)
    assert trio.current_time() - start == pytest.approx(2 * MAX_NAP)


async def test_a_clock_set_back_makes_it_sleep_longer(autojump_clock: MockClock) -> None:
    now = JumpingClock()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep_until, NOW + timedelta(minutes=5), now)
        await trio.sleep(90)
        now.offset = -timedelta(hours=1)
    assert trio.current_time() - start == pytest.approx(3600 + 300)
