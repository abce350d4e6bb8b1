"""Running one of Remora's programs to its end: signals, exit codes, and errors as one line."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

import trio

from mesh.errors import ConfigError, RemoraError

EXIT_FAILURE = 1
EXIT_BAD_CONFIG = 2
"""The same code that a mistyped flag gets, since the cure is the same: change what was given."""

OPEN_FILES = 65_536
"""What the limit of open files is raised to, where it may be. Distributions leave it at 1024, which
a few hundred connections use up; this is enough for 32,000, more than a process can serve well."""

Main = Callable[[], Awaitable[None]]


def run_program(main: Main) -> None:
    """Run `main` until it ends or SIGINT or SIGTERM asks it to; raises SystemExit on failure.

    A signal cancels `main`, whose own cleanup then runs. A RemoraError becomes one line on
    standard error; anything else is a bug and shows its traceback.
    """
    _raise_file_limit()
    with complaints():
        trio.run(_until_signalled, main)


@contextmanager
def complaints() -> Generator[None]:
    """Turn RemoraErrors of the block, in groups or not, into lines; then raises SystemExit."""
    try:
        yield
    except* RemoraError as group:
        code = EXIT_FAILURE
        for error in _leaves(group):
            complain(error)
            if isinstance(error, ConfigError):
                code = EXIT_BAD_CONFIG
        sys.exit(code)


def complain(error: RemoraError) -> None:
    """Print an error the way every command does."""
    print(f"remora: {error}", file=sys.stderr)  # noqa: T201


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _until_signalled(main: Main) -> None:
    # Signals are listened for until `main` has tidied up, so that a second one, such as a
    # terminal's on top of a parent's, does not kill the program in the middle of that.
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        await nursery.start(_cancel_on_signal, scope)
        with scope:
            await main()
        nursery.cancel_scope.cancel()


async def _cancel_on_signal(
    scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


def _leaves(group: BaseExceptionGroup[RemoraError]) -> list[RemoraError]:
    found: list[RemoraError] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found.extend(_leaves(error))
        else:
            found.append(error)
    return found
