"""What a listener in the middle makes of the first bytes of a connection."""

from __future__ import annotations

from mesh.api import MESH_ALPN
from proxy.sniff import ClientHello, sniff
from remora.demo.story import Wire

MAX_WORDS = 40
"""Bytes of plaintext that are quoted as evidence."""


def wire_of(sent: bytes) -> Wire:
    """Classify a connection by what its client sent."""
    if not sent:
        return Wire.SILENCE
    hello = sniff(sent)
    if not isinstance(hello, ClientHello):
        return Wire.PLAINTEXT
    return Wire.MESH_TLS if MESH_ALPN in hello.alpn else Wire.OTHER_TLS


def first_words(sent: bytes) -> str:
    """Quote the first line of plaintext."""
    line, _, _ = sent[:MAX_WORDS].partition(b"\r\n")
    return line.decode("ascii", "backslashreplace")
