"""Where a workload finds its SPIFFE agent: the value of SPIFFE_ENDPOINT_SOCKET.

SPIFFE Workload Endpoint, section 4: `unix:///absolute/path` or `tcp://IP:port`, and nothing else.
Host names are left out on purpose, since whoever answers DNS could then hand out identities.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from mesh.errors import ConfigError

ENDPOINT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"

_PORT = re.compile(r"[1-9][0-9]{0,4}")

MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A unix socket at an absolute path."""

    path: str


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """A TCP address without TLS: the agent knows its callers by other means, if at all."""

    host: IPv4Address | IPv6Address
    port: int


def parse_endpoint(text: str) -> UnixEndpoint | TcpEndpoint:
    """Parse the value of SPIFFE_ENDPOINT_SOCKET. Raises ConfigError."""
    if strange := sorted({character for character in text if character in "?#%@\\"}):
        raise _refusal(text, f"contains {strange[0]!r}")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise _refusal(text, "contains a character that must not be in a URI")
    scheme, _, rest = text.partition(":")
    if scheme == "unix":
        return _unix(text, rest)
    if scheme == "tcp":
        return _tcp(text, rest)
    raise _refusal(text, "has another scheme than unix or tcp")


def _unix(text: str, rest: str) -> UnixEndpoint:
    # RFC 8089 writes an absent authority both ways: `unix:/path` and `unix:///path`.
    authority, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", *_cut(rest))
    if authority:
        raise _refusal(text, f"names a host, {authority!r}")
    if not slash or not path:
        raise _refusal(text, "has no absolute path")
    return UnixEndpoint(f"/{path}")


def _cut(rest: str) -> tuple[str, str]:
    return ("/", rest[1:]) if rest.startswith("/") else ("", rest)


def _tcp(text: str, rest: str) -> TcpEndpoint:
    if not rest.startswith("//"):
        raise _refusal(text, "has no address")
    authority, slash, _ = rest[2:].partition("/")
    if slash:
        raise _refusal(text, "has a path")
    host, _, port = authority.rpartition(":")
    if not _PORT.fullmatch(port) or int(port) > MAX_PORT:
        raise _refusal(text, f"has no port from 1 to {MAX_PORT}")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise _refusal(text, "has no IP address") from None
    if bracketed != (address.version == 6):
        raise _refusal(text, "has brackets where none belong, or lacks them round an IPv6 address")
    return TcpEndpoint(address, int(port))


def _refusal(text: str, fault: str) -> ConfigError:
    return ConfigError(
        f"{ENDPOINT_VARIABLE} {text[:120]!r} {fault}: "
        "write unix:///path/to/socket, or tcp://IP:port"
    )
