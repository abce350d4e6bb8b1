"""The name and the message types of a gRPC method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Req, Res]):
    """A method as both sides must know it; `path` is `/package.Service/Method`."""

    path: str
    request: type[Req]
    response: type[Res]
