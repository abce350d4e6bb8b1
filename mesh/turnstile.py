"""Doing heavy work in small portions, so that a storm of it does not hold up everything else.

A TLS handshake keeps the processor for most of a millisecond. Fifty that become possible at once
would be done one after the other in a single pass of trio's scheduler, and nothing else in between:
not the traffic of established connections, not a cancellation. The turnstile lets through so much
work in each pass; what exceeds it waits, in order, for the passes that follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")

BUDGET = 0.001
"""Seconds of work in one pass: a handshake or two. Less makes a storm slower, more makes those
who are held up by it wait longer."""

AT_ONCE = 2
"""Who waits is let through in pairs: that is about what the budget is for."""


class Turnstile:
    """Shares out the time of one trio run among pieces of work that each take noticeable time."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._left = BUDGET
        self._waiting = trio.lowlevel.ParkingLot()
        self._refill_is_due = False
        self._admitted = 0
        """Those who need not wait any more, and whose turn comes in this pass."""

    async def work(self, step: Callable[[], T]) -> T:
        """Return what `step` returns, as soon as there is time for it.

        A checkpoint only if it has to wait.
        """
        if self._left <= 0 or self._waiting or self._admitted:
            self._expect_refill()
            await self._waiting.park()
            self._admitted -= 1
        began = self._clock()
        try:
            return step()
        finally:
            self._left -= self._clock() - began
            if self._left <= 0:
                self._expect_refill()

    def _expect_refill(self) -> None:
        if not self._refill_is_due:
            self._refill_is_due = True
            trio.lowlevel.current_trio_token().run_sync_soon(self._refill)

    def _refill(self) -> None:
        """Begin a new pass: trio calls this in the next one."""
        self._refill_is_due = False
        self._left = BUDGET
        self._admitted += len(self._waiting.unpark(count=AT_ONCE))
        if self._waiting:
            self._expect_refill()


_shared: trio.lowlevel.RunVar[Turnstile] = trio.lowlevel.RunVar("turnstile")


def shared_turnstile() -> Turnstile:
    """Return the turnstile that all heavy work of this trio run goes through."""
    try:
        return _shared.get()
    except LookupError:
        turnstile = Turnstile()
        _shared.set(turnstile)
        return turnstile
