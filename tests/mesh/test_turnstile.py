"""Heavy work in portions: what is over the budget waits, in order, and nothing else does."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mesh.turnstile import AT_ONCE, BUDGET, Turnstile


class Clock:
    """Time that only work makes pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def step(self, seconds: float) -> float:
        self.now += seconds
        return self.now


async def test_light_work_is_done_at_once() -> None:
    clock = Clock()
    turnstile = Turnstile(clock)
    with trio.testing.assert_no_checkpoints():
        for number in range(5):
            assert await turnstile.work(lambda: clock.step(BUDGET / 10)) == pytest.approx(
                (number + 1) * BUDGET / 10
            )


async def test_a_storm_is_spread_over_many_passes_in_order() -> None:
    clock, order, passes = Clock(), list[int](), list[int]()
    turnstile, turns = Turnstile(clock), 0

    async def count_passes() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def one(number: int) -> None:
        def step() -> None:
            clock.step(BUDGET)
            order.append(number)
            passes.append(turns)

        await turnstile.work(step)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_passes)
        async with trio.open_nursery() as storm:
            for number in range(20):
                storm.start_soon(one, number)
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    # trio runs what becomes ready together in any order.
    assert all(abs(number - place) < AT_ONCE for place, number in enumerate(order))
    # Between two turns of the counter there is at most the end of one pass and half of another.
    assert all(passes.count(turn) <= 2 * AT_ONCE for turn in passes)
    assert len(set(passes)) >= 20 / (2 * AT_ONCE)


async def test_work_that_fails_is_paid_for_and_its_error_passed_on() -> None:
    clock = Clock()
    turnstile = Turnstile(clock)

    def fail() -> None:
        clock.step(BUDGET)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await turnstile.work(fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turnstile.work, lambda: None)
        with trio.testing.assert_checkpoints():
            assert await turnstile.work(lambda: 3) == 3


async def test_whoever_is_cancelled_while_waiting_is_left_out() -> None:
    clock, done = Clock(), list[str]()
    turnstile = Turnstile(clock)
    turnstile._left, turnstile._refill_is_due = 0.0, True  # until the test refills it

    async def one(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await turnstile.work(lambda: done.append(name))

    scopes = {name: trio.CancelScope() for name in "abcd"}
    async with trio.open_nursery() as nursery:
        for name, scope in scopes.items():
            nursery.start_soon(one, name, scope)
        await trio.testing.wait_all_tasks_blocked()
        scopes["a"].cancel()
        scopes["c"].cancel()
        await trio.testing.wait_all_tasks_blocked()
        turnstile._refill()
    assert sorted(done) == ["b", "d"]
