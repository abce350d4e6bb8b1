"""Whole changes: a lock for writers and readers of a directory, and a journal against crashes.

A writer first writes down what it is about to do, then does it. Whoever comes after one that died
halfway finishes its work, so that several files change together or not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mesh.errors import ConfigError
from mesh.files import read_file, write_private
from mesh.resources.yaml_text import MAX_TEXT

LOCK_FILE = ".lock"
JOURNAL = ".pending"

RESOURCE_MODE = 0o644
"""Resources are no secrets, and the control plane may run as another user than who applies."""

PATIENCE = 10.0
"""Seconds to wait for another writer; applying ten thousand resources takes about five."""

_STEP = 0.01


@contextmanager
def writing(root: Path) -> Generator[None]:
    """Be the only one who writes, with nobody reading. Raises ConfigError."""
    descriptor = _open(root)
    if descriptor is None:
        raise ConfigError(f"cannot write to {root}: it is read-only for this user")
    try:
        if not _lock(descriptor, fcntl.LOCK_EX):
            raise ConfigError(
                f"another process has been writing to {root} for {PATIENCE:.0f} s: try again"
            )
        _finish_interrupted(root)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def reading(root: Path) -> Generator[None]:
    """Read while nobody writes; a read-only directory, or one with a stuck writer, all the same."""
    if (root / JOURNAL).exists():
        with suppress(ConfigError), writing(root):
            pass
    descriptor = _open(root)
    try:
        if descriptor is not None:
            _lock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def write_together(root: Path, files: Mapping[str, str | None]) -> None:
    """Write or remove several files as one; call it under `writing`. Raises ConfigError."""
    if not files:
        return
    write_private(root / JOURNAL, json.dumps(dict(files)).encode())
    _perform(root, files)


def _finish_interrupted(root: Path) -> None:
    journal = root / JOURNAL
    if journal.exists():
        _perform(root, json.loads(read_file(journal, "journal", 8 * MAX_TEXT)))


def _perform(root: Path, files: Mapping[str, str | None]) -> None:
    for path, text in files.items():
        target = root / path
        if text is None:
            target.unlink(missing_ok=True)
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {target.parent}: {error.strerror}") from error
        write_private(target.resolve(), text.encode(), RESOURCE_MODE)
    (root / JOURNAL).unlink(missing_ok=True)


def _open(root: Path) -> int | None:
    try:
        return os.open(root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, RESOURCE_MODE)
    except OSError:
        return None


def _lock(descriptor: int, how: int) -> bool:
    """Lock within the time we have patience for."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_STEP)
        else:
            return True
