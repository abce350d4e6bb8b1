"""A real Envoy beside our proxies: certificates from our agent by SDS, mutual TLS both ways."""

from __future__ import annotations

import hashlib
import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from mesh.api import MESH_ALPN
from mesh.bundle import TrustBundle
from mesh.tls import client_context
from mesh.tls_errors import TlsAlert
from mesh.tls_stream import TlsStream
from proxy.mode import MtlsMode
from tests.interop.envoy import Envoy, Sidecar, running
from tests.interop.mesh import LocalMesh, echo, exchange, serve_app, way_in, way_out
from tests.pki import make_root, real_now

pytestmark = pytest.mark.e2e

SERVER = "foo/httpbin"
CLIENT = "foo/sleep"
SERVER_ID = "spiffe://cluster.local/ns/foo/sa/httpbin"
CLIENT_ID = "spiffe://cluster.local/ns/foo/sa/sleep"
SECRET = b"the app must not see this"
OTHER_ID = "spiffe://cluster.local/ns/foo/sa/other"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def folder_for(mesh: LocalMesh) -> Path:
    folder = mesh.folder / "envoy"
    folder.mkdir()
    return folder


async def envoy_client(mesh: LocalMesh, peer: str, target: int) -> Sidecar:
    sds = await mesh.start_agent(CLIENT)
    return Sidecar(
        listen=free_port(), forward=("127.0.0.1", target), sds_socket=sds, peer=peer, server=False
    )


async def envoy_server(mesh: LocalMesh, peer: str, target: int) -> Sidecar:
    sds = await mesh.start_agent(SERVER)
    return Sidecar(
        listen=free_port(), forward=("127.0.0.1", target), sds_socket=sds, peer=peer, server=True
    )


@pytest.mark.parametrize("mode", [MtlsMode.STRICT, MtlsMode.PERMISSIVE])
async def test_an_envoy_client_reaches_an_app_behind_our_proxy(
    mesh: LocalMesh, nursery: trio.Nursery, mode: MtlsMode
) -> None:
    app = await serve_app(nursery, echo)
    ours = await mesh.start_proxy(await mesh.start_agent(SERVER), inbound=way_in(app, mode))
    sidecar = await envoy_client(mesh, SERVER_ID, ours.inbound[0].port)
    async with running(sidecar, folder_for(mesh)) as envoy:
        assert await exchange(sidecar.listen, b"hello") == b"hello"
        assert await handshakes(envoy, "cluster.forward") == 1
        assert SERVER_ID not in await envoy.get("/certs")
        assert CLIENT_ID in await envoy.get("/certs")


