"""OpenSSL without pyOpenSSL's wrappers, for established connections: every private name is here.

pyOpenSSL speaks to OpenSSL through cffi and keeps that library to itself, as `OpenSSL._util`. The
relay needs three things of it that the public API does not offer:

- Outcomes as values. The normal end of every read is "no more for now"; pyOpenSSL raises
  WantReadError for it, and building, raising and catching that costs more than the read.
- Buffers of our own. `recv` allocates and clears a buffer per call and copies out of it; here all
  connections of a process decrypt into one scratch buffer, and an idle one owns none.
- The choice of what OpenSSL reads and writes. Small traffic goes through the descriptor: the
  record layer calls read and write itself, which is the fewest crossings between Python and C.
  Bulk goes through memory: one read of 256 KiB instead of two for each record of 16 KiB.

The names are looked up when the module is loaded, not imported, so a pyOpenSSL that has lost one
makes `available()` false and the proxy falls back to the relay on public API; nothing else uses
them. The lookups are of functions that OpenSSL itself documents, so what they do is not at the
mercy of pyOpenSSL, only whether they are there.

What is taken for granted about OpenSSL, each point held by a test:

1. SSL_read returns at most one record, and given room for a whole one leaves nothing decrypted
   behind. Read-ahead is off, so apart from a record of which a part has come nothing is hidden
   in the SSL object: what the kernel still holds, epoll still shows.
2. SSL_set_bio between two calls is harmless once the old input is used up: a record that has
   come in part is kept by the record layer, not by the BIO.
3. Without SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_write takes all or nothing. After a refusal it must
   be called again with the same bytes; they may have moved (SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER,
   which pyOpenSSL sets).
4. A failed write does not keep SSL_read from returning what came before the failure.
"""

from __future__ import annotations

import importlib
import os
from operator import attrgetter
from typing import Any

from OpenSSL import SSL

from mesh.tls_errors import TlsAlert, TlsError, TlsTruncated, from_openssl

CHUNK = 65536
"""Bytes read at once from a connection with ordinary traffic. 16 KiB loses about a tenth of the
throughput; more helps only bulk."""

BULK_CHUNK = 262144
"""Bytes read at once from a connection in bulk mode: what one read returns while a fast sender is
at work on loopback; twice as much brought nothing."""

RECORD = 16384
"""Bytes of application data in the largest TLS record (RFC 8446, section 5.1)."""

BULK_AT = 2
"""Heat at which bulk mode begins. A full chunk adds one, a small one takes one away: a single large
answer does not make a bulk transfer."""

MAX_HEAT = 8
"""Heat is counted up to here and bulk mode ends at none, so it takes that many small chunks to end
it: a transfer whose sender stumbles now and then is not thrown back and forth."""

MAX_REPLIES = 524288
"""Bytes that may wait for a peer who keeps us answering (KeyUpdate, renegotiation requests) and
does not read, before it is not read any more either."""

_PENDING_RECORD = RECORD + 1024
"""Room for a record of which the beginning came in an earlier read."""

_OVERHEAD = 16384
"""Room for record headers and tags: 22 bytes in each 16 KiB, and replies that wait with them."""

_NAMES = (
    *("BIO_free", "BIO_get_mem_data", "BIO_new", "BIO_new_mem_buf", "BIO_read", "BIO_s_mem"),
    *("BIO_set_mem_eof_return", "ERR_clear_error", "SSL_clear_mode", "SSL_get_error", "SSL_read"),
    *("SSL_set_bio", "SSL_set_fd", "SSL_shutdown", "SSL_write"),
    *("SSL_ERROR_SYSCALL", "SSL_ERROR_WANT_READ", "SSL_ERROR_WANT_WRITE", "SSL_ERROR_ZERO_RETURN"),
    "SSL_MODE_ENABLE_PARTIAL_WRITE",
)

_of_context = attrgetter("_context")
_of_connection = attrgetter("_ssl", "_into_ssl", "_from_ssl")


def missing_names() -> list[str]:
    """Return the private names that this pyOpenSSL does not have; none if all is well."""
    try:
        util = importlib.import_module("OpenSSL._util")
        names = [f"lib.{name}" for name in _NAMES if not hasattr(util.lib, name)]
        names += [name for name in ("ffi", "exception_from_error_queue") if not hasattr(util, name)]
        _of_connection(SSL.Connection(SSL.Context(SSL.TLS_METHOD), None))
    except (ImportError, AttributeError) as error:
        return [str(error)]
    return names


_MISSING = missing_names()
_util: Any = None if _MISSING else importlib.import_module("OpenSSL._util")
_ffi: Any = _util and _util.ffi
_lib: Any = _util and _util.lib


def available() -> bool:
    """Tell whether this pyOpenSSL has all the private names, so that NativeTls can be used."""
    return not _MISSING


_ssl_read: Any = getattr(_lib, "SSL_read", None)
_ssl_write: Any = getattr(_lib, "SSL_write", None)


