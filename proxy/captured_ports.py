"""The captured ports: 15006 for what comes for the app, 15001 for what the app opens.

Each connection is asked where it was going, loops are refused, and the rest is served as if a port
had been configured for that very destination.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import trio

from mesh.address import Address
from mesh.spiffe import SpiffeId
from proxy.captured import (
    Captured,
    OutboundPolicy,
    refuse_inbound_loop,
    refuse_outbound_loop,
)
from proxy.config import Inbound, Outbound
from proxy.deliver import Arrival, Delivery
from proxy.errors import ConnectionFailed, DestinationUnknown, PeerClosed
from proxy.listener import Handler
from proxy.original import OriginalDestination, canonical, local_address, original_destination
from proxy.real_client import is_balancer, take_header
from proxy.report import Connection, Direction, report_failed
from proxy.socket_options import peer_address, reset

ServeInbound = Callable[[Inbound, Arrival, float], Handler]
"""Makes the handler of one inbound connection; the number is its detect timeout in seconds."""

ServeOutbound = Callable[[Outbound], Handler]


class CapturedInbound:
    """Serves the captured inbound port."""

    def __init__(
        self,
        captured: Captured,
        listen: Address,
        serve: ServeInbound,
        *,
        detect_timeout: float,
        delivery: Delivery,
        original: OriginalDestination = original_destination,
    ) -> None:
        self._captured = captured
        self._listen = listen
        self._serve = serve
        self._detect_timeout = detect_timeout
        self._delivery = delivery
        self._original = original

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end and close it; failures are logged, not raised."""
        with _refused(stream, Direction.INBOUND, self._listen) as connection:
            arrival = await self._arrival(stream, connection)
            port = Inbound(
                listen=self._listen,
                app=arrival.destination,
                mode=self._captured.mode_of(arrival.destination.port),
                captured=True,
            )
            patience = self._captured.detect_timeout_of(port.app.port, self._detect_timeout)
            handler = self._serve(port, arrival, patience)
            await handler(stream)

    async def _arrival(self, stream: trio.SocketStream, connection: Connection) -> Arrival:
        """Find out between whom it is, or refuse it by raising."""
        destination = self._original(stream)
        connection.target = str(destination)
        refuse_inbound_loop(destination, self._captured.own_ports)
        source = _source(stream)
        if is_balancer(source, self._captured.balancers):
            source = await take_header(stream, source)
        return Arrival(source=source, destination=destination, delivery=self._delivery)


class CapturedOutbound:
    """Serves the captured outbound port."""

    def __init__(
        self,
        captured: Captured,
        listen: Address,
        serve: ServeOutbound,
        *,
        original: OriginalDestination = original_destination,
    ) -> None:
        self._captured = captured
        self._listen = listen
        self._serve = serve
        self._original = original

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end and close it; failures are logged, not raised."""
        with _refused(stream, Direction.OUTBOUND, self._listen) as connection:
            destination = self._original(stream)
            connection.target = str(destination)
            arrived = local_address(stream.socket).port
            refuse_outbound_loop(destination, arrived, self._captured.own_ports)
            handler = self._serve(route(destination, self._listen, self._captured))
            await handler(stream)


def route(destination: Address, listen: Address, captured: Captured) -> Outbound:
    """Decide how an outbound connection reaches its destination. Raises DestinationUnknown.

    Where the control plane decides, its registry says what flags do not.
    """
    identities = captured.destinations.get(destination)
    if identities is None and captured.mode is not None:
        if captured.outbound_policy is OutboundPolicy.REGISTRY_ONLY:
            raise DestinationUnknown(str(destination))
        identities = frozenset[SpiffeId]()
    return Outbound(listen=listen, destination=destination, identities=identities, captured=True)


@contextmanager
def _refused(
    stream: trio.SocketStream, direction: Direction, listen: Address
) -> Generator[Connection]:
    """Log and reset a connection that is refused before it has a handler; never leave it open."""
    connection = Connection(
        direction=direction, listener=str(listen), source=peer_address(stream), target="unknown"
    )
    try:
        yield connection
    except ConnectionFailed as failure:
        report_failed(connection, failure)
    finally:
        reset(stream)


def _source(stream: trio.SocketStream) -> Address:
    try:
        host, port, *_ = stream.socket.getpeername()
    except OSError as error:
        raise PeerClosed("(gone)") from error
    return Address(canonical(host), port)


def wildcard_hosts() -> list[str]:
    """Return the addresses that stand for all of this machine's, of each IP version it has."""
    hosts = ["0.0.0.0"]  # noqa: S104 - what is captured arrives at any address
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return hosts
    return [*hosts, "::"]
