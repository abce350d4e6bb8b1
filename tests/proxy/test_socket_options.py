"""Resets, delivery and options, as the kernel sees them."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from proxy.socket_options import (
    KEEPALIVE_IDLE,
    STALL_TIMEOUT,
    peer_address,
    reset,
    tune,
    wait_delivered,
    was_reset,
)
from tests.proxy.network import receive_until_broken, reset_now, tcp_pair


async def test_every_leg_is_tuned() -> None:
    near, far = await tcp_pair()
    async with near, far:
        tune(near)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE


async def test_reset_sends_rst_and_may_be_repeated() -> None:
    near, far = await tcp_pair()
    async with far:
        reset(near)
        reset(near)
        assert await receive_until_broken(far) == b""


async def test_a_reset_can_be_told_from_a_clean_end() -> None:
    near, far = await tcp_pair()
    async with near, far:
        assert not was_reset(near)
        await far.send_eof()
        assert await near.receive_some() == b""
        assert not was_reset(near)
    near, far = await tcp_pair()
    async with near:
        reset_now(far)
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        assert was_reset(near)


async def test_delivery_means_that_the_other_kernel_has_all_bytes() -> None:
    near, far = await tcp_pair()
    async with near, far:
        await near.send_all(b"hello")
        assert await wait_delivered(near)
        reset(near)
        assert await receive_until_broken(far) == b"hello"


async def test_waiting_for_delivery_ends_when_the_reader_is_stuck(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = await tcp_pair()
    async with near, far:
        await fill(near)
        started = trio.current_time()
        assert not await wait_delivered(near)
        assert STALL_TIMEOUT <= trio.current_time() - started < STALL_TIMEOUT + 1


async def test_waiting_for_delivery_ends_when_the_reader_resets() -> None:
    near, far = await tcp_pair()
    async with near:
        await fill(near)
        reset_now(far)
        assert not await wait_delivered(near)


async def fill(stream: trio.SocketStream) -> None:
    """Send until the reader's window and our queue are full."""
    with trio.move_on_after(0.05):
        await stream.send_all(bytes(50_000_000))


async def test_the_peer_has_a_name_even_after_it_is_gone() -> None:
    near, far = await tcp_pair()
    async with near:
        port = far.socket.getsockname()[1]
        assert peer_address(near) == f"127.0.0.1:{port}"
        reset_now(far)
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        assert peer_address(near) == "(gone)"


async def test_ipv6_peers_are_named_in_brackets() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="::1")
    async with listener:
        port = listener.socket.getsockname()[1]
        near = await trio.open_tcp_stream("::1", port)
        far = await listener.accept()
        async with near, far:
            assert peer_address(near) == f"[::1]:{port}"
