"""The demo's HTTP client and server, against each other and against peers that misbehave."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from remora.demo.http_client import Body, Report, request
from remora.demo.http_server import serve
from remora.demo.ports import reserved_addresses, split_address
from tests.proxy.network import port_of, reset_now, tcp_listener


async def call(method: str, url: str, pieces: tuple[bytes, ...] = ()) -> Report:
    with trio.fail_after(5):
        return await trio.to_thread.run_sync(request, method, url, Body(pieces))


@asynccontextmanager
async def app() -> AsyncGenerator[tuple[str, str]]:
    """The server on two ports."""
    with reserved_addresses(2) as (one, two):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, [one, two])  # noqa: ASYNC113
            await trio.testing.wait_all_tasks_blocked()
            yield one, two
            nursery.cancel_scope.cancel()


async def test_get_says_what_was_asked_for() -> None:
    async with app() as addresses:
        for address in addresses:
            report = await call("GET", f"http://{address}/a?secret=b")
            assert report.status == "200"
            assert report.error == ""
            assert "/a?secret=b" in report.body


async def test_post_says_what_was_received() -> None:
    pieces = (b"x" * 100_000, b"y", b"z" * 70_000)
    async with app() as (address, _):
        report = await call("POST", f"http://{address}/", pieces)
    digest = hashlib.sha256(b"".join(pieces)).hexdigest()
    assert report.status == "200"
    assert (report.sent, report.sha256) == (170_001, digest)
    assert f'"bytes": 170001, "sha256": "{digest}"' in report.body


async def test_the_server_keeps_a_connection() -> None:
    get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    async with app() as (address, _):
        async with await trio.open_tcp_stream(*split_address(address)) as client:
            for _ in range(2):
                await client.send_all(get)
                assert (await client.receive_some()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01\x00\x05hello", b"GET / HT", b""])
async def test_the_server_lives_on_after_nonsense(nonsense: bytes) -> None:
    async with app() as (address, _):
        async with await trio.open_tcp_stream(*split_address(address)) as client:
            await client.send_all(nonsense)
            await client.send_eof()
            with trio.fail_after(1):
                assert await client.receive_some() == b""
        assert (await call("GET", f"http://{address}/")).status == "200"


async def test_the_server_lives_on_after_a_reset() -> None:
    async with app() as (address, _):
        reset_now(await trio.open_tcp_stream(*split_address(address)))
        assert (await call("GET", f"http://{address}/")).status == "200"


async def test_a_closed_port_is_000_and_curls_exit_7() -> None:
    with reserved_addresses(1) as (nobody,):
        report = await call("GET", f"http://{nobody}/")
    assert (report.status, report.exit_code) == ("000", 7)


async def reset_it(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    reset_now(stream)


async def close_it(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.receive_some()


async def answer_half(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")


async def answer_nonsense(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.receive_some()
        await stream.send_all(b"\x15\x03\x03\x00\x02\x02\x30")


@pytest.mark.parametrize(
    ("behaviour", "exit_code"),
    [(reset_it, 56), (close_it, 52), (answer_half, 52), (answer_nonsense, 52)],
)
async def test_no_whole_answer_is_000_with_curls_exit_code(
    behaviour: Callable[[trio.SocketStream], Awaitable[None]], exit_code: int
) -> None:
    async with await tcp_listener() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, behaviour, [listener])
        report = await call("GET", f"http://127.0.0.1:{port_of(listener)}/")
        nursery.cancel_scope.cancel()
    assert (report.status, report.exit_code) == ("000", exit_code)
    assert report.error
