"""The accept loop: it survives shortages without spinning, and keeps to its limit."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from itertools import chain, repeat

import pytest
import trio
import trio.abc
import trio.testing
from structlog.testing import capture_logs

from proxy.listener import (
    DESCRIPTORS_EACH,
    SPARE_DESCRIPTORS,
    Handler,
    accept_forever,
    connection_limit,
)
from tests.proxy.network import connect, port_of, tcp_listener, tcp_pair


class ShortListener(trio.abc.Listener[trio.SocketStream]):
    """Fails with the given errors, then waits for ever; keeps the times of the attempts."""

    def __init__(self, *errors: int, streams: tuple[trio.SocketStream, ...] = ()) -> None:
        self._outcomes: Iterator[int | trio.SocketStream] = chain(errors, streams)
        self.attempts: list[float] = []
        self.closed = False

    async def accept(self) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        self.attempts.append(trio.current_time())
        match next(self._outcomes, None):
            case None:
                await trio.sleep_forever()
            case trio.SocketStream() as stream:
                return stream
            case int() as code:
                raise OSError(code, "out of something")
        raise AssertionError

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


async def accept(
    listener: trio.abc.Listener[trio.SocketStream], handler: Handler, limit: int = 10
) -> None:
    async with trio.open_nursery() as connections:
        slots = trio.Semaphore(limit)
        await accept_forever(listener, handler, connections=connections, slots=slots)


async def close(stream: trio.SocketStream) -> None:
    await stream.aclose()


async def test_shortages_are_waited_out_with_growing_pauses(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = await tcp_pair()
    listener = ShortListener(*repeat(errno.EMFILE, 12), streams=(far,))
    with trio.move_on_after(60):
        await accept(listener, close)
    waits = [
        later - sooner
        for sooner, later in zip(listener.attempts, listener.attempts[1:], strict=False)
    ]
    assert waits[:4] == pytest.approx([0.005, 0.01, 0.02, 0.04])
    assert max(waits) == pytest.approx(1.0)
    assert await near.receive_some() == b""
    assert listener.closed
    await near.aclose()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_each_shortage_is_survived(code: int, autojump_clock: trio.testing.MockClock) -> None:
    listener = ShortListener(code)
    with trio.move_on_after(1):
        await accept(listener, close)
    assert len(listener.attempts) == 2


async def test_other_errors_are_bugs_and_end_the_program() -> None:
    listener = ShortListener(errno.EINVAL)
    with pytest.RaisesGroup(OSError):
        await accept(listener, close)
    assert listener.closed


async def test_a_long_shortage_is_logged_once_a_minute(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with capture_logs() as lines, trio.move_on_after(90):
        await accept(ShortListener(*repeat(errno.EMFILE, 1_000)), close)
    assert [line["log_level"] for line in lines] == ["warning", "warning"]
    assert "raise the limit of open files" in lines[0]["event"]


async def test_connections_above_the_limit_wait_in_the_backlog() -> None:
    serving: list[trio.SocketStream] = []
    finish = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            serving.append(stream)
            await finish.wait()

    listener = await tcp_listener()
    port = port_of(listener)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept, listener, serve, 2)
        clients = [await connect(port) for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert len(serving) == 2
        finish.set()
        for client in clients:
            assert await client.receive_some() == b""
        assert len(serving) == 3
        nursery.cancel_scope.cancel()
    for client in clients:
        await client.aclose()


async def test_a_real_shortage_of_descriptors_is_survived() -> None:
    """The connection waits in the backlog and is served when there is a descriptor again."""
    listener = await tcp_listener()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept, listener, close)
        client = await connect(port_of(listener))
        assert await client.receive_some() == b""
        late = trio.socket.socket()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            await late.connect(listener.socket.getsockname())
            await trio.testing.wait_all_tasks_blocked(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await late.recv(1) == b""
        nursery.cancel_scope.cancel()
    late.close()
    await client.aclose()


def test_the_limit_follows_the_descriptors_we_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft in (1024, 20_000):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        limit = connection_limit()
        assert limit * DESCRIPTORS_EACH + SPARE_DESCRIPTORS <= soft
        assert limit > soft / 2 - SPARE_DESCRIPTORS
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 10))
    assert connection_limit() == 1