async def test_an_envoy_client_refuses_our_proxy_under_another_name(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    app = await serve_app(nursery, echo)
    ours = await mesh.start_proxy(await mesh.start_agent(SERVER), inbound=way_in(app))
    sidecar = await envoy_client(mesh, OTHER_ID, ours.inbound[0].port)
    async with running(sidecar, folder_for(mesh)) as envoy:
        assert await exchange_or_reset(sidecar.listen) == b""
        stats = await envoy.stats("cluster.forward.ssl.fail_verify_san")
        assert stats["cluster.forward.ssl.fail_verify_san"] == 1
        assert await handshakes(envoy, "cluster.forward") == 0


async def test_our_proxy_reaches_an_app_behind_an_envoy_server(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    sidecar = await envoy_server(mesh, CLIENT_ID, await serve_app(nursery, echo))
    async with running(sidecar, folder_for(mesh)) as envoy:
        ours = await mesh.start_proxy(
            await mesh.start_agent(CLIENT), outbound=way_out(sidecar.listen, SERVER_ID)
        )
        assert await exchange(ours.outbound[0].port, b"hello") == b"hello"
        assert await handshakes(envoy, f"listener.127.0.0.1_{sidecar.listen}") == 1


async def test_an_envoy_server_refuses_our_proxy_under_another_name(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    sidecar = await envoy_server(mesh, OTHER_ID, await serve_app(nursery, echo))
    async with running(sidecar, folder_for(mesh)) as envoy:
        ours = await mesh.start_proxy(
            await mesh.start_agent(CLIENT), outbound=way_out(sidecar.listen, SERVER_ID)
        )
        assert await exchange_or_reset(ours.outbound[0].port) == b""
        name = f"listener.127.0.0.1_{sidecar.listen}.ssl.fail_verify_san"
        assert (await envoy.stats(name))[name] == 1


async def test_our_proxy_refuses_an_envoy_server_under_another_name(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    sidecar = await envoy_server(mesh, CLIENT_ID, await serve_app(nursery, echo))
    async with running(sidecar, folder_for(mesh)):
        ours = await mesh.start_proxy(
            await mesh.start_agent(CLIENT), outbound=way_out(sidecar.listen, OTHER_ID)
        )
        with capture_logs() as logs:
            assert await exchange_or_reset(ours.outbound[0].port) == b""
            await logged(logs, "wrong_identity")


async def test_an_envoy_server_refuses_plaintext(mesh: LocalMesh, nursery: trio.Nursery) -> None:
    sidecar = await envoy_server(mesh, CLIENT_ID, await serve_app(nursery, echo))
    async with running(sidecar, folder_for(mesh)):
        assert not is_echo(await exchange_or_reset(sidecar.listen))


async def test_an_envoy_server_refuses_our_tls_with_a_certificate_of_another_ca(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    """The client trusts the server, so that it is the server that refuses."""
    sidecar = await envoy_server(mesh, CLIENT_ID, await serve_app(nursery, echo))
    impostor = make_root("another root", real_now()).issue(CLIENT_ID)
    trusted = TrustBundle.from_pem(mesh.trust_domain, mesh.root_file.read_bytes())
    context = client_context({mesh.trust_domain: trusted}, svid=impostor, alpn=[MESH_ALPN])
    async with running(sidecar, folder_for(mesh)) as envoy:
        transport = await trio.open_tcp_stream("127.0.0.1", sidecar.listen)
        async with TlsStream(transport, context.session(real_now())) as stream:
            await stream.do_handshake()
            assert str(stream.session.peer_id) == SERVER_ID
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
        assert isinstance(caught.value.__cause__, TlsAlert)
        name = f"listener.127.0.0.1_{sidecar.listen}.ssl.fail_verify_error"
        assert (await envoy.stats(name))[name] == 1


async def test_our_proxy_refuses_an_envoy_client_of_another_ca(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    """The Envoy takes any server, so that it is our proxy that refuses."""
    app = await serve_app(nursery, echo)
    ours = await mesh.start_proxy(await mesh.start_agent(SERVER), inbound=way_in(app))
    stranger = LocalMesh(nursery, mesh.folder / "x")
    stranger.folder.mkdir()
    await stranger.start_ca()
    sidecar = replace(await envoy_client(stranger, SERVER_ID, ours.inbound[0].port), verify=False)
    with capture_logs() as logs:
        async with running(sidecar, folder_for(mesh)):
            assert await exchange_or_reset(sidecar.listen) == b""
            await logged(logs, "peer_not_trusted")


@pytest.mark.parametrize("role", ["client", "server"])
async def test_much_data_passes_an_envoy_and_our_proxy_unchanged(
    mesh: LocalMesh, nursery: trio.Nursery, role: str
) -> None:
    data = random.Random(1).randbytes(8 * 1024 * 1024)
    app = await serve_app(nursery, echo)
    if role == "client":
        ours = await mesh.start_proxy(await mesh.start_agent(SERVER), inbound=way_in(app))
        sidecar = await envoy_client(mesh, SERVER_ID, ours.inbound[0].port)
        async with running(sidecar, folder_for(mesh)):
            received = await exchange(sidecar.listen, data)
    else:
        sidecar = await envoy_server(mesh, CLIENT_ID, app)
        async with running(sidecar, folder_for(mesh)):
            ours = await mesh.start_proxy(
                await mesh.start_agent(CLIENT), outbound=way_out(sidecar.listen, SERVER_ID)
            )
            received = await exchange(ours.outbound[0].port, data)
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


async def test_an_envoy_client_that_would_resume_gets_full_handshakes(
    mesh: LocalMesh, nursery: trio.Nursery
) -> None:
    """Envoy keeps sessions to resume; a naive server that demands certificates aborts then."""
    app = await serve_app(nursery, echo)
    ours = await mesh.start_proxy(await mesh.start_agent(SERVER), inbound=way_in(app))
    sidecar = await envoy_client(mesh, SERVER_ID, ours.inbound[0].port)
    async with running(sidecar, folder_for(mesh)) as envoy:
        for _ in range(4):
            assert await exchange(sidecar.listen, b"again") == b"again"
        assert await handshakes(envoy, "cluster.forward") == 4
        reused = await envoy.stats("cluster.forward.ssl.session_reused")
        assert reused["cluster.forward.ssl.session_reused"] == 0


async def handshakes(envoy: Envoy, prefix: str) -> int:
    name = f"{prefix}.ssl.handshake"
    return (await envoy.stats(name))[name]


async def logged(logs: Sequence[Mapping[str, object]], reason: str) -> None:
    """Wait until our proxy has logged why it refused; the other side may know earlier."""
    with trio.fail_after(10):
        while reason not in [line.get("reason") for line in logs]:  # noqa: ASYNC110 - no event
            await trio.sleep(0.01)


def is_echo(received: bytes) -> bool:
    """Whether the app answered; Envoy answers plaintext with a TLS alert."""
    return SECRET in received


async def exchange_or_reset(port: int) -> bytes:
    """Return what came back before the connection ended, by reset or otherwise."""
    received = b""
    try:
        received = await exchange(port, SECRET)
    except* (OSError, trio.BrokenResourceError):
        pass
    return received
