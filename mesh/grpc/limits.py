"""How much a gRPC connection may ask for, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass

STREAM_WINDOW = 256 * 1024
"""Bytes a peer may send on one call before we have taken them; Envoy's own default."""

MAX_PENDING = 64 * 1024
"""Bytes of ours that may wait for the network before a call must wait with its next frame."""

READ_SIZE = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one connection; times in seconds.

    The defaults suit a control plane that trusts nobody. A None switches a limit off.
    """

    message_bytes: int = 4 * 1024 * 1024
    """gRPC's own default in every language."""
    header_list_bytes: int = 16 * 1024
    """grpcio's default; a token of 8 KiB fits."""
    concurrent_calls: int = 100
    """RFC 9113, 6.5.2: no fewer, so as not to hinder parallelism."""
    connections: int = 1000
    unanswered_connections: int = 1000
    """How many of them may not have been answered yet. A caller is answered only after it has said
    who it is: this bounds what nameless ones can hold."""
    unanswered_patience: float = 5.0
    """When there are as many of either, the oldest one that was never answered makes room for the
    next if it has had this long. Younger ones keep their place: a thousand clients that come at
    once are served in turn, and only the rest must come again."""
    request_timeout: float | None = None
    """For a call's first request to be complete, from its headers on."""
    unanswered_bytes: int | None = None
    """Of requests that a connection may send before it gets its first answer: flow control stops
    it there. What a caller without a name can make us hold."""
    preface_timeout: float = 10.0
    """For the client's preface and SETTINGS, so that silent connections go away."""
    idle_timeout: float | None = 900.0
    """Without any call. grpc-go's keepalive enforcement is in the same order."""
    keepalive_interval: float | None = 30.0
    """Between PINGs while the peer is silent; a dead network is noticed after one more timeout."""
    keepalive_timeout: float = 20.0
    """grpc's default for the answer to a keepalive PING."""
    send_timeout: float = 60.0
    """For the network to take what we send; HTTP/2 peers read even while an app does not."""
    flood_window: float = 10.0
    pings_per_window: int = 100
    """PINGs, SETTINGS and the like that only cost us answers (CVE-2019-9512, -9515)."""
    resets_per_window: int = 200
    """Calls opened and reset at once (rapid reset, CVE-2023-44487)."""
    call_grace: float = 10.0
    """After GOAWAY, for calls that are open."""


DEFAULT_LIMITS = Limits()
