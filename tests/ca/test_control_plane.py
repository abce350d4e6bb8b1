"""The whole control plane on real sockets, with somebody else's gRPC as its client."""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from typer.testing import CliRunner

from ca.discovery.held import AUTHORIZATION_POLICY
from mesh.api import DELTA_AGGREGATED_RESOURCES
from mesh.discovery.codec import decode_resource
from mesh.discovery.node import ProxyNode, encode_node
from mesh.protos.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from remora.cli import app
from remora.resources.status import fetch_status
from tests.ca.store.test_catalog import BAD, GOOD
from tests.ca.test_server import Ca, bearer, make_config, running_ca

NODE = encode_node(
    ProxyNode(name="web-1", namespace="foo", service_account="web", labels={"app": "web"})
)
DENY = GOOD.replace("namespace: app", "namespace: foo")


class Client:
    """An incremental xDS client on grpcio."""

    def __init__(self, call: Any, requests: queue.Queue[DeltaDiscoveryRequest | None]) -> None:
        self._call = call
        self._requests = requests
        self.responses: queue.Queue[DeltaDiscoveryResponse | grpc.RpcError] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            for response in self._call:
                self.responses.put(response)
        except grpc.RpcError as error:
            self.responses.put(error)

    async def say(self, **fields: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._requests.put(DeltaDiscoveryRequest(**fields))

    async def hear(self) -> Any:
        return await trio.to_thread.run_sync(self.responses.get, True, 10)


@contextmanager
def client(ca: Ca, token: str) -> Generator[Client]:
    requests: queue.Queue[DeltaDiscoveryRequest | None] = queue.Queue()
    with grpc.secure_channel(ca.target, grpc.ssl_channel_credentials(ca.root)) as channel:
        method = channel.stream_stream(
            DELTA_AGGREGATED_RESOURCES.path,
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )
        call = method(until_none(requests), metadata=bearer(token))
        try:
            yield Client(call, requests)
        finally:
            requests.put(None)
            call.cancel()


def until_none(
    requests: queue.Queue[DeltaDiscoveryRequest | None],
) -> Iterator[DeltaDiscoveryRequest]:
    while (request := requests.get()) is not None:
        yield request


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncGenerator[Ca]:
    async with running_ca(make_config(tmp_path)) as running:
        yield running


async def ask(one: Client) -> DeltaDiscoveryResponse:
    await one.say(type_url=AUTHORIZATION_POLICY, node=NODE, resource_names_subscribe=["*"])
    response: DeltaDiscoveryResponse = await one.hear()
    await one.say(type_url=AUTHORIZATION_POLICY, response_nonce=response.nonce)
    return response


async def test_a_foreign_client_follows_the_directory(ca: Ca) -> None:
    resources = ca.config.resources_dir
    with client(ca, ca.token()) as one:
        assert list((await ask(one)).resources) == []
        (resources / "a.yaml").write_text(DENY)
        response = await one.hear()
        policy = decode_resource(AUTHORIZATION_POLICY, response.resources[0])
        assert policy.key == "foo/p"
        await one.say(type_url=AUTHORIZATION_POLICY, response_nonce=response.nonce)
        (resources / "a.yaml").write_text(DENY.replace("DENY", "DENI"))
        (resources / "b.yaml").write_text(DENY.replace("name: p", "name: q"))
        response = await one.hear()
        assert [one.name for one in response.resources] == ["foo/q"]
        assert list(response.removed_resources) == []
        await one.say(type_url=AUTHORIZATION_POLICY, response_nonce=response.nonce)
        (resources / "a.yaml").unlink()
        assert list((await one.hear()).removed_resources) == ["foo/p"]


async def test_a_name_that_never_was_good_is_announced_without_a_body(ca: Ca) -> None:
    (ca.config.resources_dir / "a.yaml").write_text(BAD.replace("namespace: app", "namespace: foo"))
    with client(ca, ca.token()) as one:
        response = await ask(one)
        if not response.resources:
            response = await one.hear()
        assert [one.name for one in response.resources] == ["foo/p"]
        with pytest.raises(Exception, match="could not read it"):
            decode_resource(AUTHORIZATION_POLICY, response.resources[0])


async def test_strangers_learn_nothing(ca: Ca) -> None:
    with client(ca, "junk") as one:
        await one.say(type_url=AUTHORIZATION_POLICY, node=NODE)
        error = await one.hear()
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert error.details() == "request authenticate failure"
    foreign = encode_node(ProxyNode(name="x", namespace="bar", service_account="web"))
    with client(ca, ca.token()) as one:
        await one.say(type_url=AUTHORIZATION_POLICY, node=foreign)
        error = await one.hear()
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "the caller is spiffe://cluster.local/ns/foo/sa/web" in error.details()


async def status(ca: Ca, done: Callable[[Any], bool]) -> Any:
    with trio.fail_after(10):
        while not done(report := await fetch_status(ca.config.state_dir)):  # noqa: ASYNC110
            await trio.sleep(0.01)
    return report


async def test_the_operator_sees_who_has_what(ca: Ca) -> None:
    (ca.config.resources_dir / "bad.yaml").write_text("kind: Nothing\n")
    with client(ca, ca.token()) as one:
        await one.say(type_url=AUTHORIZATION_POLICY, node=NODE, resource_names_subscribe=["*"])
        response = await one.hear()
        kind = AUTHORIZATION_POLICY
        report = await status(ca, lambda it: bool(it.problems) and bool(it.proxies))
        assert report.proxies[0].types[kind].state == "STALE"
        assert "bad.yaml:1" in report.problems[0]
        await one.say(type_url=kind, response_nonce=response.nonce)
        report = await status(ca, lambda it: it.proxies[0].types[kind].state == "SYNCED")
        assert report.proxies[0].types[kind].version == response.system_version_info
        (ca.config.resources_dir / "a.yaml").write_text(DENY)
        response = await one.hear()
        await one.say(
            type_url=kind, response_nonce=response.nonce, error_detail={"message": "too new"}
        )
        report = await status(ca, lambda it: it.proxies[0].types[kind].state == "ERROR")
        command = ["proxy-status", "--state-dir", str(ca.config.state_dir)]
        printed = await trio.to_thread.run_sync(lambda: CliRunner().invoke(app, command))
        head, line = printed.stdout.splitlines()
        assert head.split() == ["NAME", "MESH", "PA", "AP", "RA", "WE", "DR", "SE", "VERSION"]
        assert line.split() == ["web-1.foo", "IGNORED", "IGNORED", "ERROR", *["IGNORED"] * 4]
        assert "web-1.foo: AuthorizationPolicy: too new" in printed.stderr
    await status(ca, lambda it: not it.proxies)


def test_status_without_a_control_plane_is_said_plainly(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["proxy-status", "--state-dir", str(tmp_path)])
    assert "cannot ask the control plane" in str(result.exception)
