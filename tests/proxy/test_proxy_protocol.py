from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.address import Address
from mesh.spiffe import SpiffeId
from proxy.proxy_protocol import (
    FIXED,
    MAX_HEADER,
    SIGNATURE,
    Parsed,
    ProxyHeader,
    encode_header,
    parse_header,
)

CLIENT, APP = Address("192.0.2.7", 40000), Address("10.0.0.2", 8080)
CLIENT_6, APP_6 = Address("2001:db8::7", 40000), Address("fd00::2", 8080)
IDENTITY = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/sleep")


def test_the_bytes_for_ipv4_are_those_of_the_specification() -> None:
    assert encode_header(CLIENT, APP, None) == bytes.fromhex(
        "0d0a0d0a000d0a515549540a"  # signature
        "21"  # version 2, PROXY
        "11"  # TCP over IPv4
        "000c"  # 12 bytes follow
        "c0000207 0a000002 9c40 1f90"
    )


def test_the_identity_is_an_extension_of_ztunnels_number() -> None:
    header = encode_header(CLIENT, APP, IDENTITY)
    name = str(IDENTITY).encode()
    assert header.endswith(b"\xd0" + len(name).to_bytes(2) + name)
    assert parse_header(header) == ProxyHeader(length=len(header), source=CLIENT, destination=APP)


@pytest.mark.parametrize(
    ("source", "destination"), [(CLIENT, APP), (CLIENT_6, APP_6), (CLIENT, APP_6)]
)
def test_what_was_encoded_is_read_and_not_a_byte_more(
    source: Address, destination: Address
) -> None:
    header = encode_header(source, destination, None)
    found = parse_header(header + b"GET / HTTP/1.1")
    assert found == ProxyHeader(length=len(header), source=source, destination=destination)


def test_every_shorter_piece_may_still_become_a_header() -> None:
    header = encode_header(CLIENT, APP, IDENTITY)
    for size in range(len(header)):
        assert parse_header(header[:size]) is Parsed.NEED_MORE


def test_a_health_check_of_the_balancer_names_nobody() -> None:
    local = SIGNATURE + b"\x20\x00\x00\x00"
    assert parse_header(local) == ProxyHeader(length=FIXED)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),  # version 1 in binary
        SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),  # no such command
        SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12),  # UDP
        SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),  # unix sockets
        SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),  # addresses cut short
        SIGNATURE + b"\x21\x11" + MAX_HEADER.to_bytes(2),  # longer than anybody's
    ],
)
def test_anything_else_is_no_header(data: bytes) -> None:
    assert parse_header(data) is Parsed.NOT_A_HEADER


@given(st.binary(max_size=80), st.booleans())
def test_no_bytes_raise(data: bytes, signed: bool) -> None:
    parse_header(SIGNATURE + data if signed else data)
