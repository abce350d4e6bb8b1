from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx2
import pytest
import trio
import trio.testing

import mesh.http_endpoint
from mesh.http_endpoint import Page, serve_pages

PAGES = {
    "/metrics": lambda: Page(body=b"up 1\n"),
    "/ready": lambda: Page(status=503, body=b"no certificate yet\n"),
}


@pytest.fixture
async def port(nursery: trio.Nursery) -> AsyncGenerator[int]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(serve_pages, PAGES, listeners)
    yield listeners[0].socket.getsockname()[1]
    nursery.cancel_scope.cancel()


@asynccontextmanager
async def client(port: int) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as foreign:
        yield foreign


async def test_pages_for_a_foreign_client_over_one_connection(port: int) -> None:
    async with client(port) as foreign:
        for _ in range(3):
            answer = await foreign.get("/metrics?x=1")
            assert (answer.status_code, answer.text) == (200, "up 1\n")
        head = await foreign.head("/metrics")
        assert (head.status_code, head.headers["content-length"], head.text) == (200, "5", "")
        assert (await foreign.get("/ready")).status_code == 503
        missing = await foreign.get("/")
        assert (missing.status_code, missing.text) == (404, "/metrics\n/ready\n")
        assert (await foreign.post("/metrics", content=b"x" * 10_000)).status_code == 405


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 100_000]
)
async def test_whoever_does_not_speak_http_is_dropped(port: int, junk: bytes) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        with trio.fail_after(5):
            try:
                await stream.send_all(junk)
                await stream.send_eof()
                while await stream.receive_some(1000):
                    pass
            except trio.BrokenResourceError:
                pass
    async with client(port) as foreign:
        assert (await foreign.get("/metrics")).status_code == 200


async def test_a_silent_client_is_dropped(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh.http_endpoint, "REQUEST_DEADLINE", 0.05)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        with trio.fail_after(5):
            assert await stream.receive_some(1) == b""


async def test_connections_are_limited(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(64)]
    async with client(port) as foreign:
        with pytest.raises(httpx2.HTTPError):
            await foreign.get("/metrics")
    await streams[0].aclose()
    await trio.testing.wait_all_tasks_blocked(0.05)
    async with client(port) as foreign:
        assert (await foreign.get("/metrics")).status_code == 200
    for stream in streams:
        await stream.aclose()
