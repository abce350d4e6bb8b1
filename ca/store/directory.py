"""Reading a directory of resource files, symlinks and all."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from mesh.errors import ConfigError
from mesh.files import read_file
from mesh.resources.loader import Loaded, load_resources
from mesh.resources.problem import Problem
from mesh.resources.yaml_text import MAX_TEXT

SUFFIXES = frozenset({".json", ".yaml", ".yml"})
"""Names of files that are read, unless they begin with a dot."""

MESH_FILE = "mesh.yaml"
"""The mesh settings, at the top of the directory."""

MAX_DIRECTORIES = 10_000
"""Directories within one another or side by side. Symlinks can make loops without end."""

Signature = tuple[int, int, int, int, int]
"""Device, inode, change and modification time, and size: a file that keeps all is the same."""


@dataclass(slots=True)
class Listing:
    """What is in a directory: files by their path below it, the directories, and what failed."""

    files: dict[str, Signature] = field(default_factory=dict[str, Signature])
    directories: list[str] = field(default_factory=list[str])
    failed: list[str] = field(default_factory=list[str])


def list_files(root: Path) -> Listing:
    """List every resource file. Raises OSError if the directory itself cannot be read.

    Symlinks are followed, as configuration volumes are made of them; each directory once only.
    """
    listing = Listing()
    pending, seen = [""], set[tuple[int, int]]()
    while pending and len(listing.directories) < MAX_DIRECTORIES:
        at = pending.pop()
        try:
            status = (root / at).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            pending += _list_one(root, at, listing)
            listing.directories.append(at)
        except OSError:
            if not at:
                raise
            listing.failed.append(at)
    return listing


def _list_one(root: Path, at: str, listing: Listing) -> list[str]:
    """Add the files of one directory, and return the directories in it."""
    below: list[str] = []
    with os.scandir(root / at) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{at}/{entry.name}" if at else entry.name
            if entry.is_dir():
                below.append(path)
            elif is_resource_file(entry.name) and (signature := sign(root / path)):
                listing.files[path] = signature
    return below


def is_resource_file(name: str) -> bool:
    """Tell by its name whether a file is read."""
    return not name.startswith(".") and Path(name).suffix in SUFFIXES


def sign(path: Path) -> Signature | None:
    """Return what tells a file's content from an earlier one, None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
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


def read_resources(root: Path, path: str) -> Loaded:
    """Read one file; one that cannot be read is a problem that names no resource."""
    try:
        text = read_text(root / path)
    except ConfigError as error:
        return Loaded(
            problems=(Problem(file=path, line=0, resource="", field="", message=str(error)),)
        )
    return load_resources(text, file=path)
