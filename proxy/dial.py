"""Opening TCP connections: to the app behind the proxy, and to where the app before it wants."""

from __future__ import annotations

import socket

import trio

from mesh.dialing import why_not_connected
from proxy.errors import ConnectFailed
from proxy.socket_options import tune

MAX_ADDRESSES = 3
"""Addresses of one name that are tried in turn: enough to step over a dead address family and a
dead replica, few enough that the app is told within half a minute."""


async def dial(host: str, port: int, *, what: str, hint: str) -> trio.SocketStream:
    """Connect to `what`, as the message calls it. Raises ConnectFailed, with `hint` for advice."""
    try:
        family = _family(host)
        if family is None:
            stream = await trio.open_tcp_stream(host, port)
        else:
            stream = await _connect(family, host, port)
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(
            f"cannot connect to {what} ({why_not_connected(error)}): {hint}"
        ) from error
    tune(stream)
    return stream


async def _connect(family: socket.AddressFamily, host: str, port: int) -> trio.SocketStream:
    """Connect to the one address there is, without trio's race between several."""
    opened = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await opened.connect((host, port))
    except BaseException:
        opened.close()
        raise
    return trio.SocketStream(opened)


def _family(host: str) -> socket.AddressFamily | None:
    """Return the family of a literal address; None for a name, or an address with a zone."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return family
    return None


async def resolve(host: str, port: int) -> list[str]:
    """Return the IP addresses of `host`, best first and not too many. Raises ConnectFailed."""
    if _family(host) is not None:
        return [host]
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(
            f"the name {host} cannot be resolved ({why_not_connected(error)}): check its spelling"
        ) from error
    return list(dict.fromkeys(str(where[0]) for *_, where in found))[:MAX_ADDRESSES]
