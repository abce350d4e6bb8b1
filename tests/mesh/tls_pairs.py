"""Two TLS ends over memory, roomy or tight, for tests of streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import trio
import trio.testing
from trio.testing import MemoryReceiveStream, MemorySendStream, wait_all_tasks_blocked

from mesh.svid import X509Svid
from mesh.tls import client_context, server_context
from mesh.tls_errors import TlsAlert
from mesh.tls_stream import SEND_SIZE, TlsStream
from tests.pki import NOW, make_root

ROOT = make_root()
STRANGER = make_root("stranger")
SERVER = ROOT.issue("spiffe://cluster.local/ns/foo/sa/web")
CLIENT = ROOT.issue("spiffe://cluster.local/ns/foo/sa/client")
BUNDLES = ROOT.bundle()

Transport = trio.abc.HalfCloseableStream
Transports = tuple[Transport, Transport]
Pair = tuple[TlsStream, TlsStream]
Stapled = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


def memory_pair() -> tuple[Stapled, Stapled]:
    return trio.testing.memory_stream_pair()


def tls_over(near: Transport, far: Transport, client: X509Svid | None = CLIENT) -> Pair:
    return (
        TlsStream(near, client_context(BUNDLES, svid=client).session(NOW)),
        TlsStream(far, server_context(SERVER, BUNDLES).session(NOW)),
    )


async def handshake(pair: Pair) -> Pair:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair[0].do_handshake)
        nursery.start_soon(pair[1].do_handshake)
    return pair


async def connected() -> Pair:
    return await handshake(tls_over(*memory_pair()))


@asynccontextmanager
async def closing(*streams: trio.abc.AsyncResource) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def receive_all(stream: trio.abc.ReceiveStream, limit: int | None = None) -> bytes:
    parts = bytearray()
    while data := await stream.receive_some(limit):
        parts += data
    return bytes(parts)


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        data = await stream.receive_some(count - len(parts))
        assert data, "the stream ended early"
        parts += data
    return bytes(parts)


async def send_for_ever(stream: trio.abc.SendStream) -> None:
    while True:
        await stream.send_all(bytes(SEND_SIZE))


def alert_of(failure: BaseException) -> str:
    assert isinstance(failure.__cause__, TlsAlert)
    return failure.__cause__.alert


class Tight:
    """A memory pipe that takes `room` bytes more than were received, as a socket would."""

    def __init__(self, room: int = 2000) -> None:
        self.open = True
        self.room = room
        self.sent = 0
        self.received = 0
        self.changed = trio.lowlevel.ParkingLot()


class TightStream(trio.abc.HalfCloseableStream):
    """One end of two memory pipes with little room each: senders get stuck, as on a network."""

    def __init__(self, memory: Stapled, outward: Tight, inward: Tight) -> None:
        self.memory = memory
        self.outward = outward
        self.inward = inward

    async def _room(self) -> None:
        while self.outward.open and self.outward.sent - self.outward.received >= self.outward.room:
            await self.outward.changed.park()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            await self._room()
            await self.memory.send_all(view[:500])
            self.outward.sent += len(view[:500])
            view = view[500:]
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await self._room()
        await self.memory.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.memory.receive_some(max_bytes)
        self.inward.received += len(data)
        self.inward.changed.unpark_all()
        return data

    async def send_eof(self) -> None:
        await self.memory.send_eof()

    async def aclose(self) -> None:
        for pipe in (self.outward, self.inward):
            pipe.open = False
            pipe.changed.unpark_all()
        await self.memory.aclose()


def tight_pair(room: int = 2000) -> tuple[TightStream, TightStream]:
    near, far = memory_pair()
    there, back = Tight(room), Tight(room)
    return TightStream(near, there, back), TightStream(far, back, there)


def lockstep_pair() -> Transports:
    return trio.testing.lockstep_stream_pair()


async def clogged_pair() -> Pair:
    """Both directions are full: a send of any size has to wait for a receiver."""
    near, far = tight_pair()
    pair = await handshake(tls_over(near, far))
    for stream in pair:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(fill, stream, near if stream is pair[0] else far))
                await wait_all_tasks_blocked()
                scope.cancel()
    return pair


async def fill(stream: TlsStream, transport: TightStream) -> None:
    while transport.outward.sent - transport.outward.received < transport.outward.room:
        await stream.send_all(b"x")
