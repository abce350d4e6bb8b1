"""The whole agent on real sockets: a real CA connection, and somebody else's gRPC as client."""

from __future__ import annotations

import os
import queue
import stat
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import structlog.testing
import trio
import trio.testing

from agent.config import AgentConfig, CaAddress
from agent.server import Running, serve
from mesh.api import SECRET_TYPE_URL, STREAM_SECRETS
from mesh.errors import ConfigError
from mesh.grpc import ClientCall, GrpcError, Status, open_channel
from mesh.protos.discovery_pb2 import DiscoveryRequest, DiscoveryResponse, Node
from mesh.protos.secret_pb2 import Secret
from mesh.spiffe import SpiffeId
from mesh.svid import X509Svid
from mesh.unix_socket import open_unix_stream
from tests.agent.callers import PYTHON, CallerProcess, calling, copy_of_python
from tests.agent.fake_ca import IDENTITY, FakeCa, make_config
from tests.pki import make_root, real_now

NOBODY = 65534

SecretsCall = ClientCall[DiscoveryRequest, DiscoveryResponse]

ASK = DiscoveryRequest(
    node=Node(id="sidecar~1"), resource_names=["default", "ROOTCA"], type_url=SECRET_TYPE_URL
)


@pytest.fixture
def directory() -> Generator[Path]:
    # Not pytest's own, whose paths are long, and which other users cannot enter.
    with tempfile.TemporaryDirectory(prefix="remora-") as name:
        yield Path(name)


@asynccontextmanager
async def ca_on_tcp(nursery: trio.Nursery) -> AsyncGenerator[tuple[FakeCa, CaAddress]]:
    ca = FakeCa(now=real_now, nursery=nursery, root=make_root(now=real_now()))
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    with trio.CancelScope() as scope:  # noqa: ASYNC100
        nursery.start_soon(trio.serve_listeners, ca.serve, [listener])  # noqa: ASYNC113
        yield ca, CaAddress(host="127.0.0.1", port=port)
        scope.cancel()


async def start(nursery: trio.Nursery, config: AgentConfig) -> Running:
    async def run(task_status: trio.TaskStatus[Running]) -> None:
        await serve(config, now=real_now, task_status=task_status)

    running = await nursery.start(run)
    assert isinstance(running, Running)
    return running


def secrets_of(response: DiscoveryResponse) -> dict[str, Secret]:
    return {s.name: s for s in (Secret.FromString(r.value) for r in response.resources)}


def loaded(response: DiscoveryResponse) -> X509Svid:
    certificate = secrets_of(response)["default"].tls_certificate
    return X509Svid.parse_pem(
        certificate.certificate_chain.inline_bytes, certificate.private_key.inline_bytes
    )


async def test_end_to_end(directory: Path, nursery: trio.Nursery) -> None:
    async with ca_on_tcp(nursery) as (ca, address):
        config = make_config(directory, ca, ca_address=address)
        with structlog.testing.capture_logs() as logs:
            running = await start(nursery, config)
            async with (
                open_channel(lambda: open_unix_stream(running.socket)) as channel,
                channel.stream(STREAM_SECRETS) as call,
            ):
                await call.send(ASK)
                with trio.fail_after(10):
                    response = await anext(call)
    assert loaded(response).id == IDENTITY
    assert set(secrets_of(response)) == {"default", "ROOTCA"}
    assert "agent ready" in [line["event"] for line in logs]


