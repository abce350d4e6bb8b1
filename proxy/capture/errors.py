"""Why capture could not be installed, removed or tested."""

from __future__ import annotations

from typing import ClassVar

from mesh.errors import RemoraError


class CaptureError(RemoraError):
    """Something about the kernel's rules went wrong."""

    reason: ClassVar[str] = "capture_failed"


class CaptureNotPermitted(CaptureError):
    """This process may not change the network."""

    reason = "capture_not_permitted"


class CaptureToolMissing(CaptureError):
    """Neither nft nor iptables is there."""

    reason = "capture_tool_missing"
