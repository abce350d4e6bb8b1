"""Which CAs run on a state directory, and which generation of its files each has taken up.

Replicas need not talk to each other. But whoever changes the root must know that none still works
with what was in force before, so each leaves a note, renewed while it runs.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from mesh.errors import ConfigError
from mesh.files import private_directory, write_private

REPLICAS = "replicas"

HEARTBEAT = timedelta(seconds=10)
"""Between two notes of a running CA."""

MAX_SILENCE = timedelta(seconds=60)
"""A CA that has left no note for so long does not run, or cannot issue certificates either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What one CA says of itself."""

    replica: str
    generation: str
    time: datetime


class Replica:
    """One running CA."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / REPLICAS / secrets.token_hex(8)

    def note(self, generation: str, now: datetime) -> None:
        """Say which generation is in force here. Blocks. Raises ConfigError."""
        private_directory(self._path.parent)
        entry = {"generation": generation, "time": now.isoformat()}
        write_private(self._path, json.dumps(entry).encode("ascii"))

    def remove(self) -> None:
        """Say that this CA ends. Blocks."""
        with suppress(OSError):
            self._path.unlink()


def running(state_dir: Path, now: datetime) -> list[Note]:
    """Return the notes of the CAs that run. Blocks. Raises ConfigError."""
    directory = state_dir / REPLICAS
    found: list[Note] = []
    for path in list(directory.iterdir()) if directory.exists() else ():
        note = _read(path)
        if note is None or abs(now - note.time) > MAX_SILENCE:
            continue
        found.append(note)
    return found


def _read(path: Path) -> Note | None:
    try:
        entry = json.loads(path.read_bytes())
        return Note(
            replica=path.name,
            generation=entry["generation"],
            time=datetime.fromisoformat(entry["time"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no note of a running CA: remove it, or upgrade all CAs to one version"
        ) from error
