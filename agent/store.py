"""What is served now, in memory, and word of its changes."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

import trio

from agent.answer import Issued
from agent.holdings import HeldRoots, HeldSvid, Holdings
from agent.resources import KeyPair, Roots, version_of
from mesh.bundle import TrustBundle
from mesh.bundle_document import BundleDocument, JwtKey
from mesh.spiffe import SpiffeId, TrustDomain

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


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
    """Holds certificates and bundles; changes are announced to every subscriber."""

    def __init__(self) -> None:
        self._holdings = Holdings()
        self._subscribers: set[Wakeup] = set()

    @property
    def holdings(self) -> Holdings:
        """Everything there is at this moment."""
        return self._holdings

    def issued(self, identity: SpiffeId) -> Issued | None:
        """Return the certificate of `identity`, None if there is none (yet, or any more)."""
        held = self._holdings.svids.get(identity)
        return None if held is None else held.issued

    def put(self, issued: Issued) -> None:
        """Serve a certificate from now on, the roots anew only if they are others than before."""
        pair = KeyPair.of(issued)
        held = HeldSvid(version=version_of(pair.chain_pem), issued=issued, pair=pair)
        self._holdings = replace(
            self._holdings, svids={**self._holdings.svids, issued.svid.id: held}
        )
        self._put_roots(issued.bundle)
        self.announce()

    def put_bundle(self, document: BundleDocument) -> None:
        """Serve the roots and keys of a trust domain from now on, as far as they are new."""
        before = self._holdings
        self._put_roots(document.roots)
        self._put_jwt_keys(document.trust_domain, document.jwt_keys)
        if self._holdings is not before:
            self.announce()

    def drop_bundle(self, domain: TrustDomain) -> None:
        """Forget a trust domain: nobody is given its roots and keys any more."""
        self._holdings = replace(
            self._holdings,
            roots=_without(self._holdings.roots, domain),
            jwt_keys=_without(self._holdings.jwt_keys, domain),
        )
        self.announce()

    def drop(self, identity: SpiffeId) -> None:
        """Forget the certificate of an identity that nobody here has any more."""
        self._holdings = replace(self._holdings, svids=_without(self._holdings.svids, identity))
        self.announce()

    def drop_expired(self, identity: SpiffeId, now: datetime) -> Issued | None:
        """Forget a certificate if it is past its end, and return it; the roots stay."""
        issued = self.issued(identity)
        if issued is None or now < issued.svid.not_after:
            return None
        self._holdings = replace(self._holdings, svids=_without(self._holdings.svids, identity))
        return issued

    @contextmanager
    def subscribed(self, wakeup: Wakeup) -> Generator[None]:
        """Set `wakeup` at every change while the block runs."""
        self._subscribers.add(wakeup)
        try:
            yield
        finally:
            self._subscribers.discard(wakeup)

    def announce(self) -> None:
        """Wake every subscriber: what is held has changed, or who may have it."""
        for wakeup in self._subscribers:
            wakeup.set()

    def _put_roots(self, bundle: TrustBundle) -> None:
        roots = Roots.of(bundle)
        known = self._holdings.roots.get(bundle.trust_domain)
        if known is None or known.roots != roots:
            held = HeldRoots(
                version=version_of(roots.pem + roots.lists_pem), bundle=bundle, roots=roots
            )
            self._holdings = replace(
                self._holdings, roots={**self._holdings.roots, bundle.trust_domain: held}
            )

    def _put_jwt_keys(self, domain: TrustDomain, keys: Mapping[str, JwtKey]) -> None:
        known = self._holdings.jwt_keys.get(domain)
        if known is None or dict(known) != dict(keys):
            self._holdings = replace(
                self._holdings, jwt_keys={**self._holdings.jwt_keys, domain: keys}
            )


def _without(mapping: Mapping[_Key, _Value], key: _Key) -> dict[_Key, _Value]:
    return {other: value for other, value in mapping.items() if other != key}