class GrpcioClient:
    """grpcio's idea of an SDS client, in threads of its own."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._requests: queue.SimpleQueue[DiscoveryRequest | None] = queue.SimpleQueue()
        stream = self._channel.stream_stream(
            STREAM_SECRETS.path,
            request_serializer=DiscoveryRequest.SerializeToString,
            response_deserializer=DiscoveryResponse.FromString,
        )
        self._responses = stream(iter(self._requests.get, None), timeout=20)

    def exchange(self, request: DiscoveryRequest) -> DiscoveryResponse:
        self._requests.put(request)
        return self.next()

    def next(self) -> DiscoveryResponse:
        response: DiscoveryResponse = next(self._responses)
        return response

    def send(self, request: DiscoveryRequest) -> None:
        self._requests.put(request)

    def close(self) -> None:
        self._requests.put(None)
        self._responses.cancel()
        self._channel.close()


@contextmanager
def grpcio_client(socket: Path) -> Generator[GrpcioClient]:
    client = GrpcioClient(socket)
    try:
        yield client
    finally:
        client.close()


async def test_grpcio_as_client_through_renewals(directory: Path, nursery: trio.Nursery) -> None:
    async with ca_on_tcp(nursery) as (ca, address):
        ca.life = timedelta(seconds=3)
        running = await start(nursery, make_config(directory, ca, ca_address=address))
        with grpcio_client(running.socket) as client:
            first = await trio.to_thread.run_sync(client.exchange, ASK)
            assert set(secrets_of(first)) == {"default", "ROOTCA"}
            ack = DiscoveryRequest(resource_names=ASK.resource_names, response_nonce=first.nonce)
            client.send(ack)
            second = await trio.to_thread.run_sync(client.next)
            assert set(secrets_of(second)) == {"default"}
            assert loaded(second).serial != loaded(first).serial
            assert loaded(second).key.private_numbers() != loaded(first).key.private_numbers()


async def test_grpcio_gets_invalid_argument(directory: Path, nursery: trio.Nursery) -> None:
    running = await start(nursery, make_config(directory))
    with grpcio_client(running.socket) as client:
        bad = DiscoveryRequest(node=Node(id="x"), resource_names=["other"])
        with pytest.raises(grpc.RpcError) as caught:
            await trio.to_thread.run_sync(client.exchange, bad)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "only default, ROOTCA" in caught.value.details()


async def test_socket_is_private_and_removed(directory: Path) -> None:
    config = make_config(directory)
    async with trio.open_nursery() as nursery:
        await start(nursery, config)
        assert stat.S_IMODE(config.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(config.socket.parent.stat().st_mode) == 0o700
        nursery.cancel_scope.cancel()
    assert not config.socket.exists()


async def test_ready_while_the_ca_is_down(directory: Path, nursery: trio.Nursery) -> None:
    config = make_config(directory, ca_address=CaAddress(host="127.0.0.1", port=1))
    with trio.fail_after(5):
        running = await start(nursery, config)
    assert running.socket.is_socket()


async def test_two_agents_on_one_socket(directory: Path, nursery: trio.Nursery) -> None:
    config = make_config(directory)
    await start(nursery, config)
    with pytest.raises(ConfigError, match="another process is listening"):
        await serve(config, now=real_now)
    assert config.socket.is_socket()


def at_long_path(directory: Path) -> Path:
    return directory / ("x" * 100) / "agent.sock"


def at_file(directory: Path) -> Path:
    (directory / "agent.sock").write_text("not a socket")
    return directory / "agent.sock"


def at_open_directory(directory: Path) -> Path:
    (directory / "open").mkdir()
    (directory / "open").chmod(0o777)
    return directory / "open" / "agent.sock"


def at_missing_parent(directory: Path) -> Path:
    return directory / "no" / "where" / "agent.sock"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (at_long_path, "more than 107 bytes"),
        (at_file, "is not a socket"),
        (at_open_directory, "writable by others"),
        (at_missing_parent, "No such file"),
    ],
)
async def test_socket_that_cannot_be_had(
    directory: Path, place: Callable[[Path], Path], words: str
) -> None:
    config = make_config(directory, socket=place(directory))
    with pytest.raises(ConfigError, match=words):
        await serve(config, now=real_now)


@contextmanager
def acting_as(uid: int) -> Generator[None]:
    own = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(own)


async def connect_as(uid: int, socket: Path) -> trio.SocketStream:
    # The kernel records the effective user of the moment of connect().
    with acting_as(uid):
        return await open_unix_stream(socket)


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs to act as another user")


def open_door(directory: Path) -> Path:
    directory.chmod(0o711)
    (directory / "run").mkdir(mode=0o711)
    return directory / "run" / "agent.sock"


async def answered(stream: trio.SocketStream) -> bool:
    async with stream:
        try:
            with trio.fail_after(5):
                return bool(await stream.receive_some(1))
        except trio.BrokenResourceError:
            return False


@root_only
async def test_other_users_cannot_reach_the_socket(directory: Path, nursery: trio.Nursery) -> None:
    running = await start(nursery, make_config(directory, socket=open_door(directory)))
    with pytest.raises(PermissionError):
        await connect_as(NOBODY, running.socket)


@root_only
@pytest.mark.parametrize(("uid", "served"), [(NOBODY, True), (NOBODY - 1, False), (0, True)])
async def test_users_by_flag(
    directory: Path, nursery: trio.Nursery, uid: int, served: bool
) -> None:
    config = make_config(directory, socket=open_door(directory), allow_uids=(NOBODY,))
    with structlog.testing.capture_logs() as logs:
        running = await start(nursery, config)
        # A gRPC server greets first, so a caller that is served hears something.
        assert await answered(await connect_as(uid, running.socket)) is served
    refused = [line for line in logs if line.get("reason") == "caller_refused"]
    assert bool(refused) is not served
    assert not [line for line in logs if "cannot reach" in line["event"]]


async def test_warning_when_users_by_flag_are_shut_out(
    directory: Path, nursery: trio.Nursery
) -> None:
    with structlog.testing.capture_logs() as logs:
        await start(nursery, make_config(directory, allow_uids=(NOBODY,)))
    [line] = [line for line in logs if "cannot reach" in line["event"]]
    assert line["directory"] == str(directory / "run")


async def test_refused_caller_does_not_stop_the_agent(
    directory: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 4242)
    monkeypatch.setattr("agent.attest.ROOT_UID", 4242)
    running = await start(nursery, make_config(directory))
    for _ in range(3):
        assert not await answered(await open_unix_stream(running.socket))


# A whole node ------------------------------------------------------------------------------

SLEEP = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/sleep")


def entry(identity: SpiffeId, *selectors: str) -> str:
    return f"- spiffeId: {identity}\n  selectors: {list(selectors)}\n"


@asynccontextmanager
async def node(
    directory: Path, nursery: trio.Nursery, *entries: str
) -> AsyncGenerator[tuple[Path, Path]]:
    """Run a node's agent; yields its socket and its registration file."""
    directory.chmod(0o711)
    file = directory / "registration.yaml"
    file.write_text("entries:\n" + "".join(entries))
    async with ca_on_tcp(nursery) as (ca, address):
        config = make_config(directory, ca, ca_address=address, account=None, registration=file)
        running = await start(nursery, config)
        yield running.socket, file


