"""The file of the ledger, in a state directory that CAs may share."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from ca.errors import LedgerFailed
from ca.ledger import IssuedRecord, compact, in_use, read_records, write_record
from ca.shared_log import SharedLog
from mesh.errors import ConfigError

ISSUED_LOG = "issued.jsonl"


class IssuedLog:
    """The certificates issued. Raises ConfigError if the file cannot be used."""

    def __init__(self, state_dir: Path) -> None:
        self._log = SharedLog(state_dir / ISSUED_LOG)

    def add(self, record: IssuedRecord) -> None:
        """Record a certificate before it leaves. Raises LedgerFailed: then it must not."""
        try:
            self._log.append(write_record(record))
        except (OSError, ConfigError) as error:
            raise LedgerFailed(
                f"the record of issued certificates takes no line, so nothing is issued: {error}"
            ) from error

    def compact(self, now: datetime) -> None:
        """Drop what has ended. Blocks. Raises OSError, ConfigError."""
        self._log.rewrite(lambda data: compact(data, now))

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def read_in_use(state_dir: Path, now: datetime, revoked: Collection[int]) -> list[IssuedRecord]:
    """Return the certificates that workloads may be using. Blocks. Raises ConfigError.

    A record that is not there is no proof that nothing was issued.
    """
    return in_use(read_all(state_dir), now, revoked)


def read_all(state_dir: Path) -> list[IssuedRecord]:
    """Return every record. Blocks. Raises ConfigError."""
    path = state_dir / ISSUED_LOG
    if not path.exists():
        raise ConfigError(
            f"there is no record of issued certificates {path}: start the CA on this directory "
            "once, or restore the file from a backup"
        )
    log = SharedLog(path)
    try:
        return list(read_records(log.read()))
    finally:
        log.close()
