"""Opening the way to a destination: an endpoint is chosen, connected to, and made to prove itself.

The app's bytes are not read before that. So the next endpoint may be tried without sending
anything twice, and when none will do the app is reset: there is no fallback to plaintext.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager

import trio

from mesh.address import Address
from mesh.log import get_logger
from mesh.policy.outbound import Security
from proxy.balancer import Balancer
from proxy.deadline import due
from proxy.dial import dial, resolve
from proxy.errors import ConnectionFailed, ConnectTimeout, HandshakeTimeout
from proxy.handshake import MeshTls
from proxy.live_policy import LivePolicy
from proxy.origination import OriginatedTls
from proxy.relay import Leg
from proxy.report import Connection, Transport
from proxy.route import Blocked, Candidate, Forward, NoEndpoints, Route

log = get_logger("proxy.outbound")

MAX_ENDPOINTS = 3
"""Endpoints of one service that are tried in turn: Envoy's default for the attempts of a request
that may be repeated."""

DESTINATION_HINT = "is the destination up, and is its port the right one?"

_TRANSPORTS = {
    Security.PLAINTEXT: Transport.PLAINTEXT,
    Security.SIMPLE: Transport.TLS,
    Security.MUTUAL: Transport.TLS,
    Security.ISTIO_MUTUAL: Transport.MTLS,
}


class Outward:
    """The ways out of this proxy, shared by all its listeners."""

    def __init__(
        self,
        tls: MeshTls,
        originated: OriginatedTls,
        balancer: Balancer,
        policy: LivePolicy,
        *,
        connect_timeout: float,
    ) -> None:
        """Take what opens the ways; `connect_timeout`, in seconds, is for TCP and TLS together."""
        self._tls = tls
        self._originated = originated
        self._balancer = balancer
        self._policy = policy
        self._connect_timeout = connect_timeout

    @asynccontextmanager
    async def reach(
        self, connection: Connection, destination: Address, subset: str = "", *, named: bool = False
    ) -> AsyncGenerator[Leg]:
        """Open the way to a host or address as policy says at this moment. Raises as `follow`.

        `named` is a destination that the operator gave, see Router.route.
        """
        route = self._policy.route(destination, subset, named=named)
        async with self.follow(connection, route) as leg:
            yield leg

    @asynccontextmanager
    async def follow(self, connection: Connection, route: Route) -> AsyncGenerator[Leg]:
        """Open a way, and count the connection to its endpoint until the block ends.

        What was found out is added to `connection`. The leg belongs to the caller. Raises
        ConnectionFailed leaves.
        """
        if isinstance(route, Blocked):
            raise route.kind(route.why)
        tried: list[Candidate] = []
        failure: ConnectionFailed | None = None
        while (candidate := self._next(route, tried)) is not None:
            with self._balancer.using(route, candidate):
                try:
                    leg = await self._attempt(route, candidate, connection)
                except ConnectionFailed as error:
                    failure = error
                    self._failed(route, candidate, error)
                else:
                    self._balancer.succeeded(route, candidate)
                    yield leg
                    return
            tried.append(candidate)
        raise failure or NoEndpoints(f"{route.name} has no endpoints")

    def hold(self, leg: Leg, connection: Connection) -> AbstractContextManager[None]:
        """Keep a way open for a block, which ends if the peer is revoked; see OpenPeers.hold."""
        return self._tls.open.hold(leg, connection.endpoint or connection.target)

    def _next(self, way: Forward, tried: list[Candidate]) -> Candidate | None:
        return None if len(tried) >= MAX_ENDPOINTS else self._balancer.choose(way, tried)

    def _failed(self, way: Forward, candidate: Candidate, failure: ConnectionFailed) -> None:
        endpoint = Address(candidate.address, candidate.port)
        ejected = self._balancer.failed(way, candidate)
        if ejected is not None:
            log.warning(
                "endpoint ejected: it is left alone for a while",
                cluster=way.name,
                endpoint=str(endpoint),
                seconds=ejected,
                reason=failure.reason,
            )
        if len(way.candidates) > 1:
            log.info(
                "endpoint failed",
                cluster=way.name,
                endpoint=str(endpoint),
                reason=failure.reason,
                detail=str(failure),
            )

    async def _attempt(self, way: Forward, candidate: Candidate, connection: Connection) -> Leg:
        """Connect to an endpoint, trying the addresses of its name in turn."""
        connection.transport = _TRANSPORTS[candidate.tls.security]
        connection.endpoint = str(Address(candidate.address, candidate.port))
        if candidate.tls.security is Security.ISTIO_MUTUAL:
            connection.own_id = self._tls.own_id
        seconds = way.connect_timeout or self._connect_timeout
        late = ConnectTimeout(f"the name service for {candidate.address}", seconds, "check it")
        with due(trio.current_time() + seconds, late):
            *others, last = await resolve(candidate.address, candidate.port)
        for address in others:
            try:
                return await self._open(address, way, candidate, connection)
            except ConnectionFailed as failure:
                log.info(
                    "trying the destination's next address",
                    destination=connection.endpoint,
                    address=address,
                    reason=failure.reason,
                    detail=str(failure),
                )
        return await self._open(last, way, candidate, connection)

    async def _open(
        self, address: str, way: Forward, candidate: Candidate, connection: Connection
    ) -> Leg:
        seconds = way.connect_timeout or self._connect_timeout
        peer = str(Address(candidate.address, candidate.port))
        if address != candidate.address:
            peer += f" ({address})"
        ends = trio.current_time() + seconds
        with due(ends, ConnectTimeout(peer, seconds, DESTINATION_HINT)):
            stream = await dial(address, candidate.port, what=peer, hint=DESTINATION_HINT)
        if candidate.tls.security is Security.PLAINTEXT:
            return stream
        with due(ends, HandshakeTimeout(peer, seconds)):
            if candidate.tls.security is not Security.ISTIO_MUTUAL:
                return await self._originated.connect(
                    stream, candidate.tls, host=way.host, peer=peer
                )
            leg = await self._tls.connect(
                stream,
                server_name=candidate.tls.sni,
                expected=candidate.tls.sans or None,
                peer=peer,
            )
        connection.peer_id = leg.session.peer_id
        return leg
