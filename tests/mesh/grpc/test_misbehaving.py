"""Peers that break the rules, go silent, or flood: each ends cleanly, and the others live on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest
import trio
import trio.testing
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event, ResponseReceived, StreamReset, TrailersReceived
from hyperframe.frame import PingFrame

from mesh.grpc import Channel, GrpcError, Limits, Status, open_channel
from mesh.grpc.framing import encode_message
from tests.mesh.grpc.world import CHAT, UNARY, World, ask, channel_to, raw_connection, serving

LIMITS = Limits()
SOON = 5

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", UNARY.path),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


class RawClient:
    """An HTTP/2 client that does as it is told, over memory."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.h2 = H2Connection(H2Configuration(client_side=True, validate_outbound_headers=False))
        self.h2.initiate_connection()

    async def flush(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    async def begin(
        self, headers: Sequence[tuple[str, str]] = HEADERS, *, end: bool = False
    ) -> int:
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, list(headers), end_stream=end)
        with suppress(trio.BrokenResourceError):  # the server may hang up in the middle
            await self.flush()
        return number

    async def until(self, kind: type[Event]) -> Event:
        """Read until an event of `kind` comes."""
        with trio.fail_after(SOON):
            while data := await self.stream.receive_some(65536):
                for event in self.h2.receive_data(bytes(data)):
                    if isinstance(event, kind):
                        return event
                with suppress(trio.BrokenResourceError):  # the server may be gone already
                    await self.flush()
        pytest.fail(f"the connection ended without {kind.__name__}")

    async def status(self) -> Status:
        """Return the grpc-status of an answer, wherever it stands."""
        with trio.fail_after(SOON):
            while data := await self.stream.receive_some(65536):
                for event in self.h2.receive_data(bytes(data)):
                    if isinstance(event, ResponseReceived | TrailersReceived):
                        headers = dict(event.headers)
                        if b"grpc-status" in headers:
                            return Status(int(headers[b"grpc-status"]))
        pytest.fail("no status came")


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(range(256)),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 99,
    ],
)
async def test_garbage_ends_the_connection(garbage: bytes) -> None:
    async with raw_connection(World(), LIMITS) as client:
        await client.send_all(garbage)
        with trio.fail_after(SOON):
            while await client.receive_some(1000):
                pass


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\0\0\x50\0\0", Status.RESOURCE_EXHAUSTED),
        (b"\1\0\0\0\1x", Status.UNIMPLEMENTED),
        (b"\0\0\0\0\x09half", Status.INTERNAL),
        (b"", Status.INTERNAL),
        (encode_message(b"\xff\xff\xff"), Status.INTERNAL),
        (encode_message(b"") * 2, Status.INTERNAL),
    ],
)
async def test_broken_requests_get_a_status(body: bytes, status: Status) -> None:
    async with raw_connection(World(), LIMITS) as stream:
        client = RawClient(stream)
        number = await client.begin()
        client.h2.send_data(number, body, end_stream=True)
        await client.flush()
        assert await client.status() is status


async def test_what_is_not_grpc_gets_415() -> None:
    async with raw_connection(World(), LIMITS) as stream:
        client = RawClient(stream)
        await client.begin([*HEADERS[:-1], ("content-type", "text/html")], end=True)
        event = await client.until(ResponseReceived)
        assert isinstance(event, ResponseReceived)
        assert dict(event.headers)[b":status"] == b"415"


@pytest.mark.parametrize("text", ["", "1", "999999999S", "-5S"])
async def test_a_timeout_that_cannot_be_read_fails_the_call(text: str) -> None:
    async with raw_connection(World(), LIMITS) as stream:
        client = RawClient(stream)
        await client.begin([*HEADERS, ("grpc-timeout", text)], end=True)
        assert await client.status() is Status.INTERNAL


async def test_a_ping_flood_is_told_to_calm_down() -> None:
    async with raw_connection(World(), LIMITS) as stream:
        client = RawClient(stream)
        await client.flush()
        flood = PingFrame(0, opaque_data=b"12345678").serialize() * (LIMITS.pings_per_window + 1)
        await stream.send_all(flood)
        event = await client.until(ConnectionTerminated)
        assert isinstance(event, ConnectionTerminated)
        assert event.error_code == 0xB


