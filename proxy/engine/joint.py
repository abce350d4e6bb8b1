"""One relayed connection: two ends, and what each event means for the other one.

The common case is `ready` → `_carry`: read from one end, write to the other, done. Everything else
(a refusal to take more, an end, a failure) goes through `_settle`, which derives from the state of
both ends what has to happen next; it can be called at any time and any number of times.
"""

from __future__ import annotations

import enum
import select
from typing import Protocol

import trio

from proxy.engine.ends import End
from proxy.errors import ConnectionFailed, IdleTimeout, TooOld
from proxy.relayed import Limits, Traffic

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
HUNG_UP = select.EPOLLERR | select.EPOLLHUP
"""What epoll reports unasked."""


class Ending(enum.Enum):
    """How far an end has been told that nothing more will come for it."""

    OPEN = enum.auto()
    TRYING = enum.auto()
    DONE = enum.auto()


class Pump(Protocol):
    """What a connection needs of the loop that it lives in."""

    def watch(self, side: Side, mask: int | None) -> None:
        """Watch one side for the events in `mask`; for None, not at all."""
        ...

    def wake(self, task: trio.lowlevel.Task) -> None:
        """Let a task of trio's go on."""
        ...


class Side:
    """An end in its place in a connection."""

    __slots__ = ("end", "ending", "hung_up", "joint", "mask", "other", "reading")

    other: Side

    def __init__(self, end: End, joint: Joint) -> None:
        self.end = end
        self.joint = joint
        self.ending = Ending.OPEN
        self.hung_up = False
        self.reading = True
        self.mask: int | None = None
        """The events that epoll watches this end for; None while it is not registered."""

    def may_read(self) -> bool:
        """Tell whether bytes from here have somewhere to go: backpressure is this and no more."""
        end, sink = self.end, self.other.end
        return not (end.over or end.wants_write or sink.unsent or sink.broken)

    def must_write(self) -> bool:
        """Tell whether this end waits for the kernel to take more."""
        end = self.end
        waiting = end.unsent or end.wants_write or self.ending is Ending.TRYING
        return bool(waiting) and end.broken is None


class Joint:
    """A connection in the engine's hands, from `start` until `done`."""

    __slots__ = (
        "_pump",
        "_task",
        "_traffic",
        "app",
        "born",
        "broken",
        "done",
        "expired",
        "limits",
        "peer",
        "touched",
    )

    def __init__(
        self,
        app: End,
        peer: End,
        *,
        traffic: Traffic,
        limits: Limits,
        pump: Pump,
        now: float,
    ) -> None:
        self.app, self.peer = Side(app, self), Side(peer, self)
        self.app.other, self.peer.other = self.peer, self.app
        self.broken: Side | None = None
        """The side that broke first."""
        self.done = False
        """Nothing more can be carried: close both sides, or reset both if one is broken."""
        self.expired: ConnectionFailed | None = None
        """Which limit ended it, if one did."""
        self.limits = limits
        self.born = now
        self.touched = now
        """When something last happened, in trio's clock."""
        self._traffic = traffic
        self._pump = pump
        self._task: trio.lowlevel.Task | None = None

    def start(self) -> None:
        """Carry what is there already, and have both ends watched."""
        self._carry(self.peer)
        self._carry(self.app)
        self._settle()

    def ready(self, side: Side, events: int) -> None:
        """Do what epoll's `events` at one side call for."""
        if events == READABLE:
            if side.reading:
                self._carry(side)
            return
        if side.mask and side.mask & WRITABLE:
            # Even if nothing is left to write: reading may have sent it, with OpenSSL's replies.
            self._flush(side)
        if side.reading:
            self._carry(side)
        elif events & HUNG_UP and side.mask == 0:
            self._hung_up(side, events)

    def _carry(self, side: Side) -> None:
        end, other = side.end, side.other
        count = end.read()
        if count:
            if side is self.app:
                self._traffic.sent += count
            else:
                self._traffic.received += count
            if not other.end.write(count):
                self._settle()
                return
        if end.over or end.wants_write:
            self._settle()

    def _flush(self, side: Side) -> None:
        held_up = side.end.wants_write
        side.end.flush()
        self._settle()
        if held_up and side.reading:
            # What OpenSSL wanted to say before reading on may be all that it waits for.
            self._carry(side)

    def _hung_up(self, side: Side, events: int) -> None:
        """Take note of a hang-up of an end of which nothing is wanted now."""
        if side.end.over and events & select.EPOLLERR and side.ending is not Ending.DONE:
            side.end.broken = side.end.broken or ConnectionResetError("reset after its end")
            self._settle()
        else:
            # It has to wait for the other side, and epoll would report it over and over.
            side.hung_up = True
            self._pump.watch(side, None)

    def _settle(self) -> None:
        if self.done:
            return
        for side in (self.app, self.peer):
            if side.end.over and side.end.broken is None:
                self._end(side.other)
        was_broken = self.broken is not None
        self.broken = self.broken or self._first_broken()
        if self._is_done():
            self.done = True
            self.app.reading = self.peer.reading = False
            self._pump.watch(self.app, None)
            self._pump.watch(self.peer, None)
            self.wake()
            return
        for side in (self.app, self.peer):
            self._watch_for_what_matters(side)
        if self.broken is not None and not was_broken:
            self.wake()

    def _end(self, side: Side) -> None:
        """Pass on the other side's end, unless something for this one is still in hand."""
        if side.ending is not Ending.DONE and not side.end.unsent and side.end.broken is None:
            side.ending = Ending.DONE if side.end.end() else Ending.TRYING

    def _first_broken(self) -> Side | None:
        broken = (side for side in (self.peer, self.app) if side.end.broken is not None)
        return next(broken, None)

    def _is_done(self) -> bool:
        if self.broken is None:
            return self.app.ending is Ending.DONE and self.peer.ending is Ending.DONE
        last = self.broken.other.end
        return last.broken is not None or (self.broken.end.over and not last.unsent)

    def _watch_for_what_matters(self, side: Side) -> None:
        side.reading = side.may_read()
        mask = READABLE if side.reading else 0
        if side.must_write():
            mask |= WRITABLE
        if mask != side.mask and (mask or not side.hung_up):
            side.hung_up = False
            self._pump.watch(side, mask)

    def expires(self) -> float:
        """Return when a limit ends the connection if nothing happens any more."""
        idle = self.touched + self.limits.idle
        return idle if self.limits.age is None else min(idle, self.born + self.limits.age)

    def expire(self) -> None:
        """End the connection by the limit that it has come to."""
        idle = self.touched + self.limits.idle
        if self.limits.age is not None and self.born + self.limits.age <= idle:
            self.expired = TooOld(self.limits.age)
        else:
            self.expired = IdleTimeout(self.limits.idle)
        self.wake()

    async def wait(self) -> None:
        """Sleep until something happened that the caller must look at; or until `wake`."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        """Let whoever waits look at the connection."""
        task, self._task = self._task, None
        if task is not None:
            self._pump.wake(task)
