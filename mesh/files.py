"""Files that matter: secrets written privately and whole, and read with a clear complaint."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from mesh.errors import ConfigError

PRIVATE_DIRECTORY = 0o700
PRIVATE_FILE = 0o600

MAX_FILE = 1024 * 1024
"""Bytes. No certificate, key, token or key set comes near; a device file would never end."""


def write_private(path: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old content or the new.

    The temporary file is created with `mode`, never widened later. Raises ConfigError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        _write_new(temporary, data, mode)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make sure that what was renamed or removed in `path` stays so after a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_directory(path: Path, mode: int = PRIVATE_DIRECTORY) -> Path:
    """Make `path`, by default for its owner alone, unless it is there. Raises ConfigError.

    A directory that others own or may write to is refused: they could swap what is in it.
    """
    try:
        _make_directory(path, mode)
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"cannot use directory {path}: {error.strerror}") from error
    if status.st_uid not in {0, os.geteuid()}:
        raise ConfigError(
            f"directory {path} belongs to user {status.st_uid}: choose one of root's or your own"
        )
    if status.st_mode & 0o022:
        shared = status.st_mode & stat.S_ISVTX  # such as /tmp: others need it as it is
        cure = "choose another" if shared else f"run `chmod go-w {path}`, or choose another"
        raise ConfigError(f"directory {path} is writable by others: {cure}")
    return path


def _make_directory(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode & PRIVATE_DIRECTORY)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(mode)  # whatever the umask says


def read_file(path: Path, what: str, limit: int = MAX_FILE) -> bytes:
    """Return the content of `path`; `what` names it in complaints. Raises ConfigError."""
    try:
        # Opening a pipe would wait for its writer, and reading a device might never end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{what} {path} is not a regular file")
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
    if len(data) > limit:
        raise ConfigError(f"{what} {path} is larger than {limit} bytes: is it the right file?")
    return data
