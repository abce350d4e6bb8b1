"""Connections of attested callers: each lasts as long as its caller lives, and no longer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import trio
import trio.abc

from agent.attest import check_visible
from agent.entitlement import AttestedPeer
from agent.errors import CallerRefused
from agent.process import Process
from mesh.grpc import Accept, Peer
from mesh.log import get_logger
from mesh.unix_socket import peer_credentials

MAX_CONNECTIONS = 300
"""Of one user at a time, so that none can take the places of all others. A workload needs one or
two."""

log = get_logger("agent.attest")


class AttestedStream(trio.abc.Stream):
    """A caller's connection, cut when its process ends.

    A descriptor can be handed on, or stay open in a child; an identity cannot. `on_close` is
    called once.
    """

    def __init__(
        self,
        transport: trio.SocketStream,
        process: Process,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._transport = transport
        self._process: Process | None = process
        self._on_close = on_close
        self._watch = trio.CancelScope()

    async def watch(self) -> None:
        """Wait until the connection or the caller's process ends, and cut the connection then."""
        process = self._process
        if process is None:
            return
        with self._watch:
            await process.wait_end()
            log.debug("caller ended", pid=process.credentials.pid)
            await trio.aclose_forcefully(self)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`. Raises trio.BrokenResourceError, trio.ClosedResourceError."""
        await self._transport.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until sending may not block."""
        await self._transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return what has come in, nothing at the end."""
        return await self._transport.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close the connection and let go of the process."""
        process, self._process = self._process, None
        if process is not None:
            process.close()
            self._watch.cancel()
            self._on_close()
        await self._transport.aclose()


def attesting_gate(nursery: trio.Nursery) -> Accept:
    """Let in every caller whose process can be held; what it may have is decided call by call.

    The watch over each caller runs in `nursery`.
    """
    open_by_user: Counter[int] = Counter()

    async def accept(stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer]:
        await trio.lowlevel.checkpoint()
        credentials = peer_credentials(stream)
        check_visible(credentials)
        user = credentials.uid
        if open_by_user[user] >= MAX_CONNECTIONS:
            raise CallerRefused(
                f"process {credentials.pid} was refused: user {user} has {MAX_CONNECTIONS} "
                "connections open already"
            )
        process = Process.of(stream, credentials)
        open_by_user[user] += 1
        attested = AttestedStream(stream, process, lambda: open_by_user.subtract([user]))
        nursery.start_soon(attested.watch)
        peer = AttestedPeer(
            address=f"pid {credentials.pid}", credentials=credentials, process=process
        )
        return attested, peer

    return accept
