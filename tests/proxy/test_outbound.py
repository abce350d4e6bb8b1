"""Outbound connections: mutual TLS to exactly whom we mean, or nothing."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import trio
import trio.testing

from mesh.policy.outbound import automatic_sni
from mesh.spiffe import SpiffeId
from mesh.svid import X509Svid
from mesh.tls import server_context
from mesh.tls_errors import TlsError
from mesh.tls_stream import TlsStream
from mesh.verify import PeerRejected
from proxy.listener import Handler
from tests.pki import NOW, Authority, make_root
from tests.proxy.network import (
    CLIENT_ID,
    SERVER_ID,
    connect,
    port_of,
    receive_until_broken,
    reset_now,
    tcp_listener,
    tcp_pair,
)
from tests.proxy.rig import CONNECT, Mesh, app_on, door, echo, outbound, round_trip, tls_server

OTHER_ID = SpiffeId.parse("spiffe://cluster.local/ns/bar/sa/other")


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root()


@pytest.fixture
def mesh(root: Authority) -> Mesh:
    return Mesh(root, CLIENT_ID)


async def test_the_apps_bytes_go_over_mutual_tls(mesh: Mesh) -> None:
    data = bytes(range(256)) * 1_000
    async with app_on(tls_server(mesh.root)) as far, door(outbound(mesh, far, SERVER_ID)) as way:
        async with await connect(way.port) as app:
            assert await round_trip(app, data) == data
        line = await way.line()
    assert line["event"] == "connection closed"
    assert line["transport"] == "mtls"
    assert line["own_id"] == str(CLIENT_ID)
    assert line["peer_id"] == str(SERVER_ID)
    assert line["sent"] == line["received"] == len(data)


async def test_what_the_server_sees_is_what_istio_sends(mesh: Mesh) -> None:
    seen: list[TlsStream] = []
    context = server_context(
        mesh.root.issue(str(SERVER_ID)), mesh.root.bundle(), alpn=[b"h2", b"istio"]
    )

    async def serve(transport: trio.SocketStream) -> None:
        async with TlsStream(transport, context.session(NOW)) as stream:
            await stream.do_handshake()
            seen.append(stream)
            await stream.send_eof()

    async with app_on(serve) as far, door(outbound(mesh, far, SERVER_ID)) as way:
        async with await connect(way.port) as app:
            assert await round_trip(app, b"") == b""
    session = seen[0].session
    assert session.peer_id == CLIENT_ID
    assert session.alpn == b"istio"
    assert session.server_name == f"outbound_.{far}_._.127.0.0.1"


async def test_an_ipv6_destination_has_an_sni_too(mesh: Mesh) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="::1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, tls_server(mesh.root), [listener])
        port = port_of(listener)
        async with door(outbound(mesh, port, SERVER_ID, host="::1")) as way:
            async with await connect(way.port) as app:
                assert await round_trip(app, b"hello") == b"hello"
        nursery.cancel_scope.cancel()


def test_the_sni_is_a_cluster_name_with_an_empty_subset() -> None:
    name = automatic_sni("httpbin.foo.svc.cluster.local", 8000)
    assert name == "outbound_.8000_._.httpbin.foo.svc.cluster.local"


async def test_any_of_several_identities_will_do(mesh: Mesh) -> None:
    expected = (OTHER_ID, SERVER_ID)
    async with app_on(tls_server(mesh.root)) as far, door(outbound(mesh, far, *expected)) as way:
        async with await connect(way.port) as app:
            assert await round_trip(app, b"hello") == b"hello"


async def test_plaintext_on_purpose_is_relayed_raw(mesh: Mesh) -> None:
    mesh.current = None
    async with app_on(echo) as far, door(outbound(mesh, far)) as way:
        async with await connect(way.port) as app:
            assert await round_trip(app, b"hello") == b"hello"
        assert (await way.line())["transport"] == "plaintext"


# Refusals: the app is reset, and the log says why.


async def refused(mesh: Mesh, server: Handler, *identities: SpiffeId) -> tuple[str, str]:
    """Let an app send through the proxy to `server`; return the reason and the sentence."""
    async with app_on(server) as far, door(outbound(mesh, far, *identities)) as way:
        async with await connect(way.port) as app:
            with contextlib.suppress(trio.BrokenResourceError):
                await app.send_all(b"the app's secret")
                assert await app.receive_some() == b""
                raise AssertionError("a clean end, where a reset was due")
        line = await way.line()
    assert line["log_level"] == "warning"
    return line["reason"], line["detail"]


def keeping(received: bytearray, root: Authority, svid: X509Svid) -> Handler:
    """A TLS server that keeps whatever application bytes reach it."""
    context = server_context(svid, root.bundle(), alpn=[b"istio"])

    async def serve(transport: trio.SocketStream) -> None:
        stream = TlsStream(transport, context.session(NOW))
        try:
            await stream.do_handshake()
            while chunk := await stream.receive_some():
                received.extend(chunk)
        except (TlsError, PeerRejected, trio.BrokenResourceError):
            await trio.aclose_forcefully(transport)

    return serve


def of_evil_ca(root: Authority) -> X509Svid:
    return make_root("evil").issue(str(SERVER_ID))


def expired(root: Authority) -> X509Svid:
    return root.issue(
        str(SERVER_ID), not_before=NOW - timedelta(hours=5), not_after=NOW - timedelta(hours=3)
    )


def of_somebody_else(root: Authority) -> X509Svid:
    return root.issue(str(OTHER_ID))


def of_almost_the_name(root: Authority) -> X509Svid:
    return root.issue(f"{SERVER_ID}-2")


@pytest.mark.parametrize(
    ("make", "reason", "words"),
    [
        (of_somebody_else, "wrong_identity", f"expected {SERVER_ID}, but the server proved"),
        (of_almost_the_name, "wrong_identity", f"proved {SERVER_ID}-2"),
        (of_evil_ca, "peer_not_trusted", "we trust O=root for cluster.local"),
        (expired, "peer_expired", "expired 3 h ago"),
    ],
)
async def test_a_server_that_is_not_whom_we_mean_gets_no_byte(
    mesh: Mesh, make: Callable[[Authority], X509Svid], reason: str, words: str
) -> None:
    received = bytearray()
    server = keeping(received, mesh.root, make(mesh.root))
    got, detail = await refused(mesh, server, SERVER_ID)
    assert got == reason
    assert words in detail
    assert received == b""


async def test_a_server_that_speaks_plaintext_gets_no_byte_of_the_app(mesh: Mesh) -> None:
    received = bytearray()

    async def http(stream: trio.SocketStream) -> None:
        async with stream:
            received.extend(await stream.receive_some())
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    reason, detail = await refused(mesh, http, SERVER_ID)
    assert reason == "peer_spoke_plaintext"
    assert "give the server a sidecar, or mark the destination @plaintext" in detail
    assert b"secret" not in received


async def test_a_server_that_hangs_up(mesh: Mesh) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        reset_now(stream)

    reason, detail = await refused(mesh, hang_up, SERVER_ID)
    assert reason == "peer_closed"
    assert "127.0.0.1" in detail


async def test_a_server_that_does_not_trust_us_is_understood_at_the_first_read(mesh: Mesh) -> None:
    """TLS 1.3: our handshake is complete before the server has looked at our certificate."""
    other = make_root("their own")
    context = server_context(mesh.root.issue(str(SERVER_ID)), other.bundle())

    async def serve(transport: trio.SocketStream) -> None:
        async with transport:
            with pytest.raises(PeerRejected):
                await TlsStream(transport, context.session(NOW)).do_handshake()

    reason, detail = await refused(mesh, serve, SERVER_ID)
    assert reason == "refused_by_peer"
    assert "it does not trust the root that signed our certificate" in detail


async def test_a_destination_that_is_down_is_named(mesh: Mesh) -> None:
    async with await tcp_listener() as listener:
        port = port_of(listener)
    async with door(outbound(mesh, port, SERVER_ID)) as way:
        async with await connect(way.port) as app:
            assert await receive_until_broken(app) == b""
        line = await way.line()
    assert line["reason"] == "connect_failed"
    assert f"cannot connect to 127.0.0.1:{port} (Connection refused)" in line["detail"]


async def test_a_name_that_does_not_resolve_is_named(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trio.socket.getaddrinfo

    async def lookup(host: str, *args: Any, **options: Any) -> Any:
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return await real(host, *args, **options)

    monkeypatch.setattr(trio.socket, "getaddrinfo", lookup)
    async with door(outbound(mesh, 80, SERVER_ID, host="nowhere.invalid")) as way:
        async with await connect(way.port) as app:
            assert await receive_until_broken(app) == b""
        line = await way.line()
    assert line["reason"] == "connect_failed"
    assert "nowhere.invalid cannot be resolved (Name or service not known)" in line["detail"]


async def test_without_an_identity_nothing_is_sent(mesh: Mesh) -> None:
    mesh.current = None
    reason, _ = await refused(mesh, echo, SERVER_ID)
    assert reason == "no_identity_yet"


async def test_a_silent_server_is_given_up(mesh: Mesh, mock_clock: trio.testing.MockClock) -> None:
    async with await tcp_listener() as listener:
        async with door(outbound(mesh, port_of(listener), SERVER_ID)) as way:
            async with await connect(way.port) as app:
                server = await listener.accept()
                assert await server.receive_some()
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(CONNECT)
                assert await receive_until_broken(app) == b""
                await server.aclose()
            assert (await way.line())["reason"] == "handshake_timeout"


# Retries: only ever before a byte of the app was read.


async def test_the_next_address_is_tried(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens on 127.0.0.2."""
    monkeypatch.setattr("proxy.reach.resolve", two_addresses)
    async with app_on(tls_server(mesh.root)) as far:
        async with door(outbound(mesh, far, SERVER_ID, host="httpbin.test")) as way:
            async with await connect(way.port) as app:
                assert await round_trip(app, b"hello") == b"hello"
            line = await way.line()
    first = way.lines[0]
    assert first["event"] == "trying the destination's next address"
    assert first["reason"] == "connect_failed"
    assert line["peer_id"] == str(SERVER_ID)


