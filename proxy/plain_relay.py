"""The plain twin of the relay engine: trio tasks, public pyOpenSSL, and nothing clever.

Each direction is a task of its own, so a slow reader in one never holds up the other. It keeps the
promises of proxy.relay by the shortest code that does, several times slower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import trio

from mesh.tls_errors import TlsAlert
from mesh.tls_socket import TlsSocket
from mesh.tls_stream import TlsStream
from proxy.errors import ConnectionFailed, IdleTimeout, TooOld, app_broken, peer_broken
from proxy.relayed import DRAIN_TIMEOUT, Leg, Limits, Relayed, Traffic, socket_beneath
from proxy.socket_options import peer_address, reset, wait_delivered, was_reset

CHUNK = 65536
"""Bytes read at once. 16 KiB loses about a tenth of the throughput; more helps only bulk."""


@dataclass(slots=True, eq=False)
class _Side:
    """One end of the connection. `broken` is why it is good for nothing more."""

    stream: trio.SocketStream | TlsStream
    socket: trio.SocketStream
    broken: trio.BrokenResourceError | None = None


@dataclass(slots=True, eq=False)
class _Direction:
    """One way for bytes; `ended` once the source's end was passed on."""

    source: _Side
    sink: _Side
    ended: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


async def relay(plain: trio.SocketStream, tls: Leg, limits: Limits, traffic: Traffic) -> Relayed:
    """Join two connections (see proxy.relay)."""
    return await _Relay(plain, tls, limits, traffic).run()


class _Relay:
    def __init__(
        self, plain: trio.SocketStream, tls: Leg, limits: Limits, traffic: Traffic
    ) -> None:
        if isinstance(tls, TlsSocket):
            raise TypeError("the plain relay needs a stream, not a socket that OpenSSL reads")
        self._app = _Side(plain, plain)
        self._peer = _Side(tls, socket_beneath(tls))
        self._app_name = peer_address(self._app.socket)
        self._peer_name = peer_address(self._peer.socket)
        self._out = _Direction(self._app, self._peer)
        self._back = _Direction(self._peer, self._app)
        self._limits, self._traffic = limits, traffic
        self._dies = trio.current_time() + (math.inf if limits.age is None else limits.age)
        self._life = trio.CancelScope()
        self._first_broken: _Side | None = None

    async def run(self) -> Relayed:
        try:
            self._touch()
            with self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry, self._out)
                    nursery.start_soon(self._carry, self._back)
            await self._close()
        finally:
            # Cancelled or cut: neither side may take this for a clean end.
            reset(self._app.socket)
            reset(self._peer.socket)
        sent, received = self._traffic.sent, self._traffic.received
        return Relayed(sent=sent, received=received, failure=self._failure())

    async def _carry(self, way: _Direction) -> None:
        with way.scope:
            while chunk := await self._receive(way.source):
                self._touch()
                if not await self._send(way.sink, chunk):
                    return
                self._count(way, len(chunk))
            if not way.source.broken:
                await self._pass_end(way)

    def _count(self, way: _Direction, count: int) -> None:
        if way is self._out:
            self._traffic.sent += count
        else:
            self._traffic.received += count

    async def _receive(self, side: _Side) -> bytes:
        """Return the next bytes; none at the end or, with `side.broken` set, after a failure."""
        try:
            chunk = bytes(await side.stream.receive_some(CHUNK))
        except trio.BrokenResourceError as error:
            self._break(side, error)
            return b""
        if not chunk and self._ended_by_reset(side):
            self._break(side, trio.BrokenResourceError("the other direction met the reset first"))
        return chunk

    async def _send(self, side: _Side, chunk: bytes) -> bool:
        try:
            await side.stream.send_all(chunk)
        except trio.BrokenResourceError as error:
            self._break(side, error)
            return False
        return True

    async def _pass_end(self, way: _Direction) -> None:
        way.ended = True
        try:
            await way.sink.stream.send_eof()
        except trio.BrokenResourceError as error:
            self._break(way.sink, error)

    def _ended_by_reset(self, side: _Side) -> bool:
        # TLS knows a clean end by close_notify. TCP cannot be asked once our own FIN is out.
        return (
            side.stream is side.socket and not self._toward(side).ended and was_reset(side.socket)
        )

    def _break(self, side: _Side, error: trio.BrokenResourceError) -> None:
        """Stop sending to `side`, and let what it sent before it broke be delivered."""
        self._first_broken = self._first_broken or side
        # The first failure counts, but an alert tells why, however late it is read.
        if side.broken is None or isinstance(error.__cause__, TlsAlert):
            side.broken = error
        self._toward(side).scope.cancel()
        away = self._back if side is self._peer else self._out
        away.scope.deadline = trio.current_time() + DRAIN_TIMEOUT

    def _toward(self, side: _Side) -> _Direction:
        return self._out if side is self._peer else self._back

    def _touch(self) -> None:
        self._life.deadline = min(trio.current_time() + self._limits.idle, self._dies)

    async def _close(self) -> None:
        """Close what ended cleanly; before a reset, see delivered what the other side had sent."""
        if self._life.cancelled_caught:
            return
        if self._first_broken is None:
            await self._app.stream.aclose()
            await self._peer.stream.aclose()
            return
        reset(self._first_broken.socket)
        other = self._peer if self._first_broken is self._app else self._app
        if other.broken is None:
            await wait_delivered(other.socket)

    def _failure(self) -> ConnectionFailed | None:
        if self._life.cancelled_caught:
            return self._expiry()
        side = self._first_broken
        if side is None or side.broken is None:
            return None
        if side is self._app:
            return app_broken(self._app_name)
        return peer_broken(side.broken.__cause__, self._peer_name)

    def _expiry(self) -> ConnectionFailed:
        if self._limits.age is not None and self._life.deadline == self._dies:
            return TooOld(self._limits.age)
        return IdleTimeout(self._limits.idle)
