"""Running an app with its sidecar: in this order up, and in the other down.

Agent, then sidecar, then the rules of capture, then the app, which gets our terminal and the
signals that we get. When the app has ended the sidecar drains, and we end with the app's code. When
agent or sidecar end before, the app is ended: it must not go on without.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from mesh.log import get_logger
from remora.attach.errors import AppNotStarted, AttachError, SidecarEnded, SidecarNotReady
from remora.attach.namespace import open_namespace, run_tool
from remora.attach.plan import Capture, RunOptions, as_sidecar, exit_code
from remora.demo.logbook import Logbook, parse_line
from remora.demo.processes import environment

log = get_logger("run")

READY_TIMEOUT = 60.0
"""Seconds, as long as Istio holds an application back."""

DRAIN_TIMEOUT = 10.0
"""Seconds for the sidecar to end: it gives its connections five."""

LAST_LINES = 8
"""Lines of a log that are shown when its process failed."""

FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals for the app. SIGINT too, unless it comes from a terminal, which sends it to the app."""


async def run_app(options: RunOptions) -> int:
    """Run the app to its end; return its exit code, a shell's for a signal.

    A signal that comes before the app is started ends it all. Raises AttachError, in a group.
    """
    foreground = _Foreground()
    async with trio.open_nursery() as nursery:
        await nursery.start(foreground.take_signals, nursery.cancel_scope)
        with TemporaryDirectory(prefix="remora-run-") as folder:
            directory = Path(folder)
            directory.chmod(0o711)  # the sidecar's user must get through to the socket
            await _run_in(directory, options, nursery, foreground)
        nursery.cancel_scope.cancel()
    return foreground.code


class _Foreground:
    """The app, and the signals that are for it."""

    def __init__(self) -> None:
        self.code = 0
        self._app: trio.Process | None = None
        self._starting = False
        self._early: list[int] = []

    async def run(self, command: Sequence[str]) -> None:
        """Run the app with our terminal. Raises AppNotStarted."""
        self._starting = True  # it may run, and speak, before we hear that it has been started
        try:
            self._app = await trio.lowlevel.open_process(command, stdin=None)
        except OSError as error:
            raise AppNotStarted(f"cannot run {command[0]}: {error.strerror}") from error
        for number in self._early:
            self._app.send_signal(number)
        try:
            self.code = exit_code(await self._app.wait())
        finally:
            with trio.CancelScope(shield=True):
                await _end(self._app)

    async def take_signals(
        self,
        everything: trio.CancelScope,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Pass signals on to the app; before there is one, they end everything."""
        with trio.open_signal_receiver(*FORWARDED, signal.SIGINT) as received:
            task_status.started()
            async for number in received:
                if self._app is None and not self._starting:
                    self.code = 128 + number
                    everything.cancel()
                elif number == signal.SIGINT and sys.stdin.isatty():
                    continue
                elif self._app is None:
                    self._early.append(number)
                else:
                    self._app.send_signal(number)


async def _run_in(
    directory: Path, options: RunOptions, nursery: trio.Nursery, foreground: _Foreground
) -> None:
    async with AsyncExitStack() as stack:
        enter: list[str] = []
        if options.capture is Capture.OWN:
            cable = await stack.enter_async_context(open_namespace(options.ports))
            enter = cable.enter()
            log.info("network namespace made", address=str(cable.inside))
        socket = options.agent_socket
        if socket is None:
            socket = directory / "agent" / "sds.sock"
            socket.parent.mkdir(mode=0o711)
            agent = _remora(options.agent_arguments(socket))
            await stack.enter_async_context(_program("agent", agent, "agent ready", nursery))
        user = as_sidecar() if options.captured else []
        sidecar = [*enter, *user, *_remora(options.proxy_arguments(socket))]
        await stack.enter_async_context(_program("proxy", sidecar, "proxy ready", nursery))
        if options.captured:
            await run_tool([*enter, *_remora(["capture", "apply"])])
            if options.capture is Capture.HERE:
                stack.push_async_callback(_clean_rules)
        await foreground.run([*enter, *options.command])


async def _clean_rules() -> None:
    with trio.CancelScope(shield=True):
        await run_tool(_remora(["capture", "clean"]))


def _remora(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-P", "-m", "remora", *arguments]


@asynccontextmanager
async def _program(
    name: str, command: Sequence[str], ready: str, nursery: trio.Nursery
) -> AsyncGenerator[None]:
    """Run a part of the sidecar for the block, from the moment that it is ready."""
    book = Logbook(functools.partial(_say, name))
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(os.environ, sys.path),
        process_group=0,  # a terminal's Ctrl-C is the app's; the sidecar ends after it
    )
    watch = trio.CancelScope()
    nursery.start_soon(_watch, name, process, book, watch)
    try:
        await _await_ready(name, ready, book)
        yield
    finally:
        watch.cancel()
        with trio.CancelScope(shield=True):
            await _end(process)


async def _await_ready(name: str, ready: str, book: Logbook) -> None:
    try:
        with trio.fail_after(READY_TIMEOUT):
            await book.find(lambda line: line.event == ready)
    except trio.TooSlowError as error:
        raise SidecarNotReady(name, READY_TIMEOUT, book.tail(LAST_LINES)) from error


async def _watch(name: str, process: trio.Process, book: Logbook, scope: trio.CancelScope) -> None:
    """Read a process's log until its end, which must not come before the scope is cancelled."""
    assert process.stderr is not None  # noqa: S101 - asked for a pipe above
    with scope:
        while data := await process.stderr.receive_some():
            book.feed(bytes(data))
        book.close()
        raise SidecarEnded(name, await process.wait(), book.tail(LAST_LINES))


def _say(name: str, text: str) -> None:
    """Show a line of the sidecar's log, for a human where it is structured."""
    facts = dict(parse_line(text).facts)
    if facts:
        event = facts.pop("event", "")
        rest = " ".join(f"{key}={value}" for key, value in facts.items() if key != "timestamp")
        text = f"{event} {rest}"
    print(f"[{name}] {text}", file=sys.stderr)  # noqa: T201


async def _end(process: trio.Process) -> None:
    """End a process if it runs: kindly, and then not."""
    if process.returncode is None:
        process.terminate()
        with trio.move_on_after(DRAIN_TIMEOUT):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    if process.stderr is not None:
        await process.stderr.aclose()


TOOLS = ("ip", "nft", "nsenter", "setpriv", "unshare")
"""What a namespace of its own needs: of iproute2, nftables and util-linux."""


def missing_tools() -> list[str]:
    """Return which of the tools are not installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def decide(wanted: Capture) -> Capture:
    """Resolve `auto`. Raises AttachError for capture that is not possible."""
    if wanted is Capture.AUTO:
        return Capture.NONE if os.geteuid() != 0 or missing_tools() else Capture.OWN
    if wanted is Capture.NONE:
        return wanted
    if os.geteuid() != 0:
        raise AttachError(f"--capture {wanted} needs root: without it, --capture none")
    if missing := missing_tools():
        raise AttachError(
            f"--capture {wanted} needs {', '.join(missing)}: install iproute2, nftables and "
            "util-linux, or use --capture none"
        )
    return wanted