async def two_addresses(host: str, port: int) -> list[str]:
    return ["127.0.0.2", "127.0.0.1"]


async def test_a_wrong_server_on_one_address_does_not_hide_the_right_one(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = bytearray()
    monkeypatch.setattr("proxy.reach.resolve", two_addresses)
    async with await tcp_listener() as right:
        port = port_of(right)
        (wrong,) = await trio.open_tcp_listeners(port, host="127.0.0.2")
        evil = keeping(received, mesh.root, of_evil_ca(mesh.root))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, evil, [wrong])
            nursery.start_soon(trio.serve_listeners, tls_server(mesh.root), [right])
            async with door(outbound(mesh, port, SERVER_ID, host="httpbin.test")) as way:
                async with await connect(way.port) as app:
                    assert await round_trip(app, b"hello") == b"hello"
                await way.line()
            nursery.cancel_scope.cancel()
    assert received == b""
    assert [line["reason"] for line in way.lines[:1]] == ["peer_not_trusted"]


async def test_a_server_that_resets_after_the_handshake_is_not_tried_again(mesh: Mesh) -> None:
    """The app's bytes may have been acted upon."""
    attempts = 0
    context = server_context(mesh.root.issue(str(SERVER_ID)), mesh.root.bundle())

    async def serve(transport: trio.SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        stream = TlsStream(transport, context.session(NOW))
        await stream.do_handshake()
        assert await stream.receive_some() == b"pay 5"
        reset_now(transport)

    async with app_on(serve) as far, door(outbound(mesh, far, SERVER_ID)) as way:
        async with await connect(way.port) as app:
            await app.send_all(b"pay 5")
            assert await receive_until_broken(app) == b""
        assert (await way.line())["reason"] == "peer_reset"
    assert attempts == 1


async def test_rotation_leaves_open_connections_alone(mesh: Mesh) -> None:
    seen: list[TlsStream] = []
    context = server_context(mesh.root.issue(str(SERVER_ID)), mesh.root.bundle())

    async def serve(transport: trio.SocketStream) -> None:
        async with TlsStream(transport, context.session(NOW)) as stream:
            await stream.do_handshake()
            seen.append(stream)
            async for chunk in stream:
                await stream.send_all(chunk)
            await stream.send_eof()

    async with app_on(serve) as far, door(outbound(mesh, far, SERVER_ID)) as way:
        async with await connect(way.port) as old:
            await old.send_all(b"before")
            assert await old.receive_some() == b"before"
            await trio.testing.wait_all_tasks_blocked()
            mesh.current = mesh.identity(CLIENT_ID)
            async with await connect(way.port) as new:
                assert await round_trip(new, b"hello") == b"hello"
            assert await round_trip(old, b"after") == b"after"
    leaves = {stream.session.peer_chain[0] for stream in seen}
    assert len(leaves) == 2
    assert mesh.current.svid.leaf in leaves


@pytest.mark.parametrize("phase", ["resolving", "dialing", "handshake", "relaying"])
async def test_cancellation_leaves_nothing_open(
    mesh: Mesh, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    if phase == "resolving":
        monkeypatch.setattr("proxy.reach.resolve", never)
    if phase == "dialing":
        monkeypatch.setattr("proxy.reach.dial", never)
    near, far = await tcp_pair()
    async with near, await tcp_listener() as listener:
        identities = () if phase == "relaying" else (SERVER_ID,)
        handler = outbound(mesh, port_of(listener), *identities)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler, far)
            server = None
            if phase in {"handshake", "relaying"}:
                server = await listener.accept()
                await near.send_all(b"x")
                assert await server.receive_some()
            await trio.testing.wait_all_tasks_blocked()
            assert far.socket.fileno() >= 0
            nursery.cancel_scope.cancel()
        assert far.socket.fileno() == -1
        assert await receive_until_broken(near) == b""
        if server is not None:
            async with server:
                await receive_until_broken(server)
