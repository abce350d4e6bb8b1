"""A file of lines that several processes append to, and that any of them may replace.

Whoever appends holds a shared lock on the very file it writes to; whoever replaces the file holds
the exclusive one. So no line goes to a file that is not there any more, and no line is torn. The
kernel drops the locks of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from mesh.errors import ConfigError
from mesh.files import write_private

PRIVATE = 0o600
FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC

OPEN_TRIES = 100
"""How often a file may be replaced under our hands before we suspect something else."""


class SharedLog:
    """Lines at `path`. Raises ConfigError if the file cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = self._open()
        self._torn = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def append(self, line: bytes) -> int:
        """Append one line, newline included, and return how long the file is now.

        The line is in the kernel's hands then, so it survives this process, though not a power
        cut: forcing each to disk would cost more than signing. Raises OSError, ConfigError.
        """
        with self._locked(fcntl.LOCK_SH):
            data = b"\n" + line if self._torn else line
            self._torn = os.write(self._descriptor, data) != len(data)
            if self._torn:
                raise OSError(f"{self._path} took a part of a line only: is the disk full?")
            return os.fstat(self._descriptor).st_size

    def read(self) -> bytes:
        """Return everything. Blocks."""
        with self._locked(fcntl.LOCK_SH):
            return self._path.read_bytes()

    def rewrite(self, change: Callable[[bytes], bytes]) -> None:
        """Replace the content by what `change` makes of it, while nobody appends. Blocks."""
        with self._locked(fcntl.LOCK_EX):
            write_private(self._path, change(self._path.read_bytes()))

    def rotate(self, limit: int, keep: int) -> None:
        """Begin a new file if this one has `limit` bytes; `keep` older ones stay, `.1` the newest.

        Blocks. Raises OSError, ConfigError.
        """
        with self._locked(fcntl.LOCK_EX):
            if os.fstat(self._descriptor).st_size < limit:
                return  # another process was faster
            for number in range(keep - 1, 0, -1):
                if self._numbered(number).exists():
                    self._numbered(number).replace(self._numbered(number + 1))
            self._path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _open(self) -> int:
        try:
            return os.open(self._path, FLAGS, PRIVATE)
        except OSError as error:
            raise ConfigError(f"cannot write to {self._path}: {error.strerror}") from error

    @contextmanager
    def _locked(self, kind: int) -> Generator[None]:
        """Hold a lock on the file that is at the path now."""
        for _ in range(OPEN_TRIES):
            fcntl.flock(self._descriptor, kind)
            try:
                if self._is_current():
                    yield
                    return
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            descriptor = self._open()
            self.close()
            self._descriptor = descriptor
        raise OSError(f"{self._path} is replaced all the time")

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False
