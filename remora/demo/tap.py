"""Somebody in the middle: a TCP forwarder that keeps a copy of every byte, both ways."""

from __future__ import annotations

import trio

from proxy.socket_options import reset, wait_delivered
from remora.demo.ports import LOOPBACK, split_address

READ_SIZE = 65536
"""Bytes forwarded at once."""

KEPT = 1024 * 1024
"""Bytes kept of each direction: a request and its answer many times over, of an upload the
beginning."""


class Tap:
    """Forwards connections from `address`, where it listens, to one target."""

    def __init__(self, address: str, target: str) -> None:
        self.address = address
        self.sources: list[str] = []
        """For each connection, the address from which the target sees it come."""
        self.upstream = bytearray()
        self.downstream = bytearray()
        self.forwarded = 0
        """Bytes that went through, both ways, kept or not."""
        self._target = target
        self._grown = trio.Event()

    @property
    def captured(self) -> bytes:
        """What was kept of both directions."""
        return bytes(self.upstream + self.downstream)

    async def forwards(self, total: int) -> None:
        """Wait until `total` bytes went through."""
        await trio.lowlevel.checkpoint()
        while self.forwarded < total:
            await self._grown.wait()

    async def handle(self, near: trio.SocketStream) -> None:
        """Forward one connection to its end; a reset on either side is a reset on the other."""
        async with near:
            try:
                far = await trio.open_tcp_stream(*split_address(self._target))
            except OSError:
                reset(near)
                return
            async with far:
                host, port, *_ = far.socket.getsockname()
                self.sources.append(f"{host}:{port}")
                await self._forward(near, far)

    async def _forward(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, near, far, self.upstream)
                nursery.start_soon(self._pump, far, near, self.downstream)
        except* trio.BrokenResourceError:
            # What came before the reset, such as a TLS alert, must still arrive.
            await wait_delivered(near)
            reset(near)
            reset(far)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, copy: bytearray
    ) -> None:
        while data := await source.receive_some(READ_SIZE):
            self.forwarded += len(data)
            copy += data[: KEPT - len(copy)]
            await sink.send_all(data)
            self._grown.set()
            self._grown = trio.Event()
        await sink.send_eof()


async def start_tap(nursery: trio.Nursery, target: str) -> Tap:
    """Start a tap before `target` on a port of its own."""
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    tap = Tap(f"{LOOPBACK}:{listener.socket.getsockname()[1]}", target)
    nursery.start_soon(trio.serve_listeners, tap.handle, [listener])
    return tap
