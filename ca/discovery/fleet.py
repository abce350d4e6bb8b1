"""All connected proxies, and what a change means for each of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

from ca.discovery.client import Client
from ca.discovery.errors import TooManyProxies
from ca.discovery.held import (
    AUTHORIZATION_POLICY,
    REQUEST_AUTHENTICATION,
    SERVED,
)
from ca.discovery.indexes import LabelIndex
from ca.discovery.world import Name, World, selection_of
from ca.store.catalog import EVERYWHERE, Change, InForce
from ca.store.store import Batch
from mesh.clock import Now
from mesh.discovery.types import MESH_CONFIG_NAME, MESH_CONFIG_URL
from mesh.resources.mesh_config import MeshConfig

MAX_PROXIES = 10_000
"""Streams at once. Each costs some 50 KiB and its share of every push; beyond that, run more
control planes."""

MAX_OFFERS = 200_000
"""Resources times proxies that are looked at one by one after a change. Beyond that every proxy
looks at all that concerns it, which costs less."""

SELECTED = frozenset({AUTHORIZATION_POLICY, REQUEST_AUTHENTICATION})
"""Types that concern a proxy by its labels alone, so that an index finds whom."""


class Fleet:
    """The connected proxies and the world they are told of."""

    def __init__(self, config: MeshConfig, now: Now) -> None:
        self.world = World(config)
        self.clients: dict[int, Client] = {}
        self._by_labels: LabelIndex[int] = LabelIndex()
        self._now = now
        self._count = 0
        self._serial = 0
        self.version = self._next_version()

    @contextmanager
    def connected(self, client: Client) -> Generator[None]:
        """Count a proxy in for the block. Raises TooManyProxies."""
        if len(self.clients) >= MAX_PROXIES:
            raise TooManyProxies(f"{MAX_PROXIES} proxies are connected already")
        self._serial += 1
        number = self._serial
        self.clients[number] = client
        self._by_labels.add(number, client.viewer.namespace, client.viewer.labels)
        try:
            yield
        finally:
            del self.clients[number]
            self._by_labels.remove(number)

    def publish(self, batch: Batch, config: MeshConfig | None) -> None:
        """Take a batch of changes, and let every proxy know that one of them may concern."""
        self.version = self._next_version()
        if batch.settings:
            moved = self.world.set_config(config)
            for client in self.clients.values():
                client.touch(MESH_CONFIG_URL, MESH_CONFIG_NAME)
                for url in SERVED if moved else ():
                    client.touch_everything(url)
        touched = self.world.update(batch.changes)
        if len(touched) * len(self.clients) > MAX_OFFERS:
            for url in {url for url, _ in touched}:
                for client in self.clients.values():
                    client.touch_everything(url)
            return
        selected = {change.ident: change for change in batch.changes}
        for name in touched:
            self._offer(name, selected)

    def _offer(self, resource: Name, changes: dict[tuple[str, str], Change]) -> None:
        url, name = resource
        change = changes.get((url.rpartition("/")[2], name))
        if url in SELECTED and change is not None:
            for client in self._selected_by(change):
                client.touch(url, name)
            return
        held = self.world.get(url, name)
        for client in self.clients.values():
            if client.subscriptions[url].has(name) or (
                held is not None and self.world.concerns(client.viewer, held)
            ):
                client.touch(url, name)

    def _selected_by(self, change: Change) -> Iterator[Client]:
        """Yield the proxies that a policy selects, or selected before."""
        for value in (change.before, change.after):
            if value is not None:
                yield from self._selected(value, change.ident[1].partition("/")[0])

    def _selected(self, value: InForce, namespace: str) -> Iterator[Client]:
        labels = selection_of(value).labels
        if labels is None:
            return
        everywhere = None if namespace in {self.world.root, EVERYWHERE} else namespace
        for number in self._by_labels.selected(everywhere, labels):
            yield self.clients[number]

    def _next_version(self) -> str:
        """Return Istio's form of a version: when, and a counter that only grows."""
        self._count += 1
        return f"{self._now():%Y-%m-%dT%H:%M:%SZ}/{self._count}"
