"""What a process says on standard error, line by line, for whoever waits for a line of it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import trio

REMEMBERED = 2000
"""Lines kept in memory. A row needs the last few; with --keep a mesh may talk for days."""

MAX_LINE = 64 * 1024
"""Bytes after which a line is taken for finished: nobody may fill our memory with one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line: its text, and its facts if it was a JSON object."""

    text: str
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def event(self) -> str:
        """The sentence that a structured line begins with."""
        return str(self.facts.get("event", ""))


def parse_line(text: str) -> Line:
    """Read a log line; one that is no JSON object has no facts."""
    try:
        facts = json.loads(text)
    except ValueError:
        return Line(text=text)
    return Line(text=text, facts=cast("dict[str, Any]", facts) if isinstance(facts, dict) else {})


class Logbook:
    """Takes a process's bytes, and wakes those who wait for a line when it comes."""

    def __init__(self, listener: Callable[[str], None] | None = None) -> None:
        """Give every line to `listener` too."""
        self._listener = listener
        self._lines: deque[Line] = deque(maxlen=REMEMBERED)
        self._rest = b""
        self._grown = trio.Event()

    def feed(self, data: bytes) -> None:
        """Take what the process wrote; lines may come in pieces."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            whole.append(self._rest)
            self._rest = b""
        for raw in whole:
            self._add(raw.decode("utf-8", "replace"))

    def close(self) -> None:
        """Take note that no more will come: what is left is a line too."""
        if self._rest:
            self.feed(b"\n")

    def _add(self, text: str) -> None:
        self._lines.append(parse_line(text))
        if self._listener is not None:
            self._listener(text)
        self._grown.set()
        self._grown = trio.Event()

    def all(self, wanted: Callable[[Line], bool]) -> list[Line]:
        """Return the lines so far that are `wanted`, oldest first."""
        return [line for line in self._lines if wanted(line)]

    async def find(self, wanted: Callable[[Line], bool]) -> Line:
        """Return the first line that is `wanted`, waiting for it if there is none yet.

        Put a deadline around it.
        """
        await trio.lowlevel.checkpoint()
        while not (found := self.all(wanted)):
            await self._grown.wait()
        return found[0]

    def tail(self, count: int) -> list[str]:
        """Return the last `count` lines."""
        return [line.text for line in list(self._lines)[-count:]]
