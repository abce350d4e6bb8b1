"""Open mutual TLS connections, held against revocations that become known while they are open.

As with policies, no revocation can fall between a connection's check and its use: a connection is
judged in the step in which it is registered, and every registered one in the step in which a new
bundle comes into force.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import trio

from mesh.bundle import Bundles
from mesh.log import get_logger
from mesh.tls import TlsSession
from mesh.verify import PeerRevoked, bundle_for, check_not_revoked
from proxy.errors import PeerRevokedMeanwhile
from proxy.relayed import Leg

log = get_logger("proxy")


class _OpenPeer:
    """One connection: who is there, and how to end it."""

    def __init__(self, session: TlsSession) -> None:
        self.session = session
        self.scope = trio.CancelScope()
        self.revoked: PeerRevoked | None = None

    def judge(self, bundles: Bundles) -> bool:
        """End the connection if its peer is revoked; tell whether it is."""
        identity = self.session.peer_id
        if identity is None or identity.trust_domain not in bundles:
            return False
        try:
            check_not_revoked(self.session.peer_chain, bundle_for(identity, bundles))
        except PeerRevoked as revoked:
            self.revoked = revoked
            self.scope.cancel()
        return self.revoked is not None


class OpenPeers:
    """The connections that are open; `bundles` returns the trust in force."""

    def __init__(self, bundles: Callable[[], Bundles]) -> None:
        self._bundles = bundles
        self._open: set[_OpenPeer] = set()

    @contextmanager
    def hold(self, leg: Leg, peer: str) -> Generator[None]:
        """Keep a connection for the block, which a revocation of its peer ends.

        Raises what the block raises, and PeerRevokedMeanwhile.
        """
        if isinstance(leg, trio.SocketStream) or leg.session.peer_id is None:
            yield
            return
        one = _OpenPeer(leg.session)
        self._open.add(one)
        try:
            with one.scope:
                one.judge(self._bundles())
                yield
        finally:
            self._open.discard(one)
        if one.revoked is not None:
            raise PeerRevokedMeanwhile(peer, one.revoked)

    def judge(self) -> None:
        """End the connections of peers that the trust in force has revoked."""
        bundles = self._bundles()
        closed = sum([one.judge(bundles) for one in self._open])
        if closed:
            log.info("revocation closed connections", closed=closed, open=len(self._open))
