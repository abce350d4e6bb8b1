"""Who turns the pump: a task inside trio, or trio's own wait for I/O.

`current_pump` gives the pump of the trio run it is called in and starts it nested, as a task that
waits for the pump's epoll like for any descriptor. Each batch then costs two passes of trio's
scheduler. A program whose business is relaying calls `host` first: from then on the pump does the
waiting, and trio is called when one of its own descriptors or deadlines is due.

That turn-about needs no thread and no private name. trio tells instruments before it waits for
I/O, and for how long; at that point the pump takes over the waiting, with trio's own epoll among
the descriptors it waits for (an epoll is readable when an event is due in it). When that is
readable, when the time is up or when a task was woken, the pump returns and trio goes on with a
wait that ends at once. By the same instrument the pump has a turn between any two tasks if
the last one is half a millisecond ago. The documented way to share a thread,
`trio.lowlevel.start_guest_run`, waits for trio's I/O in a second thread: every event of a new
connection would be handed from one thread to another, with the interpreter's lock between them.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

import trio
import trio.abc

from mesh.log import get_logger
from proxy.engine.pump import Pump

log = get_logger("proxy.engine")

_pump: trio.lowlevel.RunVar[Pump] = trio.lowlevel.RunVar("pump")

CLOCK_GRAIN = 0.002
"""Seconds that a wait may end too early by: epoll counts in milliseconds."""

LOOK_EVERY = 0.0005
"""Seconds of trio's tasks after which established connections are looked at, whatever else is
ready. In a storm of new connections one pass of trio's scheduler takes many milliseconds."""

DESCRIPTORS = Path("/proc/self/fdinfo")


def current_pump() -> Pump:
    """Return the pump of this trio run, which is started now if there is none."""
    try:
        return _pump.get()
    except LookupError:
        pump = _install(Pump())
        trio.lowlevel.spawn_system_task(_nested, pump)
        return pump


async def host() -> None:
    """Let the pump do all the waiting of this trio run, before any connection is relayed.

    Where the system does not tell which descriptor trio waits on, the pump stays nested.
    """
    descriptor = await _epoll_of_trio()
    if descriptor is None:
        log.warning("the relay engine runs nested: /proc does not show trio's epoll")
        return
    pump = _install(Pump())
    pump.listen_for(descriptor)
    trio.lowlevel.add_instrument(_Host(pump, trio.lowlevel.current_trio_token()))


def _install(pump: Pump) -> Pump:
    _pump.set(pump)
    trio.lowlevel.spawn_system_task(pump.sweep)
    return pump


async def _nested(pump: Pump) -> None:
    try:
        while True:
            await trio.lowlevel.wait_readable(pump.fileno())
            while pump.turn(0):
                await trio.lowlevel.checkpoint()
    finally:
        pump.close()


class _Host(trio.abc.Instrument):
    """Waits in trio's stead, and looks at the pump between two tasks when they take their time."""

    def __init__(self, pump: Pump, token: trio.lowlevel.TrioToken) -> None:
        self._pump = pump
        self._token = token
        self._looked = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002
        """Turn the pump if that was not done for a while: many tasks may be ready in one pass."""
        if time.perf_counter() - self._looked < LOOK_EVERY:
            return
        try:
            self._pump.turn(0)
        except Exception as error:  # noqa: BLE001 - trio would log it and go on without us
            self._token.run_sync_soon(_fail, error)
        self._looked = time.perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        """Turn the pump until trio has something to do."""
        pump = self._pump
        try:
            pump.called = False
            if timeout <= 0:
                pump.turn(0)
                self._looked = time.perf_counter()
                return
            until = time.perf_counter() + timeout
            while timeout > 0 and pump.turn(timeout) and not pump.called:
                timeout = until - time.perf_counter()
            self._looked = time.perf_counter()
            if pump.called or _deadline_is_due():
                self._token.run_sync_soon(_nothing, idempotent=True)
        except Exception as error:  # noqa: BLE001 - trio would log it and go on without us
            self._token.run_sync_soon(_fail, error)

    def after_run(self) -> None:
        """Close what nobody uses any more."""
        self._pump.close()


def _deadline_is_due() -> bool:
    """Tell a deadline from trio's other reason for a short wait: to see whether all is quiet.

    That one (`wait_all_tasks_blocked`) must be let happen: an end made by us would not be quiet.
    """
    return trio.lowlevel.current_statistics().seconds_to_next_deadline < CLOCK_GRAIN


def _nothing() -> None:
    """Make trio's wait end."""


def _fail(error: BaseException) -> None:
    raise error


async def _epoll_of_trio() -> int | None:
    """Find the epoll that trio waits on: the one that watches a socket we let trio watch."""
    near, far = socket.socketpair()
    with near, far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, near)
            for _ in range(2):  # in the first pass the child may come after us
                await trio.lowlevel.checkpoint()
            found = _epoll_with(near.fileno())
            nursery.cancel_scope.cancel()
    return found


def _epoll_with(watched: int) -> int | None:
    try:
        for entry in DESCRIPTORS.iterdir():
            lines = entry.read_text().splitlines()
            if any(line.split()[:2] == ["tfd:", str(watched)] for line in lines):
                return int(entry.name)
    except OSError:
        return None
    return None
