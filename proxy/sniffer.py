"""Looking at a connection's first bytes without taking them.

The bytes are peeked at (MSG_PEEK), so a connection that the proxy does not terminate is handed on
as it came, and one that it refuses can be reset. A peek leaves the socket readable, which would
make the wait for the rest of a ClientHello spin; SO_RCVLOWAT makes the kernel wake us only when
there is more than we have seen. A FIN or RST wakes us all the same.
"""

from __future__ import annotations

import enum
import socket

import trio

from proxy.errors import ClientHelloTooLarge, PeerClosed
from proxy.sniff import MAX_CLIENT_HELLO, ClientHello, Sniffed, sniff


class NoHello(enum.Enum):
    """Why there is no ClientHello at the beginning of a connection."""

    PLAINTEXT = "the first bytes are not TLS"
    ENDED = "the peer ended its side before a whole ClientHello had come"
    SILENT = "no whole ClientHello came in time"


async def sniff_stream(
    stream: trio.SocketStream, *, peer: str, seconds: float
) -> ClientHello | NoHello:
    """Wait up to `seconds` until it is clear what `stream` begins with; nothing is consumed.

    Raises ClientHelloTooLarge; PeerClosed if the peer resets.
    """
    try:
        with trio.move_on_after(seconds):
            return await _sniff(stream, peer)
    except OSError as error:
        raise PeerClosed(peer) from error
    finally:
        _wake_at(stream, 1)
    return NoHello.SILENT


async def _sniff(stream: trio.SocketStream, peer: str) -> ClientHello | NoHello:
    seen = 0
    while True:
        data = await stream.socket.recv(MAX_CLIENT_HELLO, socket.MSG_PEEK)
        if len(data) == seen:
            return NoHello.ENDED
        match sniff(data):
            case ClientHello() as hello:
                return hello
            case Sniffed.NOT_TLS:
                return NoHello.PLAINTEXT
            case Sniffed.NEED_MORE:
                pass
        seen = len(data)
        if seen >= MAX_CLIENT_HELLO:
            raise ClientHelloTooLarge(peer, MAX_CLIENT_HELLO)
        _wake_at(stream, seen + 1)
        await trio.lowlevel.wait_readable(stream.socket)


def _wake_at(stream: trio.SocketStream, waiting: int) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, waiting)
