"""What the CA publishes of its trust domain: roots, token keys, and how often to look."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import trio

from ca.jwt_keys import JwtKeyring, load_jwt_keys
from mesh.bundle import TrustBundle
from mesh.bundle_document import BundleDocument
from mesh.clock import Now
from mesh.errors import ConfigError
from mesh.log import get_logger

REFRESH_HINT = timedelta(minutes=5)
"""How often agents and other trust domains shall look: what SPIFFE takes for granted (4.1.2)."""

LOOK_INTERVAL = 60.0
"""Seconds between two looks at the key files, which other replicas may have changed."""

log = get_logger("ca.bundle")


class BundlePublisher:
    """Holds the bundle document, and gives it a higher sequence number with each change.

    The number is the time of the change in seconds, so it grows over restarts too.
    """

    def __init__(
        self, directory: Path, roots: Callable[[], TrustBundle], keyring: JwtKeyring, now: Now
    ) -> None:
        self._directory = directory
        self._roots = roots
        self._keyring = keyring
        self._now = now
        self._document = self._make(int(now().timestamp()))

    @property
    def keyring(self) -> JwtKeyring:
        """The keys that sign tokens."""
        return self._keyring

    @property
    def document(self) -> BundleDocument:
        """The bundle as it is now."""
        if self._document.roots != self._roots() or self._keys_changed():
            last = self._document.sequence or 0
            self._document = self._make(max(last + 1, int(self._now().timestamp())))
            log.info("trust bundle changed", sequence=self._document.sequence)
        return self._document

    async def keep_keys(self) -> None:
        """Follow the key files, for ever: new ones are made and spent ones removed in time."""
        while True:
            await trio.sleep(LOOK_INTERVAL)
            try:
                self._keyring = await trio.to_thread.run_sync(
                    load_jwt_keys, self._directory, self._now()
                )
            except ConfigError as error:
                _complain(error)

    def _keys_changed(self) -> bool:
        return set(self._document.jwt_keys) != set(self._keyring.published())

    def _make(self, sequence: int) -> BundleDocument:
        return BundleDocument(
            roots=self._roots(),
            jwt_keys=self._keyring.published(),
            sequence=sequence,
            refresh_hint=REFRESH_HINT,
        )


def _complain(error: ConfigError) -> None:
    log.error("JWT keys not looked after", reason=error.reason, error=str(error))
