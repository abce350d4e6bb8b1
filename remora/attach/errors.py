"""Why an app could not be run with a sidecar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mesh.errors import RemoraError


class AttachError(RemoraError):
    """An app could not be run, or not go on."""

    reason: ClassVar[str] = "attach_failed"


class SidecarEnded(AttachError):
    """Agent or sidecar ended before the app did."""

    reason = "sidecar_ended"

    def __init__(self, name: str, code: int, lines: Sequence[str]) -> None:
        said = "".join(f"\n  {line}" for line in lines)
        super().__init__(f"{name} ended with code {code}, and so the app was ended too:{said}")


class SidecarNotReady(AttachError):
    """The sidecar did not become ready in time, so the app was not started."""

    reason = "sidecar_not_ready"

    def __init__(self, name: str, seconds: float, lines: Sequence[str]) -> None:
        said = "".join(f"\n  {line}" for line in lines)
        super().__init__(f"{name} was not ready within {seconds:g} s; the app was not run:{said}")


class AppNotStarted(AttachError):
    """The app's program cannot be run."""

    reason = "app_not_started"
