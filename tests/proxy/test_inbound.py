"""Inbound connections: every mode against every kind of client, on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import trio
import trio.testing

from mesh.spiffe import TrustDomain
from mesh.svid import X509Svid
from mesh.tls import ClientCertificate, server_context
from mesh.tls_errors import TlsAlert
from mesh.tls_stream import TlsStream
from mesh.verify import PeerRejected
from proxy.handshake import HANDSHAKE_TIMEOUT, MeshTls
from proxy.identity import Identity
from proxy.mode import MtlsMode
from tests.pki import NOW, Authority, make_root
from tests.proxy.network import (
    CLIENT_ID,
    SERVER_ID,
    connect,
    port_of,
    receive_all,
    receive_until_broken,
    reset_now,
    tcp_listener,
    tcp_pair,
)
from tests.proxy.rig import (
    CONNECT,
    DETECT,
    Mesh,
    app_on,
    client,
    dial_tls,
    door,
    inbound,
    round_trip,
)

STRICT, PERMISSIVE, DISABLE = MtlsMode.STRICT, MtlsMode.PERMISSIVE, MtlsMode.DISABLE


@pytest.fixture(scope="module")
def root() -> Authority:
    return make_root()


@pytest.fixture
def mesh(root: Authority) -> Mesh:
    return Mesh(root, SERVER_ID)


# Who is served, and how.


@pytest.mark.parametrize("mode", [STRICT, PERMISSIVE])
async def test_a_mesh_client_is_terminated(mesh: Mesh, mode: MtlsMode) -> None:
    data = bytes(range(256)) * 1_000
    async with app_on() as app, door(inbound(mesh, mode, app)) as way:
        stream = await dial_tls(way.port, client(mesh.root))
        assert stream.session.peer_id == SERVER_ID
        assert stream.session.alpn is None
        assert await round_trip(stream, data) == data
        await stream.aclose()
        line = await way.line()
    assert line["event"] == "connection closed"
    assert line["transport"] == "mtls"
    assert line["peer_id"] == str(CLIENT_ID)
    assert line["own_id"] == str(SERVER_ID)
    assert line["sent"] == line["received"] == len(data)


@pytest.mark.parametrize("mode", [PERMISSIVE, DISABLE])
async def test_plaintext_reaches_the_app(mesh: Mesh, mode: MtlsMode) -> None:
    async with app_on() as app, door(inbound(mesh, mode, app)) as way:
        async with await connect(way.port) as stream:
            assert await round_trip(stream, b"GET / HTTP/1.1\r\n\r\n") == b"GET / HTTP/1.1\r\n\r\n"
        line = await way.line()
    assert line["transport"] == "plaintext"
    assert "peer_id" not in line


@pytest.mark.parametrize(
    ("mode", "alpn"),
    [(PERMISSIVE, [b"h2", b"http/1.1"]), (PERMISSIVE, []), (DISABLE, []), (DISABLE, [b"istio"])],
)
async def test_the_apps_own_tls_passes_untouched(
    mesh: Mesh, mode: MtlsMode, alpn: list[bytes]
) -> None:
    """The certificate that the client sees is the app's, of another CA, not the proxy's."""
    other = make_root("the app's own CA")
    context = server_context(
        other.issue("spiffe://cluster.local/app"),
        {},
        alpn=[b"h2"],
        client_certificate=ClientCertificate.NONE,
    )

    async def app(transport: trio.SocketStream) -> None:
        async with TlsStream(transport, context.session(NOW)) as stream:
            await stream.do_handshake()
            await stream.send_all(await stream.receive_some())
            await stream.send_eof()
            assert await stream.receive_some() == b""

    async with app_on(app) as port, door(inbound(mesh, mode, port)) as way:
        stream = await dial_tls(way.port, client(mesh.root, alpn=alpn, trusts=other))
        assert str(stream.session.peer_id) == "spiffe://cluster.local/app"
        assert await round_trip(stream, b"secret") == b"secret"
        await stream.aclose()
        line = await way.line()
    assert line["transport"] == ("passthrough" if mode is PERMISSIVE else "plaintext")


async def test_strict_terminates_every_tls(mesh: Mesh) -> None:
    async with app_on() as app, door(inbound(mesh, STRICT, app)) as way:
        stream = await dial_tls(way.port, client(mesh.root, alpn=[b"h2"]))
        assert await round_trip(stream, b"hello") == b"hello"
        await stream.aclose()
        assert (await way.line())["transport"] == "mtls"


@pytest.mark.parametrize("mode", [STRICT, PERMISSIVE])
async def test_a_client_hello_may_come_byte_by_byte(mesh: Mesh, mode: MtlsMode) -> None:
    session = client(mesh.root).session(NOW)
    async with app_on() as app, door(inbound(mesh, mode, app)) as way:
        transport = await connect(way.port)
        session.handshake()
        for byte in session.pending_output():
            await transport.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        stream = TlsStream(transport, session)
        await stream.do_handshake()
        assert await round_trip(stream, b"hello") == b"hello"
        await stream.aclose()
        assert (await way.line())["transport"] == "mtls"


async def test_a_server_that_speaks_first_is_reached_after_the_detection_time(
    mesh: Mesh, mock_clock: trio.testing.MockClock
) -> None:
    async def app(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"220 mail ready\r\n")

    async with app_on(app) as port, door(inbound(mesh, PERMISSIVE, port)) as way:
        async with await connect(way.port) as stream:
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(DETECT)
            assert await receive_all(stream) == b"220 mail ready\r\n"


async def test_permissive_hands_on_a_client_that_only_listens(mesh: Mesh) -> None:
    async def app(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"the time is now")

    async with app_on(app) as port, door(inbound(mesh, PERMISSIVE, port)) as way:
        async with await connect(way.port) as stream:
            await stream.send_eof()
            assert await receive_all(stream) == b"the time is now"


# Who is refused, and with which words.


@asynccontextmanager
async def nobody() -> AsyncIterator[int]:
    """An app that must not be troubled: whoever is refused is refused before it is dialed."""
    async with await tcp_listener() as listener:
        yield port_of(listener)
        with trio.move_on_after(0) as patience:
            await listener.accept()
        assert patience.cancelled_caught


async def test_plaintext_on_a_strict_port_is_reset(mesh: Mesh) -> None:
    async with nobody() as app, door(inbound(mesh, STRICT, app)) as way:
        async with await connect(way.port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: httpbin\r\n\r\n")
            assert await receive_until_broken(stream) == b""
        line = await way.line()
    assert line["reason"] == "plaintext_on_strict"
    assert line["log_level"] == "warning"
    assert f"port {app}, which is STRICT" in line["detail"]


async def test_curl_sees_a_reset_on_a_strict_port(mesh: Mesh) -> None:
    """As with Istio: exit 56, and 000 where the status would be."""
    async with nobody() as app, door(inbound(mesh, STRICT, app)) as way:
        finished = await trio.run_process(
            [
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                f"http://127.0.0.1:{way.port}/",
            ],
            capture_stdout=True,
            check=False,
        )
    assert finished.returncode == 56
    assert finished.stdout == b"000"


async def test_openssl_without_a_certificate_is_refused(mesh: Mesh) -> None:
    async with nobody() as app, door(inbound(mesh, STRICT, app)) as way:
        finished = await trio.run_process(
            ["openssl", "s_client", "-ign_eof", "-connect", f"127.0.0.1:{way.port}"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        line = await way.line()
    assert b"certificate required" in finished.stderr
    assert line["reason"] == "peer_without_certificate"
    assert "give the client a sidecar" in line["detail"]


def foreign(root: Authority) -> X509Svid:
    return make_root("evil").issue(str(CLIENT_ID))


def expired(root: Authority) -> X509Svid:
    return root.issue(
        str(CLIENT_ID), not_before=NOW - timedelta(hours=5), not_after=NOW - timedelta(hours=3)
    )


def premature(root: Authority) -> X509Svid:
    return root.issue(str(CLIENT_ID), not_before=NOW + timedelta(minutes=10))


def of_another_trust_domain(root: Authority) -> X509Svid:
    return root.issue("spiffe://other.example/ns/foo/sa/sleep")


def with_two_names(root: Authority) -> X509Svid:
    return root.issue(str(CLIENT_ID), "spiffe://cluster.local/ns/foo/sa/admin")


@pytest.mark.parametrize(
    ("make", "reason", "words"),
    [
        (foreign, "peer_not_trusted", "issued by 'O=evil'"),
        (foreign, "peer_not_trusted", "we trust O=root for cluster.local"),
        (expired, "peer_expired", "expired 3 h ago"),
        (premature, "peer_not_yet_valid", "check the clocks"),
        (of_another_trust_domain, "peer_not_trusted", "trust domain other.example"),
        (with_two_names, "peer_invalid_svid", "exactly one"),
    ],
)
async def test_clients_with_bad_certificates_are_refused(
    mesh: Mesh, make: Callable[[Authority], X509Svid], reason: str, words: str
) -> None:
    async with nobody() as app, door(inbound(mesh, STRICT, app)) as way:
        stream = await dial_tls(way.port, client(mesh.root, svid=make(mesh.root)))
        # TLS 1.3: the client believes that it is in, and learns the truth at its first read.
        with pytest.raises(trio.BrokenResourceError) as refusal:
            await stream.receive_some()
        assert isinstance(refusal.value.__cause__, TlsAlert)
        trio_socket(stream).close()
        line = await way.line()
    assert line["reason"] == reason
    assert words in line["detail"]
    assert "peer_id" not in line


async def test_a_known_but_foreign_trust_domain_is_refused(mesh: Mesh) -> None:
    """There are roots for it, as in a federation; that alone lets nobody in."""
    federate(mesh, "other.example")
    async with nobody() as app, door(inbound(mesh, STRICT, app)) as way:
        svid = of_another_trust_domain(mesh.root)
        stream = await dial_tls(way.port, client(mesh.root, svid=svid))
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        trio_socket(stream).close()
        line = await way.line()
    assert line["reason"] == "wrong_trust_domain"
    assert "admits only cluster.local" in line["detail"]


async def test_an_alias_of_the_trust_domain_is_admitted(mesh: Mesh) -> None:
    federate(mesh, "other.example")
    mesh.tls = MeshTls(
        lambda: mesh.current,
        lambda: mesh.time,
        trust_domain_aliases=[TrustDomain("other.example")],
    )
    async with app_on() as app, door(inbound(mesh, STRICT, app)) as way:
        svid = of_another_trust_domain(mesh.root)
        stream = await dial_tls(way.port, client(mesh.root, svid=svid))
        assert await round_trip(stream, b"hello") == b"hello"
        await stream.aclose()


def federate(mesh: Mesh, name: str) -> None:
    assert mesh.current is not None
    mesh.current = Identity(
        svid=mesh.current.svid,
        bundles={**mesh.root.bundle(), **mesh.root.bundle(name)},
    )


def trio_socket(stream: TlsStream) -> trio.socket.SocketType:
    assert isinstance(stream.transport, trio.SocketStream)
    return stream.transport.socket


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "detection_timeout"),
        (b"\x16\x03\x01\x02\x00\x01", "detection_timeout"),
    ],
    ids=["silent", "half a hello"],
)
async def test_who_does_not_begin_tls_in_time_is_reset_by_strict(
    mesh: Mesh, mock_clock: trio.testing.MockClock, data: bytes, reason: str
) -> None:
    async with nobody() as app, door(inbound(mesh, STRICT, app)) as way:
        async with await connect(way.port) as stream:
            await stream.send_all(data)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(DETECT)
            assert await receive_until_broken(stream) == b""
        assert (await way.line())["reason"] == reason


async def test_a_handshake_that_stops_half_way_is_reset(
    mesh: Mesh, mock_clock: trio.testing.MockClock
) -> None:
    session = client(mesh.root).session(NOW)
    session.handshake()
    async with nobody() as app, door(inbound(mesh, STRICT, app)) as way:
        async with await connect(way.port) as stream:
            await stream.send_all(session.pending_output())
            assert await stream.receive_some()
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(HANDSHAKE_TIMEOUT)
            await receive_until_broken(stream)
        line = await way.line()
    assert line["reason"] == "handshake_timeout"


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01"])
async def test_a_health_check_on_a_strict_port_is_no_alarm(mesh: Mesh, data: bytes) -> None:
    async with nobody() as app, door(inbound(mesh, STRICT, app)) as way:
        async with await connect(way.port) as stream:
            await stream.send_all(data)
        line = await way.line()
    assert line["reason"] == "peer_closed"
    assert line["log_level"] == "info"


@pytest.mark.parametrize("mode", [STRICT, PERMISSIVE])
async def test_a_client_that_resets_during_detection(mesh: Mesh, mode: MtlsMode) -> None:
    async with nobody() as app, door(inbound(mesh, mode, app)) as way:
        stream = await connect(way.port)
        await trio.testing.wait_all_tasks_blocked()
        reset_now(stream)
        assert (await way.line())["reason"] == "peer_closed"


async def test_an_endless_client_hello_is_refused(mesh: Mesh) -> None:
    hello = b"\x16\x03\x01\x40\x00\x01\x00\xff\xfc" + bytes(40_000)
    async with nobody() as app, door(inbound(mesh, PERMISSIVE, app)) as way:
        async with await connect(way.port) as stream:
            await stream.send_all(hello)
            assert await receive_until_broken(stream) == b""
        assert (await way.line())["reason"] == "client_hello_too_large"


# When our own side is not well.


@pytest.mark.parametrize("mode", [STRICT, PERMISSIVE])
async def test_an_app_that_is_down_is_named(mesh: Mesh, mode: MtlsMode) -> None:
    async with await tcp_listener() as listener:
        port = port_of(listener)
    async with door(inbound(mesh, mode, port)) as way:
        if mode is STRICT:
            stream: trio.abc.HalfCloseableStream = await dial_tls(way.port, client(mesh.root))
        else:
            stream = await connect(way.port)
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert await receive_until_broken(stream) == b""
        await trio.aclose_forcefully(stream)
        line = await way.line()
    assert line["reason"] == "connect_failed"
    assert f"the app at 127.0.0.1:{port} (Connection refused): is the app running" in line["detail"]


async def test_an_app_that_does_not_accept_is_given_up(
    mesh: Mesh, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.inbound.dial", never)
    async with door(inbound(mesh, DISABLE, 1)) as way:
        async with await connect(way.port) as stream:
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(CONNECT)
            assert await receive_until_broken(stream) == b""
        line = await way.line()
    assert line["reason"] == "connect_timeout"
    assert "did not answer within 10 s" in line["detail"]


async def test_without_an_identity_nobody_is_let_in(mesh: Mesh) -> None:
    mesh.current = None
    async with nobody() as app, door(inbound(mesh, STRICT, app)) as way:
        async with await connect(way.port) as stream:
            session = client(mesh.root).session(NOW)
            session.handshake()
            await stream.send_all(session.pending_output())
            assert await receive_until_broken(stream) == b""
        assert (await way.line())["reason"] == "no_identity_yet"


# Rotation and cancellation.


async def test_rotation_leaves_open_connections_alone(mesh: Mesh) -> None:
    """The old connection goes on with the old certificate; the next one gets the new one."""
    async with app_on() as app, door(inbound(mesh, STRICT, app)) as way:
        old = await dial_tls(way.port, client(mesh.root))
        await old.send_all(b"before")
        assert await old.receive_some() == b"before"
        mesh.current = mesh.identity(SERVER_ID)
        new = await dial_tls(way.port, client(mesh.root))
        assert old.session.peer_chain[0] != new.session.peer_chain[0]
        assert new.session.peer_chain[0] == mesh.current.svid.leaf
        assert await round_trip(old, b"after") == b"after"
        assert await round_trip(new, b"hello") == b"hello"
        await old.aclose()
        await new.aclose()


async def test_a_new_root_counts_for_new_connections(mesh: Mesh) -> None:
    next_root = make_root("next")
    mesh.current = mesh.identity(SERVER_ID, next_root)
    async with app_on() as app, door(inbound(mesh, STRICT, app)) as way:
        stream = await dial_tls(way.port, client(next_root))
        assert await round_trip(stream, b"hello") == b"hello"
        await stream.aclose()
        with pytest.raises(PeerRejected):
            await dial_tls(way.port, client(mesh.root))


@pytest.mark.parametrize("phase", ["sniffing", "handshake", "dialing", "relaying"])
async def test_cancellation_leaves_nothing_open(
    mesh: Mesh, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = client(mesh.root).session(NOW)
    session.handshake()
    near, far = await tcp_pair()
    async with app_on() as app, near:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                if phase == "dialing":
                    monkeypatch.setattr("proxy.inbound.dial", never)
                mode = {"sniffing": STRICT, "handshake": STRICT}.get(phase, DISABLE)
                nursery.start_soon(inbound(mesh, mode, app), far)
                if phase == "handshake":
                    await near.send_all(session.pending_output())
                    assert await near.receive_some()
                if phase == "relaying":
                    await near.send_all(b"x")
                    assert await near.receive_some() == b"x"
                await trio.testing.wait_all_tasks_blocked()
                assert far.socket.fileno() >= 0
                scope.cancel()
        assert far.socket.fileno() == -1
        await receive_until_broken(near)


async def never(host: str, port: int, **words: str) -> trio.SocketStream:
    await trio.sleep_forever()
    raise AssertionError
