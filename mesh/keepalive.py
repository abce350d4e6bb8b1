"""TCP keepalive: noticing that the machine at the other end is gone."""

from __future__ import annotations

import socket

import trio

IDLE = 30
"""Seconds of silence before the first probe."""

INTERVAL = 10
COUNT = 3
"""A machine that answers none of so many probes is gone: after a minute, with the above."""


def keep_alive(stream: trio.SocketStream) -> None:
    """Let the kernel probe a TCP connection's other end, and break the connection if it is gone."""
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, COUNT),
    ):
        stream.socket.setsockopt(level, option, value)
