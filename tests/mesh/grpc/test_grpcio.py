"""grpcio at the other end: as client of our server, and as server of our client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
import trio

from mesh.grpc import GrpcError, Limits, Status
from mesh.protos.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from tests.mesh.grpc.world import CHAT, COUNT, MISSING, UNARY, World, ask, channel_to, serving

pytestmark = pytest.mark.e2e

BIG = 3_000_000
MANY = 150


async def with_grpcio(port: int, work: Callable[[grpc.Channel], Any]) -> Any:
    """Run `work` in a thread with a grpcio channel to our server."""

    def run() -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            return work(channel)

    with trio.fail_after(30):
        return await trio.to_thread.run_sync(run)


def unary(channel: grpc.Channel, path: str = UNARY.path) -> Any:
    return channel.unary_unary(
        path,
        request_serializer=DiscoveryRequest.SerializeToString,
        response_deserializer=DiscoveryResponse.FromString,
    )


def stream(channel: grpc.Channel, path: str) -> Any:
    return channel.stream_stream(
        path,
        request_serializer=DiscoveryRequest.SerializeToString,
        response_deserializer=DiscoveryResponse.FromString,
    )


def failure(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), error.details()


async def test_grpcio_calls_us() -> None:
    def work(channel: grpc.Channel) -> None:
        metadata = [("x-name", "a"), ("x-name", "b")]
        response, call = unary(channel).with_call(ask("hello"), metadata=metadata, timeout=10)
        assert (response.version_info, response.nonce) == ("hello", "a,b")
        assert dict(call.trailing_metadata()) == {"x-trailer": "t", "x-trailer-bin": b"\0\xff"}
        assert len(unary(channel)(ask("x" * BIG), timeout=10).version_info) == BIG
        counted = stream(channel, COUNT.path)(iter([ask("300")]), timeout=10)
        assert [response.version_info for response in counted] == [str(n) for n in range(300)]
        chat = stream(channel, CHAT.path)((ask("y" * 100_000) for _ in range(MANY)), timeout=20)
        assert sum(len(response.version_info) for response in chat) == MANY * 100_000
        assert dict(chat.initial_metadata())["x-first"] == "early"

    async with serving(World(), Limits()) as (port, _):
        await with_grpcio(port, work)


async def test_grpcio_sees_our_failures() -> None:
    def work(channel: grpc.Channel) -> None:
        call = unary(channel)
        code, text = failure(lambda: call(ask("missing"), timeout=10))
        assert (code, text) == (grpc.StatusCode.NOT_FOUND, "not here: 100 % schade, \u00fc")
        code, text = failure(lambda: call(ask("bug"), timeout=10))
        assert (code, text) == (grpc.StatusCode.INTERNAL, "internal error")
        code, _ = failure(lambda: call(ask("x" * 5_000_000), timeout=10))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        code, _ = failure(lambda: unary(channel, "/test.Echo/Missing")(ask(""), timeout=10))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert call(ask("still there"), timeout=10).version_info == "still there"

    async with serving(World(), Limits()) as (port, _):
        await with_grpcio(port, work)


async def test_a_deadline_of_grpcios_cancels_our_handler() -> None:
    world = World()
    async with serving(world, Limits()) as (port, _):
        code, _ = await with_grpcio(
            port, lambda channel: failure(lambda: unary(channel)(ask("wait"), timeout=0.3))
        )
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        with trio.fail_after(10):
            await world.cancelled.wait()


async def test_grpcio_giving_up_cancels_our_handler() -> None:
    world = World()
    async with serving(world, Limits()) as (port, _):

        def work(channel: grpc.Channel) -> None:
            pending = unary(channel).future(ask("wait"))
            trio.from_thread.run(world.waiting.wait)
            pending.cancel()

        await with_grpcio(port, work)
        with trio.fail_after(10):
            await world.cancelled.wait()


class Foreign(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The same service on grpcio."""

    def service(self, handler_call_details: Any) -> Any:
        types = (DiscoveryRequest.FromString, DiscoveryResponse.SerializeToString)
        match handler_call_details.method:
            case UNARY.path:
                return grpc.unary_unary_rpc_method_handler(self.unary, *types)
            case COUNT.path:
                return grpc.unary_stream_rpc_method_handler(self.count, *types)
            case CHAT.path:
                return grpc.stream_stream_rpc_method_handler(self.chat, *types)
            case _:
                return None

    def unary(self, request: DiscoveryRequest, context: Any) -> DiscoveryResponse:
        if request.version_info == "missing":
            context.abort(grpc.StatusCode.NOT_FOUND, "not here: 100 % schade, \u00fc")
        names = [value for key, value in context.invocation_metadata() if key == "x-name"]
        context.set_trailing_metadata([("x-trailer-bin", b"\0\xff")])
        return DiscoveryResponse(version_info=request.version_info, nonce=",".join(names))

    def count(self, request: DiscoveryRequest, _context: Any) -> Iterator[DiscoveryResponse]:
        for number in range(int(request.version_info)):
            yield DiscoveryResponse(version_info=str(number))

    def chat(self, requests: Any, context: Any) -> Iterator[DiscoveryResponse]:
        context.send_initial_metadata([("x-first", "early")])
        for request in requests:
            yield DiscoveryResponse(version_info=request.version_info)


@pytest.fixture
def foreign_port() -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Foreign(),))
    port: int = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait()


async def test_we_call_grpcio(foreign_port: int) -> None:
    with trio.fail_after(30):
        async with channel_to(foreign_port, Limits()) as channel:
            answer = await channel.unary(
                UNARY, ask("hello"), metadata=[("x-name", "a"), ("x-name", "b")], timeout=10
            )
            assert (answer.version_info, answer.nonce) == ("hello", "a,b")
            big = await channel.unary(UNARY, ask("x" * BIG), timeout=10)
            assert len(big.version_info) == BIG
            async with channel.stream(COUNT) as call:
                await call.send(ask("300"))
                await call.done_sending()
                assert [got.version_info async for got in call] == [str(n) for n in range(300)]


async def test_we_chat_with_grpcio(foreign_port: int) -> None:
    total = 0
    with trio.fail_after(30):
        async with (
            channel_to(foreign_port, Limits()) as channel,
            channel.stream(CHAT) as call,
            trio.open_nursery() as nursery,
        ):

            async def talk() -> None:
                for _ in range(MANY):
                    await call.send(ask("y" * 100_000))
                await call.done_sending()

            nursery.start_soon(talk)
            async for response in call:
                total += len(response.version_info)
            assert (await call.initial_metadata()).get("x-first") == "early"
    assert total == MANY * 100_000


async def test_we_see_grpcios_failures(foreign_port: int) -> None:
    with trio.fail_after(30):
        async with channel_to(foreign_port, Limits()) as channel:
            with pytest.raises(GrpcError) as caught:
                await channel.unary(UNARY, ask("missing"), timeout=10)
            assert caught.value.code is Status.NOT_FOUND
            assert caught.value.message == "not here: 100 % schade, \u00fc"
            with pytest.raises(GrpcError) as caught:
                await channel.unary(MISSING, ask(""), timeout=10)
            assert caught.value.code is Status.UNIMPLEMENTED
            with pytest.raises(GrpcError) as caught:
                await channel.unary(UNARY, ask("x" * 5_000_000), timeout=10)
            assert caught.value.code is Status.RESOURCE_EXHAUSTED
