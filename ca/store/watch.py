"""Hearing from the kernel (inotify) that files have changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import inotify_simple  # pyright: ignore[reportMissingTypeStubs]
import trio

from ca.store.directory import is_resource_file

_FLAGS = cast("Any", inotify_simple.flags)

COMPLETE: int = (
    _FLAGS.CLOSE_WRITE | _FLAGS.MOVED_TO | _FLAGS.MOVED_FROM | _FLAGS.DELETE | _FLAGS.ATTRIB
)
"""A file was written and closed, moved, removed, or opened to us. Not each write: a file that is
still being written is nobody's policy."""

SELF: int = _FLAGS.DELETE_SELF | _FLAGS.MOVE_SELF | _FLAGS.UNMOUNT | _FLAGS.IGNORED
WATCHED: int = COMPLETE | _FLAGS.CREATE | _FLAGS.DELETE_SELF | _FLAGS.MOVE_SELF | _FLAGS.ONLYDIR


@dataclass(frozen=True, slots=True, kw_only=True)
class Dirty:
    """What may have changed: some files by their path, or anything."""

    paths: frozenset[str] = frozenset()
    everything: bool = False

    def __bool__(self) -> bool:
        return self.everything or bool(self.paths)

    def __or__(self, other: Dirty) -> Dirty:
        return Dirty(paths=self.paths | other.paths, everything=self.everything or other.everything)


class DirectoryWatch:
    """Watches a directory and those below it. Use it as a context manager."""

    def __init__(self, root: Path) -> None:
        """Begin to watch nothing. Raises OSError if the kernel gives no more watches."""
        self._root = root
        self._inotify = cast("Any", inotify_simple.INotify(nonblocking=True))
        self._places: dict[int, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inotify.close()

    def watch(self, directories: Iterable[str]) -> None:
        """Watch these directories from now on. Raises OSError when there are too many.

        One that has gone again meanwhile is passed over: its parent tells.
        """
        for place in directories:
            try:
                number = self._inotify.add_watch(self._root / place, WATCHED)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue
            self._places[number] = place

    async def changed(self) -> Dirty:
        """Wait until something has changed."""
        while True:
            await trio.lowlevel.wait_readable(self._inotify.fileno())
            dirty = Dirty()
            for event in self._inotify.read(timeout=0):
                dirty |= self._meaning(event.wd, event.mask, event.name)
            if dirty:
                return dirty

    def _meaning(self, number: int, mask: int, name: str) -> Dirty:
        place = self._places.get(number)
        if mask & _FLAGS.IGNORED:
            self._places.pop(number, None)
        if mask & (_FLAGS.Q_OVERFLOW | SELF | _FLAGS.ISDIR) or name.startswith(".."):
            # Configuration volumes swap everything at once, by a symlink named `..data`.
            return Dirty(everything=True)
        if place is None or not is_resource_file(name):
            return Dirty()
        path = f"{place}/{name}" if place else name
        if mask & COMPLETE or _is_complete(self._root / path):
            return Dirty(paths=frozenset({path}))
        return Dirty()


def _is_complete(path: Path) -> bool:
    """Tell whether a name that has just been made is for something that was there before."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISLNK(status.st_mode) or status.st_nlink > 1
