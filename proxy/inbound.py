"""Connections that come from the network for the app behind this proxy.

In order: look at the first bytes, decide by the port's mode, shake hands and judge the peer, and
only then dial the app, so nobody who is refused costs the app anything.
"""

from __future__ import annotations

import trio

from proxy.config import Inbound
from proxy.deadline import due
from proxy.deliver import Arrival
from proxy.dial import dial
from proxy.errors import (
    ConnectionFailed,
    ConnectTimeout,
    DetectionTimeout,
    HandshakeTimeout,
    PeerClosed,
    PlaintextOnStrict,
)
from proxy.handshake import HANDSHAKE_TIMEOUT, MeshTls
from proxy.mode import Action, MtlsMode, decide
from proxy.relay import Leg, Relayed, relay
from proxy.report import Connection, Direction, Transport, see_through
from proxy.sniff import ClientHello
from proxy.sniffer import NoHello, sniff_stream
from proxy.socket_options import peer_address, tune

APP_HINT = "is the app running, and does it listen at this address?"


class InboundHandler:
    """Serves the connections of one inbound port."""

    def __init__(
        self,
        port: Inbound,
        tls: MeshTls,
        *,
        detect_timeout: float,
        connect_timeout: float,
        arrival: Arrival | None = None,
    ) -> None:
        """Take the port, and timeouts in seconds; for one captured connection, its `arrival`."""
        self._port = port
        self._arrival = arrival
        self._tls = tls
        self._detect_timeout = detect_timeout
        self._connect_timeout = connect_timeout

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end and close it; failures are logged, not raised."""
        connection = Connection(
            direction=Direction.INBOUND,
            listener=str(self._port.listen),
            source=str(self._arrival.source) if self._arrival else peer_address(stream),
            target=str(self._port.app),
        )
        await see_through(connection, stream, lambda: self._run(stream, connection))

    async def _run(self, stream: trio.SocketStream, connection: Connection) -> Relayed:
        tune(stream)
        connection.transport = await self._transport(stream, connection.source)
        leg: Leg = stream
        if connection.transport is Transport.MTLS:
            leg = await self._terminate(stream, connection)
        return await relay(await self._dial_app(connection), leg)

    async def _transport(self, stream: trio.SocketStream, peer: str) -> Transport:
        """Decide what to do with a connection, or refuse it by raising."""
        if self._port.mode is MtlsMode.DISABLE:
            return Transport.PLAINTEXT
        found = await sniff_stream(stream, peer=peer, seconds=self._detect_timeout)
        match decide(self._port.mode, found if isinstance(found, ClientHello) else None):
            case Action.TERMINATE:
                return Transport.MTLS
            case Action.PASSTHROUGH:
                return Transport.PASSTHROUGH
            case Action.PLAINTEXT:
                return Transport.PLAINTEXT
            case Action.REFUSE:
                raise self._refusal(found, peer)

    def _refusal(self, found: ClientHello | NoHello, peer: str) -> ConnectionFailed:
        match found:
            case NoHello.SILENT:
                return DetectionTimeout(peer, self._port.app.port, self._detect_timeout)
            case NoHello.ENDED:
                return PeerClosed(peer)
            case _:
                return PlaintextOnStrict(peer, self._port.app.port)

    async def _terminate(self, stream: trio.SocketStream, connection: Connection) -> Leg:
        connection.own_id = self._tls.own_id
        late = HandshakeTimeout(connection.source, HANDSHAKE_TIMEOUT)
        with due(trio.current_time() + HANDSHAKE_TIMEOUT, late):
            leg = await self._tls.accept(stream, peer=connection.source)
        connection.peer_id = leg.session.peer_id
        return leg

    async def _dial_app(self, connection: Connection) -> trio.SocketStream:
        app, seconds = self._port.app, self._connect_timeout
        what = f"the app at {app}"
        with due(trio.current_time() + seconds, ConnectTimeout(what, seconds, APP_HINT)):
            if self._arrival is not None:
                return await self._arrival.dial(connection.peer_id)
            return await dial(app.host, app.port, what=what, hint=APP_HINT)
