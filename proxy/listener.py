"""Accepting connections for as long as the proxy runs, whatever the system is short of."""

from __future__ import annotations

import errno
import math
import resource
import socket
from collections.abc import Awaitable, Callable

import trio
import trio.abc

from mesh.address import Address
from mesh.log import get_logger

log = get_logger("proxy.listener")

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What accept() fails with when the machine, not the connection, is at fault. It leaves the
connection in the backlog, so trying again at once would spin."""

FIRST_PAUSE = 0.005
LONGEST_PAUSE = 1.0
"""Seconds between attempts during a shortage, doubling (Go's net/http takes the same values)."""

WARN_EVERY = 60.0
"""Seconds between log lines that say the same: a full proxy must not fill the disk as well."""

SPARE_DESCRIPTORS = 64
"""Kept for listeners, the agent's socket, name lookups and the log."""

DESCRIPTORS_EACH = 2
"""A connection has two legs."""

BACKLOG = 65535
"""Connections that may wait to be accepted; the kernel cuts it to net.core.somaxconn."""

Handler = Callable[[trio.SocketStream], Awaitable[None]]
"""Serves one connection and closes its stream, whatever happens."""


def connection_limit() -> int:
    """Return how many connections the process's descriptor limit can carry, at least one.

    Taking no more than that means that a flood waits in the backlog, where it harms nobody who is
    being served, instead of failing half-way, between accepting and dialing.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max((soft - SPARE_DESCRIPTORS) // DESCRIPTORS_EACH, 1)


async def open_listeners(listen: Address, *, shared: bool = False) -> list[trio.SocketListener]:
    """Listen on every address that `listen` stands for. Raises OSError.

    With `shared`, other processes of this user may listen there too, and the kernel deals new
    connections out among them (SO_REUSEPORT): by their addresses, so evenly if there are many.
    """
    if not shared:
        return await trio.open_tcp_listeners(listen.port, host=listen.host)
    found = await trio.socket.getaddrinfo(
        listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listeners: list[trio.SocketListener] = []
    try:
        for family, kind, protocol, _, where in found:
            opened = trio.socket.socket(family, kind, protocol)
            listeners.append(await _listen(opened, where))
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


async def _listen(opened: trio.socket.SocketType, where: tuple[object, ...]) -> trio.SocketListener:
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if opened.family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await opened.bind(where)
        opened.listen(BACKLOG)
    except BaseException:
        opened.close()
        raise
    return trio.SocketListener(opened)


async def accept_forever(
    listener: trio.abc.Listener[trio.SocketStream],
    handler: Handler,
    *,
    connections: trio.Nursery,
    slots: trio.Semaphore,
) -> None:
    """Run `handler` in `connections` for each connection, never more at once than `slots`.

    A slot is taken before accepting, so what exceeds the limit waits in the kernel's backlog.
    """
    crowded, short = _Seldom(), _Seldom()
    async with listener:
        while True:
            if slots.value == 0 and crowded.due():
                log.warning("connection limit reached: further connections wait until others end")
            await slots.acquire()
            try:
                stream = await _accept(listener, short)
            except BaseException:
                slots.release()
                raise
            connections.start_soon(_serve, handler, stream, slots)


async def _accept(
    listener: trio.abc.Listener[trio.SocketStream], short: _Seldom
) -> trio.SocketStream:
    """Accept one connection, waiting out shortages."""
    pause = FIRST_PAUSE
    while True:
        try:
            return await listener.accept()
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
            if short.due():
                log.warning(
                    "cannot accept connections for now: raise the limit of open files",
                    error=error.strerror,
                )
        await trio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


async def _serve(handler: Handler, stream: trio.SocketStream, slots: trio.Semaphore) -> None:
    try:
        await handler(stream)
    finally:
        slots.release()


class _Seldom:
    """Keeps a log line that could come a thousand times a second to one in WARN_EVERY."""

    def __init__(self) -> None:
        self._next = -math.inf

    def due(self) -> bool:
        if trio.current_time() < self._next:
            return False
        self._next = trio.current_time() + WARN_EVERY
        return True
