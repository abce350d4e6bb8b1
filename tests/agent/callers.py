"""Processes that call the agent, as other users if need be.

Each connects and hands its connection to the test, which can then speak on it: to the kernel, and
so to the agent, it remains the process's own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio

PYTHON = os.path.realpath(sys.executable)

_SCRIPT = """
import os, socket, sys
if user := sys.argv[4]:
    # Here and not by exec, since another user may not be let into the folder of this Python.
    os.setgroups([int(group) for group in sys.argv[5:]])
    os.setgid(int(user))
    os.setuid(int(user))
ours = socket.socket(fileno=int(sys.argv[1]))
agent = socket.socket(socket.AF_UNIX)
agent.connect(sys.argv[2])
socket.send_fds(ours, [b"."], [agent.fileno()])
if sys.argv[3] == "stay":
    ours.recv(1)
"""


class CallerProcess:
    """A running process, and its connection."""

    def __init__(self, process: subprocess.Popen[bytes], stream: trio.SocketStream) -> None:
        self.process = process
        self.stream = stream

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self) -> None:
        """Kill the process and see it gone, its id free for others."""
        self.process.kill()
        self.process.wait()


@contextmanager
def calling(
    path: Path,
    *,
    user: int | None = None,
    groups: Sequence[int] = (),
    python: str = PYTHON,
    prefix: Sequence[str] = (),
    stay: bool = True,
) -> Generator[CallerProcess]:
    """Run a process that connects to the unix socket at `path`, and end it with the block."""
    ours, theirs = socket.socketpair()
    command = [python, "-I", "-S", "-c", _SCRIPT, str(theirs.fileno()), str(path)]
    identity = ["" if user is None else str(user), *map(str, groups)]
    with ours, theirs:
        process = subprocess.Popen(
            [*prefix, *command, "stay" if stay else "leave", *identity],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        try:
            ours.settimeout(20)
            _, [descriptor], _, _ = socket.recv_fds(ours, 1, 1)
            if not stay:
                process.wait()
            with trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)) as connection:
                yield CallerProcess(process, trio.SocketStream(connection))
        finally:
            process.kill()
            process.wait()


def copy_of_python(folder: Path) -> str:
    """Make another executable that does the same."""
    made = folder / "workload"
    shutil.copy(PYTHON, made)
    return str(made)
