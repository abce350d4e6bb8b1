"""What can keep the demo from telling its story."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.errors import RemoraError


class DemoError(RemoraError):
    """The demo could not be carried out; says nothing about the mesh's answers."""

    reason = "demo_failed"


class PartDied(DemoError):
    """A process of the demo ended while it was needed."""

    reason = "part_died"

    def __init__(self, name: str, code: int, lines: Sequence[str]) -> None:
        super().__init__(f"{name} ended by itself, with exit code {code}{_quoted(lines)}")


class PartNotReady(DemoError):
    """A process of the demo did not become ready in time."""

    reason = "part_not_ready"

    def __init__(self, name: str, seconds: float, lines: Sequence[str]) -> None:
        super().__init__(
            f"{name} was not ready after {seconds:g} s: is this machine very busy?{_quoted(lines)}"
        )


class CommandFailed(DemoError):
    """A command of the demo that should have ended well did not."""

    reason = "command_failed"

    def __init__(self, name: str, code: int, lines: Sequence[str]) -> None:
        super().__init__(f"{name} failed with exit code {code}{_quoted(lines)}")


class ProbeFailed(DemoError):
    """A look at a server's certificate did not get to see one."""

    reason = "probe_failed"

    def __init__(self, address: str, error: BaseException) -> None:
        super().__init__(f"{address} did not show a certificate of the mesh: {error!r}")


def _quoted(lines: Sequence[str]) -> str:
    if not lines:
        return "; it said nothing"
    return "; its last lines:\n" + "\n".join(f"  {line}" for line in lines)
