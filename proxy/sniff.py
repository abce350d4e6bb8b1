"""What a connection begins with: a TLS ClientHello or something else.

Pure: bytes in, a verdict out, and no exception whatever the bytes are. The structures are those of
RFC 8446, sections 4.1.2 and 5.1; names and ALPN are read from RFC 6066, section 3, and RFC 7301.
A ClientHello may be split over several records, and those over several segments, and one with a
post-quantum key share is larger than a segment: so "more is needed" is an answer like the others.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

MAX_CLIENT_HELLO = 16 * 1024
"""Bytes looked through (Envoy's tls_inspector has the same maximum). Real ones take 200 to 2000."""

RECORD_HEADER = 5
HANDSHAKE_HEADER = 4
HANDSHAKE_RECORD = 22
CLIENT_HELLO = 1
SERVER_NAME = 0
ALPN = 16
RANDOM = 34
"""legacy_version and random, which the verdict does not depend on."""


class Sniffed(enum.Enum):
    """Verdicts other than a ClientHello."""

    NEED_MORE = "these bytes may become a ClientHello"
    NOT_TLS = "these bytes are not the beginning of a ClientHello"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHello:
    """What a TLS client offers: the name it wants, and its protocols in order of preference."""

    server_name: str | None = None
    alpn: tuple[bytes, ...] = ()


def sniff(untrusted: bytes) -> ClientHello | Sniffed:
    """Judge the first bytes of a connection. Bytes that cannot be parsed are NOT_TLS, as in Envoy.

    The caller bounds how much it collects; MAX_CLIENT_HELLO is the bound.
    """
    body = _handshake_body(untrusted)
    if isinstance(body, Sniffed):
        return body
    try:
        return _parse_hello(_Reader(body))
    except _Malformed:
        return Sniffed.NOT_TLS


def _handshake_body(data: bytes) -> bytes | Sniffed:
    """Join the records' fragments until the whole handshake message is there."""
    message = b""
    position = 0
    while True:
        header = data[position : position + RECORD_HEADER]
        if not _may_begin_record(header):
            return Sniffed.NOT_TLS
        if len(header) < RECORD_HEADER:
            return _unless_wrong(message)
        length = int.from_bytes(header[3:])
        position += RECORD_HEADER
        message += data[position : position + length]
        position += length
        wanted = _message_length(message)
        if wanted is not None and len(message) >= wanted:
            return message[HANDSHAKE_HEADER:wanted] if _is_hello(message) else Sniffed.NOT_TLS
        if position > len(data):
            return _unless_wrong(message)


def _may_begin_record(header: bytes) -> bool:
    """Tell whether these are the first bytes of a handshake record, as far as they go.

    An empty or oversized record is no way to begin (RFC 8446, 5.1: at most 2**14 bytes).
    """
    if header[:1] not in {b"", bytes([HANDSHAKE_RECORD])} or header[1:2] not in {b"", b"\x03"}:
        return False
    return len(header) < RECORD_HEADER or 0 < int.from_bytes(header[3:]) <= 2**14


def _message_length(message: bytes) -> int | None:
    if len(message) < HANDSHAKE_HEADER:
        return None
    return HANDSHAKE_HEADER + int.from_bytes(message[1:HANDSHAKE_HEADER])


def _is_hello(message: bytes) -> bool:
    return message[0] == CLIENT_HELLO


def _unless_wrong(message: bytes) -> Sniffed:
    """Ask for more, unless the part at hand is of another message already."""
    if message and not _is_hello(message):
        return Sniffed.NOT_TLS
    return Sniffed.NEED_MORE


class _Malformed(Exception):
    """A length points outside its container."""


class _Reader:
    """Takes a structure apart from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bool__(self) -> bool:
        return bool(self._data)

    def take(self, count: int) -> bytes:
        if len(self._data) < count:
            raise _Malformed
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> _Reader:
        """Take what a length of `size` bytes announces."""
        return _Reader(self.take(self.number(size)))

    def rest(self) -> bytes:
        return self.take(len(self._data))


def _parse_hello(hello: _Reader) -> ClientHello:
    hello.take(RANDOM)
    hello.vector(1)  # legacy_session_id
    hello.vector(2)  # cipher_suites
    hello.vector(1)  # legacy_compression_methods
    if not hello:
        return ClientHello()  # TLS 1.2 allows a ClientHello without extensions
    extensions = hello.vector(2)
    name: str | None = None
    alpn: tuple[bytes, ...] = ()
    while extensions:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind == SERVER_NAME:
            name = _parse_server_name(content)
        elif kind == ALPN:
            alpn = _parse_alpn(content)
    return ClientHello(server_name=name, alpn=alpn)


def _parse_server_name(content: _Reader) -> str | None:
    names = content.vector(2) if content else content
    while names:
        kind, name = names.number(1), names.vector(2)
        if kind == 0:
            return name.rest().decode("ascii", "replace")
    return None


def _parse_alpn(content: _Reader) -> tuple[bytes, ...]:
    protocols = content.vector(2)
    found: list[bytes] = []
    while protocols:
        found.append(protocols.vector(1).rest())
    return tuple(found)
