"""The engine's loop: one epoll for all established connections, turned by who owns the thread."""

from __future__ import annotations

import math
import select

import trio

from mesh import openssl
from proxy.engine.joint import Joint, Side

BATCH = 64
"""Events handled between two looks at trio: what others may have to wait for. Epoll hands out ready
descriptors in rotation, so whoever is left out comes first next time."""

SWEEP_PAUSE = 0.05
"""Seconds between two looks for expired connections at the least, since each looks at them all."""


class Pump:
    """Moves the bytes of all the joints that are added to it, in one trio run.

    Descriptors are closed by trio's tasks and events are handled between those tasks' turns, so
    no event can meet a descriptor number that was given to somebody else meanwhile.
    """

    def __init__(self) -> None:
        self.scratch = openssl.Scratch()
        self._epoll = select.epoll()
        self._sides: dict[int, Side] = {}
        self._joints: set[Joint] = set()
        self._nap = trio.CancelScope()
        self._guest = -1
        self.called = False
        """Somebody else wants a turn; set back by whoever grants it."""

    def fileno(self) -> int:
        """Return the epoll's descriptor, which is readable when there is work."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Give the epoll back; its connections must be gone."""
        self._epoll.close()

    @property
    def connections(self) -> int:
        """How many connections are being carried."""
        return len(self._joints)

    @property
    def has_guest(self) -> bool:
        """Tell whether trio is the pump's guest, and not the other way round."""
        return self._guest >= 0

    @property
    def watched(self) -> int:
        """How many descriptors are watched for them."""
        return len(self._sides)

    def add(self, joint: Joint) -> None:
        """Begin to carry a connection's bytes."""
        openssl.clear_errors()
        self._joints.add(joint)
        self._nap.deadline = min(self._nap.deadline, joint.expires())
        joint.start()

    def remove(self, joint: Joint) -> None:
        """Stop, if that has not been done: nothing of the connection is touched any more."""
        self.watch(joint.app, None)
        self.watch(joint.peer, None)
        self._joints.discard(joint)
        if not self._joints:
            self._nap.deadline = math.inf

    def watch(self, side: Side, mask: int | None) -> None:
        """Watch one side of a connection for the events in `mask`; for None, not at all."""
        fd, before = side.end.fd, side.mask
        side.mask = mask
        if mask is None:
            if before is not None:
                self._epoll.unregister(fd)
                del self._sides[fd]
        elif before is None:
            self._epoll.register(fd, mask)
            self._sides[fd] = side
        else:
            self._epoll.modify(fd, mask)

    def wake(self, task: trio.lowlevel.Task) -> None:
        """Let a task of trio's go on."""
        self.called = True
        trio.lowlevel.reschedule(task)

    def listen_for(self, guest: int) -> None:
        """Take note in `called` when the descriptor `guest` is readable: somebody wants a turn."""
        self._guest = guest
        self._epoll.register(guest, select.EPOLLIN)

    def turn(self, seconds: float) -> bool:
        """Wait up to `seconds` for a batch of events and handle it; False if there was none."""
        events = self._epoll.poll(seconds, BATCH)
        if not events:
            return False
        openssl.clear_errors()
        now, sides = trio.current_time(), self._sides
        for fd, mask in events:
            side = sides.get(fd)
            if side is not None:
                side.joint.touched = now
                side.joint.ready(side, mask)
            elif fd == self._guest:
                self.called = True
        return True

    async def sweep(self) -> None:
        """End connections that have come to one of their limits; runs until cancelled."""
        while True:
            now, soonest = trio.current_time(), math.inf
            for joint in list(self._joints):
                if joint.expires() <= now:
                    self.remove(joint)
                    joint.expire()
                else:
                    soonest = min(soonest, joint.expires())
            with trio.CancelScope(deadline=max(soonest, now + SWEEP_PAUSE)) as self._nap:
                await trio.sleep_forever()
