"""TLS over any trio stream: `mesh.tls` sessions with the I/O they lack.

One task may send while another receives. Whatever a call leaves in the session's output is sent
before that call waits for input, so an answer to the peer's KeyUpdate cannot be forgotten.
"""

from __future__ import annotations

import trio
import trio.abc

from mesh.tls import TlsSession
from mesh.tls_errors import TlsClosed, TlsError, TlsTruncated
from mesh.verify import PeerRejected

RECEIVE_SIZE = 65536
"""Bytes read from the transport at once: four full TLS records."""


class TlsStream(trio.abc.HalfCloseableStream):
    """A TLS connection as a trio stream. Closing it closes the transport.

    Half-close is close_notify, and reading goes on after it (RFC 8446, section 6.1).
    """

    def __init__(self, transport: trio.abc.Stream, session: TlsSession) -> None:
        self.transport = transport
        self.session = session
        self._output = trio.Lock()
        self._receiving = trio.Lock()
        self._closed = False
        self._sent_eof = False

    async def do_handshake(self) -> None:
        """Complete the handshake and the judgement of the peer.

        Raises PeerRejected or TlsError, having sent the alert; trio.BrokenResourceError when the
        transport breaks. Give it a deadline: a silent peer never answers.
        """
        try:
            while not self.session.handshake():
                await self._flush()
                await self._feed_handshake()
        except (TlsError, PeerRejected):
            await self._flush_alert()
            raise
        await self._flush()

    async def _feed_handshake(self) -> None:
        data = await self.transport.receive_some(RECEIVE_SIZE)
        if not data:
            raise TlsClosed("the peer closed the connection during the handshake")
        self.session.feed(bytes(data))

    async def _flush_alert(self) -> None:
        try:
            await self._flush()
        except trio.BrokenResourceError:
            return

    async def _flush(self) -> None:
        async with self._output:
            output = self.session.pending_output()
            if output:
                await self.transport.send_all(output)
            else:
                await trio.lowlevel.checkpoint()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send. Raises trio.BrokenResourceError, trio.ClosedResourceError."""
        self._check_open()
        if self._sent_eof:
            raise trio.ClosedResourceError("this end already sent close_notify")
        try:
            self.session.write(memoryview(data))
        except TlsError as error:
            raise trio.BrokenResourceError(str(error)) from error
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport would take more."""
        self._check_open()
        await self.transport.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Send close_notify; the peer may go on sending."""
        self._check_open()
        if not self._sent_eof:
            self._sent_eof = True
            self.session.close_notify()
        await self._flush()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return decrypted bytes, b"" once the peer sent close_notify.

        Raises trio.BrokenResourceError, whose cause is a TlsError if TLS was at fault; an end of
        the transport without close_notify is TlsTruncated, never a clean end.
        """
        self._check_open()
        limit = RECEIVE_SIZE if max_bytes is None else max_bytes
        async with self._receiving:
            while (data := self._decrypt(limit)) is None:
                await self._flush()
                await self._feed_data()
            await self._flush()
            return data

    def _decrypt(self, limit: int) -> bytes | None:
        try:
            return self.session.read(limit)
        except TlsError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def _feed_data(self) -> None:
        data = await self.transport.receive_some(RECEIVE_SIZE)
        if not data:
            error = TlsTruncated("the connection ended without TLS's close_notify")
            raise trio.BrokenResourceError(str(error)) from error
        self.session.feed(bytes(data))

    async def aclose(self) -> None:
        """Close the transport, after close_notify if it can be sent at once."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            if not self._sent_eof:
                self.session.close_notify()
                await self._flush_alert()
        finally:
            await self.transport.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this TLS stream was closed")
