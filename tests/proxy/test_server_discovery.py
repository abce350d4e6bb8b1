"""The whole proxy under a control plane: when it opens, what it enforces, and live changes."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from mesh.address import Address
from mesh.errors import ConfigError
from mesh.resources.mesh_config import MeshConfig, OutboundMode, OutboundTrafficPolicy
from mesh.resources.values import Resource
from proxy.config import Discovery, Inbound, Outbound, ProxyConfig
from proxy.identity import Identity, IdentityStore
from proxy.last_good import FILE_NAME
from proxy.server import Running, serve
from tests.pki import NOW, Authority, make_root
from tests.proxy.control import resources
from tests.proxy.fake_control_plane import ControlPlane, served
from tests.proxy.network import SERVER_ID, connect, receive_until_broken
from tests.proxy.rig import app_on, client, dial_tls, round_trip, tls_server
from tests.proxy.test_admission import ONLY_SLEEP, STRICT
from tests.proxy.test_discovery import written
from tests.proxy.test_outbound import keeping

ANY = Address("127.0.0.1", 0)


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="remora-") as name:
        yield Path(name)


@pytest.fixture
def identity(root: Authority, monkeypatch: pytest.MonkeyPatch) -> Identity:
    """Stand in for SDS: the identity is there at once."""
    made = Identity(svid=root.issue(str(SERVER_ID)), bundles=root.bundle())

    async def follow(_path: object, _state: object, store: IdentityStore, _now: object) -> None:
        store.publish(made)
        await trio.sleep_forever()

    monkeypatch.setattr("proxy.server.follow_identity", follow)
    return made


def config_for(folder: Path, *ports: Inbound | Outbound, state: str = "") -> ProxyConfig:
    return ProxyConfig(
        agent_socket=folder / "s",
        inbound=tuple(port for port in ports if isinstance(port, Inbound)),
        outbound=tuple(port for port in ports if isinstance(port, Outbound)),
        discovery=Discovery(
            name="httpbin-1",
            labels={"app": "httpbin"},
            state_dir=folder / state if state else None,
        ),
    )


@asynccontextmanager
async def running(config: ProxyConfig) -> AsyncIterator[Running]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(serve, config, now=lambda: NOW))
        nursery.cancel_scope.cancel()


def way_in(app: int) -> Inbound:
    return Inbound(listen=ANY, app=Address("127.0.0.1", app))


def way_out(host: str, port: int) -> Outbound:
    return Outbound(listen=ANY, destination=Address(host, port))


async def test_a_proxy_enforces_what_its_control_plane_says(
    root: Authority, folder: Path, identity: Identity
) -> None:
    plane = ControlPlane(*resources(f"{STRICT}\n---\n{ONLY_SLEEP}"))
    async with app_on() as app, served(plane, folder / "s"):
        async with running(config_for(folder, way_in(app))) as ways:
            port = ways.inbound[0].port
            stream = await dial_tls(port, client(root))
            assert await round_trip(stream, b"hello") == b"hello"
            await stream.aclose()
            other = root.issue("spiffe://cluster.local/ns/foo/sa/other")
            refused = await dial_tls(port, client(root, svid=other))
            assert await receive_until_broken(refused) == b""
            await trio.aclose_forcefully(refused)
            async with await connect(port) as plain:
                await plain.send_all(b"hello")
                assert await receive_until_broken(plain) == b""
    (node,) = plane.nodes
    assert (node.namespace, node.service_account, node.name) == ("foo", "httpbin", "httpbin-1")
    assert node.labels == {"app": "httpbin"}


async def test_the_ports_stay_closed_until_there_is_a_policy(
    folder: Path, identity: Identity, autojump_clock: trio.testing.MockClock
) -> None:
    async with app_on() as app:
        with capture_logs() as lines, trio.move_on_after(20):
            async with running(config_for(folder, way_in(app))):
                raise AssertionError("a proxy without a policy was ready")
    assert "proxy ready" not in [line["event"] for line in lines]


async def test_the_last_good_policies_are_enforced_when_nobody_answers(
    root: Authority, folder: Path, identity: Identity
) -> None:
    async with app_on() as app:
        config = config_for(folder, way_in(app), state="kept")
        async with served(ControlPlane(*resources(STRICT)), folder / "s"), running(config):
            await written(folder / "kept" / FILE_NAME)
        async with running(config) as ways, await connect(ways.inbound[0].port) as plain:
            await plain.send_all(b"hello")
            assert await receive_until_broken(plain) == b""


async def test_a_change_reaches_open_connections_of_a_running_proxy(
    root: Authority, folder: Path, identity: Identity
) -> None:
    plane = ControlPlane()
    async with app_on() as app, served(plane, folder / "s"):
        async with running(config_for(folder, way_in(app))) as ways:
            mutual = await dial_tls(ways.inbound[0].port, client(root))
            plain = await connect(ways.inbound[0].port)
            for stream in (mutual, plain):
                await stream.send_all(b"before")
                assert await stream.receive_some() == b"before"
            with capture_logs() as lines:
                await plane.change(*resources(STRICT))
                assert await receive_until_broken(plain) == b""
            assert await round_trip(mutual, b"after") == b"after"
            await trio.aclose_forcefully(mutual)
            await trio.aclose_forcefully(plain)
    assert "policy_changed" in [line.get("reason") for line in lines]


def service(port: int, *, account: str = "httpbin", host: str = "httpbin.test") -> Resource:
    (one,) = resources(f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: httpbin, namespace: foo}}
spec:
  hosts: [{host}]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 8000, name: tcp, protocol: TCP, targetPort: {port}}}]
  endpoints: [{{address: 127.0.0.1, serviceAccount: {account}}}]
""")
    return one