def clear_errors() -> None:
    """Forget what any earlier call left in OpenSSL's error queue: SSL_get_error looks there."""
    _lib.ERR_clear_error()


def prefer_groups(context: SSL.Context, groups: bytes) -> None:
    """Set the groups of the key exchange; without the private name, OpenSSL's own remain."""
    if hasattr(_lib, "SSL_CTX_set1_curves_list") and hasattr(context, "_context"):
        _lib.SSL_CTX_set1_curves_list(_of_context(context), groups)


class Scratch:
    """The buffers that all connections of one relay use in turn; nothing rests in them."""

    def __init__(self) -> None:
        plain = bytearray(BULK_CHUNK + _PENDING_RECORD)
        cipher = bytearray(BULK_CHUNK + _PENDING_RECORD + _OVERHEAD)
        self.plain = memoryview(plain)
        """Bytes of the app, between being read from one side and written to the other."""
        self.cipher = memoryview(cipher)
        self.chunk = [self.plain[:CHUNK]]
        self.bulk_chunk = [self.plain[:BULK_CHUNK]]
        self.bulk_cipher = [self.cipher[:BULK_CHUNK]]
        self.plain_pointer: Any = _ffi and _ffi.from_buffer("char[]", plain) + 0
        self.cipher_pointer: Any = _ffi and _ffi.from_buffer("char[]", cipher) + 0
        self._owners = (plain, cipher)


