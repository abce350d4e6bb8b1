"""Keeping the bundles of other trust domains fresh, and on disk over restarts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import trio

from ca.bundle_fetch import FetchFailed, fetch_bundle
from ca.federation import Federation, FederationInvalid, Relationship
from mesh.bundle import InvalidBundle, TrustBundle
from mesh.bundle_document import BundleDocument, parse_bundle
from mesh.clock import Now
from mesh.errors import ConfigError
from mesh.files import private_directory, read_file, write_private
from mesh.log import get_logger
from mesh.spiffe import TrustDomain

DEFAULT_INTERVAL = timedelta(minutes=5)
"""SPIFFE Trust Domain and Bundle, 4.1.2: when the bundle does not say."""

SHORTEST_INTERVAL = timedelta(seconds=10)
LONGEST_INTERVAL = timedelta(hours=1)
"""A hint is advice: neither a storm nor a day of stale roots may come of a slip."""

RETRY_INTERVAL = timedelta(seconds=60)
"""After a failure, unless the bundle is due earlier."""

FOLDER = "federation"

log = get_logger("ca.federation")


class Federator:
    """Holds the newest bundle of each trust domain that we federate with."""

    def __init__(self, federation: Federation, state_dir: Path, now: Now) -> None:
        """Load what is known already. Raises ConfigError."""
        self._relationships = federation.relationships
        self._now = now
        self._folder = state_dir / FOLDER
        self._known: dict[TrustDomain, BundleDocument] = {}
        if self._relationships:
            private_directory(self._folder)
        for relationship in self._relationships:
            document = self._load(relationship)
            if document is not None:
                self._known[relationship.trust_domain] = document

    def bundles(self) -> Sequence[BundleDocument]:
        """Return the bundles as far as they are known."""
        return list(self._known.values())

    async def run(self) -> None:
        """Fetch each bundle again and again, until cancelled. On failure the old one is kept."""
        async with trio.open_nursery() as nursery:
            for relationship in self._relationships:
                nursery.start_soon(self._follow, relationship)

    async def _follow(self, relationship: Relationship) -> None:
        while True:
            interval = RETRY_INTERVAL
            try:
                interval = await self._fetch(relationship)
            except FetchFailed as error:
                _complain(relationship, error)
            await trio.sleep(interval.total_seconds())

    async def _fetch(self, relationship: Relationship) -> timedelta:
        domain = relationship.trust_domain
        known = self._known.get(domain)
        roots = TrustBundle.of(domain, ()) if known is None else known.roots
        document = await fetch_bundle(relationship, roots, self._now)
        if known != document:
            await self._keep(domain, document)
            log.info(
                "bundle of a trust domain changed",
                trust_domain=str(domain),
                roots=len(document.roots.authorities),
                sequence=document.sequence,
            )
        hint = document.refresh_hint or DEFAULT_INTERVAL
        return min(max(hint, SHORTEST_INTERVAL), LONGEST_INTERVAL)

    async def _keep(self, domain: TrustDomain, document: BundleDocument) -> None:
        self._known[domain] = document
        try:
            text = document.to_json()
            await trio.to_thread.run_sync(write_private, self._path(domain), text)
        except (ConfigError, InvalidBundle) as error:
            _complain_of_disk(error)

    def _load(self, relationship: Relationship) -> BundleDocument | None:
        """Return the bundle that was fetched last, else the first one that the operator gave."""
        path = self._path(relationship.trust_domain)
        if not path.exists():
            if relationship.trust_bundle is None:
                return None
            path = relationship.trust_bundle
        return load_bundle(path, relationship.trust_domain)

    def _path(self, domain: TrustDomain) -> Path:
        return self._folder / f"{domain}.json"


def load_bundle(path: Path, domain: TrustDomain) -> BundleDocument:
    """Read a bundle from a file: a JWK set, or PEM. Raises ConfigError."""
    data = read_file(path, "trust bundle")
    try:
        if data.lstrip().startswith(b"{"):
            return parse_bundle(domain, data)
        return BundleDocument(roots=TrustBundle.from_pem(domain, data), jwt_keys={})
    except InvalidBundle as error:
        raise FederationInvalid(f"trust bundle {path}: {error}") from error


def _complain(relationship: Relationship, error: FetchFailed) -> None:
    log.warning(
        "bundle of a trust domain not fetched",
        trust_domain=str(relationship.trust_domain),
        reason=error.reason,
        error=str(error),
    )


def _complain_of_disk(error: ConfigError | InvalidBundle) -> None:
    log.error("bundle not kept for the next start", reason=error.reason, error=str(error))