async def test_a_rapid_reset_flood_is_told_to_calm_down() -> None:
    async with raw_connection(World(), LIMITS) as stream:
        client = RawClient(stream)
        for _ in range(LIMITS.resets_per_window + 1):
            number = client.h2.get_next_available_stream_id()
            client.h2.send_headers(number, HEADERS)
            client.h2.reset_stream(number)
        await client.flush()
        event = await client.until(ConnectionTerminated)
        assert isinstance(event, ConnectionTerminated)
        assert event.error_code == 0xB


async def test_huge_headers_end_the_connection() -> None:
    async with raw_connection(World(), LIMITS) as stream:
        client = RawClient(stream)
        await client.flush()
        await client.begin([*HEADERS, ("x-bomb", "x" * 60_000)])
        await client.until(ConnectionTerminated)


async def test_a_reset_cancels_the_handler() -> None:
    world = World()
    async with raw_connection(world, LIMITS) as stream:
        client = RawClient(stream)
        number = await client.begin()
        client.h2.send_data(
            number, encode_message(ask("wait").SerializeToString()), end_stream=True
        )
        await client.flush()
        with trio.fail_after(SOON):
            await world.waiting.wait()
            client.h2.reset_stream(number)
            await client.flush()
            await world.cancelled.wait()


async def test_a_lost_connection_cancels_the_handler() -> None:
    world = World()
    async with raw_connection(world, LIMITS) as stream:
        client = RawClient(stream)
        number = await client.begin()
        client.h2.send_data(
            number, encode_message(ask("wait").SerializeToString()), end_stream=True
        )
        await client.flush()
        with trio.fail_after(SOON):
            await world.waiting.wait()
            await stream.aclose()
            await world.cancelled.wait()


async def test_a_silent_client_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with raw_connection(World(), LIMITS) as client:
        start = trio.current_time()
        while await client.receive_some(1000):
            pass
        assert trio.current_time() - start == pytest.approx(LIMITS.preface_timeout)


async def test_an_idle_client_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    limits = Limits(idle_timeout=100)
    async with raw_connection(World(), limits) as stream:
        client = RawClient(stream)
        await client.flush()
        start = trio.current_time()
        await drain(client)
        assert 99 <= trio.current_time() - start <= 102


async def drain(client: RawClient) -> None:
    while data := await client.stream.receive_some(1000):
        client.h2.receive_data(bytes(data))
        await client.flush()


async def test_a_client_that_reads_nothing_stops_the_handler_and_not_the_server() -> None:
    """The stream's window shuts; the handler waits, and other calls go on."""
    async with serving(World(), LIMITS) as (port, _), channel_to(port, LIMITS) as channel:
        async with channel.stream(CHAT) as stuck:
            sent = 0
            with trio.move_on_after(0.5):
                while True:
                    await stuck.send(ask("x" * 100_000))
                    sent += 1
            assert 0 < sent < 100
            answer = await channel.unary(UNARY, ask("fine"), timeout=SOON)
            assert answer.version_info == "fine"


async def test_drain_lets_open_calls_finish_and_takes_no_more() -> None:
    async with serving(World(), LIMITS) as (port, server), channel_to(port, LIMITS) as channel:
        async with channel.stream(CHAT) as call, trio.open_nursery() as nursery:
            await call.send(ask("one"))
            assert (await anext(call)).version_info == "one"
            nursery.start_soon(server.drain, SOON)
            with trio.fail_after(SOON):
                assert await refusal(channel) is Status.UNAVAILABLE
            await call.send(ask("two"))
            assert (await anext(call)).version_info == "two"
            await call.done_sending()
            assert [response async for response in call] == []


async def refusal(channel: Channel) -> Status:
    """Make calls until one is refused."""
    while True:
        try:
            await channel.unary(UNARY, ask("late"), timeout=SOON)
        except GrpcError as error:
            return error.code


