"""The demo's real processes: started together, watched, and ended with the demo, however it ends.

Every process is in the process group of a guard (guard.py), which ends them if the demo is
killed; their standard error is a pipe to us, kept in memory and in a file. None has our terminal,
so Ctrl-C reaches the demo alone, which then ends the others in its own order.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import trio

from remora.demo import guard
from remora.demo.errors import CommandFailed, PartDied, PartNotReady
from remora.demo.logbook import Logbook

READY_TIMEOUT = 60.0
"""Seconds. A process is ready in one or two; this long, something hangs."""

END_TIMEOUT = 3.0
"""Seconds between SIGTERM and SIGKILL. Nothing that the demo starts has anything to save."""

LAST_LINES = 8
"""Lines of a log that are shown when its process failed."""

Say = Callable[[str, str], None]
"""Called with a process's name and a line of its log."""


class _Readable(Protocol):
    """The end of a pipe that we read."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process that runs for as long as the demo does."""

    name: str
    process: trio.Process
    log: Logbook
    log_file: Path

    async def ready(self, event: str) -> None:
        """Wait until it logs `event`. Raises PartNotReady."""
        try:
            with trio.fail_after(READY_TIMEOUT):
                await self.log.find(lambda line: line.event == event)
        except trio.TooSlowError as error:
            raise PartNotReady(self.name, READY_TIMEOUT, self.log.tail(LAST_LINES)) from error


class Crew:
    """Starts processes; make it with `open_crew`."""

    def __init__(self, nursery: trio.Nursery, group: int, directory: Path, say: Say | None) -> None:
        self.directory = directory
        self._nursery = nursery
        self._group = group
        self._say = say
        self._environment = environment(os.environ, sys.path)

    async def start(self, name: str, *arguments: str) -> Part:
        """Start `python -m ARGUMENTS`, which must then run for as long as the crew does."""
        part: Part = await self._nursery.start(self._live, name, arguments)
        return part

    async def _live(
        self, name: str, arguments: Sequence[str], task_status: trio.TaskStatus[Part]
    ) -> None:
        path = self.directory / f"{name}.log"
        with path.open("wb", buffering=0) as file:
            log = Logbook(None if self._say is None else functools.partial(self._say, name))
            async with self.spawn(arguments, stderr=subprocess.PIPE) as process:
                task_status.started(Part(name=name, process=process, log=log, log_file=path))
                assert process.stderr is not None  # noqa: S101 - asked for a pipe above
                await _copy(process.stderr, log, file.write)
                code = await process.wait()
            raise PartDied(name, code, log.tail(LAST_LINES))

    async def run(self, name: str, *arguments: str) -> str:
        """Run `python -m ARGUMENTS` to its end and return its output. Raises CommandFailed."""
        done = await trio.run_process(
            self._command(arguments),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=self._environment,
            process_group=self._group,
        )
        if done.returncode:
            complaint = done.stderr.decode("utf-8", "replace").splitlines()
            raise CommandFailed(name, done.returncode, complaint[-LAST_LINES:])
        return done.stdout.decode("utf-8", "replace")

    def _command(self, arguments: Sequence[str]) -> list[str]:
        # With -P and our own import path it is the same Remora as this one, wherever it was
        # started from.
        return [sys.executable, "-P", "-m", *arguments]

    @asynccontextmanager
    async def spawn(
        self,
        arguments: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.DEVNULL,
    ) -> AsyncGenerator[trio.Process]:
        """Start `python -m ARGUMENTS`; whatever happens inside, it is gone afterwards."""
        process = await trio.lowlevel.open_process(
            self._command(arguments),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=self._environment,
            process_group=self._group,
        )
        try:
            yield process
        finally:
            await _end(process)  # noqa: ASYNC102 - shields itself


def environment(ours: Mapping[str, str], import_path: Sequence[str]) -> dict[str, str]:
    """Return the environment of the demo's processes: ours, with our import path."""
    folders = [folder or str(Path.cwd()) for folder in import_path]
    return {**ours, "PYTHONPATH": os.pathsep.join(folders)}


@asynccontextmanager
async def open_crew(say: Say | None = None) -> AsyncGenerator[Crew]:
    """Give a crew with a directory of its own; its logs also go, line by line, to `say`.

    At the end its processes are ended and the directory is removed; if this process is killed
    before, the guard does both. Raises, in a group, PartDied.
    """
    with TemporaryDirectory(prefix="remora-demo-", ignore_cleanup_errors=True) as directory:
        async with _guarded(directory) as group, trio.open_nursery() as nursery:
            yield Crew(nursery, group, Path(directory), say)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _guarded(directory: str) -> AsyncGenerator[int]:
    """Start the guard of `directory` and give the process group that it leads."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-I", "-S", guard.__file__, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    )
    assert process.stdin is not None  # noqa: S101 - asked for pipes above
    assert process.stdout is not None  # noqa: S101
    try:
        if await process.stdout.receive_some(1) != guard.READY:
            raise PartDied("the guard", await process.wait(), [])
        yield process.pid
    finally:
        with trio.CancelScope(shield=True):
            shutil.rmtree(directory, ignore_errors=True)  # before the guard is told to go
            await process.stdin.send_all(guard.CLEAN)
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()


async def _copy(source: _Readable, log: Logbook, write: Callable[[bytes], object]) -> None:
    """Copy a log until its writer ends."""
    while data := await source.receive_some():
        write(bytes(data))
        log.feed(bytes(data))
    log.close()


async def _end(process: trio.Process) -> None:
    """End a process if it runs: kindly, and then not."""
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            process.terminate()
            with trio.move_on_after(END_TIMEOUT):
                await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                await pipe.aclose()
