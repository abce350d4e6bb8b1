"""Streams of discovery through the agent, whose control plane is in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.abc
import trio.testing

from agent.ca_client import CaClient
from agent.discovery import DiscoveryForwarder, NoDiscovery
from agent.entitlement import SingleIdentity
from mesh.api import DELTA_AGGREGATED_RESOURCES
from mesh.grpc import (
    ClientCall,
    GrpcError,
    GrpcServer,
    Limits,
    Peer,
    Service,
    Status,
    StreamingCall,
    accept_plain,
    open_channel,
)
from mesh.protos.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from mesh.spiffe import SpiffeId
from mesh.unix_socket import PeerCredentials
from tests.agent.fake_ca import IDENTITY, FakeCa, fixed_now, make_client, make_config

LIMITS = Limits(keepalive_interval=None, idle_timeout=None)
ME = Peer(address="memory", credentials=PeerCredentials(pid=1, uid=0, gid=0))


class Discovering(FakeCa):
    """A control plane that answers each request with its own type, and remembers tokens."""

    tokens: list[str]
    refusal: GrpcError | None = None

    def add_services(self, service: Service) -> None:
        service.streaming(DELTA_AGGREGATED_RESOURCES, self.discover)

    async def discover(
        self, call: StreamingCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]
    ) -> None:
        self.tokens.append(",".join(call.metadata.get_all("authorization")))
        async for request in call:
            if self.refusal is not None:
                raise self.refusal
            await call.send(DeltaDiscoveryResponse(type_url=request.type_url, nonce="n"))


@asynccontextmanager
async def proxy_stream(
    nursery: trio.Nursery, client: CaClient | None, identity: SpiffeId | None = IDENTITY
) -> AsyncGenerator[ClientCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]]:
    service = Service()
    DiscoveryForwarder(SingleIdentity(lambda: identity), lambda _: client).register(service)

    async def connect() -> trio.abc.Stream:
        near, far = trio.testing.memory_stream_pair()
        nursery.start_soon(GrpcServer(service, accept_plain, LIMITS).serve_stream, far, ME)
        return near

    async with (
        open_channel(connect, limits=LIMITS) as channel,
        channel.stream(DELTA_AGGREGATED_RESOURCES) as call,
    ):
        yield call


async def asked(nursery: trio.Nursery, client: CaClient) -> None:
    async with proxy_stream(nursery, client) as call:
        await call.send(DeltaDiscoveryRequest(type_url="a"))
        await ended(call)


async def ended(call: ClientCall[Any, DeltaDiscoveryResponse]) -> None:
    async for _ in call:
        pass


@pytest.fixture
async def ca(nursery: trio.Nursery) -> Discovering:
    made = Discovering(now=fixed_now, nursery=nursery)
    made.tokens = []
    return made


async def test_a_stream_is_passed_on_both_ways_with_the_agents_proof(
    ca: Discovering, nursery: trio.Nursery, tmp_path: Path
) -> None:
    client = make_client(make_config(tmp_path, ca), ca)
    async with proxy_stream(nursery, client) as call:
        for url in ("a", "b"):
            await call.send(DeltaDiscoveryRequest(type_url=url))
            async for response in call:
                assert (response.type_url, response.nonce) == (url, "n")
                break
        await call.done_sending()
        await ended(call)
    assert ca.tokens == ["Bearer a.token.of-httpbin"]


async def test_what_the_control_plane_refuses_reaches_the_proxy(
    ca: Discovering, nursery: trio.Nursery, tmp_path: Path
) -> None:
    ca.refusal = GrpcError(Status.PERMISSION_DENIED, "the node says it is somebody else")
    client = make_client(make_config(tmp_path, ca), ca)
    with pytest.raises(GrpcError) as caught:
        await asked(nursery, client)
    assert caught.value.code is Status.PERMISSION_DENIED
    assert caught.value.message == "the node says it is somebody else"


async def test_a_control_plane_that_is_away_is_unavailable(
    ca: Discovering, nursery: trio.Nursery, tmp_path: Path
) -> None:
    ca.up = False
    client = make_client(make_config(tmp_path, ca), ca)
    with pytest.raises(GrpcError) as caught:
        async with proxy_stream(nursery, client) as call:
            await ended(call)
    assert caught.value.code is Status.UNAVAILABLE
    assert "cannot connect to the CA" in caught.value.message


@pytest.mark.parametrize("identity", [None, IDENTITY])
async def test_without_an_identity_there_is_nobody_to_speak_for(
    nursery: trio.Nursery, identity: SpiffeId | None
) -> None:
    with pytest.raises(GrpcError) as caught:
        async with proxy_stream(nursery, None, identity) as call:
            await ended(call)
    assert caught.value.code is Status.UNAVAILABLE


def test_an_agent_of_mounted_files_offers_no_discovery() -> None:
    service = Service()
    NoDiscovery().register(service)
    assert service.handlers == {}
