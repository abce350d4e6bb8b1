"""Reading and changing a directory of resources from a command, the control plane up or down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from ca.store.catalog import Ident
from ca.store.directory import MESH_FILE, list_files, read_text
from ca.store.edit import Plan, plan_apply, plan_delete
from ca.store.lock import reading, write_together, writing
from mesh.errors import ConfigError
from mesh.resources.values import Resource


def read_texts(root: Path) -> dict[str, str]:
    """Return the text of every resource file by its path. Raises ConfigError."""
    try:
        listing = list_files(root)
    except OSError as error:
        cure = ". Start the control plane once, which makes it, or correct --state-dir"
        raise ConfigError(
            f"cannot read the directory of resources {root}: {error.strerror}"
            f"{cure if isinstance(error, FileNotFoundError) else ''}"
        ) from error
    listing.demand_whole(root)
    return {path: read_text(root / path) for path in sorted(listing.files) if path != MESH_FILE}


def read_unchanging(root: Path) -> dict[str, str]:
    """Return the text of every resource file, none of them half changed. Raises ConfigError."""
    with reading(root):
        return read_texts(root)


def apply(root: Path, resources: Sequence[Resource], now: datetime, *, dry_run: bool) -> Plan:
    """Put resources in place, all or none. Raises ConfigError, ChangeRefused leaves."""
    return _carry_out(root, lambda texts: plan_apply(texts, resources, now), dry_run=dry_run)


def delete(root: Path, idents: Sequence[Ident], *, dry_run: bool) -> Plan:
    """Remove resources, all or none. Raises ConfigError, ChangeRefused leaves."""
    return _carry_out(root, lambda texts: plan_delete(texts, idents), dry_run=dry_run)


def _carry_out(root: Path, plan: Callable[[dict[str, str]], Plan], *, dry_run: bool) -> Plan:
    if not root.is_dir():
        read_texts(root)
    with writing(root):
        made = plan(read_texts(root))
        if not dry_run:
            write_together(root, made.files)
    return made
