"""Real sockets on loopback for the proxy's tests."""

from __future__ import annotations

import socket
import struct

import trio
import trio.abc

from mesh.spiffe import SpiffeId
from mesh.tls import TlsContext, client_context, server_context
from mesh.tls_socket import TlsSocket
from mesh.tls_stream import TlsStream
from tests.pki import NOW, Authority

CLIENT_ID = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/sleep")
SERVER_ID = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/httpbin")


async def tcp_listener() -> trio.SocketListener:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    return listener


def port_of(listener: trio.SocketListener) -> int:
    port: int = listener.socket.getsockname()[1]
    return port


async def connect(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of one TCP connection: the one that dialed and the one that accepted."""
    async with await tcp_listener() as listener:
        near = await connect(port_of(listener))
        return near, await listener.accept()


async def tls_over(
    near: trio.SocketStream, far: trio.SocketStream, root: Authority, *, version: int | None = None
) -> tuple[TlsStream, TlsStream]:
    """Mutual TLS between two ends, of `version` at most: client at `near`, server at `far`."""
    client, server = _contexts(root, version)
    client_end = TlsStream(near, client.session(NOW))
    server_end = TlsStream(far, server.session(NOW))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client_end.do_handshake)
        nursery.start_soon(server_end.do_handshake)
    return client_end, server_end


async def tls_on_socket(
    near: trio.SocketStream, far: trio.SocketStream, root: Authority, *, version: int | None = None
) -> tuple[TlsStream, TlsSocket]:
    """As `tls_over`, with a server for which OpenSSL does the I/O."""
    client, server = _contexts(root, version)
    client_end = TlsStream(near, client.session(NOW))
    server_end = TlsSocket(far, server.session(NOW, descriptor=far.socket.fileno()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client_end.do_handshake)
        nursery.start_soon(server_end.do_handshake)
    return client_end, server_end


def _contexts(root: Authority, version: int | None) -> tuple[TlsContext, TlsContext]:
    client = client_context(root.bundle(), svid=root.issue(str(CLIENT_ID)), alpn=[b"istio"])
    server = server_context(root.issue(str(SERVER_ID)), root.bundle(), alpn=[b"istio"])
    if version is not None:
        server._context.set_max_proto_version(version)
    return client, server


def reset_now(stream: trio.SocketStream) -> None:
    """Close with RST, as a crashing peer's kernel would."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def receive_until_broken(stream: trio.abc.ReceiveStream) -> bytes:
    """Return what arrives before the connection breaks; fail if it ends cleanly."""
    received = bytearray()
    try:
        async for chunk in stream:
            received += chunk
    except trio.BrokenResourceError:
        return bytes(received)
    raise AssertionError(f"a clean end after {len(received)} bytes, where a reset was due")
