"""The relay's promises, over TLS and plain, on real sockets: the conformance suite of any relay."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
import trio
import trio.abc
import trio.testing

from mesh.tls import client_context
from mesh.tls_stream import TlsStream
from proxy.errors import AppReset, IdleTimeout, PeerReset, PeerTruncated, TlsBroken, TooOld
from proxy.relay import DRAIN_TIMEOUT, IDLE_TIMEOUT, Leg, Limits, Relayed, Traffic, relay
from proxy.socket_options import STALL_TIMEOUT, wait_delivered
from tests.pki import NOW, Authority
from tests.proxy.network import (
    receive_all,
    receive_until_broken,
    reset_now,
    tcp_pair,
    tls_over,
)
from tests.proxy.relay_rig import (
    Stream,
    blob,
    rig,
    send_and_forget,
    send_in_pieces,
    send_until_broken,
    socket_of,
)

pytestmark = pytest.mark.usefixtures("relay_kind")


@pytest.mark.parametrize("seed", range(4))
async def test_both_directions_at_once_arrive_unchanged(
    security: Authority | None, seed: int
) -> None:
    up, down = blob(700_000 + seed, seed), blob(1_200_000 - seed, seed + 50)
    got: dict[str, bytes] = {}

    async def take(name: str, stream: trio.abc.ReceiveStream) -> None:
        got[name] = await receive_all(stream)

    async with rig(security) as joined:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_in_pieces, joined.app, up, seed)
            nursery.start_soon(send_in_pieces, joined.peer, down, seed)
            nursery.start_soon(take, "up", joined.peer)
            nursery.start_soon(take, "down", joined.app)
        result = await joined.result()
    assert hashlib.sha256(got["up"]).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(got["down"]).digest() == hashlib.sha256(down).digest()
    assert result == Relayed(sent=len(up), received=len(down))


async def test_a_full_direction_does_not_hold_up_the_other(security: Authority | None) -> None:
    """Nobody reads what the app sends; what the peer sends must arrive all the same."""
    async with rig(security) as joined, trio.open_nursery() as nursery:
        nursery.start_soon(joined.app.send_all, bytes(30_000_000))
        await trio.testing.wait_all_tasks_blocked(0.05)
        payload = blob(500_000, 1)
        nursery.start_soon(joined.peer.send_all, payload)
        received = bytearray()
        while len(received) < len(payload):
            received += await joined.app.receive_some()
        assert received == payload
        nursery.cancel_scope.cancel()


async def test_tiny_writes_arrive_at_once_and_in_order(security: Authority | None) -> None:
    async with rig(security) as joined:
        for number in range(200):
            byte = bytes([number])
            await joined.app.send_all(byte)
            assert await joined.peer.receive_some() == byte
            await joined.peer.send_all(byte)
            assert await joined.app.receive_some() == byte


async def test_the_app_half_closes_and_still_gets_its_answer(security: Authority | None) -> None:
    async with rig(security) as joined:
        await joined.app.send_all(b"question")
        await joined.app.send_eof()
        assert await receive_all(joined.peer) == b"question"
        for part in (b"a long ", b"answer"):
            await joined.peer.send_all(part)
            assert await joined.app.receive_some() == part
        assert not joined.done.is_set()
        await joined.peer.send_eof()
        assert await receive_all(joined.app) == b""
        assert await joined.result() == Relayed(sent=8, received=13)


async def test_the_peer_half_closes_and_still_gets_its_answer(security: Authority | None) -> None:
    async with rig(security) as joined:
        await joined.peer.send_all(b"question")
        await joined.peer.send_eof()
        assert await receive_all(joined.app) == b"question"
        await joined.app.send_all(b"answer")
        assert await joined.peer.receive_some() == b"answer"
        assert not joined.done.is_set()
        await joined.app.send_eof()
        assert await receive_all(joined.peer) == b""
        assert await joined.result() == Relayed(sent=6, received=8)


@pytest.mark.parametrize("size", [0, 1, 100_000, 2_000_000])
async def test_a_reset_by_the_app_comes_after_all_its_bytes(
    security: Authority | None, size: int
) -> None:
    data = blob(size, size)
    async with rig(security) as joined, trio.open_nursery() as nursery:

        async def send_then_reset() -> None:
            await joined.app.send_all(data)
            assert await wait_delivered(joined.app)
            reset_now(joined.app)

        nursery.start_soon(send_then_reset)
        assert await receive_until_broken(joined.peer) == data
        assert isinstance(await joined.failure(), AppReset)


@pytest.mark.parametrize("size", [0, 1, 100_000, 2_000_000])
async def test_a_reset_by_the_peer_comes_after_all_its_bytes(
    security: Authority | None, size: int
) -> None:
    data = blob(size, size)
    async with rig(security) as joined, trio.open_nursery() as nursery:

        async def send_then_reset() -> None:
            await joined.peer.send_all(data)
            assert await wait_delivered(joined.peer_socket)
            reset_now(joined.peer_socket)

        nursery.start_soon(send_then_reset)
        assert await receive_until_broken(joined.app) == data
        assert isinstance(await joined.failure(), PeerReset)


async def test_a_reset_met_while_sending_still_delivers_what_came_before_it(
    security: Authority | None,
) -> None:
    """The peer answers and resets while the app is in the middle of sending to it."""
    async with rig(security) as joined, trio.open_nursery() as nursery:
        nursery.start_soon(send_until_broken, joined.app)
        await trio.testing.wait_all_tasks_blocked(0.02)
        await joined.peer.send_all(b"enough of this")
        assert await wait_delivered(joined.peer_socket)
        reset_now(joined.peer_socket)
        # The kernel reports a reset once: here the sender may be the one who hears of it.
        with contextlib.suppress(trio.BrokenResourceError):
            assert await joined.app.receive_some() == b"enough of this"
            assert await joined.app.receive_some() == b""
        assert isinstance(await joined.failure(), PeerReset | PeerTruncated)


async def test_a_reset_is_never_turned_into_a_clean_end(security: Authority | None) -> None:
    """Whichever direction meets the reset first, the other side must see a reset."""
    for _ in range(20):
        async with rig(security) as joined, trio.open_nursery() as nursery:
            await joined.app.send_all(b"x")
            await joined.peer.receive_some()
            nursery.start_soon(send_and_forget, joined.peer, b"y" * 1_000)
            reset_now(joined.app)
            await receive_until_broken(joined.peer)
            assert isinstance(await joined.failure(), AppReset)


async def test_a_reset_after_half_close_reaches_the_other_side(security: Authority | None) -> None:
    async with rig(security) as joined:
        await joined.app.send_eof()
        assert await receive_all(joined.peer) == b""
        reset_now(joined.app)
        await send_until_broken(joined.peer)
        assert isinstance(await joined.failure(), AppReset)


async def test_a_slow_reader_blocks_the_sender(security: Authority | None) -> None:
    """Memory stays bounded: what is not read stays with the sender."""
    sent = 0
    async with rig(security) as joined, trio.open_nursery() as nursery:

        async def pour() -> None:
            nonlocal sent
            while True:
                await joined.app.send_all(bytes(100_000))
                sent += 100_000

        nursery.start_soon(pour)
        await trio.testing.wait_all_tasks_blocked(0.1)
        stuck_at = sent
        assert 0 < stuck_at < 20_000_000
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert sent == stuck_at
        received = 0
        while received < stuck_at:
            received += len(await joined.peer.receive_some())
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert sent > stuck_at
        nursery.cancel_scope.cancel()


async def test_a_reset_waits_for_a_reader_who_is_slow_but_not_stuck(
    security: Authority | None,
) -> None:
    """The RST would destroy what still lies in the send queue."""
    data = blob(3_000_000, 3)
    async with rig(security) as joined, trio.open_nursery() as nursery:

        async def send_then_reset() -> None:
            await joined.app.send_all(data)
            await wait_delivered(joined.app)
            reset_now(joined.app)

        nursery.start_soon(send_then_reset)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert await receive_until_broken(joined.peer) == data


async def test_a_reset_does_not_wait_for_ever_for_a_reader_who_is_stuck(
    security: Authority | None, mock_clock: trio.testing.MockClock
) -> None:
    async with rig(security) as joined:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(joined.peer.send_all, bytes(30_000_000))
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        reset_now(joined.peer_socket)
        await joined.app.send_all(b"anybody there?")
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not joined.done.is_set()
        mock_clock.jump(DRAIN_TIMEOUT)
        await trio.testing.wait_all_tasks_blocked(0.02)
        mock_clock.jump(STALL_TIMEOUT)
        assert isinstance(await joined.failure(), PeerReset | PeerTruncated)
        assert len(await receive_until_broken(joined.app)) > 0


async def test_only_sockets_can_be_relayed(relay_root: Authority) -> None:
    near, far = await tcp_pair()
    memory, _ = trio.testing.memory_stream_pair()
    session = client_context(relay_root.bundle()).session(NOW)
    with pytest.raises(TypeError, match="only a socket can be reset"):
        await relay(near, TlsStream(memory, session))
    await near.aclose()
    await far.aclose()


async def test_tls_that_ends_without_close_notify_is_a_reset_for_the_app(
    relay_root: Authority,
) -> None:
    async with rig(relay_root) as joined:
        await joined.peer.send_all(b"half a resp")
        await joined.peer_socket.send_eof()
        assert await receive_until_broken(joined.app) == b"half a resp"
        assert isinstance(await joined.failure(), PeerTruncated)


async def test_bytes_that_are_not_tls_are_a_reset_for_the_app(relay_root: Authority) -> None:
    async with rig(relay_root) as joined:
        await joined.peer_socket.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert await receive_until_broken(joined.app) == b""
        assert isinstance(await joined.failure(), TlsBroken)


async def test_silence_ends_both_sides(
    security: Authority | None, mock_clock: trio.testing.MockClock
) -> None:
    async with rig(security) as joined:
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(IDLE_TIMEOUT - 1)
        await joined.app.send_all(b"still there")
        await joined.peer.receive_some()
        mock_clock.jump(IDLE_TIMEOUT - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert not joined.done.is_set()
        mock_clock.jump(2)
        assert isinstance(await joined.failure(), IdleTimeout)
        assert await receive_until_broken(joined.app) == b""
        assert await receive_until_broken(joined.peer) == b""


async def test_a_greatest_age_ends_even_a_busy_connection(
    security: Authority | None, mock_clock: trio.testing.MockClock
) -> None:
    async with rig(security, limits=Limits(age=60)) as joined:
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(59):
            mock_clock.jump(1)
            await joined.app.send_all(b"busy")
            assert await joined.peer.receive_some() == b"busy"
        assert not joined.done.is_set()
        mock_clock.jump(1)
        assert isinstance(await joined.failure(), TooOld)
        assert await receive_until_broken(joined.app) == b""
        assert await receive_until_broken(joined.peer) == b""


async def test_traffic_is_known_while_the_relay_runs_and_after_it_was_cancelled(
    security: Authority | None,
) -> None:
    app, app_leg = await tcp_pair()
    peer: Stream
    leg: Leg
    peer, leg = await tcp_pair()
    if security is not None:
        peer, leg = await tls_over(peer, leg, security)
    traffic = Traffic()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await relay(app_leg, leg, traffic=traffic)

        nursery.start_soon(run)
        await app.send_all(bytes(1000))
        await peer.send_all(bytes(30))
        received = 0
        while received < 1000:
            received += len(await peer.receive_some())
        assert len(await app.receive_some()) == 30
        await trio.testing.wait_all_tasks_blocked()
        assert traffic == Traffic(sent=1000, received=30)
        nursery.cancel_scope.cancel()
    assert traffic == Traffic(sent=1000, received=30)
    for end in (app, socket_of(peer)):
        end.socket.close()


async def test_cancellation_resets_both_sides(security: Authority | None) -> None:
    app, app_leg = await tcp_pair()
    peer, peer_leg = await tcp_pair()
    leg: Leg = peer_leg
    if security is not None:
        _, leg = await tls_over(peer, peer_leg, security)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, app_leg, leg)
        await app.send_all(b"x")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert app_leg.socket.fileno() == peer_leg.socket.fileno() == -1
    assert await receive_until_broken(app) == b""
    assert len(await receive_until_broken(peer)) >= 1
    app.socket.close()
    peer.socket.close()
