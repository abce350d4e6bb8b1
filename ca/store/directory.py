"""Reading a directory of resource files, symlinks and all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mesh.errors import ConfigError
from mesh.files import read_file
from mesh.resources.loader import UNKNOWN, Loaded, load_resources
from mesh.resources.problem import Problem
from mesh.resources.yaml_text import MAX_TEXT

SUFFIXES = frozenset({".json", ".yaml", ".yml"})
"""Names of files that are read, unless they begin with a dot."""

MESH_FILE = "mesh.yaml"
"""The mesh settings, at the top of the directory."""

MAX_DIRECTORIES = 10_000
"""Directories within one another or side by side: a directory that symlinks drag in by mistake
is refused as a whole, before it fills the memory."""

PASSED_OVER = "lost+found"
"""The directory that a file system makes for itself, and keeps from everybody but root."""

Signature = tuple[int, int, int, int, int]
"""Device, inode, change and modification time, and size: a file that keeps all is the same."""


@dataclass(slots=True)
class Listing:
    """What is in a directory: files by their path below it, the directories, and what failed.

    What failed is there, as a file or a directory, but cannot be looked into; by its path, why.
    """

    files: dict[str, Signature] = field(default_factory=dict[str, Signature])
    directories: list[str] = field(default_factory=list[str])
    failed: dict[str, str] = field(default_factory=dict[str, str])

    def demand_whole(self, root: Path) -> None:
        """Raise ConfigError if something failed."""
        for path, why in self.failed.items():
            raise ConfigError(f"cannot read {root / path}: {why}")


def list_files(root: Path) -> Listing:
    """List every resource file. Raises OSError if the directory itself cannot be read.

    Symlinks are followed, as configuration volumes are made of them; each directory once only.
    """
    listing = Listing()
    pending, seen = [""], set[tuple[int, int]]()
    while pending:
        if len(listing.directories) >= MAX_DIRECTORIES:
            raise OSError(errno.EMLINK, f"it holds more than {MAX_DIRECTORIES} directories")
        at = pending.pop()
        try:
            status = (root / at).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            pending += _list_one(root, at, listing)
            listing.directories.append(at)
        except OSError as error:
            if not at:
                raise
            if not is_gone(root / at):
                listing.failed[at] = _why(error)
    return listing


def _list_one(root: Path, at: str, listing: Listing) -> list[str]:
    """Add the files of one directory, and return the directories in it."""
    below: list[str] = []
    with os.scandir(root / at) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == PASSED_OVER:
                continue
            path = f"{at}/{entry.name}" if at else entry.name
            try:
                if entry.is_dir():
                    below.append(path)
                else:
                    _list_file(root, path, entry, listing)
            except OSError as error:
                if not is_gone(root / path):
                    listing.failed[path] = _why(error)
    return below


def _list_file(root: Path, path: str, entry: os.DirEntry[str], listing: Listing) -> None:
    if is_resource_file(entry.name):
        if signature := sign(root / path):
            listing.files[path] = signature
    elif entry.is_symlink():
        entry.stat()  # It may have led to a directory.


def is_gone(path: Path) -> bool:
    """Tell whether there is surely nothing of that name; a symlink is there, wherever it leads."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def sign_all(
    root: Path, paths: Iterable[str]
) -> tuple[dict[str, Signature | None], dict[str, str]]:
    """Sign some files; None is for one that is gone. Also return what failed, and why."""
    signatures: dict[str, Signature | None] = {}
    failed: dict[str, str] = {}
    for path in paths:
        try:
            signatures[path] = sign(root / path)
        except OSError as error:
            failed[path] = _why(error)
    return signatures, failed


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def is_resource_file(name: str) -> bool:
    """Tell by its name whether a file is read."""
    return not name.startswith(".") and Path(name).suffix in SUFFIXES


def sign(path: Path) -> Signature | None:
    """Return what tells a file's content from an earlier one, None if there is no file.

    Raises OSError for what is there and cannot be read, such as a symlink that leads nowhere.
    """
    try:
        status = path.stat()
    except OSError:
        if is_gone(path):
            return None
        status = path.stat()  # It has come meanwhile, or this raises.
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return (
        status.st_dev,
        status.st_ino,
        status.st_ctime_ns,
        status.st_mtime_ns,
        status.st_size,
    )


def read_text(path: Path) -> str:
    """Return the text of a file. Raises ConfigError."""
    try:
        return read_file(path, "resource file", MAX_TEXT).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8") from error


def read_resources(root: Path, path: str) -> Loaded | None:
    """Read one file, None if it is gone; one that cannot be read is a problem without a name."""
    try:
        text = read_text(root / path)
    except ConfigError as error:
        return None if is_gone(root / path) else unreadable(path, str(error))
    return load_resources(text, file=path)


def unreadable(path: str, message: str) -> Loaded:
    """Return what is known of a file that cannot be read: that it is there."""
    problem = Problem(file=path, line=0, resource="", field="", message=message)
    return Loaded(problems=(problem,), unnamed=(UNKNOWN,))