async def test_drain_cuts_what_does_not_end() -> None:
    async with serving(World(), LIMITS) as (port, server), channel_to(port, LIMITS) as channel:
        async with channel.stream(CHAT) as call:
            await call.send(ask("one"))
            await anext(call)
            await server.drain(0.1)
            with pytest.raises(GrpcError) as caught, trio.fail_after(SOON):
                await anext(call)
            assert caught.value.code is Status.UNAVAILABLE


class RawServer:
    """An HTTP/2 server in memory that answers one request with what the test says."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.h2 = H2Connection(H2Configuration(client_side=False, validate_outbound_headers=False))
        self.h2.initiate_connection()

    async def answer(
        self, headers: list[tuple[str, str]] | None, trailers: list[tuple[str, str]] | None
    ) -> None:
        while data := await self.stream.receive_some(65536):
            for event in self.h2.receive_data(bytes(data)):
                if type(event).__name__ == "StreamEnded":
                    if headers is not None:
                        self.h2.send_headers(1, headers, end_stream=trailers is None)
                        if trailers is not None:
                            self.h2.send_headers(1, trailers, end_stream=True)
                    else:
                        await self.stream.aclose()
                        return
            await self.stream.send_all(self.h2.data_to_send())


OK = [(":status", "200"), ("content-type", "application/grpc")]


@pytest.mark.parametrize(
    ("headers", "trailers", "status"),
    [
        ([(":status", "503")], None, Status.UNAVAILABLE),
        ([(":status", "401")], None, Status.UNAUTHENTICATED),
        ([(":status", "200"), ("content-type", "text/html")], None, Status.UNKNOWN),
        (OK, None, Status.INTERNAL),
        ([*OK, ("grpc-status", "5")], None, Status.NOT_FOUND),
        (OK, [("grpc-status", "16")], Status.UNAUTHENTICATED),
        (OK, [("grpc-status", "x")], Status.UNKNOWN),
        (OK, [("grpc-status", "99")], Status.UNKNOWN),
        (OK, [("grpc-status", "0")], Status.INTERNAL),
        (None, None, Status.UNAVAILABLE),
    ],
)
async def test_odd_answers_become_a_status(
    headers: list[tuple[str, str]] | None,
    trailers: list[tuple[str, str]] | None,
    status: Status,
    nursery: trio.Nursery,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(RawServer(theirs).answer, headers, trailers)

    async def connected() -> trio.abc.Stream:
        return ours

    with trio.fail_after(SOON):
        async with open_channel(connected) as channel:
            with pytest.raises(GrpcError) as caught:
                await channel.unary(UNARY, ask("x"))
    assert caught.value.code is status
    nursery.cancel_scope.cancel()


async def test_a_server_that_went_silent_is_noticed(autojump_clock: trio.testing.MockClock) -> None:
    ours, _theirs = trio.testing.memory_stream_pair()

    async def connected() -> trio.abc.Stream:
        return ours

    start = trio.current_time()
    async with open_channel(connected) as channel:
        with pytest.raises(GrpcError) as caught:
            await channel.unary(UNARY, ask("x"))
    assert caught.value.code is Status.UNAVAILABLE
    waited = trio.current_time() - start
    assert waited <= 2 * (LIMITS.keepalive_interval or 0) + LIMITS.keepalive_timeout


async def test_our_deadline_resets_the_call(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    ours, theirs = trio.testing.memory_stream_pair()

    async def connected() -> trio.abc.Stream:
        return ours

    async with trio.open_nursery() as nursery:
        client_saw: list[Event] = []

        async def server() -> None:
            h2 = RawServer(theirs)
            while data := await theirs.receive_some(65536):
                client_saw.extend(h2.h2.receive_data(bytes(data)))
                await theirs.send_all(h2.h2.data_to_send())

        nursery.start_soon(server)
        async with open_channel(connected) as channel:
            with pytest.raises(GrpcError) as caught:
                await channel.unary(UNARY, ask("wait"), timeout=3)
            assert caught.value.code is Status.DEADLINE_EXCEEDED
            await trio.testing.wait_all_tasks_blocked()
            assert any(isinstance(event, StreamReset) for event in client_saw)
        nursery.cancel_scope.cancel()
    assert not world.waiting.is_set()
