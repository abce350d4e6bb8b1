"""What a caller without a name can do to a server, and how a server stops."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import structlog.testing
import trio
import trio.abc
import trio.testing
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated

from mesh.grpc import GrpcError, Limits, Peer, Service, Status, serve_grpc
from mesh.grpc.server import GrpcServer
from tests.mesh.grpc.world import CHAT, UNARY, World, ask, channel_to, raw_connection, serving

SOON = 5
HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test.Echo/Unary"),
    (":authority", "x"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


async def ended(stream: trio.abc.Stream) -> bool:
    """Tell whether the server ends a connection soon; close our side."""
    with trio.move_on_after(SOON):
        return await _ended(stream)
    return False


async def _ended(stream: trio.abc.Stream) -> bool:
    async with stream:
        try:
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            return True
    return True


async def test_who_was_never_answered_makes_room_for_the_next() -> None:
    limits = Limits(connections=2, unanswered_patience=0)
    async with serving(World(), limits) as (port, _), AsyncExitStack() as stack:
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        for stream in silent:
            stack.push_async_callback(stream.aclose)
            assert await stream.receive_some(1), "the server greets"
        channel = await stack.enter_async_context(channel_to(port, limits))
        assert (await channel.unary(UNARY, ask("a"), timeout=SOON)).version_info == "a"
        assert await ended(silent[0])


async def test_callers_without_a_name_have_fewer_places_than_others() -> None:
    limits = Limits(connections=10, unanswered_connections=1, unanswered_patience=0)
    async with serving(World(), limits) as (port, _), AsyncExitStack() as stack:
        for text in ("a", "b", "c"):
            channel = await stack.enter_async_context(channel_to(port, limits))
            assert (await channel.unary(UNARY, ask(text), timeout=SOON)).version_info == text
        silent = await trio.open_tcp_stream("127.0.0.1", port)
        assert await silent.receive_some(1), "the server greets"
        other = await trio.open_tcp_stream("127.0.0.1", port)
        stack.push_async_callback(other.aclose)
        assert await other.receive_some(1)
        assert await ended(silent)


async def test_who_has_just_come_keeps_its_place_and_the_next_must_come_again() -> None:
    """A thousand clients at once must not throw each other out."""
    limits = Limits(connections=1, unanswered_patience=60)
    async with serving(World(), limits) as (port, _):
        async with await trio.open_tcp_stream("127.0.0.1", port) as first:
            assert await first.receive_some(1), "the server greets"
            assert await ended(await trio.open_tcp_stream("127.0.0.1", port))
            with trio.move_on_after(0.05) as still_there:
                while await first.receive_some(1000):
                    pass
            assert still_there.cancelled_caught


async def test_who_was_answered_keeps_its_place() -> None:
    limits = Limits(connections=1)
    with structlog.testing.capture_logs() as logs:
        async with serving(World(), limits) as (port, _), channel_to(port, limits) as channel:
            await channel.unary(UNARY, ask("a"), timeout=SOON)
            late = await trio.open_tcp_stream("127.0.0.1", port)
            assert await ended(late)
            await channel.unary(UNARY, ask("b"), timeout=SOON)
            assert await ended(await trio.open_tcp_stream("127.0.0.1", port))
    assert [line["log_level"] for line in logs if "limit reached" in line["event"]] == ["warning"]


@pytest.mark.parametrize("path", ["/test.Echo/Unary", "/test.Echo/Chat"])
async def test_a_call_without_a_request_ends(
    path: str, autojump_clock: trio.testing.MockClock
) -> None:
    limits = Limits(request_timeout=10, keepalive_interval=None)
    async with raw_connection(World(), limits) as stream:
        client = Client(stream)
        start = trio.current_time()
        client.h2.send_headers(1, [(k, path if k == ":path" else v) for k, v in HEADERS])
        headers = await client.last_headers()
        assert headers[b"grpc-status"] == b"%d" % Status.DEADLINE_EXCEEDED
        assert trio.current_time() - start == pytest.approx(10)


async def test_a_unary_request_without_an_end_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = Limits(request_timeout=10, keepalive_interval=None)
    async with raw_connection(World(), limits) as stream:
        client = Client(stream)
        client.h2.send_headers(1, HEADERS)
        client.h2.send_data(1, b"\0\0\0\0\0")
        headers = await client.last_headers()
        assert headers[b"grpc-status"] == b"%d" % Status.DEADLINE_EXCEEDED


async def test_a_stream_may_be_silent_after_its_first_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05  # the socket is real: what is under way is waited for
    limits = Limits(request_timeout=10)
    async with serving(World(), limits) as (port, _), channel_to(port, limits) as channel:
        async with channel.stream(CHAT) as call:
            await call.send(ask("one"))
            await anext(call)
            await trio.sleep(100)
            await call.send(ask("two"))
            assert (await anext(call)).version_info == "two"


async def test_a_client_that_vanished_is_noticed(autojump_clock: trio.testing.MockClock) -> None:
    world, limits = World(), Limits()
    async with raw_connection(world, limits) as stream:
        client = Client(stream)
        client.h2.send_headers(1, HEADERS)
        client.h2.send_data(1, b"\0\0\0\0\6\x0a\4wait", end_stream=True)
        await client.flush()
        await world.waiting.wait()
        start = trio.current_time()
        await world.cancelled.wait()
        waited = trio.current_time() - start
        assert waited <= 2 * (limits.keepalive_interval or 0) + limits.keepalive_timeout


async def test_a_caller_without_an_answer_is_stopped_by_flow_control() -> None:
    limits = Limits(unanswered_bytes=100_000)
    async with raw_connection(World(), limits) as stream:
        client = Client(stream)
        await client.settle()
        sent = 0
        for number in range(1, 20, 2):
            client.h2.send_headers(number, HEADERS)
            if not client.h2.local_flow_control_window(number):
                continue
            client.h2.send_data(
                number, b"\0\0\x10\0\0"
            )  # a message of 1 MiB, of which little comes
            sent += 5
            while room := min(client.h2.local_flow_control_window(number), 16384):
                client.h2.send_data(number, bytes(room))
                sent += room
                await client.settle()
        assert sent == 100_000


async def test_an_answer_opens_the_windows() -> None:
    limits = Limits(unanswered_bytes=100_000)
    large = ask("x" * 3_000_000)
    async with serving(World(), limits) as (port, _), channel_to(port, limits) as channel:
        await channel.unary(UNARY, ask("who I am"), timeout=SOON)
        answer = await channel.unary(UNARY, large, timeout=SOON)
        assert answer.version_info == large.version_info


async def test_what_came_before_the_answer_is_given_back() -> None:
    limits = Limits(unanswered_bytes=100_000)
    async with raw_connection(World(), limits) as stream:
        client = Client(stream)
        await client.settle()
        client.h2.send_headers(1, HEADERS)
        client.h2.send_data(1, b"\0\0\x01\0\0")
        for _ in range(4):
            client.h2.send_data(1, bytes(15_000))
        await client.settle()
        assert client.h2.local_flow_control_window(1) < 40_000
        client.h2.send_headers(3, HEADERS)
        client.h2.send_data(3, b"\0\0\0\0\0", end_stream=True)
        await client.settle()
        assert client.h2.local_flow_control_window(1) > 200_000


async def test_a_bug_in_one_connection_leaves_the_others(nursery: trio.Nursery) -> None:
    world, crashes = World(), iter([ZeroDivisionError()])

    async def accept(stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer]:
        await trio.lowlevel.checkpoint()
        for crash in crashes:
            raise crash
        return stream, Peer(address="x")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def run(task_status: trio.TaskStatus[GrpcServer]) -> None:
        await serve_grpc(world.service, listeners, accept=accept, task_status=task_status)

    with structlog.testing.capture_logs() as logs:
        await nursery.start(run)
        assert await ended(await trio.open_tcp_stream("127.0.0.1", port))
        async with channel_to(port, Limits()) as channel:
            await channel.unary(UNARY, ask("fine"), timeout=SOON)
    assert any(line["log_level"] == "error" and line["exc_info"] for line in logs)
    nursery.cancel_scope.cancel()


async def test_a_server_that_is_stopped_says_so_and_lets_unary_calls_end() -> None:
    world = World()
    release = trio.Event()

    async def wait() -> None:
        world.waiting.set()
        await release.wait()

    world.wait = wait  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[GrpcServer]) -> None:
            with scope:
                await serve_grpc(world.service, listeners, task_status=task_status)

        await nursery.start(run)
        async with channel_to(port, Limits()) as channel, channel.stream(CHAT) as chat:
            await chat.send(ask("a"))
            await anext(chat)
            async with trio.open_nursery() as calls:
                calls.start_soon(expect, channel, "wait")
                await world.waiting.wait()
                scope.cancel()
                await trio.testing.wait_all_tasks_blocked(0.01)
                with pytest.raises(OSError, match="all attempts"):
                    await trio.open_tcp_stream("127.0.0.1", port)
                release.set()
            with pytest.raises(GrpcError) as caught, trio.fail_after(SOON):
                await anext(chat)
            assert caught.value.code is Status.UNAVAILABLE


async def test_a_server_that_is_cancelled_while_it_starts_ends() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(SOON), trio.CancelScope() as scope:
        scope.cancel()
        await serve_grpc(World().service, listeners)
    assert scope.cancelled_caught
    for listener in listeners:
        await listener.aclose()


async def expect(channel: object, text: str) -> None:
    answer = await channel.unary(UNARY, ask(text), timeout=SOON)  # type: ignore[attr-defined]
    assert answer.version_info == text


class Client:
    """An HTTP/2 client whose every frame the test decides."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.h2.initiate_connection()

    async def flush(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    async def settle(self) -> None:
        """Exchange frames until nothing more happens."""
        await self.flush()
        while True:
            with trio.move_on_after(0.02) as quiet:
                self.h2.receive_data(bytes(await self.stream.receive_some(65536)))
                await self.flush()
            if quiet.cancelled_caught:
                return

    async def last_headers(self) -> dict[bytes, bytes]:
        """Return the headers that end a call."""
        await self.flush()
        while data := await self.stream.receive_some(65536):
            for event in self.h2.receive_data(bytes(data)):
                assert not isinstance(event, ConnectionTerminated)
                headers = dict(getattr(event, "headers", []) or [])
                if b"grpc-status" in headers:
                    return headers
            await self.flush()
        raise AssertionError("no status came")


async def test_a_server_that_is_cancelled_before_it_is_up_ends() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(5), trio.CancelScope() as scope:
        scope.cancel()
        await serve_grpc(Service(), listeners)
    assert scope.cancelled_caught
    await listeners[0].aclose()
