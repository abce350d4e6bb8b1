"""Several worker processes that share the work, and one that starts them again when they fall.

The supervisor does nothing else: no traffic, no threads, no trio. It forks, waits for signals, and
passes the order to stop on. Should it be killed, its workers see the end of a pipe that only it
holds open, and stop by themselves.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import trio

from mesh.log import get_logger
from remora.program import EXIT_BAD_CONFIG, EXIT_FAILURE, Main

log = get_logger("supervisor")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds before a worker that ended is started again, doubling: it may end at once again."""

STEADY_AFTER = 10.0
"""Seconds that a worker has to live for its next end to count as the first."""

_STOPS = frozenset({signal.SIGINT, signal.SIGTERM})
_WATCHED = _STOPS | {signal.SIGCHLD}

Work = Callable[[int, int], None]
"""Is a worker, given its number and the read end of the supervisor's pipe; may raise SystemExit."""


@dataclass(slots=True)
class _Worker:
    number: int
    pid: int | None = None
    started: float = 0.0
    pause: float = FIRST_PAUSE
    due: float = 0.0
    """When it is to be started, if it does not run."""


def supervise(count: int, work: Work) -> None:
    """Run `count` workers until SIGINT or SIGTERM; raises SystemExit unless all end well then.

    A worker that ends by itself is started again, except after EXIT_BAD_CONFIG: the others have
    the same configuration, so all stop.
    """
    code = _Supervisor(count, work).run()
    if code:
        sys.exit(code)


async def until_orphaned(main: Main, lifeline: int) -> None:
    """Run `main`, and cancel it when the supervisor that holds the pipe's other end is gone."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when_orphaned, lifeline, nursery.cancel_scope)
        await main()
        nursery.cancel_scope.cancel()


async def _cancel_when_orphaned(lifeline: int, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(lifeline)
    log.warning("the supervisor is gone: stopping")
    scope.cancel()


class _Supervisor:
    def __init__(self, count: int, work: Work) -> None:
        self._workers = [_Worker(number) for number in range(count)]
        self._work = work
        self._stopping = False
        self._code = 0
        self._lifeline, self._held = os.pipe()

    def run(self) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        while True:
            self._start_due()
            if not any(worker.pid for worker in self._workers) and self._stopping:
                return self._code
            got = signal.sigtimedwait(_WATCHED, self._seconds_to_wait())
            if got is not None and got.si_signo in _STOPS:
                self._stop()
            self._reap()

    def _start_due(self) -> None:
        if self._stopping:
            return
        for worker in self._workers:
            if worker.pid is None and worker.due <= time.monotonic():
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        worker.started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            self._be(worker.number)
        worker.pid = pid
        log.info("worker started", worker=worker.number, pid=pid)

    def _be(self, number: int) -> None:
        """Be a worker from here to the end of the process."""
        code = EXIT_FAILURE
        try:
            os.close(self._held)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            self._work(number, self._lifeline)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else EXIT_FAILURE
        except Exception:  # noqa: BLE001 - the last frame of this process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _seconds_to_wait(self) -> float:
        due = [worker.due for worker in self._workers if worker.pid is None]
        if self._stopping or not due:
            return 3600.0
        return max(min(due) - time.monotonic(), 0)

    def _stop(self) -> None:
        self._stopping = True
        for worker in self._workers:
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGTERM)

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.pid is not None:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    worker.pid = None
                    self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: _Worker, code: int) -> None:
        if self._stopping:
            self._code = self._code or max(code, 0)
        elif code == EXIT_BAD_CONFIG:
            self._code = code
            self._stop()
        else:
            lived = time.monotonic() - worker.started
            worker.pause = FIRST_PAUSE if lived > STEADY_AFTER else worker.pause
            worker.due = time.monotonic() + worker.pause
            log.warning(
                "a worker ended by itself and is started again",
                worker=worker.number,
                exit_code=code,
                seconds=worker.pause,
            )
            worker.pause = min(worker.pause * 2, LONGEST_PAUSE)
