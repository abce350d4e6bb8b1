"""Connections of the app in front of this proxy to a destination.

The app's bytes are not read before the destination has proved its identity. So every address of
the destination may be tried without sending anything twice, and when none will do the app is
reset: there is no fallback to plaintext.
"""

from __future__ import annotations

import trio

from mesh.log import get_logger
from proxy.config import Outbound
from proxy.deadline import due
from proxy.dial import dial, resolve
from proxy.errors import ConnectionFailed, ConnectTimeout, HandshakeTimeout
from proxy.handshake import MeshTls
from proxy.relay import Leg, Relayed, relay
from proxy.report import Connection, Direction, Transport, see_through
from proxy.socket_options import peer_address, tune

log = get_logger("proxy.outbound")

DESTINATION_HINT = "is the destination's proxy up, and is its port the one that --outbound names?"


class OutboundHandler:
    """Serves the connections of one outbound port."""

    def __init__(self, port: Outbound, tls: MeshTls, *, connect_timeout: float) -> None:
        self._port = port
        self._tls = tls
        self._connect_timeout = connect_timeout

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end and close it; failures are logged, not raised."""
        connection = Connection(
            direction=Direction.OUTBOUND,
            listener=str(self._port.listen),
            source=peer_address(stream),
            target=str(self._port.destination),
            transport=Transport.MTLS if self._port.identities else Transport.PLAINTEXT,
        )
        await see_through(connection, stream, lambda: self._run(stream, connection))

    async def _run(self, stream: trio.SocketStream, connection: Connection) -> Relayed:
        tune(stream)
        if self._port.identities:
            connection.own_id = self._tls.own_id
        return await relay(stream, await self._reach(connection))

    async def _reach(self, connection: Connection) -> Leg:
        """Open the way to the destination, trying its addresses in turn."""
        destination = self._port.destination
        late = ConnectTimeout(
            f"the name service for {destination.host}", self._connect_timeout, "check it"
        )
        with due(trio.current_time() + self._connect_timeout, late):
            *others, last = await resolve(destination.host, destination.port)
        for address in others:
            try:
                return await self._attempt(address, connection)
            except ConnectionFailed as failure:
                log.info(
                    "trying the destination's next address",
                    destination=str(destination),
                    address=address,
                    reason=failure.reason,
                    detail=str(failure),
                )
        return await self._attempt(last, connection)

    async def _attempt(self, address: str, connection: Connection) -> Leg:
        destination, seconds = self._port.destination, self._connect_timeout
        peer = str(destination)
        if address != destination.host:
            peer += f" ({address})"
        ends = trio.current_time() + seconds
        with due(ends, ConnectTimeout(peer, seconds, DESTINATION_HINT)):
            stream = await dial(address, destination.port, what=peer, hint=DESTINATION_HINT)
        if not self._port.identities:
            return stream
        with due(ends, HandshakeTimeout(peer, seconds)):
            return await self._secure(stream, connection, peer)

    async def _secure(self, stream: trio.SocketStream, connection: Connection, peer: str) -> Leg:
        leg = await self._tls.connect(
            stream,
            server_name=server_name(self._port.destination.host, self._port.destination.port),
            expected=[str(identity) for identity in self._port.identities],
            peer=peer,
        )
        connection.peer_id = leg.session.peer_id
        return leg


def server_name(host: str, port: int) -> str:
    """Return the SNI that Istio's sidecars send: a cluster name without its subset."""
    return f"outbound_.{port}_._.{host}"
