"""The secrets that are served now, in memory, and word of their changes.

Each resource has a version of its own, taken from one counter, so that a renewed certificate does
not resend roots that stayed the same.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime

import trio

from agent.answer import Issued
from agent.resources import KeyPair, Resource, Roots
from mesh.api import BUNDLE_RESOURCE, SVID_RESOURCE


class Wakeup:
    """An event for one waiting task that can happen again; many before a wait count as one."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[None](1)

    def set(self) -> None:
        """Wake the waiting task, or let its next wait return at once."""
        try:
            self._send.send_nowait(None)
        except trio.WouldBlock:
            return

    async def wait(self) -> None:
        """Wait until `set` has been called since the last wait."""
        await self._receive.receive()


class SecretStore:
    """Holds the current SVID and roots; changes are announced to every subscriber."""

    def __init__(self) -> None:
        self._issued: Issued | None = None
        self._resources: dict[str, Resource] = {}
        self._counter = 0
        self._subscribers: set[Wakeup] = set()

    @property
    def issued(self) -> Issued | None:
        """The certificate that is served, or None if there is none (yet, or any more)."""
        return self._issued

    def put(self, issued: Issued) -> None:
        """Serve `issued` from now on, the roots anew only if they are others than before."""
        self._issued = issued
        self._set(SVID_RESOURCE, KeyPair.of(issued))
        self._set(BUNDLE_RESOURCE, Roots.of(issued))
        for wakeup in self._subscribers:
            wakeup.set()

    def drop_expired(self, now: datetime) -> Issued | None:
        """Forget the SVID if it is past its end, and return it; the roots stay."""
        issued = self._issued
        if issued is None or now < issued.svid.not_after:
            return None
        self._issued = None
        del self._resources[SVID_RESOURCE]
        return issued

    def available(self, now: datetime) -> Mapping[str, Resource]:
        """Return what may be served at `now`, by name: never an expired certificate."""
        return {
            name: resource
            for name, resource in self._resources.items()
            if not isinstance(resource.value, KeyPair) or now < resource.value.not_after
        }

    @contextmanager
    def subscribed(self, wakeup: Wakeup) -> Generator[None]:
        """Set `wakeup` at every change while the block runs."""
        self._subscribers.add(wakeup)
        try:
            yield
        finally:
            self._subscribers.discard(wakeup)

    def _set(self, name: str, value: KeyPair | Roots) -> None:
        known = self._resources.get(name)
        if known is None or known.value != value:
            self._counter += 1
            self._resources[name] = Resource(name=name, version=self._counter, value=value)
