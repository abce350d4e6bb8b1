"""The two kinds of ends that a relayed connection has, behind one interface."""

from __future__ import annotations

import os
import socket
from typing import Protocol

import trio

from mesh.openssl import BULK_AT, CHUNK, MAX_HEAT, Scratch
from proxy.socket_options import was_reset


class End(Protocol):
    """One end of a connection. Its calls never wait, and raise for nothing the network does."""

    fd: int
    over: bool
    """Nothing more will come: a clean end, or `broken` says what happened."""
    broken: Exception | None
    """What made the end good for nothing more, except perhaps reading what is left."""
    unsent: bytes
    """What `write` accepted and the kernel did not; nothing else may be written before."""
    wants_write: bool
    """Reading cannot go on before something can be written."""

    def read(self) -> int:
        """Read into the scratch buffer; return how many bytes, zero for none or no more."""
        ...

    def write(self, count: int) -> bool:
        """Write `count` bytes from the scratch buffer; False if some are unsent, or it broke."""
        ...

    def flush(self) -> bool:
        """Go on with what is unsent; True when nothing is left."""
        ...

    def end(self) -> bool:
        """Say that no more will be written; False if that must be tried again."""
        ...


class PlainEnd:
    """A bare TCP connection. As with TLS, a transfer found to be bulk is read in larger chunks."""

    __slots__ = ("_ended", "_heat", "_scratch", "_stream", "broken", "fd", "over", "unsent")

    wants_write = False

    def __init__(self, stream: trio.SocketStream, scratch: Scratch) -> None:
        self._stream = stream
        self._scratch = scratch
        self._heat = 0
        self._ended = False
        self.fd: int = stream.socket.fileno()
        self.over = False
        self.broken: Exception | None = None
        self.unsent = b""

    def read(self) -> int:
        """Read into the scratch buffer (see End)."""
        scratch = self._scratch
        try:
            got = os.readv(self.fd, scratch.chunk if self._heat < BULK_AT else scratch.bulk_chunk)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._break(error)
            self.over = True
            return 0
        if got >= CHUNK:
            self._heat = min(self._heat + 1, MAX_HEAT)
        elif self._heat:
            self._heat -= 1
        if not got:
            self._at_end()
        return got

    def _at_end(self) -> None:
        self.over = True
        # The kernel reports a reset to one call only, and to later ones a clean end. It cannot be
        # asked once our own FIN is out: a finished connection is closed just the same.
        if not self._ended and was_reset(self._stream):
            self._break(ConnectionResetError("the other direction met the reset first"))

    def write(self, count: int) -> bool:
        """Write from the scratch buffer (see End)."""
        try:
            sent = os.write(self.fd, self._scratch.plain[:count])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._break(error)
            return False
        if sent == count:
            return True
        self.unsent = bytes(self._scratch.plain[sent:count])
        return False

    def flush(self) -> bool:
        """Go on with what is unsent (see End)."""
        if not self.unsent:
            return True
        try:
            self.unsent = self.unsent[os.write(self.fd, self.unsent) :]
        except BlockingIOError:
            return False
        except OSError as error:
            self._break(error)
        return not self.unsent

    def end(self) -> bool:
        """Send a FIN."""
        self._ended = True
        try:
            self._stream.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._break(error)
        return True

    def _break(self, error: OSError) -> None:
        self.broken = self.broken or error
        self.unsent = b""
