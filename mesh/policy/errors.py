"""What a policy module refuses to work with."""

from __future__ import annotations

from mesh.errors import RemoraError


class PolicyError(RemoraError):
    """Base of the errors of policy decisions. A denial is an answer, not an error."""

    reason = "policy_error"


class PathRefused(PolicyError):
    """A request path cannot be normalised; `status` is the HTTP status that answers it."""

    reason = "path_refused"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
