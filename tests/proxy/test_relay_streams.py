"""Bytes through the relay in every shape: what arrives is what was sent, whatever the mode."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import pytest
import trio
import trio.abc
import trio.testing
from OpenSSL import SSL

from mesh.openssl import BULK_CHUNK, CHUNK, RECORD, NativeTls
from mesh.tls_stream import TlsStream
from proxy.relay import Relayed, relay
from tests.pki import Authority
from tests.proxy.network import receive_all, tcp_pair, tls_over
from tests.proxy.relay_rig import Stream, blob, rig, send_in_pieces

pytestmark = pytest.mark.usefixtures("relay_kind")


async def receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        received += await stream.receive_some(size - len(received))
    return bytes(received)


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
async def test_both_versions_of_tls_carry_both_directions(
    relay_root: Authority, version: int
) -> None:
    up, down = blob(600_001, 1), blob(900_001, 2)
    async with rig(relay_root, version=version) as joined:
        assert isinstance(joined.peer, TlsStream)
        assert (
            joined.peer.session.version
            == {
                SSL.TLS1_2_VERSION: "TLSv1.2",
                SSL.TLS1_3_VERSION: "TLSv1.3",
            }[version]
        )
        assert await exchange(joined.app, joined.peer, up, down) == (up, down)
        assert await joined.result() == Relayed(sent=len(up), received=len(down))


async def exchange(app: Stream, peer: Stream, up: bytes, down: bytes) -> tuple[bytes, bytes]:
    """Send both ways at once in pieces of all sizes, then end; return what arrived."""
    got: dict[str, bytes] = {}

    async def take(name: str, stream: trio.abc.ReceiveStream) -> None:
        got[name] = await receive_all(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_in_pieces, app, up, len(up))
        nursery.start_soon(send_in_pieces, peer, down, len(down))
        nursery.start_soon(take, "up", peer)
        nursery.start_soon(take, "down", app)
    return got["up"], got["down"]


SIZES = sorted(
    {
        near + offset
        for near in (1, RECORD, 2 * RECORD, CHUNK, BULK_CHUNK, 4 * BULK_CHUNK)
        for offset in (-1, 0, 1)
        if near + offset > 0
    }
)


async def test_every_size_round_a_limit_passes_both_ways(security: Authority | None) -> None:
    async with rig(security) as joined:
        for size in SIZES:
            data = blob(size, size)
            for source, sink in ((joined.app, joined.peer), (joined.peer, joined.app)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(source.send_all, data)
                    assert await receive_exactly(sink, size) == data


async def test_a_dribble_of_single_bytes_passes_both_ways(security: Authority | None) -> None:
    up, down = blob(2_000, 1), blob(2_000, 2)

    async def dribble(stream: trio.abc.SendStream, data: bytes) -> None:
        for number in range(len(data)):
            await stream.send_all(data[number : number + 1])

    async with rig(security) as joined, trio.open_nursery() as nursery:
        nursery.start_soon(dribble, joined.app, up)
        nursery.start_soon(dribble, joined.peer, down)
        assert await receive_exactly(joined.peer, len(up)) == up
        assert await receive_exactly(joined.app, len(down)) == down


def noted_modes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every change of mode be noted in the list that is returned."""
    modes: list[str] = []

    def note(name: str, change: Callable[[NativeTls], None]) -> None:
        def noted(end: NativeTls) -> None:
            modes.append(name)
            change(end)

        monkeypatch.setattr(NativeTls, name, noted)

    note("_to_memory", NativeTls._to_memory)
    note("_to_descriptor", NativeTls._to_descriptor)
    return modes


@pytest.mark.parametrize("seed", range(3))
async def test_talk_and_bulk_in_turn_change_the_mode_and_lose_nothing(
    relay_root: Authority, relay_kind: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    modes = noted_modes(monkeypatch)
    sizes = random.Random(seed)
    sent = {"up": hashlib.sha256(), "down": hashlib.sha256()}
    got = {"up": hashlib.sha256(), "down": hashlib.sha256()}
    async with rig(relay_root) as joined:
        ways = {"up": (joined.app, joined.peer), "down": (joined.peer, joined.app)}

        async def carry(name: str, data: bytes) -> None:
            source, sink = ways[name]
            sent[name].update(data)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.send_all, data)
                got[name].update(await receive_exactly(sink, len(data)))

        for turn in range(8):
            for _ in range(20):
                await carry("up", blob(sizes.randint(1, 2_000), turn))
                await carry("down", blob(sizes.randint(1, 20_000), turn))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry, "up", blob(sizes.randint(1, 3_000_000), turn))
                if turn % 2:
                    nursery.start_soon(carry, "down", blob(sizes.randint(1, 3_000_000), turn))
    for name in ways:
        assert got[name].digest() == sent[name].digest()
    if relay_kind != "plain":
        assert modes.count("_to_memory") > 1
        assert modes.count("_to_descriptor") > 1


async def test_a_sink_that_stalls_gets_everything_when_it_goes_on(
    security: Authority | None,
) -> None:
    """The sender fills every buffer, twice over, before the reader takes a byte."""
    data = blob(6_000_000, 6)
    for source, sink in (("app", "peer"), ("peer", "app")):
        async with rig(security) as joined, trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, getattr(joined, source), data)
            await trio.testing.wait_all_tasks_blocked(0.05)
            taken = await receive_exactly(getattr(joined, sink), 2_000_000)
            await trio.testing.wait_all_tasks_blocked(0.05)
            taken += await receive_all(getattr(joined, sink))
            assert taken == data


async def send_and_end(stream: trio.abc.HalfCloseableStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


async def test_bytes_that_came_with_the_end_of_the_handshake_are_not_lost(
    relay_root: Authority,
) -> None:
    """They are in the session's memory when the relay begins, and the kernel has no more."""
    app, app_leg = await tcp_pair()
    peer, peer_leg = await tls_over(*await tcp_pair(), relay_root)
    await peer.send_all(b"early")
    peer_leg.session.feed(bytes(await peer_leg.transport.receive_some(CHUNK)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, app_leg, peer_leg)
        assert await receive_exactly(app, 5) == b"early"
        nursery.cancel_scope.cancel()
    app.socket.close()
    await peer.transport.aclose()


async def test_a_busy_bulk_transfer_leaves_room_for_others(security: Authority | None) -> None:
    """Other tasks and other connections get their turn after a bounded number of bytes."""
    async with rig(security) as bulk, rig(security) as other, trio.open_nursery() as nursery:
        nursery.start_soon(pour, bulk.app)
        nursery.start_soon(drain, bulk.peer)
        while bulk.traffic.sent < 2_000_000:
            await trio.lowlevel.checkpoint()
        for _ in range(20):
            before = bulk.traffic.sent
            await other.app.send_all(b"ping")
            assert await receive_exactly(other.peer, 4) == b"ping"
            # The other connection's two ends are tasks of ours: a few passes of the scheduler.
            assert bulk.traffic.sent - before < 100 * BULK_CHUNK
        nursery.cancel_scope.cancel()


async def pour(stream: trio.abc.SendStream) -> None:
    while True:
        await stream.send_all(bytes(500_000))


async def drain(stream: trio.abc.ReceiveStream) -> None:
    while True:
        await stream.receive_some()
