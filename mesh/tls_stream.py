"""TLS over any trio stream: `mesh.tls` sessions with the I/O they lack.

One task may send while another receives, and neither can hold the other up. Three rules see to it:

1. Bytes go to the transport under one lock, in the order in which the session made them. A sender
   holds the lock from encrypting to sent, so nothing of its data waits in the session meanwhile.
2. A receiver never waits for a sender. If the session has something to say to the peer (an alert)
   and a sender holds the lock, the bytes are left with that sender, which takes them along.
   Otherwise two ends that both send much would wait for each other for ever.
3. Between taking data out of the session and returning it, a receiver does not await anything
   that could be cancelled: data is never lost.

A send that is cut short by cancellation leaves a TLS record unfinished on the wire. Nothing sent
after it could be understood, so the sending side is broken then, and close_notify is left out.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress

import trio
import trio.abc
from OpenSSL import SSL

from mesh.tls import TlsSession
from mesh.tls_errors import TlsClosed, TlsError, TlsTruncated
from mesh.verify import PeerRejected

RECEIVE_SIZE = 65536
"""Bytes read from the transport at once: four full TLS records."""

SEND_SIZE = 65536
"""Bytes encrypted before they are sent. It bounds what a slow peer makes us hold."""

MAX_UNSENT = 65536
"""Bytes of alerts a receiver leaves to a busy sender. TLS 1.2 answers every renegotiation request
with one, so a peer that asks without end and reads nothing has to be made to wait."""

CLOSE_GRACE = 1.0
"""Seconds that a last alert or close_notify may wait for a peer that is not reading."""


class TlsStream(trio.abc.HalfCloseableStream):
    """A TLS connection as a trio stream. Closing it closes the transport.

    Half-close is close_notify, and reading goes on after it (RFC 8446, section 6.1).
    """

    def __init__(self, transport: trio.abc.Stream, session: TlsSession) -> None:
        self.transport = transport
        self.session = session
        self._sender = trio.Lock()
        self._receiver = trio.Lock()
        self._output = trio.Lock()
        self._unsent = bytearray()
        self._broken = False
        self._closed = False
        self._sent_eof = False

    async def do_handshake(self) -> None:
        """Complete the handshake and the judgement of the peer.

        Raises PeerRejected or TlsError, having sent the alert; trio.BrokenResourceError when the
        transport breaks. Give it a deadline: a silent peer never answers.
        """
        with _alone(self._sender, "sending on"), _alone(self._receiver, "receiving from"):
            await self._check_open()
            try:
                while not self.session.handshake():
                    await self._flush()
                    await self._feed_handshake()
            except (TlsError, PeerRejected):
                with trio.move_on_after(CLOSE_GRACE, shield=True):
                    await self._flush_last_words()
                raise
            await self._flush()

    async def _feed_handshake(self) -> None:
        data = await self.transport.receive_some(RECEIVE_SIZE)
        if not data:
            raise TlsClosed("the peer closed the connection during the handshake")
        self.session.feed(bytes(data))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send. Raises trio.BrokenResourceError, trio.ClosedResourceError."""
        with _alone(self._sender, "sending on"):
            await self._check_sendable()
            async with self._output:
                self._check_whole()
                view = memoryview(data)
                while view:
                    self._encrypt(view[:SEND_SIZE])
                    await self._send_output()
                    view = view[SEND_SIZE:]

    def _encrypt(self, data: memoryview) -> None:
        try:
            self.session.write(data)
        except TlsError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport would take more."""
        with _alone(self._sender, "sending on"):
            await self._check_sendable()
            async with self._output:
                await self.transport.wait_send_all_might_not_block()
                await self._send_output()

    async def send_eof(self) -> None:
        """Send close_notify; the peer may go on sending."""
        with _alone(self._sender, "sending on"):
            if self._sent_eof:
                await trio.lowlevel.checkpoint()
                return
            await self._check_sendable()
            async with self._output:
                self._check_whole()
                self._sent_eof = True
                self.session.close_notify()
                await self._send_output()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return decrypted bytes, b"" once the peer sent close_notify.

        Raises trio.BrokenResourceError, whose cause is a TlsError if TLS was at fault; an end of
        the transport without close_notify is TlsTruncated, never a clean end.
        """
        limit = _checked_limit(max_bytes)
        with _alone(self._receiver, "receiving from"):
            await self._check_open()
            await trio.lowlevel.checkpoint_if_cancelled()
            waited = False
            while (data := await self._decrypt(limit)) is None:
                await self._answer()
                await self._feed_data()
                waited = True
            if not waited:
                await trio.lowlevel.cancel_shielded_checkpoint()
            return data

    async def _decrypt(self, limit: int) -> bytes | None:
        try:
            return self.session.read(limit)
        except TlsError as error:
            with trio.move_on_after(CLOSE_GRACE, shield=True):
                await self._flush_last_words()
            raise trio.BrokenResourceError(str(error)) from error

    async def _answer(self) -> None:
        """Send what reading gave us to say, or leave it to the task that is sending now."""
        self._unsent += self.session.pending_output()
        if self._broken and not self._output.locked():
            self._unsent.clear()
        if self._unsent and (not self._output.locked() or len(self._unsent) > MAX_UNSENT):
            await self._flush()

    async def _feed_data(self) -> None:
        data = await self.transport.receive_some(RECEIVE_SIZE)
        if not data:
            error = TlsTruncated("the connection ended without TLS's close_notify")
            raise trio.BrokenResourceError(str(error)) from error
        self.session.feed(bytes(data))

    async def aclose(self) -> None:
        """Close the transport, after close_notify if the peer takes it soon."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            if not self._sent_eof:
                self.session.close_notify()
                with trio.move_on_after(CLOSE_GRACE):
                    await self._flush_last_words()
        finally:
            await self.transport.aclose()

    def detach(self) -> tuple[SSL.Connection, bytes]:
        """Give up the session and the transport, to somebody who does the I/O in another way.

        Returns pyOpenSSL's connection and the bytes that it made and that are still to be sent.
        No task may be using the stream, and none can afterwards.
        """
        with _alone(self._sender, "sending on"), _alone(self._receiver, "receiving from"):
            self._check_whole()
            self._closed = True
            output = self._take_output()
            return self.session.release(), output

    async def _flush(self) -> None:
        async with self._output:
            await self._send_output()

    async def _flush_last_words(self) -> None:
        """Try to send an alert or close_notify, unless a send is under way or was cut short."""
        if self._broken or self._output.locked():
            return
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._flush()

    async def _send_output(self) -> None:
        """Send all that is due. The caller holds the lock."""
        self._check_whole()
        while output := self._take_output():
            self._broken = True
            await self.transport.send_all(output)
            self._broken = False

    def _check_whole(self) -> None:
        if self._broken:
            raise trio.BrokenResourceError("an earlier send on this TLS stream was cut short")

    def _take_output(self) -> bytes:
        output = bytes(self._unsent) + self.session.pending_output()
        self._unsent.clear()
        return output

    async def _check_open(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("this TLS stream was closed")

    async def _check_sendable(self) -> None:
        await self._check_open()
        if self._sent_eof:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("this end already sent close_notify")


@contextmanager
def _alone(lock: trio.Lock, doing: str) -> Generator[None]:
    """Hold `lock`, or raise trio.BusyResourceError: two tasks would garble each other's data."""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        raise trio.BusyResourceError(f"another task is {doing} this TLS stream") from None
    try:
        yield
    finally:
        lock.release()


def _checked_limit(max_bytes: int | None) -> int:
    if max_bytes is None:
        return RECEIVE_SIZE
    if not isinstance(max_bytes, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError("max_bytes must be an integer")
    if max_bytes < 1:
        raise ValueError("max_bytes must be at least 1")
    return max_bytes
