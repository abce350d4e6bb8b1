"""gRPC status codes, and the error that carries one."""

from __future__ import annotations

import enum
from typing import ClassVar

from mesh.errors import RemoraError


class Status(enum.IntEnum):
    """The status of a call (gRPC: statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class GrpcError(RemoraError):
    """A call ended with a status other than OK."""

    reason: ClassVar[str] = "grpc_error"

    def __init__(self, code: Status, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


_BY_HTTP_STATUS = {
    400: Status.INTERNAL,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.UNIMPLEMENTED,
    429: Status.UNAVAILABLE,
    502: Status.UNAVAILABLE,
    503: Status.UNAVAILABLE,
    504: Status.UNAVAILABLE,
}

_CANCEL = 0x8
_REFUSED_STREAM = 0x7
_ENHANCE_YOUR_CALM = 0xB
_INADEQUATE_SECURITY = 0xC

_BY_RESET = {
    _CANCEL: Status.CANCELLED,
    _REFUSED_STREAM: Status.UNAVAILABLE,
    _ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    _INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
}


def from_http_status(code: int) -> Status:
    """Map an HTTP answer that is not gRPC's (gRPC: http-grpc-status-mapping.md)."""
    return _BY_HTTP_STATUS.get(code, Status.UNKNOWN)


def from_reset(code: int) -> Status:
    """Map the error code of a RST_STREAM frame (gRPC: PROTOCOL-HTTP2.md, Errors)."""
    return _BY_RESET.get(code, Status.INTERNAL)
