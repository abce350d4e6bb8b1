"""Carrying bytes between the app and the peer until both have said that they are done.

How a connection ends is as much its content as its bytes are. What this module promises:

- Half-close: the end of one direction is passed on (FIN to FIN, FIN to close_notify and back) and
  the other direction goes on for as long as it likes.
- A reset on one side becomes a reset on the other, never a FIN: an app must be able to tell an
  answer that was cut from one that was complete. Bytes that arrived before the reset are delivered
  first: what the broken side still holds is read, and the RST to the healthy side waits until
  its kernel has acknowledged everything (SO_LINGER 0 would destroy the send queue).
- TLS that ends without close_notify is cut, not complete, and is treated like a reset: anybody on
  the path can forge a FIN.
- Backpressure: a direction holds at most one chunk and reads no more until it is sent.
- Both streams belong to the relay from the call on: closed when it returns, reset when it is
  cancelled.

Each direction is a task of its own, so a slow reader in one never holds up the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from mesh.tls_errors import TlsAlert
from mesh.tls_stream import TlsStream
from proxy.errors import ConnectionFailed, IdleTimeout, app_broken, peer_broken
from proxy.socket_options import peer_address, reset, wait_delivered, was_reset

CHUNK = 65536
"""Bytes read at once. 16 KiB loses about a tenth of the throughput; more helps only bulk."""

IDLE_TIMEOUT = 3600.0
"""Seconds without a byte either way (Envoy's TCP proxy default): frees connections whose ends
are alive but have forgotten each other."""

DRAIN_TIMEOUT = 5.0
"""Seconds for delivering what a side sent before it broke, to a reader who does not hurry."""

Leg = trio.SocketStream | TlsStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed:
    """What a finished connection carried, and what cut it if it was cut."""

    sent: int
    """Bytes of the app that went to the peer."""
    received: int
    """Bytes of the peer that went to the app."""
    failure: ConnectionFailed | None = None


@dataclass(slots=True, eq=False)
class _Side:
    """One end of the connection. `broken` is why it is good for nothing more."""

    stream: Leg
    socket: trio.SocketStream
    broken: trio.BrokenResourceError | None = None


@dataclass(slots=True, eq=False)
class _Direction:
    """One way for bytes; `ended` once the source's end was passed on."""

    source: _Side
    sink: _Side
    carried: int = 0
    ended: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


async def relay(plain: trio.SocketStream, tls: Leg) -> Relayed:
    """Join the app's connection `plain` with the peer's, until both directions have ended.

    `tls` is a bare socket where the proxy does no TLS of its own. Network failures are in the
    result; nothing foreseen is raised.
    """
    return await _Relay(plain, tls).run()


class _Relay:
    def __init__(self, plain: trio.SocketStream, tls: Leg) -> None:
        self._app = _Side(plain, plain)
        self._peer = _Side(tls, _socket_beneath(tls))
        self._app_name = peer_address(self._app.socket)
        self._peer_name = peer_address(self._peer.socket)
        self._out = _Direction(self._app, self._peer)
        self._back = _Direction(self._peer, self._app)
        self._idle = trio.CancelScope()
        self._first_broken: _Side | None = None

    async def run(self) -> Relayed:
        try:
            self._touch()
            with self._idle:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry, self._out)
                    nursery.start_soon(self._carry, self._back)
            await self._close()
        finally:
            # Cancelled or cut: neither side may take this for a clean end.
            reset(self._app.socket)
            reset(self._peer.socket)
        return Relayed(sent=self._out.carried, received=self._back.carried, failure=self._failure())

    async def _carry(self, way: _Direction) -> None:
        with way.scope:
            while chunk := await self._receive(way.source):
                self._touch()
                if not await self._send(way.sink, chunk):
                    return
                way.carried += len(chunk)
            if not way.source.broken:
                await self._pass_end(way)

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
        self._idle.deadline = trio.current_time() + IDLE_TIMEOUT

    async def _close(self) -> None:
        """Close what ended cleanly; before a reset, see delivered what the other side had sent."""
        if self._idle.cancelled_caught:
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
        if self._idle.cancelled_caught:
            return IdleTimeout(IDLE_TIMEOUT)
        side = self._first_broken
        if side is None or side.broken is None:
            return None
        if side is self._app:
            return app_broken(self._app_name)
        return peer_broken(side.broken.__cause__, self._peer_name)


def _socket_beneath(leg: Leg) -> trio.SocketStream:
    bottom = leg.transport if isinstance(leg, TlsStream) else leg
    if not isinstance(bottom, trio.SocketStream):
        raise TypeError("the relay needs a socket at the bottom: only a socket can be reset")
    return bottom
