"""Keys of a token issuer that change by themselves: kept, renewed, and asked for in moderation.

The rules follow what JWKS clients do in the field: keep what was fetched for a while, fetch again
when a token names a key that is not there, never more often than a limit, and live through an
issuer's outage on what is known.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import trio

from ca.jwks import TokenKey
from mesh.errors import RemoraError
from mesh.log import get_logger

MAX_AGE = timedelta(minutes=10)
"""After this, keys are fetched anew though all is well: a key that its issuer withdrew must not
be believed much longer."""

MAX_STALE = timedelta(hours=24)
"""As long as an issuer may be out of reach before its keys are forgotten: as long as a workload
certificate lives by default, so that an outage shorter than that costs nobody an identity."""

MIN_INTERVAL = timedelta(seconds=10)
"""Between two fetches, whatever tokens come: anybody can make up key names."""

Fetch = Callable[[], Awaitable[tuple[TokenKey, ...]]]
"""Gets the keys from wherever they are, within bounds of its own. Raises RemoraError."""

_log = get_logger("ca")


class KeyCache:
    """One issuer's keys. `source` names it in the log."""

    def __init__(
        self,
        fetch: Fetch,
        source: str,
        *,
        keys: tuple[TokenKey, ...] = (),
        fetched: datetime | None = None,
    ) -> None:
        self._fetch = fetch
        self._source = source
        self._keys = keys
        self._fetched = fetched
        self._tried: datetime | None = fetched
        self._lock = trio.Lock()
        self.failure: RemoraError | None = None
        """Why the last fetch failed, None if it did not."""

    def usable(self, now: datetime) -> tuple[TokenKey, ...]:
        """Return the keys as they are known, none if they are too old to be believed."""
        if self._fetched is None or now - self._fetched > MAX_STALE:
            return ()
        return self._keys

    async def keep_fresh(self, now: datetime) -> None:
        """Fetch the keys if those we have are old."""
        if self._fetched is None or abs(now - self._fetched) > MAX_AGE:
            await self.refresh(now)

    async def refresh(self, now: datetime) -> None:
        """Fetch the keys unless that was just done; callers who come meanwhile wait for it.

        A failure is logged and changes nothing.
        """
        async with self._lock:
            if self._tried is None or abs(now - self._tried) >= MIN_INTERVAL:
                self._tried = now
                await self._refresh(now)

    async def _refresh(self, now: datetime) -> None:
        try:
            keys = await self._fetch()
        except RemoraError as error:
            self.failure = error
            _log.warning(
                "token keys not fetched",
                source=self._source,
                reason=error.reason,
                why=str(error),
                keys_in_use=len(self.usable(now)),
            )
            return
        self._keys, self._fetched, self.failure = keys, now, None
        _log.info("token keys fetched", source=self._source, keys=len(keys))
