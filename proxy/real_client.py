"""Taking the PROXY header off a connection that a load balancer sent on."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import trio

from mesh.address import Address
from proxy.capture.options import Network
from proxy.deadline import due
from proxy.errors import PeerClosed, ProxyHeaderMissing
from proxy.proxy_protocol import MAX_HEADER, Parsed, ProxyHeader, parse_header

HEADER_TIMEOUT = 5.0
"""Seconds. A balancer sends the header with the first segment."""


def is_balancer(source: Address, balancers: tuple[Network, ...]) -> bool:
    """Tell whether a connection from `source` begins with a header that is to be believed."""
    address = ip_address(source.host)
    return any(address in network for network in balancers if network.version == address.version)


async def take_header(stream: trio.SocketStream, balancer: Address) -> Address:
    """Take the header off the stream; return the client, or the balancer if it checks our health.

    Not one byte beyond the header is taken. Raises ProxyHeaderMissing, PeerClosed.
    """
    late = ProxyHeaderMissing(str(balancer))
    with due(trio.current_time() + HEADER_TIMEOUT, late):
        try:
            header = await _peek_header(stream, balancer)
            await _take(stream, header.length)
        except OSError as error:
            raise PeerClosed(str(balancer)) from error
        finally:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return header.source or balancer


async def _peek_header(stream: trio.SocketStream, balancer: Address) -> ProxyHeader:
    seen = 0
    while True:
        data = await stream.socket.recv(MAX_HEADER, socket.MSG_PEEK)
        if len(data) == seen:
            raise PeerClosed(str(balancer))
        match parse_header(data):
            case ProxyHeader() as header:
                return header
            case Parsed.NOT_A_HEADER:
                raise ProxyHeaderMissing(str(balancer))
            case Parsed.NEED_MORE:
                seen = len(data)
        # A peek leaves the socket readable: wake only when there is more (see sniffer.py).
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
        await trio.lowlevel.wait_readable(stream.socket)


async def _take(stream: trio.SocketStream, count: int) -> None:
    while count:
        count -= len(await stream.socket.recv(count))
