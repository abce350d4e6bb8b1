"""What the kernel must know, and tells, about the proxy's TCP sockets.

A reset is made on purpose here: SO_LINGER 0 and close, never shutdown. What curl prints depends
on it: a connection that is read, shut down and closed looks like an empty reply (exit 52), one
that is reset looks like what it is, a refusal (exit 56).
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios

import trio

KEEPALIVE_IDLE = 180
"""Seconds of silence before the first probe, as in Istio's ztunnel, on both legs: finds peers
that vanished without a FIN long before the idle timeout would."""

KEEPALIVE_INTERVAL = 180
"""Seconds between probes (ztunnel's value)."""

KEEPALIVE_PROBES = 9
"""Unanswered probes before the kernel gives up (Linux's default, ztunnel's value)."""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""struct linger {on, 0 seconds}: close() drops what is unsent and sends RST."""

IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
"""linux/in.h, linux/in6.h: take connections that TPROXY hands over."""

STALL_TIMEOUT = 5.0
"""Seconds without one byte acknowledged after which waiting for delivery is given up."""

FIRST_NAP = 0.001
LONGEST_NAP = 0.05
"""Seconds between looks at the send queue: the kernel has no event for "all acknowledged"."""

TCP_CLOSE = 7
"""The state in linux/tcp_states.h: on a socket that nobody closed it means a reset."""


def tune(stream: trio.SocketStream) -> None:
    """Set what every leg of a connection has: no Nagle delay, and keepalive probes."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def set_transparent(sock: socket.socket | trio.socket.SocketType) -> None:
    """Let a socket have addresses that are not this machine's. Raises PermissionError."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def peer_address(stream: trio.SocketStream) -> str:
    """Name the other end for logs and messages, such as `10.0.0.5:4242` or `[::1]:4242`."""
    try:
        host, port, *_ = stream.socket.getpeername()
    except OSError:  # reset before we looked
        return "(gone)"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reset(stream: trio.SocketStream) -> None:
    """Close with RST, at once, dropping what is unsent; harmless on a closed stream."""
    if stream.socket.fileno() >= 0:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        stream.socket.close()


def was_reset(stream: trio.SocketStream) -> bool:
    """Tell whether the peer reset a connection of which we closed neither direction.

    The error of a reset goes to whichever call meets it first; a receive that comes second sees
    a clean end of stream. This tells the two apart.
    """
    return _tcp_state(stream) == TCP_CLOSE


async def wait_delivered(stream: trio.SocketStream) -> bool:
    """Wait until the peer's kernel has acknowledged everything sent; False if it never will.

    Without this a reset would destroy bytes that were sent but are still in the send queue.
    """
    if stream.socket.fileno() < 0:
        return False
    nap, left, stalls_at = FIRST_NAP, _unacknowledged(stream), trio.current_time() + STALL_TIMEOUT
    while left and not was_reset(stream):
        if trio.current_time() >= stalls_at:
            return False
        await trio.sleep(nap)
        nap = min(nap * 2, LONGEST_NAP)
        before, left = left, _unacknowledged(stream)
        if left < before:
            stalls_at = trio.current_time() + STALL_TIMEOUT
    return not left


def _unacknowledged(stream: trio.SocketStream) -> int:
    """Return SIOCOUTQ (tcp(7)): bytes in the send queue, sent and unacknowledged ones included."""
    answer = fcntl.ioctl(stream.socket.fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def _tcp_state(stream: trio.SocketStream) -> int:
    """Return tcpi_state, the first byte of struct tcp_info."""
    return stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
