"""Real programs by their commands: a CA, agents, proxies, and policies applied to them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from remora.demo.processes import Crew, Part, open_crew
from tests.interop.mesh import exchange, serve_app
from tests.interop.test_envoy import exchange_or_reset, free_port
from tests.proxy.rig import echo

pytestmark = pytest.mark.e2e

JSON = ("--log-format", "json")

PATIENCE = 50
"""Seconds for what takes a moment: machines that run tests are busy."""

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: foo}
spec: {mtls: {mode: STRICT}}
"""


def denial(port: int) -> str:
    """By the port that the registry has, which is not the app's."""
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: no-sleep, namespace: foo}}
spec:
  selector: {{matchLabels: {{app: httpbin}}}}
  action: DENY
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/foo/sa/sleep]}}}}]
    to: [{{operation: {{ports: ["{port}"]}}}}]
"""


def registry(port: int) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {{name: httpbin, namespace: foo}}
spec:
  metadata: {{labels: {{app: httpbin}}}}
  template: {{serviceAccount: httpbin, ports: {{tcp: {port}}}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: httpbin, namespace: foo}}
spec:
  hosts: [httpbin.test]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: tcp, protocol: TCP}}]
  workloadSelector: {{labels: {{app: httpbin}}}}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="remora-") as name:
        yield Path(name)


class Programs:
    """The programs of one mesh, by their commands; those of another crew end with that."""

    def __init__(self, crew: Crew, folder: Path) -> None:
        self.crew = crew
        self.folder = folder
        self.state = str(folder / "ca")
        self.listen = f"127.0.0.1:{free_port()}"

    async def start_ca(self, crew: Crew) -> Part:
        part = await crew.start(
            "ca", "remora", "ca", "serve", "--state-dir", self.state, "--listen", self.listen, *JSON
        )
        await part.ready("ca ready")
        return part

    async def start_agent(self, account: str) -> Path:
        name = account.replace("/", "-")
        token = await self.crew.run(
            f"token-{name}",
            *("remora", "token", "create", "--state-dir", self.state),
            *("--service-account", account),
        )
        file, socket = self.folder / f"{name}.token", self.folder / name / "s"
        file.write_text(token)
        part = await self.crew.start(
            f"agent-{name}",
            *("remora", "agent", "run", "--socket", str(socket), "--ca-address", self.listen),
            *("--ca-root-cert", f"{self.state}/root-cert.pem", "--token-file", str(file), *JSON),
        )
        await part.ready("certificate obtained")
        return socket

    async def start_proxy(self, crew: Crew, name: str, socket: Path, *flags: str) -> Part:
        part = await crew.start(
            name, "remora", "proxy", "run", "--agent-socket", str(socket), *flags, *JSON
        )
        await part.ready("proxy ready")
        return part

    async def apply(self, *texts: str) -> None:
        file = self.folder / "apply.yaml"
        file.write_text("\n---\n".join(texts))
        await self.crew.run("apply", "remora", "apply", "-f", str(file), "--state-dir", self.state)

    async def delete(self, kind: str, name: str) -> None:
        arguments = ("remora", "delete", kind, name, "-n", "foo", "--state-dir", self.state)
        await self.crew.run("delete", *arguments)

    async def connected(self) -> set[str]:
        """Return the names of the proxies that the control plane knows."""
        arguments = ("remora", "proxy-status", "-o", "json", "--state-dir", self.state)
        status = json.loads(await self.crew.run("status", *arguments))
        return {proxy["name"] for proxy in status["proxies"]}


async def logged(part: Part, reason: str) -> None:
    with trio.fail_after(PATIENCE):
        await part.log.find(lambda line: line.facts.get("reason") == reason)


async def until_served(port: int) -> None:
    """Wait until a connection gets through: what was applied takes a moment to arrive."""
    with trio.fail_after(PATIENCE):
        while await exchange_or_reset(port) == b"":  # noqa: ASYNC110 - no event reaches us
            await trio.sleep(0.05)


async def test_a_mesh_of_real_programs(folder: Path, nursery: trio.Nursery) -> None:
    app = await serve_app(nursery, echo)
    way_in, way_out, metrics = free_port(), free_port(), free_port()
    server = (
        *("--inbound", f"127.0.0.1:{way_in}=127.0.0.1:{app}", "--address", "127.0.0.1"),
        # Its label app=httpbin, by which a policy selects it, is its group's.
        *("--workload-group", "httpbin", "--name", "httpbin-1"),
        *("--state-dir", str(folder / "kept"), "--metrics-listen", f"127.0.0.1:{metrics}"),
    )
    client = ("--outbound", f"127.0.0.1:{way_out}=httpbin.test:80", "--name", "sleep-1")
    async with open_crew() as crew:
        mesh = Programs(crew, folder)
        async with open_crew() as to_be_ended:
            await mesh.start_ca(to_be_ended)
            await mesh.apply(registry(way_in), STRICT)
            server_socket = await mesh.start_agent("foo/httpbin")
            client_socket = await mesh.start_agent("foo/sleep")
            ours = await mesh.start_proxy(to_be_ended, "server", server_socket, *server)
            theirs = await mesh.start_proxy(crew, "client", client_socket, *client)
            await finds_and_secures_its_way(theirs, way_in, way_out)
            await obeys_a_new_policy(mesh, ours, way_in, way_out)
            await counts_its_decisions(metrics)
        again = await mesh.start_proxy(crew, "server-again", server_socket, *server)
        await logged(again, "control_plane_unreachable")
        await until_served(way_out)
        assert await exchange_or_reset(way_in) == b""


async def finds_and_secures_its_way(client: Part, way_in: int, way_out: int) -> None:
    """The server registered itself under its group; nobody told the client who it is."""
    await until_served(way_out)
    assert await exchange(way_out, b"hello") == b"hello"
    with trio.fail_after(PATIENCE):
        line = await client.log.find(lambda line: "peer_id" in line.facts)
    assert line.facts["peer_id"] == "spiffe://cluster.local/ns/foo/sa/httpbin"
    assert await exchange_or_reset(way_in) == b""


async def obeys_a_new_policy(mesh: Programs, server: Part, way_in: int, way_out: int) -> None:
    """It closes what is open, lets nobody in after that, and can be taken back."""
    async with await trio.open_tcp_stream("127.0.0.1", way_out) as stream:
        await stream.send_all(b"before")
        assert await stream.receive_some() == b"before"
        await mesh.apply(denial(way_in))
        with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
    await logged(server, "policy_changed")
    assert await exchange_or_reset(way_out) == b""
    await logged(server, "rbac_access_denied")
    assert {"httpbin-1", "sleep-1"} <= await mesh.connected()
    await mesh.delete("AuthorizationPolicy", "no-sleep")
    await until_served(way_out)


async def counts_its_decisions(port: int) -> None:
    """As Prometheus would ask."""
    text = (await exchange(port, b"GET /metrics HTTP/1.0\r\n\r\n")).decode()
    labels = 'decision="denied",policy="foo/no-sleep",rule="0",reason="deny_rule"'
    assert f"remora_authorization_decisions_total{{{labels}}} " in text
    assert "remora_connections_closed_by_policy_total 1" in text
