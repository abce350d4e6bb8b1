"""Finding what a test left behind: processes by a mark in their environment, files by folder."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import trio

PATIENCE = 5.0
"""Seconds within which what was killed must be gone."""


class Mark:
    """A mark that every process inherits, and a folder for temporary files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._value = secrets.token_hex(8)

    @property
    def environment(self) -> dict[str, str]:
        """What to add to the environment of the process whose traces matter."""
        return {"REMORA_TEST_MARK": self._value, "TMPDIR": str(self._folder)}

    def processes(self) -> list[int]:
        """The processes with the mark that are there now; not this one, and no zombies."""
        return [
            int(path.name)
            for path in Path("/proc").iterdir()
            if path.name.isdigit() and int(path.name) != os.getpid() and self._is_on(path)
        ]

    def _is_on(self, process: Path) -> bool:
        try:
            return self._value.encode() in (process / "environ").read_bytes()
        except OSError:  # it ended meanwhile
            return False

    def files(self) -> list[Path]:
        """The temporary files that are there now."""
        return list(self._folder.iterdir())

    async def gone(self) -> None:
        """Wait until nothing is left; fail if something stays."""
        with trio.move_on_after(PATIENCE):
            while self.processes() or self.files():  # noqa: ASYNC110 - /proc has no events
                await trio.sleep(0.02)
        assert self.processes() == []
        assert self.files() == []
