from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from remora.demo.ports import reserved_addresses, split_address
from remora.demo.tap import Tap, start_tap
from tests.proxy.network import port_of, reset_now, tcp_listener

Ends = tuple[Tap, trio.SocketStream, trio.SocketStream]


@asynccontextmanager
async def through() -> AsyncGenerator[Ends]:
    """A tap, and both ends of a connection through it: the client's and the server's."""
    async with await tcp_listener() as listener, trio.open_nursery() as nursery:
        tap = await start_tap(nursery, f"127.0.0.1:{port_of(listener)}")
        async with await trio.open_tcp_stream(*split_address(tap.address)) as client:
            async with await listener.accept() as server:
                yield tap, client, server
        nursery.cancel_scope.cancel()


async def test_bytes_pass_and_are_kept_apart() -> None:
    async with through() as (tap, client, server):
        await client.send_all(b"question")
        assert await server.receive_some() == b"question"
        await server.send_all(b"answer")
        assert await client.receive_some() == b"answer"
        assert (bytes(tap.upstream), bytes(tap.downstream)) == (b"question", b"answer")
        assert tap.captured == b"questionanswer"
        assert tap.forwarded == 14


async def test_it_knows_how_the_target_sees_the_client() -> None:
    async with through() as (tap, _client, server):
        host, port = server.socket.getpeername()
        await trio.testing.wait_all_tasks_blocked()
        assert tap.sources == [f"{host}:{port}"]


async def test_half_close_passes() -> None:
    async with through() as (_tap, client, server):
        await client.send_eof()
        assert await server.receive_some() == b""
        await server.send_all(b"late")
        assert await client.receive_some() == b"late"


@pytest.mark.parametrize("from_server", [True, False])
async def test_a_reset_passes_after_what_came_before_it(*, from_server: bool) -> None:
    async with through() as (_tap, client, server):
        one, other = (server, client) if from_server else (client, server)
        await one.send_all(b"alert")
        with trio.fail_after(1):
            assert await other.receive_some() == b"alert"
            reset_now(one)
            with pytest.raises(trio.BrokenResourceError):
                await other.receive_some()


async def test_a_target_that_is_not_there_is_a_reset(nursery: trio.Nursery) -> None:
    with reserved_addresses(1) as (nobody,):
        tap = await start_tap(nursery, nobody)
        async with await trio.open_tcp_stream(*split_address(tap.address)) as client:
            with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
    nursery.cancel_scope.cancel()


async def test_waiting_for_bytes(nursery: trio.Nursery) -> None:
    async with through() as (tap, client, server):
        reached: list[int] = []

        async def wait() -> None:
            await tap.forwards(8)
            reached.append(tap.forwarded)

        nursery.start_soon(wait)
        await client.send_all(b"1234")
        assert await server.receive_some() == b"1234"
        await trio.testing.wait_all_tasks_blocked()
        assert reached == []
        await client.send_all(b"5678")
        with trio.fail_after(1):
            await tap.forwards(8)
        assert tap.forwarded == 8


def test_a_reserved_port_is_kept_for_the_one_who_names_it() -> None:
    with reserved_addresses(3) as addresses:
        assert len(set(addresses)) == 3
        with socket.create_server(split_address(addresses[0])) as server:
            assert server.getsockname() == split_address(addresses[0])
            with socket.create_connection(split_address(addresses[0])):
                pass
