"""The engine as trio's host: when it lets go, and what becomes of its own failures."""

from __future__ import annotations

from typing import cast

import pytest
import trio
import trio.testing

from proxy.engine.loops import LOOK_EVERY, _Host, current_pump, host
from proxy.engine.pump import Pump


class BusyPump:
    """A pump that always finds something to do."""

    called = False

    def __init__(self) -> None:
        self.turns = 0

    def turn(self, _seconds: float) -> bool:
        self.turns += 1
        return True


async def test_a_pump_that_never_rests_lets_trios_deadlines_pass() -> None:
    pump = BusyPump()
    _Host(cast("Pump", pump), trio.lowlevel.current_trio_token()).before_io_wait(0.01)
    assert pump.turns > 1


async def test_a_pump_is_asked_once_when_trio_has_work_itself() -> None:
    pump = BusyPump()
    _Host(cast("Pump", pump), trio.lowlevel.current_trio_token()).before_io_wait(0)
    assert pump.turns == 1


async def test_the_pump_has_a_turn_between_tasks_that_take_their_time() -> None:
    pump = BusyPump()
    guest = _Host(cast("Pump", pump), trio.lowlevel.current_trio_token())
    guest.after_task_step(trio.lowlevel.current_task())
    quick = pump.turns
    guest._looked -= LOOK_EVERY
    guest.after_task_step(trio.lowlevel.current_task())
    assert pump.turns == quick + 1
    guest.after_task_step(trio.lowlevel.current_task())
    assert pump.turns == quick + 1


async def test_a_hosted_run_keeps_its_deadlines_and_hears_of_other_threads() -> None:
    await host()
    assert current_pump().has_guest
    with trio.fail_after(10):
        with trio.move_on_after(0.03) as nap:
            await trio.sleep_forever()
        assert nap.cancelled_caught
        assert await trio.to_thread.run_sync(lambda: 7) == 7


def test_a_failure_of_the_engine_ends_the_program_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    """trio would log what an instrument raises and drop it, and all connections would hang."""

    async def main() -> None:
        await host()
        monkeypatch.setattr(current_pump(), "turn", broken)
        await trio.sleep(0.01)
        await trio.sleep_forever()

    def broken(seconds: float) -> bool:
        raise ZeroDivisionError

    with pytest.raises(trio.TrioInternalError) as crash:
        trio.run(main)
    assert "ZeroDivisionError" in repr(crash.value.__cause__)
