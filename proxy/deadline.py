"""Deadlines whose passing is a failure with a sentence of its own."""

from __future__ import annotations

from types import TracebackType

import trio

from proxy.errors import ConnectionFailed


class due:  # noqa: N801 - reads as a verb: with due(...)
    """Raise `late` if the block has not ended at `when`, in trio's clock."""

    def __init__(self, when: float, late: ConnectionFailed) -> None:
        self._scope = trio.CancelScope(deadline=when)
        self._late = late

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            raise self._late
