"""How long to wait before the next attempt at something that a restart of the other side cures."""

from __future__ import annotations

from collections.abc import Iterator

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between attempts, doubling: an agent that restarts is back within a second."""


def pauses() -> Iterator[float]:
    """Yield the seconds to wait before each next attempt, for ever."""
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(pause * 2, LONGEST_PAUSE)
