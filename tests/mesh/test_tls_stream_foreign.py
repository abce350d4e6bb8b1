"""Our TLS streams against somebody else's: the standard library's, over real sockets."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mesh.tls import server_context
from mesh.tls_stream import TlsStream
from tests.mesh.tls_pairs import CLIENT, SERVER, closing, receive_all, receive_exactly
from tests.pki import make_root, real_now, svid_pem

TlsStreamMaker = Callable[[trio.SocketStream], TlsStream]
RealRoot = tuple[ssl.SSLContext, TlsStreamMaker]


@pytest.fixture
def real_root(tmp_path: Path) -> RealRoot:
    """A stdlib client context with its own SVID, and a maker of our end, by the real clock."""
    root = make_root(now=real_now())
    chain, key = svid_pem(root.issue(str(CLIENT.id)))
    (tmp_path / "svid.pem").write_bytes(chain + key)
    (tmp_path / "root.pem").write_bytes(root.pem)
    context = ssl.create_default_context(cafile=str(tmp_path / "root.pem"))
    context.load_cert_chain(tmp_path / "svid.pem")
    server = server_context(root.issue(str(SERVER.id), "localhost"), root.bundle())
    return context, lambda transport: TlsStream(transport, server.session(real_now()))


@asynccontextmanager
async def foreign_client(
    real_root: RealRoot,
) -> AsyncGenerator[tuple[trio.SSLStream[trio.SocketStream], TlsStream]]:
    context, make_server = real_root
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        far = await listener.accept()
    theirs = trio.SSLStream(near, context, server_hostname="localhost")
    ours = make_server(far)
    async with closing(theirs, ours):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.do_handshake)
            nursery.start_soon(ours.do_handshake)
        yield theirs, ours


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_standard_librarys_tls_gets_along_with_ours(
    real_root: RealRoot, version: ssl.TLSVersion
) -> None:
    real_root[0].minimum_version = real_root[0].maximum_version = version
    payload = bytes(range(256)) * 8192

    async def send(stream: trio.abc.SendStream) -> None:
        await stream.send_all(payload)

    async with foreign_client(real_root) as (theirs, ours):
        assert ours.session.peer_id == CLIENT.id
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, theirs)
            nursery.start_soon(send, ours)
            for stream in (theirs, ours):
                nursery.start_soon(expect, stream, payload)


async def expect(stream: trio.abc.ReceiveStream, payload: bytes) -> None:
    assert await receive_exactly(stream, len(payload)) == payload


async def test_a_foreign_peers_close_is_a_clean_end(real_root: RealRoot) -> None:
    async with foreign_client(real_root) as (theirs, ours), trio.open_nursery() as nursery:
        await theirs.send_all(b"bye")
        nursery.start_soon(theirs.aclose)
        assert await receive_all(ours) == b"bye"
        await ours.aclose()


async def test_our_close_is_a_clean_end_to_a_foreign_peer(real_root: RealRoot) -> None:
    async with foreign_client(real_root) as (theirs, ours):
        await ours.send_all(b"bye")
        await ours.aclose()
        assert await receive_all(theirs) == b"bye"


async def test_a_foreign_peer_that_is_cut_off_is_a_truncation(real_root: RealRoot) -> None:
    async with foreign_client(real_root) as (theirs, ours):
        await theirs.send_all(b"half a")
        await theirs.transport_stream.aclose()
        assert await ours.receive_some() == b"half a"
        with pytest.raises(trio.BrokenResourceError, match=r"close_notify|reset by peer"):
            await ours.receive_some()


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
async def test_new_keys_may_be_asked_for_while_data_flows(
    tmp_path: Path, real_root: RealRoot
) -> None:
    """`K` tells s_client to send a KeyUpdate that asks for ours (RFC 8446, 4.6.3)."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    svid = str(tmp_path / "svid.pem")
    command = ["openssl", "s_client", "-msg", "-cert", svid, "-key", svid, "-connect", address]
    client = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert client.stdin is not None
    assert client.stdout is not None
    async with listener, client.stdin, client.stdout:
        ours = real_root[1](await listener.accept())
        async with closing(ours):
            await ours.do_handshake()
            for turn in (b"one\n", b"two\n"):
                await client.stdin.send_all(turn)
                assert await receive_exactly(ours, len(turn)) == turn
                await client.stdin.send_all(b"K\n")
                await read_until(client.stdout, b">>> TLS 1.3, Handshake [length 0005], KeyUpdate")
            await client.stdin.send_all(b"three\n")
            assert await ours.receive_some() == b"three\n"
            await ours.send_all(b"under new keys")
            await read_until(client.stdout, b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate")
            await read_until(client.stdout, b"under new keys")
        await client.wait()


async def read_until(output: trio.abc.ReceiveStream, text: bytes) -> None:
    seen = bytearray()
    with trio.fail_after(5):
        while text not in seen:
            # One byte at a time: what follows is for the next call.
            data = await output.receive_some(1)
            assert data, f"the output ended without {text!r}"
            seen += data
