"""The bytes of gRPC: messages, timeouts, status texts, metadata."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.grpc.framing import (
    MessageReader,
    Metadata,
    decode_metadata,
    decode_status_message,
    encode_message,
    encode_metadata,
    encode_status_message,
    format_timeout,
    parse_timeout,
)
from mesh.grpc.status import GrpcError, Status, from_http_status, from_reset


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(1, 9))
def test_messages_come_out_whole_however_they_are_cut(bodies: list[bytes], step: int) -> None:
    wire = b"".join(encode_message(body) for body in bodies)
    reader = MessageReader(100)
    found = [
        message
        for start in range(0, len(wire), step)
        for message in reader.feed(wire[start : start + step])
    ]
    assert found == bodies
    assert reader.empty


def test_a_large_message_is_refused_by_its_prefix_alone() -> None:
    reader = MessageReader(10)
    assert reader.feed(encode_message(bytes(10))) == [bytes(10)]
    with pytest.raises(GrpcError) as caught:
        reader.feed(b"\0\0\0\0\x0b")
    assert caught.value.code is Status.RESOURCE_EXHAUSTED


def test_compression_was_not_negotiated() -> None:
    with pytest.raises(GrpcError) as caught:
        MessageReader(10).feed(b"\1\0\0\0\1x")
    assert caught.value.code is Status.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"250m", 0.25), (b"5u", 5e-6), (b"7n", 7e-9)],
)
def test_timeouts_are_read(text: bytes, seconds: float) -> None:
    assert parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"1", b"S", b"-1S", b"123456789S", b"1s", b"1.5S", b"1S\n"])
def test_bad_timeouts_are_refused(text: bytes) -> None:
    with pytest.raises(GrpcError):
        parse_timeout(text)


@given(st.floats(0, 1e9))
def test_a_timeout_is_never_sent_longer_than_it_is(seconds: float) -> None:
    text = format_timeout(seconds)
    assert len(text) <= 9
    assert parse_timeout(text) <= seconds * (1 + 1e-9)


@given(st.text())
def test_status_texts_survive(text: str) -> None:
    wire = encode_status_message(text.encode("utf-8", "replace").decode())
    assert all(0x20 <= byte <= 0x7E for byte in wire)
    assert decode_status_message(wire) == text.encode("utf-8", "replace").decode()


def test_broken_status_texts_stay_readable() -> None:
    assert decode_status_message(b"100%") == "100%"
    assert decode_status_message(b"%ff%zz") == "\ufffd%zz"


def test_metadata_keeps_every_value_and_bytes_apart() -> None:
    sent: list[tuple[str, str | bytes]] = [
        ("a", "1"),
        ("a", "2"),
        ("k-bin", b"\0\xff"),
        ("A-Upper", "x"),
    ]
    got = decode_metadata(encode_metadata(sent))
    assert got.get_all("a") == ["1", "2"]
    assert got.get("a") == "1"
    assert got.get("a-upper") == "x"
    assert got.get_binary("k-bin") == [b"\0\xff"]
    assert got.get("k-bin") is None
    assert Metadata().get("a") is None


def test_base64_may_be_padded_and_joined_by_commas() -> None:
    got = decode_metadata([(b"k-bin", b"AA==,AQ"), (b":path", b"/x"), (b"grpc-timeout", b"1S")])
    assert got.get_binary("k-bin") == [b"\0", b"\1"]
    assert len(got.items) == 2
    with pytest.raises(GrpcError):
        decode_metadata([(b"k-bin", b"!")])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("te", "x"),
        ("grpc-x", "x"),
        ("sp ace", "x"),
        (":path", "x"),
        ("", "x"),
        ("a", "line\nbreak"),
        ("a", "\u00e9"),
        ("a", b"bytes"),
        ("a-bin", "text"),
    ],
)
def test_metadata_that_cannot_be_sent_is_refused(name: str, value: str | bytes) -> None:
    with pytest.raises(ValueError, match="metadata"):
        encode_metadata([(name, value)])


def test_foreign_endings_map_to_statuses() -> None:
    assert from_http_status(503) is Status.UNAVAILABLE
    assert from_http_status(401) is Status.UNAUTHENTICATED
    assert from_http_status(404) is Status.UNIMPLEMENTED
    assert from_http_status(418) is Status.UNKNOWN
    assert from_reset(8) is Status.CANCELLED
    assert from_reset(7) is Status.UNAVAILABLE
    assert from_reset(11) is Status.RESOURCE_EXHAUSTED
    assert from_reset(1) is Status.INTERNAL
