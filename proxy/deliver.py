"""Opening the connection to the app for an inbound one, from an address that the rules know.

The rules of capture tell the proxy's connections to the app by their source: 127.0.0.6 or ::6, or,
with TPROXY, the client's own address together with a mark. Any other source, and the connection
would be captured again.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

import trio

from mesh.address import Address
from mesh.spiffe import SpiffeId
from proxy.capture.options import INBOUND_SOURCES, TPROXY_MARK
from proxy.errors import ConnectFailed
from proxy.proxy_protocol import encode_header
from proxy.socket_options import set_transparent, tune

IP_BIND_ADDRESS_NO_PORT = 24
"""linux/in.h: choose the source port when connecting, so that it need be free only there."""

APP_HINT = (
    "is the app running, and does it listen on the address of its machine, not only on localhost?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Between whom a captured connection is: a socket's own addresses do not tell."""

    source: Address
    destination: Address
    delivery: Delivery

    async def dial(self, identity: SpiffeId | None) -> trio.SocketStream:
        """Open the connection to the app for the peer, if it proved to be somebody.

        Put a deadline round it. Raises ConnectFailed.
        """
        return await self.delivery.dial(self, identity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How the app is dialed: in whose name, and with which words first."""

    transparent: bool = False
    proxy_protocol_ports: frozenset[int] = frozenset()

    async def dial(self, arrival: Arrival, identity: SpiffeId | None) -> trio.SocketStream:
        """Open the connection; see Arrival.dial."""
        try:
            dialer = self._socket(arrival)
        except OSError as error:
            raise ConnectFailed(_cannot_bind(arrival, error)) from error
        connected = False
        try:
            await dialer.connect((arrival.destination.host, arrival.destination.port))
            stream = trio.SocketStream(dialer)
            tune(stream)
            await self._introduce(stream, arrival, identity)
            connected = True
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise ConnectFailed(
                f"cannot connect to the app at {arrival.destination} ({why}): {APP_HINT}"
            ) from error
        finally:
            if not connected:
                dialer.close()
        return stream

    async def _introduce(
        self, stream: trio.SocketStream, arrival: Arrival, identity: SpiffeId | None
    ) -> None:
        """Say who is calling, where the app wants to be told."""
        if arrival.destination.port not in self.proxy_protocol_ports:
            return
        header = encode_header(arrival.source, arrival.destination, identity)
        try:
            await stream.send_all(header)
        except trio.BrokenResourceError as error:
            raise ConnectFailed(
                f"the app at {arrival.destination} reset the connection at once: {APP_HINT}"
            ) from error

    def _socket(self, arrival: Arrival) -> trio.socket.SocketType:
        """Make a socket that is bound to the source. Raises OSError."""
        host = arrival.destination.host
        version_6 = isinstance(ip_address(host), IPv6Address)
        dialer = socket.socket(socket.AF_INET6 if version_6 else socket.AF_INET)
        try:
            dialer.setblocking(False)  # noqa: FBT003 - the standard library's signature
            dialer.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            source = str(INBOUND_SOURCES[1 if version_6 else 0].network_address)
            if self.transparent and _may_be_named(arrival):
                set_transparent(dialer)
                dialer.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, TPROXY_MARK)
                source = arrival.source.host
            dialer.bind((source, 0))
        except BaseException:
            dialer.close()
            raise
        return trio.socket.from_stdlib_socket(dialer)


def _may_be_named(arrival: Arrival) -> bool:
    """Whether the client's own address can be the source: not the app's own, and of its family."""
    source, destination = ip_address(arrival.source.host), ip_address(arrival.destination.host)
    return source.version == destination.version and source != destination


def _cannot_bind(arrival: Arrival, error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        hint = f"{INBOUND_SOURCES[1].network_address} is no address of lo: remora capture apply"
    elif error.errno == errno.EPERM:
        hint = "TPROXY needs CAP_NET_ADMIN in the proxy too"
    else:
        hint = error.strerror or str(error)
    return f"cannot prepare a connection to the app at {arrival.destination}: {hint}"
