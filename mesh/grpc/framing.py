"""The bytes of gRPC inside HTTP/2, without I/O (gRPC: PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from mesh.grpc.status import GrpcError, Status

Header = tuple[bytes, bytes]

_PREFIX = struct.Struct("!BI")
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_KEY = re.compile(r"[0-9a-z_.-]+")

RESERVED = frozenset({"te", "content-type", "user-agent", "host", "connection"})
"""Headers that belong to the protocol and are no metadata."""

MAX_TIMEOUT = 99_999_999
"""The largest number that fits the eight digits of grpc-timeout."""


def encode_message(body: bytes) -> bytes:
    """Return a length-prefixed message: one flag byte (not compressed), four of length, body."""
    return _PREFIX.pack(0, len(body)) + body


class MessageReader:
    """Cuts a byte stream into messages, refusing a large one before it is buffered."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete now.

        Raises GrpcError: RESOURCE_EXHAUSTED above the limit, UNIMPLEMENTED if compressed.
        """
        self._buffer += data
        messages: list[bytes] = []
        while (body := self._next()) is not None:
            messages.append(body)
        return messages

    @property
    def empty(self) -> bool:
        """Whether no message is half read."""
        return not self._buffer

    def _next(self) -> bytes | None:
        if len(self._buffer) < _PREFIX.size:
            return None
        compressed, length = _PREFIX.unpack_from(self._buffer)
        if compressed:
            raise GrpcError(
                Status.UNIMPLEMENTED, "the message is compressed, which was not negotiated"
            )
        if length > self._limit:
            raise GrpcError(
                Status.RESOURCE_EXHAUSTED,
                f"a message of {length} bytes is larger than the {self._limit} allowed",
            )
        end = _PREFIX.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_PREFIX.size : end])
        del self._buffer[:end]
        return body


def parse_timeout(value: bytes) -> float:
    """Return the seconds of a grpc-timeout header. Raises GrpcError INTERNAL."""
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise GrpcError(Status.INTERNAL, f"grpc-timeout {value[:20]!r} cannot be read")
    return int(match[1]) * _UNITS[match[2]]


def format_timeout(seconds: float) -> bytes:
    """Return a grpc-timeout header, in the finest unit that fits its eight digits."""
    for unit in (b"u", b"m", b"S", b"M"):
        count = max(int(seconds / _UNITS[unit]), 0)
        if count <= MAX_TIMEOUT:
            return b"%d%s" % (count, unit)
    return b"%dH" % min(int(seconds / 3600), MAX_TIMEOUT)


def encode_status_message(message: str) -> bytes:
    """Percent-encode a grpc-message: printable ASCII stays, `%` and the rest do not."""
    return quote(message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").encode("ascii")


def decode_status_message(value: bytes) -> str:
    """Undo percent-encoding; what cannot be decoded is kept readable, never an error."""
    return unquote_to_bytes(value).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a call carries beside its messages: names in lower case, each with all its values.

    Values of names that end in `-bin` are bytes, all others text.
    """

    items: tuple[tuple[str, str | bytes], ...] = ()

    def get(self, name: str) -> str | None:
        """Return the first text value of `name`."""
        return next(iter(self.get_all(name)), None)

    def get_all(self, name: str) -> list[str]:
        """Return every text value of `name`, in the order they came."""
        return [value for key, value in self.items if key == name and isinstance(value, str)]

    def get_binary(self, name: str) -> list[bytes]:
        """Return every value of a `-bin` name."""
        return [value for key, value in self.items if key == name and isinstance(value, bytes)]


def encode_metadata(items: Iterable[tuple[str, str | bytes]]) -> list[Header]:
    """Return metadata as headers. Raises ValueError for a name or value that cannot be sent."""
    headers: list[Header] = []
    for name, value in items:
        key = name.lower()
        if not _KEY.fullmatch(key) or key in RESERVED or key.startswith("grpc-"):
            raise ValueError(f"{name!r} cannot be the name of metadata")
        if key.endswith("-bin") != isinstance(value, bytes):
            raise ValueError(f"metadata {name!r}: bytes go with names in -bin, text with others")
        if isinstance(value, bytes):
            headers.append((key.encode(), base64.b64encode(value).rstrip(b"=")))
        elif all(" " <= character <= "~" for character in value):
            headers.append((key.encode(), value.encode("ascii")))
        else:
            raise ValueError(f"metadata {name!r} holds characters other than printable ASCII")
    return headers


def decode_metadata(headers: Sequence[Header]) -> Metadata:
    """Return the metadata among `headers`. Raises GrpcError INTERNAL for broken base64."""
    items: list[tuple[str, str | bytes]] = []
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1")
        if name.startswith((":", "grpc-")) or name in RESERVED:
            continue
        if name.endswith("-bin"):
            items.extend((name, _binary(name, part)) for part in raw_value.split(b","))
        else:
            items.append((name, raw_value.decode("latin-1")))
    return Metadata(tuple(items))


def _binary(name: str, value: bytes) -> bytes:
    stripped = value.strip().rstrip(b"=")
    try:
        return base64.b64decode(stripped + b"=" * (-len(stripped) % 4), validate=True)
    except binascii.Error as error:
        raise GrpcError(Status.INTERNAL, f"metadata {name} is not base64") from error
