"""Whether a connection comes to anything: what the client sends against what the server takes."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.policy.outbound import Security
from mesh.resources.security import MtlsMode


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether the server's app can be reached, whether over mutual TLS, and why in a sentence."""

    success: bool
    mtls: bool
    why: str


def reach(security: Security, mode: MtlsMode | None) -> Reach:
    """Combine a client's choice with the server's mode; None is a server without proxy.

    The app itself is taken to speak plaintext.
    """
    if mode is None:
        return _without_proxy(security)
    match security:
        case Security.PLAINTEXT if mode is MtlsMode.STRICT:
            return _failure("the server takes only mutual TLS")
        case Security.PLAINTEXT:
            return Reach(success=True, mtls=False, why=f"the server takes plaintext: {mode}")
        case Security.ISTIO_MUTUAL if mode is not MtlsMode.DISABLE:
            return Reach(success=True, mtls=True, why=f"mutual TLS: {mode}")
        case Security.ISTIO_MUTUAL:
            return _failure("the server does not look for TLS, so the app gets what it cannot read")
        case _:
            return _failure("the client's TLS is not the mesh's, and the app speaks none")


def _without_proxy(security: Security) -> Reach:
    if security is Security.PLAINTEXT:
        return Reach(success=True, mtls=False, why="plaintext to a server without proxy")
    return _failure("TLS to a server without proxy")


def _failure(why: str) -> Reach:
    return Reach(success=False, mtls=False, why=why)
