"""Who this proxy is at the moment: its newest X.509-SVID and the roots to judge peers by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from mesh.bundle import Bundles
from mesh.spiffe import TrustDomain
from mesh.svid import X509Svid


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Identity:
    """A certificate with its key, and the roots of every trust domain that is admitted.

    Compared by being the same object: each delivery makes a new one.
    """

    svid: X509Svid
    bundles: Bundles
    federated: frozenset[TrustDomain] = frozenset()
    """The foreign trust domains among them, with roots of their own."""


class IdentityStore:
    """Holds the newest identity. The only thing in a proxy that changes while it runs."""

    def __init__(self) -> None:
        self._current: Identity | None = None
        self._there = trio.Event()
        self._on_publish: list[Callable[[], None]] = []

    def on_publish(self, call: Callable[[], None]) -> None:
        """Let `call` be called after every publication."""
        self._on_publish.append(call)

    @property
    def current(self) -> Identity | None:
        """The newest identity, None before the first."""
        return self._current

    def publish(self, identity: Identity) -> None:
        """Replace the identity: for new handshakes only, open connections have theirs."""
        self._current = identity
        self._there.set()
        for call in self._on_publish:
            call()

    async def ready(self) -> Identity:
        """Wait for the first identity, and return the newest."""
        while self._current is None:
            await self._there.wait()
        return self._current
