"""Files that matter: secrets written privately and whole, and read with a clear complaint."""

from __future__ import annotations

import os
import secrets
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
        _sync_directory(path.parent)
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


def _sync_directory(path: Path) -> None:
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
        raise ConfigError(
            f"directory {path} is writable by others: run `chmod go-w {path}`, or choose another"
        )
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
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
    if len(data) > limit:
        raise ConfigError(f"{what} {path} is larger than {limit} bytes: is it the right file?")
    return data
