"""A service with every kind of call and every way to end, and servers and channels for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
import trio.testing

from mesh.grpc import (
    Channel,
    GrpcError,
    GrpcServer,
    Limits,
    Method,
    Peer,
    ServerCall,
    Service,
    Status,
    StreamingCall,
    accept_plain,
    open_channel,
    serve_grpc,
)
from mesh.protos.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

UNARY = Method("/test.Echo/Unary", DiscoveryRequest, DiscoveryResponse)
COUNT = Method("/test.Echo/Count", DiscoveryRequest, DiscoveryResponse)
CHAT = Method("/test.Echo/Chat", DiscoveryRequest, DiscoveryResponse)
MISSING = Method("/test.Echo/Missing", DiscoveryRequest, DiscoveryResponse)

Chat = StreamingCall[DiscoveryRequest, DiscoveryResponse]


def ask(text: str) -> DiscoveryRequest:
    return DiscoveryRequest(version_info=text)


class World:
    """The service, and what its handlers saw."""

    def __init__(self) -> None:
        self.service = Service()
        self.service.unary(UNARY, self.unary)
        self.service.streaming(COUNT, self.count)
        self.service.streaming(CHAT, self.chat)
        self.waiting = trio.Event()
        self.cancelled = trio.Event()

    async def unary(self, request: DiscoveryRequest, call: ServerCall) -> DiscoveryResponse:
        match request.version_info:
            case "missing":
                raise GrpcError(Status.NOT_FOUND, "not here: 100 % schade, \u00fc")
            case "bug":
                raise ZeroDivisionError
            case "wait":
                await self.wait()
            case _:
                pass
        call.trailing_metadata.append(("x-trailer", "t"))
        call.trailing_metadata.append(("x-trailer-bin", b"\0\xff"))
        values = call.metadata.get_all("x-name")
        return DiscoveryResponse(version_info=request.version_info, nonce=",".join(values))

    async def count(self, call: Chat) -> None:
        async for request in call:
            for number in range(int(request.version_info)):
                await call.send(DiscoveryResponse(version_info=str(number)))

    async def chat(self, call: Chat) -> None:
        call.send_initial_metadata([("x-first", "early")])
        async for request in call:
            if request.version_info == "wait":
                await self.wait()
            await call.send(DiscoveryResponse(version_info=request.version_info))

    async def wait(self) -> None:
        self.waiting.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()


@asynccontextmanager
async def serving(world: World, limits: Limits) -> AsyncGenerator[tuple[int, GrpcServer]]:
    """Serve on a real port."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[GrpcServer]) -> None:
            await serve_grpc(
                world.service,
                listeners,
                accept=accept_plain,
                limits=limits,
                task_status=task_status,
            )

        yield port, await nursery.start(run)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def channel_to(port: int, limits: Limits) -> AsyncGenerator[Channel]:
    async def connect() -> trio.abc.Stream:
        return await trio.open_tcp_stream("127.0.0.1", port)

    async with open_channel(connect, limits=limits) as made:
        yield made


@asynccontextmanager
async def raw_connection(
    world: World, limits: Limits
) -> AsyncGenerator[
    trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]
]:
    """Serve one connection in memory; the test is the client, byte by byte."""
    ours, theirs = trio.testing.memory_stream_pair()
    server = GrpcServer(world.service, accept_plain, limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, theirs, Peer(address="memory"))
        yield ours
        nursery.cancel_scope.cancel()
