"""Following the CA's trust bundles: our own and those of other trust domains."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from random import Random

import trio

from agent.bundle_answer import federated_bundle, own_bundle
from agent.ca_client import CaClient
from agent.errors import CaLacksMethod, RequestFailed
from agent.store import SecretStore
from mesh.bundle_document import BundleDocument
from mesh.log import get_logger
from mesh.protos.spire_server_pb2 import Bundle
from mesh.spiffe import TrustDomain

DEFAULT_INTERVAL = timedelta(minutes=5)
"""SPIFFE Trust Domain and Bundle, 4.1.2: how often to look if the bundle does not say."""

SHORTEST_INTERVAL = timedelta(seconds=10)
LONGEST_INTERVAL = timedelta(hours=1)
"""A hint is advice: neither a storm nor a day of stale roots may come of a slip."""

JITTER = 0.1
"""Agents started together drift apart."""

log = get_logger("agent.bundles")


class BundleFollower:
    """Keeps the store's bundles like the CA's. Without this API, roots come with certificates."""

    def __init__(
        self, client: CaClient, store: SecretStore, trust_domain: TrustDomain, random: Random
    ) -> None:
        self._client = client
        self._store = store
        self._trust_domain = trust_domain
        self._random = random
        self._foreign: frozenset[TrustDomain] = frozenset()
        self.unsupported = False

    async def run(self) -> None:
        """Look again and again, until cancelled. What is known stays while the CA is down."""
        while True:
            interval = DEFAULT_INTERVAL
            try:
                interval = await self.refresh()
            except RequestFailed as error:
                self._complain(error)
            spread = 1 + self._random.uniform(-JITTER, JITTER)
            await trio.sleep(interval.total_seconds() * spread)

    async def refresh(self) -> timedelta:
        """Look once; return when to look again. Raises RequestFailed leaves."""
        own, foreign = await self._client.bundles()
        self.unsupported = False
        document = own_bundle(own, self._trust_domain)
        self._store.put_bundle(document)
        self._follow(foreign)
        hint = document.refresh_hint or DEFAULT_INTERVAL
        return min(max(hint, SHORTEST_INTERVAL), LONGEST_INTERVAL)

    def _follow(self, bundles: Sequence[Bundle]) -> None:
        documents: list[BundleDocument] = []
        listed = {bundle.trust_domain for bundle in bundles}
        for bundle in bundles:
            try:
                documents.append(federated_bundle(bundle, self._trust_domain))
            except RequestFailed as error:
                _complain_of(bundle, error)
        for document in documents:
            self._store.put_bundle(document)
        for domain in self._foreign:
            if domain.name not in listed:
                log.info("trust domain is not federated with any more", trust_domain=str(domain))
                self._store.drop_bundle(domain)
        kept = {domain for domain in self._foreign if domain.name in listed}
        self._foreign = frozenset(kept | {document.trust_domain for document in documents})

    def _complain(self, error: RequestFailed) -> None:
        if isinstance(error, CaLacksMethod):
            if not self.unsupported:
                log.info("the CA offers no trust bundles: roots come with certificates")
            self.unsupported = True
        else:
            log.warning("trust bundles not refreshed", reason=error.reason, error=str(error))


def _complain_of(bundle: Bundle, error: RequestFailed) -> None:
    log.error(
        "bundle of a trust domain not taken over",
        trust_domain=bundle.trust_domain[:255],
        reason=error.reason,
        error=str(error),
    )
