"""A proxy's handlers at work on real sockets, with certificates made for the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import trio
from structlog.testing import capture_logs
from structlog.typing import EventDict

from mesh.address import Address
from mesh.spiffe import SpiffeId
from mesh.svid import X509Svid
from mesh.tls import TlsContext, client_context, server_context
from mesh.tls_errors import TlsError
from mesh.tls_stream import TlsStream
from mesh.verify import PeerRejected
from proxy.balancer import Balancer
from proxy.config import Inbound, Outbound
from proxy.handshake import MeshTls
from proxy.identity import Identity
from proxy.inbound import InboundHandler
from proxy.listener import Handler
from proxy.live_policy import LivePolicy
from proxy.mode import MtlsMode
from proxy.origination import OriginatedTls
from proxy.outbound import OutboundHandler
from proxy.reach import Outward
from proxy.view import fixed_view
from tests.pki import NOW, Authority
from tests.proxy.network import CLIENT_ID, SERVER_ID, connect, port_of, tcp_listener

DETECT = 5.0
CONNECT = 10.0


class Mesh:
    """One root, and whatever identity the proxy under test has at the moment."""

    def __init__(self, root: Authority, own: SpiffeId) -> None:
        self.root = root
        self.current: Identity | None = self.identity(own)
        self.time = NOW
        self.policy: LivePolicy | None = None
        self.tls = MeshTls(
            lambda: self.current,
            lambda: self.time,
            mesh_config=lambda: self.policy.view.mesh_config if self.policy else None,
        )

    def follow(self, policy: LivePolicy) -> None:
        """Admit the trust domains of the mesh settings."""
        self.policy = policy

    def identity(self, own: SpiffeId, root: Authority | None = None) -> Identity:
        return Identity(
            svid=(root or self.root).issue(str(own)), bundles=(root or self.root).bundle()
        )


async def echo(stream: trio.SocketStream) -> None:
    """An app that says back what it hears, and ends when its client ends."""
    async with stream:
        try:
            async for chunk in stream:
                await stream.send_all(chunk)
            await stream.send_eof()
        except trio.BrokenResourceError:
            return


@dataclass
class Door:
    """A port that is being served, and the proxy's log lines about it."""

    port: int
    lines: list[EventDict]
    ended: trio.Event

    async def line(self) -> EventDict:
        """Wait for the first connection to end, and return the last line about it."""
        await self.ended.wait()
        return self.lines[-1]


@asynccontextmanager
async def door(handler: Handler) -> AsyncIterator[Door]:
    """Serve `handler` on a port of its own until the block ends."""
    with capture_logs() as lines:
        async with await tcp_listener() as listener, trio.open_nursery() as nursery:
            made = Door(port_of(listener), lines, trio.Event())

            async def one(stream: trio.SocketStream) -> None:
                await handler(stream)
                assert stream.socket.fileno() == -1
                made.ended.set()

            nursery.start_soon(_accept, listener, one, nursery)
            yield made
            nursery.cancel_scope.cancel()


async def _accept(listener: trio.SocketListener, handler: Handler, nursery: trio.Nursery) -> None:
    while True:
        nursery.start_soon(handler, await listener.accept())


@asynccontextmanager
async def app_on(handler: Handler = echo) -> AsyncIterator[int]:
    """Run an app; yield its port."""
    async with await tcp_listener() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(_accept, listener, handler, nursery)
        yield port_of(listener)
        nursery.cancel_scope.cancel()


def inbound(mesh: Mesh, mode: MtlsMode | LivePolicy, app_port: int) -> Handler:
    """Serve an app, under a mode that a flag would set or under policies."""
    port = Inbound(listen=Address("127.0.0.1", 0), app=Address("127.0.0.1", app_port))
    policy = mode if isinstance(mode, LivePolicy) else LivePolicy(fixed_view(mode))
    return InboundHandler(
        port, mesh.tls, policy, detect_timeout=DETECT, connect_timeout=CONNECT
    ).serve


def outward(mesh: Mesh, policy: LivePolicy | None = None) -> Outward:
    """Return the ways out of a proxy; chance always takes the first endpoint."""
    return Outward(
        mesh.tls,
        OriginatedTls(lambda: mesh.time),
        Balancer(lambda: 0.0, trio.current_time),
        policy or LivePolicy(),
        connect_timeout=CONNECT,
    )


def outbound(
    mesh: Mesh,
    destination_port: int,
    *identities: SpiffeId,
    host: str = "127.0.0.1",
    policy: LivePolicy | None = None,
    captured: bool = False,
) -> Handler:
    """Serve a way out: to these identities, or as policy says."""
    port = Outbound(
        listen=Address("127.0.0.1", 0),
        destination=Address(host, destination_port),
        identities=frozenset(identities) if policy is None else None,
        captured=captured,
    )
    return OutboundHandler(port, outward(mesh, policy)).serve


def client(
    root: Authority,
    *,
    svid: X509Svid | None = None,
    alpn: Sequence[bytes] = (b"istio",),
    trusts: Authority | None = None,
) -> TlsContext:
    """Be a mesh client, unless told otherwise."""
    return client_context(
        (trusts or root).bundle(), svid=svid or root.issue(str(CLIENT_ID)), alpn=alpn
    )


async def dial_tls(port: int, context: TlsContext, now: datetime = NOW) -> TlsStream:
    transport = await connect(port)
    stream = TlsStream(transport, context.session(now, server_name="app.test"))
    try:
        await stream.do_handshake()
    except BaseException:
        transport.socket.close()
        raise
    return stream


async def round_trip(stream: trio.abc.HalfCloseableStream, data: bytes) -> bytes:
    """Send, say that it is all, and return everything that comes back."""
    received = bytearray()

    async def take() -> None:
        async for chunk in stream:
            received.extend(chunk)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await stream.send_all(data)
        await stream.send_eof()
    return bytes(received)


def tls_server(root: Authority) -> Handler:
    """Be a mesh server that echoes to whom it likes and who likes it."""
    context = server_context(root.issue(str(SERVER_ID)), root.bundle(), alpn=[b"istio"])

    async def serve(transport: trio.SocketStream) -> None:
        stream = TlsStream(transport, context.session(NOW))
        try:
            await stream.do_handshake()
            async for chunk in stream:
                await stream.send_all(chunk)
            await stream.send_eof()
        except (TlsError, PeerRejected, trio.BrokenResourceError):
            pass
        finally:
            transport.socket.close()

    return serve
