"""A relay between two ends that a test holds, and what the ends do."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
import trio.abc

from mesh.tls_stream import TlsStream
from proxy import relay as relays
from proxy.errors import ConnectionFailed
from proxy.relay import Leg, Limits, Relayed, Traffic, relay
from tests.pki import Authority
from tests.proxy.network import tcp_pair, tls_on_socket, tls_over

Stream = trio.SocketStream | TlsStream
"""What a test holds of a connection's peer."""


@dataclass
class Rig:
    """app <-> (app_leg relay peer_leg) <-> peer; the test plays app and peer."""

    app: trio.SocketStream
    peer: Stream
    app_leg: trio.SocketStream
    peer_leg: Leg
    done: trio.Event = field(default_factory=trio.Event)
    traffic: Traffic = field(default_factory=Traffic)
    limits: Limits = field(default_factory=Limits)
    relayed: Relayed | None = None

    @property
    def peer_socket(self) -> trio.SocketStream:
        return socket_of(self.peer)

    async def result(self) -> Relayed:
        await self.done.wait()
        assert self.relayed is not None
        assert self.app_leg.socket.fileno() == -1
        assert socket_of(self.peer_leg).socket.fileno() == -1
        return self.relayed

    async def failure(self) -> ConnectionFailed | None:
        return (await self.result()).failure

    async def run(self) -> None:
        self.relayed = await relay(
            self.app_leg, self.peer_leg, limits=self.limits, traffic=self.traffic
        )
        self.done.set()


def socket_of(leg: Leg) -> trio.SocketStream:
    if isinstance(leg, trio.SocketStream):
        return leg
    assert isinstance(leg.transport, trio.SocketStream)
    return leg.transport


@asynccontextmanager
async def rig(
    root: Authority | None, *, limits: Limits | None = None, version: int | None = None
) -> AsyncIterator[Rig]:
    """Start a relay; TLS towards the peer if there is a root."""
    app, app_leg = await tcp_pair()
    peer: Stream
    peer_leg: Leg
    peer, peer_leg = await tcp_pair()
    if root is not None:
        over = tls_over if relays.uses_plain() else tls_on_socket
        peer, peer_leg = await over(peer, peer_leg, root, version=version)
    made = Rig(app, peer, app_leg, peer_leg, limits=limits or Limits())
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            yield made
            nursery.cancel_scope.cancel()
    finally:
        for stream in (app, made.peer_socket):
            stream.socket.close()


def blob(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def send_in_pieces(stream: trio.abc.HalfCloseableStream, data: bytes, seed: int) -> None:
    sizes = random.Random(seed)
    view = memoryview(data)
    while view:
        size = sizes.choice([1, 7, 100, 1_500, 16_384, 65_537, 300_000])
        await stream.send_all(view[:size])
        view = view[size:]
    await stream.send_eof()


async def send_and_forget(stream: trio.abc.SendStream, data: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(data)


async def send_until_broken(stream: trio.abc.SendStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while True:
            await stream.send_all(bytes(100_000))