@asynccontextmanager
async def asking(caller: CallerProcess) -> AsyncGenerator[SecretsCall]:
    async def connected() -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        return caller.stream

    async with open_channel(connected) as channel, channel.stream(STREAM_SECRETS) as call:
        await call.send(ASK)
        yield call


@root_only
async def test_each_caller_of_a_node_gets_its_own_identity(
    directory: Path, nursery: trio.Nursery
) -> None:
    entries = entry(IDENTITY, f"unix:uid:{NOBODY}"), entry(SLEEP, "unix:uid:0")
    async with node(directory, nursery, *entries) as (socket, _file):
        assert stat.S_IMODE(socket.stat().st_mode) == 0o666
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o755
        for user, identity in ((NOBODY, IDENTITY), (None, SLEEP)):
            with calling(socket, user=user) as caller:
                async with asking(caller) as call:
                    assert loaded(await anext(call)).id == identity


@root_only
async def test_an_unknown_caller_gets_nothing(directory: Path, nursery: trio.Nursery) -> None:
    async with node(directory, nursery, entry(IDENTITY, "unix:uid:12345")) as (socket, _file):
        with calling(socket, user=NOBODY) as caller:
            async with asking(caller) as call:
                with pytest.raises(GrpcError) as caught:
                    await anext(call)
    assert caught.value.code is Status.PERMISSION_DENIED
    assert caught.value.message == "no identity issued"


async def test_the_executable_decides(directory: Path, nursery: trio.Nursery) -> None:
    made = copy_of_python(directory)
    entries = entry(IDENTITY, f"unix:path:{made}"), entry(SLEEP, f"unix:path:{PYTHON}")
    async with node(directory, nursery, *entries) as (socket, _file):
        for python, identity in ((made, IDENTITY), (PYTHON, SLEEP)):
            with calling(socket, python=python) as caller:
                async with asking(caller) as call:
                    assert loaded(await anext(call)).id == identity


async def test_a_caller_that_ends_loses_its_stream_even_if_another_holds_it(
    directory: Path, nursery: trio.Nursery
) -> None:
    async with node(directory, nursery, entry(IDENTITY, f"unix:uid:{os.geteuid()}")) as (
        socket,
        _file,
    ):
        with calling(socket) as caller:
            async with asking(caller) as call:
                await anext(call)
                caller.end()
                with pytest.raises(GrpcError) as caught:
                    await anext(call)
    assert caught.value.code is Status.UNAVAILABLE


async def test_changed_entries_reach_open_streams(
    directory: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.watch.INTERVAL", 0.02)
    uid = os.geteuid()
    async with node(directory, nursery, entry(IDENTITY, f"unix:uid:{uid}")) as (socket, file):
        with calling(socket) as caller:
            async with asking(caller) as call:
                assert loaded(await anext(call)).id == IDENTITY
                file.write_text("entries:\n" + entry(SLEEP, f"unix:uid:{uid}"))
                assert loaded(await anext(call)).id == SLEEP
                file.write_text("entries: []")
                with pytest.raises(GrpcError) as caught:
                    await anext(call)
    assert caught.value.code is Status.PERMISSION_DENIED
