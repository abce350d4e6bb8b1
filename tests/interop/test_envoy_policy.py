"""A real Envoy on either side of our proxy, under policies that our proxy follows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from mesh.resources.values import Resource
from proxy.config import Discovery, parse_outbound
from proxy.discovery import follow_policy
from tests.interop.envoy import running
from tests.interop.mesh import LocalMesh, exchange, serve_app, way_in
from tests.interop.test_envoy import (
    CLIENT,
    CLIENT_ID,
    SERVER,
    SERVER_ID,
    envoy_client,
    envoy_server,
    exchange_or_reset,
    folder_for,
    handshakes,
    logged,
)
from tests.proxy.control import resources
from tests.proxy.fake_control_plane import ControlPlane, served
from tests.proxy.rig import echo

pytestmark = pytest.mark.e2e

WORKLOAD = Discovery(name="workload", labels={"app": "httpbin"})

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: foo}
spec: {mtls: {mode: STRICT}}
"""


def allow(account: str) -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: allow-{account}, namespace: foo}}
spec:
  selector: {{matchLabels: {{app: httpbin}}}}
  rules: [{{from: [{{source: {{principals: [cluster.local/ns/foo/sa/{account}]}}}}]}}]
"""


def service(port: int, account: str, labels: str = "") -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: httpbin, namespace: foo}}
spec:
  hosts: [httpbin.test]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: {port}}}]
  endpoints: [{{address: 127.0.0.1, serviceAccount: {account}{labels}}}]
"""


@asynccontextmanager
async def policies(
    mesh: LocalMesh, monkeypatch: pytest.MonkeyPatch, *texts: str
) -> AsyncIterator[ControlPlane]:
    """Serve resources to the proxies that are started in the block."""
    plane = ControlPlane(*read(*texts))
    socket = mesh.folder / "plane" / "s"

    async def follow(_agent: Path, *rest: object) -> None:
        await partial(follow_policy, socket, *rest)()  # type: ignore[arg-type]

    monkeypatch.setattr("proxy.server.follow_policy", follow)
    async with served(plane, socket):
        yield plane


def read(*texts: str) -> tuple[Resource, ...]:
    return resources("\n---\n".join(texts))


async def test_an_envoy_client_is_let_in_or_denied_by_its_identity(
    mesh: LocalMesh, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await serve_app(nursery, echo)
    async with policies(mesh, monkeypatch, STRICT, allow("sleep")) as plane:
        ours = await mesh.start_proxy(
            await mesh.start_agent(SERVER), inbound=way_in(app, None), discovery=WORKLOAD
        )
        sidecar = await envoy_client(mesh, SERVER_ID, ours.inbound[0].port)
        async with running(sidecar, folder_for(mesh)) as envoy:
            assert await exchange(sidecar.listen, b"hello") == b"hello"
            with capture_logs() as lines:
                await plane.change(*read(STRICT, allow("other")))
                await acknowledged(plane)
                assert await exchange_or_reset(sidecar.listen) == b""
                await logged(lines, "rbac_access_denied")
            assert await handshakes(envoy, "cluster.forward") == 2
    (line,) = [line for line in lines if line.get("reason") == "rbac_access_denied"]
    assert line["peer_id"] == CLIENT_ID
    assert line["response_code_details"] == "rbac_access_denied_matched_policy[none]"


async def test_an_open_connection_of_an_envoy_is_closed_by_a_new_policy(
    mesh: LocalMesh, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await serve_app(nursery, echo)
    async with policies(mesh, monkeypatch, STRICT) as plane:
        ours = await mesh.start_proxy(
            await mesh.start_agent(SERVER), inbound=way_in(app, None), discovery=WORKLOAD
        )
        sidecar = await envoy_client(mesh, SERVER_ID, ours.inbound[0].port)
        async with running(sidecar, folder_for(mesh)):
            async with await trio.open_tcp_stream("127.0.0.1", sidecar.listen) as stream:
                await stream.send_all(b"before")
                assert await stream.receive_some() == b"before"
                with capture_logs() as lines, trio.fail_after(30):
                    await plane.change(*read(STRICT, allow("other")))
                    with suppress(trio.BrokenResourceError):
                        assert await stream.receive_some() == b""
                    await logged(lines, "policy_changed")


async def test_an_envoy_without_a_certificate_meets_strict(
    mesh: LocalMesh, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port takes plaintext at first; a new policy makes it STRICT."""
    app = await serve_app(nursery, echo)
    async with policies(mesh, monkeypatch) as plane:
        ours = await mesh.start_proxy(
            await mesh.start_agent(SERVER), inbound=way_in(app, None), discovery=WORKLOAD
        )
        assert await exchange(ours.inbound[0].port, b"hello") == b"hello"
        await plane.change(*read(STRICT))
        await acknowledged(plane)
        assert await exchange_or_reset(ours.inbound[0].port) == b""


async def test_our_proxy_reaches_an_envoy_by_the_registry_and_no_impostor(
    mesh: LocalMesh, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar = await envoy_server(mesh, CLIENT_ID, await serve_app(nursery, echo))
    async with running(sidecar, folder_for(mesh)) as envoy:
        good = service(sidecar.listen, "httpbin")
        async with policies(mesh, monkeypatch, good) as plane:
            ours = await mesh.start_proxy(
                await mesh.start_agent(CLIENT),
                outbound=parse_outbound(["127.0.0.1:0=httpbin.test:80"]),
                discovery=replace(WORKLOAD, labels={}),
            )
            port = ours.outbound[0].port
            assert await exchange(port, b"hello") == b"hello"
            assert await handshakes(envoy, f"listener.127.0.0.1_{sidecar.listen}") == 1
            with capture_logs() as lines:
                await plane.change(*read(service(sidecar.listen, "other")))
                await acknowledged(plane)
                assert await exchange_or_reset(port) == b""
                await logged(lines, "wrong_identity")


async def acknowledged(plane: ControlPlane) -> None:
    """Wait until everything that was sent is in force."""
    with trio.fail_after(30):
        while len(plane.acks) < plane.responses:  # noqa: ASYNC110 - the fake has no event for it
            await trio.sleep(0.005)
