"""The audit log: every decision of the CA, one JSON object a line, only ever appended to.

No certificate leaves without its line. If the line cannot be written the certificate is withheld.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from ca.errors import AuditFailed
from ca.shared_log import SharedLog
from mesh.errors import ConfigError

AUDIT_LOG = "audit.jsonl"

MAX_BYTES = 64 * 1024 * 1024
"""Of one file: about 150,000 decisions."""

KEEP = 16
"""Older files kept, a gigabyte in all. Whoever needs more ships them away."""

MAX_TEXT = 500
"""Characters of any one value: some are a caller's own words."""

Value = str | int | None | dict[str, str]


class AuditLog:
    """The audit log in a state directory, which CAs may share. Raises ConfigError."""

    def __init__(self, state_dir: Path, *, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> None:
        self._log = SharedLog(state_dir / AUDIT_LOG)
        self._max_bytes = max_bytes
        self._keep = keep

    def record(self, event: str, now: datetime, **facts: Value) -> None:
        """Append one decision. Raises AuditFailed."""
        try:
            if self._log.append(audit_line(event, now, facts)) >= self._max_bytes:
                self._log.rotate(self._max_bytes, self._keep)
        except (OSError, ConfigError) as error:
            raise AuditFailed(
                f"the audit log takes no line, so nothing is issued: {error}. "
                "Make room on the disk of the state directory"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def audit_line(event: str, now: datetime, facts: dict[str, Value]) -> bytes:
    """Return one line. JSON escapes line ends, so that no value can pass for another line."""
    known = {name: _bounded(value) for name, value in facts.items() if value is not None}
    entry = {"time": now.isoformat(timespec="milliseconds"), "event": event, **known}
    return json.dumps(entry).encode("ascii") + b"\n"


def _bounded(value: Value) -> Value:
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, dict):
        return {name: text[:MAX_TEXT] for name, text in value.items()}
    return value
