"""The PROXY protocol, version 2: who a connection really comes from, ahead of its first byte.

Pure: bytes in, values out. The format is HAProxy's (proxy-protocol.txt, section 2.2). Load
balancers send it to us, and we send it to apps that ask for it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from mesh.address import Address
from mesh.spiffe import SpiffeId

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
FIXED = 16
"""Bytes before the addresses: signature, version and command, family, length."""

MAX_HEADER = 2048
"""Bytes in all. Addresses take at most 216; the rest is for extensions, whose largest in use is a
balancer's TLS details at a few hundred. More than that is nobody's header."""

LOCAL, PROXY = 0x20, 0x21
TCP_OVER_IPV4, TCP_OVER_IPV6 = 0x11, 0x21
ADDRESS_BYTES = {TCP_OVER_IPV4: 12, TCP_OVER_IPV6: 36}

SOURCE_IDENTITY = 0xD0
"""Extension with the peer's SPIFFE ID, the number that Istio's ztunnel gives it."""


class Parsed(enum.Enum):
    """Verdicts other than a header."""

    NEED_MORE = "these bytes may become a header"
    NOT_A_HEADER = "these bytes are not the beginning of a version 2 header"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyHeader:
    """A header: its length in bytes, and whom it speaks of; nobody where it is a health check."""

    length: int
    source: Address | None = None
    destination: Address | None = None


def encode_header(source: Address, destination: Address, identity: SpiffeId | None) -> bytes:
    """Return the header for a connection between two IP addresses, with the peer's identity."""
    ends = [ip_address(source.host), ip_address(destination.host)]
    family = TCP_OVER_IPV4
    if any(isinstance(end, IPv6Address) for end in ends):
        family, ends = TCP_OVER_IPV6, [_widened(end) for end in ends]
    body = b"".join(end.packed for end in ends)
    body += source.port.to_bytes(2) + destination.port.to_bytes(2)
    if identity is not None:
        name = str(identity).encode()
        body += bytes([SOURCE_IDENTITY]) + len(name).to_bytes(2) + name
    return SIGNATURE + bytes([PROXY, family]) + len(body).to_bytes(2) + body


def _widened(end: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return IPv6Address(f"::ffff:{end}") if isinstance(end, IPv4Address) else end


def parse_header(untrusted: bytes) -> ProxyHeader | Parsed:
    """Read a header at the beginning of a connection. Extensions are passed over."""
    known = untrusted[: len(SIGNATURE)]
    if known != SIGNATURE[: len(known)]:
        return Parsed.NOT_A_HEADER
    if len(untrusted) < FIXED:
        return Parsed.NEED_MORE
    command, family = untrusted[12], untrusted[13]
    length = FIXED + int.from_bytes(untrusted[14:FIXED])
    if command not in {LOCAL, PROXY} or length > MAX_HEADER:
        return Parsed.NOT_A_HEADER
    if len(untrusted) < length:
        return Parsed.NEED_MORE
    if command == LOCAL:
        return ProxyHeader(length=length)
    return _with_addresses(family, untrusted[FIXED:length], length)


def _with_addresses(family: int, body: bytes, length: int) -> ProxyHeader | Parsed:
    size = ADDRESS_BYTES.get(family)
    if size is None or len(body) < size:
        return Parsed.NOT_A_HEADER
    width = (size - 4) // 2
    source, destination = body[:width], body[width : 2 * width]
    ports = body[2 * width : size]
    return ProxyHeader(
        length=length,
        source=Address(_host(source), int.from_bytes(ports[:2])),
        destination=Address(_host(destination), int.from_bytes(ports[2:])),
    )


def _host(packed: bytes) -> str:
    address = ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
