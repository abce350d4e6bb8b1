"""Which one-time tokens were not used yet: one file each, in a directory that CAs may share.

A token is used up by removing its file. The kernel lets exactly one caller do that, so whichever
of several CAs comes first wins, without talking to the others. The removal is on disk before a
certificate leaves: a crash can burn a token, and can never make it good a second time.
"""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import trio

from ca.errors import JoinTokenStuck, JoinTokenUsed
from mesh.files import private_directory, sync_directory, write_private

JOIN_TOKENS = "join-tokens"

TOKEN_ID_BYTES = 16
"""Random, so that two commands never make the same; what proves the token is its signature."""

_TOKEN_ID = re.compile(f"[0-9a-f]{{{2 * TOKEN_ID_BYTES}}}")


class JoinTokens:
    """The tokens that may still be used, in `state_dir`."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / JOIN_TOKENS

    def add(self, expires: datetime) -> str:
        """Allow one more token until `expires`, and return its ID. Blocks. Raises ConfigError."""
        private_directory(self._directory)
        token_id = secrets.token_hex(TOKEN_ID_BYTES)
        write_private(self._directory / token_id, expires.isoformat().encode("ascii"))
        return token_id

    async def check_unused(self, token_id: str) -> None:
        """Raise JoinTokenUsed for a token that was used, or that was never made."""
        if not await trio.Path(self._path(token_id)).is_file():
            raise _used(token_id)

    async def spend(self, token_id: str) -> None:
        """Use the token up. Raises JoinTokenUsed if somebody else was faster, JoinTokenStuck."""
        await trio.to_thread.run_sync(self._remove, token_id)

    def sweep(self, now: datetime) -> int:
        """Remove the tokens that expired unused; return how many. Blocks."""
        removed = 0
        with suppress(FileNotFoundError):
            for path in list(self._directory.iterdir()):
                if _TOKEN_ID.fullmatch(path.name) and _expired(path, now):
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed

    def _path(self, token_id: str) -> Path:
        if not _TOKEN_ID.fullmatch(token_id):
            raise _used(token_id)
        return self._directory / token_id

    def _remove(self, token_id: str) -> None:
        path = self._path(token_id)
        try:
            path.unlink()
            sync_directory(self._directory)
        except FileNotFoundError as error:
            raise _used(token_id) from error
        except OSError as error:
            raise JoinTokenStuck(
                f"cannot use up join token {path}, so nothing is issued for it: {error.strerror}"
            ) from error


def _expired(path: Path, now: datetime) -> bool:
    try:
        return datetime.fromisoformat(path.read_text("ascii")).astimezone(UTC) <= now
    except (OSError, ValueError):
        return False


def _used(token_id: str) -> JoinTokenUsed:
    return JoinTokenUsed(
        f"join token {token_id[:40]!r} was used before: make another with "
        "`remora token create --join`"
    )
