"""Free ports that stay free until the program they are meant for listens on them.

A port that is found by binding and closing can be taken again at once, by any connection that
this machine dials. A bound socket that does not listen keeps its port: the kernel gives it to no
other socket that asks for any port, and yet lets a listener have it that names the port and sets
SO_REUSEADDR as every server on Linux does.
"""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

LOOPBACK = "127.0.0.1"


@contextmanager
def reserved_addresses(count: int) -> Generator[list[str]]:
    """Hold `count` free ports on loopback, as `127.0.0.1:PORT`."""
    with ExitStack() as stack:
        yield [_reserve(stack.enter_context(socket.socket())) for _ in range(count)]


def _reserve(holder: socket.socket) -> str:
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((LOOPBACK, 0))
    host, port = holder.getsockname()
    return f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Take `HOST:PORT` apart."""
    host, _, port = address.rpartition(":")
    return host, int(port)
