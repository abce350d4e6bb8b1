"""The state directory of a CA: its version, its lock, and how its files change together.

What belongs together (key, certificate, roots) lies in a generation: a directory that is complete
before anyone sees it and never changes after that. `current` is a link to the one in force, and
replacing that link is the only step that takes effect; the names in the state directory itself are
links through it. A crash leaves the old generation in force or the new one, never a mixture, and
whoever reads notices if the link was replaced meanwhile and reads again.

A directory that was only ever started, and never changed, has plain files under the same names.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from mesh.errors import ConfigError
from mesh.files import read_file, sync_directory, write_private

CA_KEY = "ca-key.pem"
CA_CERT = "ca-cert.pem"
ROOT_CERT = "root-cert.pem"
TOKEN_KEY = "token-key.pem"  # noqa: S105 - a file name
NEXT_KEY = "next-ca-key.pem"
NEXT_CERT = "next-ca-cert.pem"
OLD_KEY = "old-ca-key.pem"
OLD_CERT = "old-ca-cert.pem"

VERSION_FILE = "version"
VERSION = 1
"""Of the layout that this module describes. A directory without the file has it too."""

LOCK = ".lock"
CURRENT = "current"
LINKED = (CA_KEY, CA_CERT, ROOT_CERT)
"""The names that lead through `current` once there is one."""

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
"""Certificates are for everyone to read."""

LOCK_PATIENCE = 10.0
"""Seconds. Another CA starting on the directory needs milliseconds; this long, it hangs."""

LOCK_INTERVAL = 0.02
"""Seconds between two tries to get the lock."""

READ_TRIES = 20
"""A generation is replaced a few times a year. This often in a row, something else is wrong."""

_GENERATION = re.compile("generation-[0-9]{6}")
_Read = TypeVar("_Read")


def check_version(directory: Path) -> None:
    """Refuse the directory of a newer Remora, before anything in it is touched.

    Raises ConfigError.
    """
    path = directory / VERSION_FILE
    if not path.exists():
        return
    text = read_file(path, "version of the state directory").decode("ascii", "replace").strip()
    if not text.isdigit():
        raise ConfigError(f"{path} holds {text[:40]!r}, not a version: restore it from a backup")
    if int(text) > VERSION:
        raise ConfigError(
            f"{directory} was made by a newer Remora (layout {text}, and this one knows {VERSION}):"
            " use that version, or another --state-dir. Nothing was changed"
        )


def missing(directory: Path, *names: str) -> list[str]:
    """Return those of `names` that are not in `directory`. Raises ConfigError."""
    try:
        present = {path.name for path in directory.iterdir()}
    except OSError as error:
        raise ConfigError(f"cannot read state directory {directory}: {error.strerror}") from error
    return [name for name in names if name not in present]


def read_together(directory: Path, read: Callable[[], _Read]) -> _Read:
    """Return what `read` makes of files of one and the same generation.

    Blocks. Raises ConfigError, and whatever `read` raises.
    """
    for _ in range(READ_TRIES):
        before = _current(directory)
        try:
            found = read()
        except ConfigError:
            if _current(directory) == before:
                raise
            continue
        if _current(directory) == before:
            return found
    raise ConfigError(f"{directory / CURRENT} is replaced all the time: by what?")


def generation(directory: Path) -> str:
    """Return the name of the generation in force, empty before the first change."""
    return _current(directory) or ""


def publish(directory: Path, files: Mapping[str, bytes]) -> None:
    """Put a new generation into force, under the lock. Raises ConfigError. Blocks.

    Earlier ones are removed, for they hold keys that may be out of use now.
    """
    try:
        _adopt(directory)
        _switch(directory, _write_generation(directory, files))
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}") from error


@contextmanager
def locked(directory: Path) -> Generator[None]:
    """Hold the directory's lock, which the kernel drops if the process dies. Raises ConfigError."""
    path = directory / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot write to state directory {directory}: {error.strerror}"
        ) from error
    try:
        _acquire(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _current(directory: Path) -> str | None:
    try:
        return str((directory / CURRENT).readlink())
    except OSError:
        return None


def _adopt(directory: Path) -> None:
    """Lead the plain names through `current`, with no change to what is read under them.

    Needed once, and again after an operator has replaced one of the links by a file.
    """
    if all((directory / name).is_symlink() for name in LINKED):
        return
    files = {name: read_file(directory / name, "CA file") for name in LINKED}
    current = directory / CURRENT
    for path in current.iterdir() if current.exists() else ():
        files.setdefault(path.name, read_file(path, "CA file"))
    _switch(directory, _write_generation(directory, files))
    for name in LINKED:
        _link(f"{CURRENT}/{name}", directory / name)


def _write_generation(directory: Path, files: Mapping[str, bytes]) -> Path:
    numbers = [int(path.name[-6:]) for path in _generations(directory)]
    path = directory / f"generation-{max(numbers, default=0) + 1:06}"
    path.mkdir(mode=0o700)
    for name, data in files.items():
        write_private(path / name, data, PRIVATE_MODE if "key" in name else PUBLIC_MODE)
    sync_directory(directory)
    return path


def _generations(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if _GENERATION.fullmatch(path.name)]


def _switch(directory: Path, generation: Path) -> None:
    _link(generation.name, directory / CURRENT)
    for path in _generations(directory):
        if path != generation:
            shutil.rmtree(path)


def _link(target: str, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.symlink_to(target)
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _acquire(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"another process has held {path} for {LOCK_PATIENCE:.0f} s: "
                    "is another CA stuck while starting on this directory?"
                ) from None
            time.sleep(LOCK_INTERVAL)
        else:
            return
