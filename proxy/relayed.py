"""What a relay is given and what it gives back: the vocabulary that both relays share."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from mesh.tls_socket import TlsSocket
from mesh.tls_stream import TlsStream
from proxy.errors import ConnectionFailed

IDLE_TIMEOUT = 3600.0
"""Seconds without a byte either way (Envoy's TCP proxy default): frees connections whose ends
are alive but have forgotten each other."""

DRAIN_TIMEOUT = 5.0
"""Seconds for delivering what a side sent before it broke, to a reader who does not hurry."""

Leg = trio.SocketStream | TlsStream | TlsSocket
"""Towards the peer: bare, or with TLS that the plain twin or the engine goes on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a connection may live."""

    idle: float = IDLE_TIMEOUT
    """Seconds without a byte either way."""
    age: float | None = None
    """Seconds from the relay's beginning, whatever moves; None for no limit."""


@dataclass(slots=True)
class Traffic:
    """Bytes so far, kept up to date while the relay runs and right when it is cancelled."""

    sent: int = 0
    """Bytes of the app that went to the peer."""
    received: int = 0
    """Bytes of the peer that went to the app."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed:
    """What a finished connection carried, and what cut it if it was cut."""

    sent: int
    """Bytes of the app that went to the peer."""
    received: int
    """Bytes of the peer that went to the app."""
    failure: ConnectionFailed | None = None


def socket_beneath(leg: Leg) -> trio.SocketStream:
    """Return the socket that a leg ends in. Raises TypeError if it is not one."""
    bottom = leg if isinstance(leg, trio.SocketStream) else leg.transport
    if not isinstance(bottom, trio.SocketStream):
        raise TypeError("the relay needs a socket at the bottom: only a socket can be reset")
    return bottom
