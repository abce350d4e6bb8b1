"""Connections that come from the network for the app behind this proxy.

In order: look at the first bytes, decide by the port's mode, shake hands and judge the peer, ask
the policies, and only then dial the app, so nobody who is refused costs the app anything. The
connection is registered before all of that, so that a change of policy finds it at any step.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import trio

from proxy.admission import Known
from proxy.captured import SERVER_FIRST_WAIT
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
from proxy.live_policy import LivePolicy, Tracked
from proxy.mode import Action, MtlsMode, decide
from proxy.relay import Leg, Relayed, relay
from proxy.report import Connection, Direction, Transport, see_through
from proxy.sniff import ClientHello
from proxy.sniffer import NoHello, sniff_stream
from proxy.socket_options import peer_address, tune

APP_HINT = "is the app running, and does it listen at this address?"

_TRANSPORTS = {
    Action.TERMINATE: Transport.MTLS,
    Action.PASSTHROUGH: Transport.PASSTHROUGH,
    Action.PLAINTEXT: Transport.PLAINTEXT,
}


class InboundHandler:
    """Serves the connections of one inbound port."""

    def __init__(
        self,
        port: Inbound,
        tls: MeshTls,
        policy: LivePolicy,
        *,
        detect_timeout: float,
        connect_timeout: float,
        arrival: Arrival | None = None,
        server_first: bool = False,
    ) -> None:
        """Take the port, and timeouts in seconds; the mesh settings may replace the first.

        A captured connection comes with its `arrival`. `server_first` is a port whose clients may
        wait for the server's first words.
        """
        self._port = port
        self._arrival = arrival
        self._server_first = server_first
        self._tls = tls
        self._policy = policy
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
        with self._policy.admit(self._known(stream, connection.source)) as tracked:
            leg = await self._secure(stream, connection, tracked)
            with self._tls.open.hold(leg, connection.source):
                return await relay(await self._dial_app(connection), leg)

    def _known(self, stream: trio.SocketStream, peer: str) -> Known:
        """Collect what the kernel tells. Istio: policies know the workload by its own address.

        A captured connection was going to another address than the socket's own, and a trusted
        load balancer may have said whom it comes from.
        """
        try:
            source, destination = stream.socket.getpeername()[0], stream.socket.getsockname()[0]
        except OSError as error:
            raise PeerClosed(peer) from error
        arrival = self._arrival
        return Known(
            peer=peer,
            port=self._port.workload_port,
            source_ip=_address(source),
            destination_ip=_address(arrival.destination.host if arrival else destination),
            remote_ip=_address(arrival.source.host) if arrival else None,
        )

    async def _secure(
        self, stream: trio.SocketStream, connection: Connection, tracked: Tracked
    ) -> Leg:
        """Find out what the connection is and who is there, judging each. Raises the refusal."""
        transport, sni = await self._transport(stream, connection.source, tracked)
        connection.transport = transport
        tracked.began(transport, sni)
        if transport is not Transport.MTLS:
            return stream
        connection.own_id = self._tls.own_id
        late = HandshakeTimeout(connection.source, HANDSHAKE_TIMEOUT)
        with due(trio.current_time() + HANDSHAKE_TIMEOUT, late):
            leg = await self._tls.accept(stream, peer=connection.source)
        connection.peer_id = leg.session.peer_id
        tracked.proved(leg.session.peer_id)
        return leg

    async def _transport(
        self, stream: trio.SocketStream, peer: str, tracked: Tracked
    ) -> tuple[Transport, str | None]:
        """Decide what to do with a connection, or refuse it by raising.

        The mode is asked again once the first bytes are there: it may have changed meanwhile.
        """
        port = self._port.workload_port
        if tracked.view.modes.of_port(port).mode is MtlsMode.DISABLE:
            return Transport.PLAINTEXT, None
        seconds = tracked.view.detect_timeout or self._detect_timeout
        if self._server_first:
            seconds = min(seconds, SERVER_FIRST_WAIT)
        found = await sniff_stream(stream, peer=peer, seconds=seconds)
        hello = found if isinstance(found, ClientHello) else None
        mode = tracked.view.modes.of_port(port)
        action = decide(mode.mode, hello)
        if action is Action.REFUSE:
            raise _refusal(found, peer, port, seconds, mode.decided_by)
        return _TRANSPORTS[action], None if hello is None else hello.server_name

    async def _dial_app(self, connection: Connection) -> trio.SocketStream:
        app, seconds = self._port.app, self._connect_timeout
        what = f"the app at {app}"
        with due(trio.current_time() + seconds, ConnectTimeout(what, seconds, APP_HINT)):
            if self._arrival is not None:
                return await self._arrival.dial(connection.peer_id)
            return await dial(app.host, app.port, what=what, hint=APP_HINT)


def _refusal(
    found: ClientHello | NoHello, peer: str, port: int, seconds: float, decided_by: str
) -> ConnectionFailed:
    match found:
        case NoHello.SILENT:
            return DetectionTimeout(peer, port, seconds, decided_by)
        case NoHello.ENDED:
            return PeerClosed(peer)
        case _:
            return PlaintextOnStrict(peer, port, decided_by)


def _address(text: str) -> IPv4Address | IPv6Address:
    """Read an address as the kernel gives it; a zone, such as in `fe80::1%eth0`, is left out."""
    return ip_address(text.partition("%")[0])
