"""Deadlines whose passing is a failure with a sentence of its own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import trio

from proxy.errors import ConnectionFailed


@contextmanager
def due(when: float, late: ConnectionFailed) -> Generator[None]:
    """Raise `late` if the block has not ended at `when`, in trio's clock."""
    try:
        with trio.fail_at(when):
            yield
    except trio.TooSlowError as error:
        raise late from error
