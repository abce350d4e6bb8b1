"""Connections of the app in front of this proxy to a destination that a flag names."""

from __future__ import annotations

import trio

from mesh.policy.outbound import OutboundTls, Security, automatic_sni
from proxy.config import Outbound
from proxy.reach import Outward
from proxy.relay import Relayed, relay
from proxy.report import Connection, Direction, see_through
from proxy.route import Candidate, Forward, Route
from proxy.socket_options import peer_address, tune


class OutboundHandler:
    """Serves the connections of one outbound port."""

    def __init__(self, port: Outbound, outward: Outward) -> None:
        self._port = port
        self._outward = outward
        self._fixed = fixed_route(port)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end and close it; failures are logged, not raised."""
        connection = Connection(
            direction=Direction.OUTBOUND,
            listener=str(self._port.listen),
            source=peer_address(stream),
            target=str(self._port.destination),
        )
        await see_through(connection, stream, lambda: self._run(stream, connection))

    async def _run(self, stream: trio.SocketStream, connection: Connection) -> Relayed:
        tune(stream)
        if self._fixed is not None:
            way = self._outward.follow(connection, self._fixed)
        else:
            named = not self._port.captured
            way = self._outward.reach(connection, self._port.destination, named=named)
        async with way as leg:
            with self._outward.hold(leg, connection):
                return await relay(stream, leg)


def fixed_route(port: Outbound) -> Route | None:
    """Return the way that a flag sets whatever the registry says; None if it leaves it to that."""
    if port.identities is None:
        return None
    destination, identities = port.destination, port.identities
    if not identities:
        tls = OutboundTls(security=Security.PLAINTEXT, why="plaintext by --outbound")
    else:
        tls = OutboundTls(
            security=Security.ISTIO_MUTUAL,
            why="mutual TLS by --outbound",
            sans=tuple(sorted(str(identity) for identity in identities)),
            sni=automatic_sni(destination.host, destination.port),
        )
    return Forward(
        name=str(destination),
        host=destination.host,
        candidates=(Candidate(address=destination.host, port=destination.port, tls=tls),),
        ejection=None,
        kept=False,
    )
