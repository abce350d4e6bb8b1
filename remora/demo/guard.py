"""What is left to do when the demo itself is killed: end its processes, remove its files.

`python guard.py DIRECTORY` leads a process group in which everything that the demo starts lives,
and holds the read end of a pipe that the demo keeps open. A byte through it means that the demo
has cleaned up. Its end without one means that the demo is dead, by SIGKILL for instance, which no
cleanup of its own survives.

Not done by prctl's PR_SET_PDEATHSIG: the signal comes when the *thread* that started a process
ends, and trio starts processes in worker threads; and nobody would remove the files.

Run as a file, with nothing but the standard library, because it must be there first and fast.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys

READY = b"r"
"""Written to standard output when the group can be joined."""

CLEAN = b"."
"""Read from standard input when there is nothing left to do."""


def main() -> None:
    """Lead the group until the watcher has ended; see the module's docstring."""
    group = os.getpid()
    watcher = os.fork()
    if watcher == 0:
        os.setpgid(0, 0)  # or it would kill itself before it has removed the files
        watch(group, sys.argv[1])
        os._exit(0)
    os.write(sys.stdout.fileno(), READY)
    os.waitpid(watcher, 0)


def watch(group: int, directory: str) -> None:
    """Wait for the demo's end; if it did not clean up, kill `group` and remove `directory`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.read(sys.stdin.fileno(), 1):
        return
    os.killpg(group, signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
