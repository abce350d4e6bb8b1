from __future__ import annotations

import pytest

from mesh.tls import client_context
from remora.demo.story import Wire
from remora.demo.wire import first_words, wire_of
from tests.pki import NOW, make_root


def hello(*alpn: bytes) -> bytes:
    session = client_context(make_root().bundle(), alpn=alpn).session(NOW)
    assert not session.handshake()
    return session.pending_output()


@pytest.mark.parametrize(
    ("sent", "wire"),
    [
        (b"", Wire.SILENCE),
        (b"GET / HTTP/1.1\r\n", Wire.PLAINTEXT),
        (hello(b"istio"), Wire.MESH_TLS),
        (hello(b"istio-peer-exchange", b"istio") + b"and what follows", Wire.MESH_TLS),
        (hello(b"h2", b"http/1.1"), Wire.OTHER_TLS),
        (hello(), Wire.OTHER_TLS),
        (hello(b"istio")[:40], Wire.PLAINTEXT),
    ],
    ids=["silence", "plaintext", "mesh", "mesh-of-two", "other-alpn", "no-alpn", "cut-short"],
)
def test_what_the_first_bytes_are(sent: bytes, wire: Wire) -> None:
    assert wire_of(sent) is wire


def test_plaintext_is_quoted_to_its_first_line() -> None:
    assert first_words(b"GET / HTTP/1.1\r\nHost: a\r\n") == "GET / HTTP/1.1"
    assert len(first_words(b"x" * 1000)) <= 40
    assert first_words(b"\x00\xff") == "\x00\\xff"