class NativeTls:
    """One established TLS connection on a non-blocking descriptor, one end of a relay.

    `read` decrypts into the scratch buffer's beginning, `write` encrypts from there. Neither
    raises for anything that the network does: look at `over`, `broken` and `unsent`.
    """

    __slots__ = (
        "_connection",
        "_given",
        "_heat",
        "_notified",
        "_output",
        "_scratch",
        "_ssl",
        "broken",
        "bulk",
        "fd",
        "over",
        "unsent",
        "wants_write",
    )

    def __init__(
        self, connection: SSL.Connection, fd: int, scratch: Scratch, *, output: bytes = b""
    ) -> None:
        """Take `connection` over, with `output` it made that is still to be sent.

        pyOpenSSL's own object must not be used for bytes afterwards: its BIOs are ours now.
        """
        self._connection = connection
        self._ssl, given, self._output = _of_connection(connection)
        self._scratch = scratch
        self._heat = 0
        self._notified = False
        self.fd = fd
        self.over = False
        """Nothing more will come: the peer sent close_notify, or `broken` says what happened."""
        self.broken: Exception | None = None
        """What made the connection good for nothing more."""
        self.unsent = output
        """What the kernel did not take: ciphertext in bulk mode, else what to repeat in clear."""
        self.wants_write = False
        """Reading cannot go on before something can be written."""
        self.bulk = given is not None
        """Bytes go through memory instead of by the descriptor."""
        self._given = False
        _lib.SSL_clear_mode(self._ssl, _lib.SSL_MODE_ENABLE_PARTIAL_WRITE)
        if self.bulk:
            self._given = bool(_lib.BIO_get_mem_data(given, _ffi.new("char **")))
            for name in ("_into_ssl", "_from_ssl"):
                setattr(connection, name, None)  # so that a later use fails instead of crashing
            if not (output or self._given):
                self._to_descriptor()

    def read(self) -> int:
        """Decrypt what has come; return the number of bytes, which are in the scratch buffer.

        Zero means that there is nothing, for now or for ever. Look at `over` also after some bytes.
        """
        if self.bulk:
            return self._read_bulk()
        got: int = _ssl_read(self._ssl, self._scratch.plain_pointer, CHUNK)
        if got >= RECORD:
            return self._read_on(got)
        if self._heat:
            self._heat -= 1
        if got > 0:
            return got
        self._cannot_read(got)
        return 0

    def _read_on(self, total: int) -> int:
        """Go on after a full record: behind it there are mostly more."""
        pointer = self._scratch.plain_pointer
        while total < CHUNK:
            got = _ssl_read(self._ssl, pointer + total, RECORD)
            if got <= 0:
                self._cannot_read(got)
                break
            total += got
        self._warm(total)
        return total

    def _read_bulk(self) -> int:
        if self._given:
            self._given = False
            total = self._decrypt()
            self._warm(total)
            return total
        if self.unsent and self._waiting() > MAX_REPLIES:
            self.wants_write = True
            return 0
        try:
            got = os.readv(self.fd, self._scratch.bulk_cipher)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._over(error)
            return 0
        if not got:
            self._over(TlsTruncated("the connection ended without TLS's close_notify"))
            return 0
        bio = _lib.BIO_new_mem_buf(self._scratch.cipher_pointer, got)
        _lib.BIO_set_mem_eof_return(bio, -1)
        _lib.SSL_set_bio(self._ssl, bio, self._output)
        total = self._decrypt()
        self._warm(total)
        return total

    def _decrypt(self) -> int:
        """Decrypt all that the input BIO holds, and send what OpenSSL has to say to it."""
        total, room, pointer = 0, len(self._scratch.plain), self._scratch.plain_pointer
        while (got := _ssl_read(self._ssl, pointer + total, room - total)) > 0:
            total += got
        self._cannot_read(got)
        self._send_output()
        return total

    def _cannot_read(self, result: int) -> None:
        reason = _lib.SSL_get_error(self._ssl, result)
        if reason == _lib.SSL_ERROR_WANT_WRITE:
            self.wants_write = True
        elif reason == _lib.SSL_ERROR_ZERO_RETURN:
            self.over = True
        elif reason != _lib.SSL_ERROR_WANT_READ:
            self._over(_failure(reason))

    def write(self, count: int) -> bool:
        """Encrypt and send `count` bytes of the scratch buffer; False if not all could go."""
        if count >= CHUNK:
            self._warm(count)
        sent = _ssl_write(self._ssl, self._scratch.plain_pointer, count)
        if self.bulk:
            if sent != count:  # memory takes everything, so this is fatal
                self._break(_failure(_lib.SSL_get_error(self._ssl, sent)))
            return self._send_output()
        return sent == count or self._refused(sent, bytes(self._scratch.plain[:count]))

    def flush(self) -> bool:
        """Try again to send what is unsent; True when nothing is left."""
        self.wants_write = False
        if self.bulk:
            return self._send_output()
        unsent, self.unsent = self.unsent, b""
        if not unsent:
            return True
        sent = _ssl_write(self._ssl, unsent, len(unsent))
        return sent == len(unsent) or self._refused(sent, unsent)

    def end(self) -> bool:
        """Say by close_notify that no more will be sent; False if that must be tried again."""
        if not self._notified:
            result = _lib.SSL_shutdown(self._ssl)
            if result < 0:
                return self._refused(result, b"")
            # Called once more, SSL_shutdown would read, and what it read would be lost.
            self._notified = True
        return self._send_output() if self.bulk else True

    def _refused(self, result: int, unsent: bytes) -> bool:
        reason = _lib.SSL_get_error(self._ssl, result)
        if reason in (_lib.SSL_ERROR_WANT_WRITE, _lib.SSL_ERROR_WANT_READ):
            self.unsent = unsent
        else:
            self._break(_failure(reason))
        return False

    def _send_output(self) -> bool:
        """Send what OpenSSL left in memory for the peer; True when nothing is left."""
        if self.unsent:
            self.unsent = self.unsent[self._send(self.unsent) :]
        cipher, pointer = self._scratch.cipher, self._scratch.cipher_pointer
        while not self.unsent and self.broken is None:
            made = _lib.BIO_read(self._output, pointer, len(cipher))
            if made <= 0:
                return True
            sent = self._send(cipher[:made])
            self.unsent = bytes(cipher[sent:made])
        return False

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._break(error)
            return len(data)

    def _waiting(self) -> int:
        pending: int = _lib.BIO_get_mem_data(self._output, _ffi.new("char **"))
        return len(self.unsent) + pending

    def _over(self, error: Exception) -> None:
        self.over = True
        self._break(error)

    def _break(self, error: Exception) -> None:
        # The first failure counts, but an alert tells why, however late it is read.
        if self.broken is None or isinstance(error, TlsAlert):
            self.broken = error

    def _warm(self, count: int) -> None:
        """Take note of how much moved at once, and choose between the two modes by it."""
        if count >= CHUNK:
            self._heat = min(self._heat + 1, MAX_HEAT)
        elif self._heat:
            self._heat -= 1
        if self.unsent or self.over or self.broken:
            return
        if self.bulk and not self._heat:
            self._to_descriptor()
        elif not self.bulk and self._heat >= BULK_AT:
            self._to_memory()

    def _to_descriptor(self) -> None:
        """Let OpenSSL read and write the descriptor. Both BIOs must be empty; it frees them."""
        _lib.SSL_set_fd(self._ssl, self.fd)
        self._output = None
        self.bulk = False

    def _to_memory(self) -> None:
        self._output = _lib.BIO_new(_lib.BIO_s_mem())
        _lib.SSL_set_bio(self._ssl, _lib.BIO_new(_lib.BIO_s_mem()), self._output)
        self.bulk = True


def _failure(reason: int) -> Exception:
    """Name what SSL_get_error says is fatal."""
    number = _ffi.errno
    if reason == _lib.SSL_ERROR_SYSCALL:
        clear_errors()
        if number:
            return OSError(number, os.strerror(number))
        return TlsTruncated("the connection ended without TLS's close_notify")
    try:
        _util.exception_from_error_queue(SSL.Error)
    except SSL.Error as error:
        return from_openssl(error)
    return TlsError("TLS failed: OpenSSL gave no reason")
