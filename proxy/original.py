"""Where a captured connection was going before the kernel's rules sent it to us."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable

import trio

from mesh.address import Address

SO_ORIGINAL_DST = 80
"""linux/netfilter_ipv4.h; the same number at both levels."""

SOCKADDR_IN, SOCKADDR_IN6 = 16, 28
"""Sizes of the kernel's structures."""

OriginalDestination = Callable[[trio.SocketStream], Address]
"""Tells where the client of a connection wanted to go. Tests give one of their own."""


def original_destination(stream: trio.SocketStream) -> Address:
    """Ask the kernel; a connection that was not redirected was going where it arrived."""
    return destination_of(stream.socket)


def destination_of(connection: socket.socket | trio.socket.SocketType) -> Address:
    """Do the same for a bare socket. Raises OSError only if the socket is gone.

    With TPROXY the socket's own address is the destination, and connection tracking has either
    the same to say or nothing.
    """
    return _from_ipv4(connection) or _from_ipv6(connection) or local_address(connection)


def local_address(connection: socket.socket | trio.socket.SocketType) -> Address:
    """Return the address that a connection arrived at. Raises OSError if it is gone."""
    host, port, *_ = connection.getsockname()
    return Address(canonical(host), port)


def canonical(host: str) -> str:
    """Write an IP address the one way; an IPv4 address in IPv6's clothes becomes itself."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _from_ipv4(connection: socket.socket | trio.socket.SocketType) -> Address | None:
    try:
        raw = connection.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, SOCKADDR_IN)
    except OSError:
        return None
    port, packed = struct.unpack_from("!2xH4s", raw)
    return Address(socket.inet_ntop(socket.AF_INET, packed), port)


def _from_ipv6(connection: socket.socket | trio.socket.SocketType) -> Address | None:
    try:
        raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, SOCKADDR_IN6)
    except OSError:
        return None
    port, packed = struct.unpack_from("!2xH4x16s", raw)
    return Address(canonical(socket.inet_ntop(socket.AF_INET6, packed)), port)
