"""Noticing that files have changed, by looking.

Looking survives everything that happens to mounted files: symbolic links that are swapped, as
Kubernetes does it, directories that are replaced, files that are gone for a while. The kernel's
notifications have to be set up anew after each of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

INTERVAL = 1.0
"""Seconds between two looks: a stat of a few files costs microseconds."""

Signature = tuple[tuple[int, ...] | None, ...]


def signature(paths: Sequence[Path]) -> Signature:
    """Return what changes when one of the files does; links are followed to the end."""
    return tuple(_one(path) for path in paths)


def _one(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


async def wait_change(paths: Sequence[Path], since: Signature) -> Signature:
    """Wait until the files differ from `since`, and then until they rest; return how they are.

    Whoever writes several files is not caught halfway, if no more than a look lies between them.
    """
    while (current := signature(paths)) == since:  # noqa: ASYNC110 - files have no events
        await trio.sleep(INTERVAL)
    while True:
        await trio.sleep(INTERVAL)
        settled = signature(paths)
        if settled == current:
            return settled
        current = settled
