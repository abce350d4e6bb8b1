"""The last good version of every resource, on disk, so that a restart forgets none of them.

One small SQLite file: a change writes the rows it is about, whole or not at all. It is a copy of
what the directory of resources said while that was good, so losing it loses only the fallback.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from mesh.errors import ConfigError
from mesh.files import PRIVATE_FILE
from mesh.log import get_logger
from mesh.resources.loader import load_objects
from mesh.resources.values import Resource

_log = get_logger("ca.store")

_SCHEMA = "CREATE TABLE IF NOT EXISTS last_good (file TEXT NOT NULL, body BLOB NOT NULL)"
_SETTINGS = "CREATE TABLE IF NOT EXISTS settings (text TEXT NOT NULL)"
_INDEX = "CREATE INDEX IF NOT EXISTS last_good_file ON last_good (file)"

MEMORY_FILE = "last-good.sqlite"
"""In the state directory."""

BUSY = 5.0
"""Seconds to wait for another control plane on the same directory; its writes take milliseconds."""


class Memory:
    """The file. Its methods block, and may be called from any thread, one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[dict[str, Sequence[Resource]], str]:
        """Return what was kept, by the file it came from, and the text of good mesh settings.

        A damaged memory is put aside.
        """
        try:
            with self._open() as db:
                return _everything(db)
        except sqlite3.DatabaseError as error:
            aside = self._path.with_suffix(".damaged")
            _log.error(
                "memory of last good resources is damaged; begun anew without it",
                reason="memory_damaged",
                error=str(error),
                kept_as=str(aside),
            )
            self._path.replace(aside)
            return {}, ""

    def look(self) -> tuple[dict[str, Sequence[Resource]], str]:
        """Return the same without a change to the file, for whoever is not its control plane.

        Nothing is kept where there is no file. Raises ConfigError if it cannot be read.
        """
        address = f"{self._path.absolute().as_uri()}?mode=ro"
        try:
            if not self._path.exists():
                return {}, ""
            with closing(sqlite3.connect(address, uri=True, timeout=BUSY)) as db:
                return _everything(db)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"cannot read what the control plane keeps in {self._path}: {error}. Run this as "
                "the control plane's user, or name the files of resources with -f"
            ) from error

    def write(self, files: Mapping[str, Iterable[Resource]], settings: str) -> None:
        """Keep what some files hold now, instead of what they held, and the mesh settings.

        Raises sqlite3.Error.
        """
        rows = [
            (file, msgspec.json.encode(resource))
            for file, resources in files.items()
            for resource in resources
        ]
        with self._open() as db, db:
            db.executemany("DELETE FROM last_good WHERE file = ?", [(file,) for file in files])
            db.executemany("INSERT INTO last_good VALUES (?, ?)", rows)
            if list(db.execute("SELECT text FROM settings")) != [(settings,)]:
                db.execute("DELETE FROM settings")
                db.execute("INSERT INTO settings VALUES (?)", (settings,))

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection]:
        self._path.touch(mode=PRIVATE_FILE)
        with closing(sqlite3.connect(self._path, timeout=BUSY)) as db:
            db.execute(_SCHEMA)
            db.execute(_SETTINGS)
            db.execute(_INDEX)
            yield db


def _everything(db: sqlite3.Connection) -> tuple[dict[str, Sequence[Resource]], str]:
    with db:  # one transaction, so that both are of the same moment
        db.execute("BEGIN")
        rows = list(db.execute("SELECT file, body FROM last_good"))
        settings = "".join(text for (text,) in db.execute("SELECT text FROM settings"))
    objects: dict[str, list[object]] = {}
    for file, body in rows:
        objects.setdefault(file, []).append(json.loads(body))
    resources: dict[str, Sequence[Resource]] = {
        file: load_objects(found, source=file, already_admitted=True).resources
        for file, found in objects.items()
    }
    return resources, settings