async def test_a_service_of_the_registry_is_reached_by_mutual_tls(
    root: Authority, folder: Path, identity: Identity
) -> None:
    async with app_on(tls_server(root)) as far, served(ControlPlane(service(far)), folder / "s"):
        async with running(config_for(folder, way_out("httpbin.test", 8000))) as ways:
            async with await connect(ways.outbound[0].port) as app:
                assert await round_trip(app, b"hello") == b"hello"


async def test_an_impostor_of_a_service_gets_no_byte(
    root: Authority, folder: Path, identity: Identity
) -> None:
    received = bytearray()
    impostor = keeping(received, root, root.issue(str(SERVER_ID)))
    async with app_on(impostor) as far:
        plane = ControlPlane(service(far, account="other"))
        config = config_for(folder, way_out("httpbin.test", 8000))
        with capture_logs() as lines:
            async with served(plane, folder / "s"), running(config) as ways:
                async with await connect(ways.outbound[0].port) as app:
                    await app.send_all(b"secret")
                    assert await receive_until_broken(app) == b""
    assert received == b""
    assert "wrong_identity" in [line.get("reason") for line in lines]


async def test_registry_only_blocks_what_is_unknown(folder: Path, identity: Identity) -> None:
    only = MeshConfig(
        outbound_traffic_policy=OutboundTrafficPolicy(mode=OutboundMode.REGISTRY_ONLY)
    )
    async with app_on() as far, served(ControlPlane(config=only), folder / "s"):
        with capture_logs() as lines:
            async with running(config_for(folder, way_out("127.0.0.1", far))) as ways:
                async with await connect(ways.outbound[0].port) as app:
                    assert await receive_until_broken(app) == b""
    assert "outbound_blocked" in [line.get("reason") for line in lines]


async def test_only_the_services_that_are_called_are_asked_for(
    folder: Path, identity: Identity
) -> None:
    plane = ControlPlane()
    async with served(plane, folder / "s"):
        async with running(config_for(folder, way_out("b.test", 1), way_out("a.test", 2))):
            pass
    assert plane.subscribed["networking.istio.io/v1/ServiceEntry"] == ["a.test", "b.test"]


async def test_an_identity_that_is_no_service_account_is_told_so(
    root: Authority, folder: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = replace(identity, svid=root.issue("spiffe://cluster.local/odd"))

    async def follow(_path: object, _state: object, store: IdentityStore, _now: object) -> None:
        store.publish(odd)

    monkeypatch.setattr("proxy.server.follow_identity", follow)
    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigError, match="give --mtls-mode to do without"),
        flatten_subgroups=True,
    ):
        await serve(config_for(folder, way_in(1)), now=lambda: NOW)
