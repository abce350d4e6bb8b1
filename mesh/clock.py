"""Wall time as an argument.

Nothing in Remora asks the system for the time except `system_now`, which a composition root
passes down as `now`. `trio_now` ties wall time to trio's clock instead, so that under trio's
MockClock a day of rotations runs in a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import trio

Now = Callable[[], datetime]
"""Returns the current time, timezone-aware, in UTC."""

MAX_NAP = 60.0
"""Seconds. `trio.sleep` counts monotonic time, which stands still while a machine is suspended;
waking this often bounds how late a jump of the wall clock is noticed."""


def system_now() -> datetime:
    """Return the system's wall time in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the one place that may


def trio_now(epoch: datetime) -> Now:
    """Return a clock that starts at `epoch` and advances with trio's clock.

    Call it inside `trio.run`.
    """
    start = trio.current_time()

    def now() -> datetime:
        return epoch + timedelta(seconds=trio.current_time() - start)

    return now


async def sleep_until(when: datetime, now: Now) -> None:
    """Sleep until the wall clock reads `when` or later, noticing suspends and clock jumps."""
    await trio.lowlevel.checkpoint()
    while (left := (when - now()).total_seconds()) > 0:  # noqa: ASYNC110 - no event tells the time
        await trio.sleep(min(left, MAX_NAP))
