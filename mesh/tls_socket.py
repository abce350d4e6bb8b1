"""TLS on a socket that OpenSSL itself reads and writes: for handing on once it is established.

Beside `mesh.tls_stream`, which puts a session on any trio stream, this saves a handshake the way
through memory, locks and copies. Nothing can be sent or received here: whoever carries the bytes
takes the connection over by `detach`.
"""

from __future__ import annotations

import trio
from OpenSSL import SSL

from mesh.tls import TlsSession
from mesh.turnstile import shared_turnstile


class TlsSocket:
    """A TLS connection during its handshake; `session` must be on the descriptor of `transport`."""

    def __init__(self, transport: trio.SocketStream, session: TlsSession) -> None:
        self.transport = transport
        self.session = session

    async def do_handshake(self) -> None:
        """Complete the handshake and the judgement of the peer, each step at its turn.

        Raises PeerRejected or TlsError, the alert having been sent if the kernel took it at once.
        Give it a deadline: a silent peer never answers.
        """
        session, socket, turnstile = self.session, self.transport.socket, shared_turnstile()
        while not await turnstile.work(session.handshake):
            if session.wants_write:
                await trio.lowlevel.wait_writable(socket)
            else:
                await trio.lowlevel.wait_readable(socket)

    def detach(self) -> tuple[SSL.Connection, bytes]:
        """Give the connection up to somebody who moves its bytes; see TlsStream.detach."""
        return self.session.release(), b""
