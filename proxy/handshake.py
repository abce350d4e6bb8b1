"""The TLS handshake on either side: judged by identity, always with the newest certificate.

The peer is judged inside the handshake, before any application byte: a client by its trust
domain, a server by its exact identity (Istio's secure naming).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

import trio

from mesh.api import MESH_ALPN
from mesh.bundle import Bundles, TrustBundle
from mesh.clock import Now
from mesh.policy.trust_domains import TrustDomains
from mesh.resources.mesh_config import MeshConfig, TlsProtocol
from mesh.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain
from mesh.tls import PeerCheck, TlsContext, TlsSession, client_context, server_context
from mesh.tls_errors import TlsError
from mesh.tls_socket import TlsSocket
from mesh.tls_stream import TlsStream
from mesh.verify import PeerRejected
from proxy.errors import (
    ConnectionFailed,
    NoIdentityYet,
    PeerClosed,
    WrongIdentity,
    WrongTrustDomain,
    handshake_failure,
)
from proxy.identity import Identity
from proxy.open_peers import OpenPeers
from proxy.policy_errors import outside_the_mesh
from proxy.relay import uses_plain
from proxy.socket_options import reset, wait_delivered

HANDSHAKE_TIMEOUT = 10.0
"""Seconds a client has for the handshake (ghostunnel's value): without a limit, silent clients
could hold every connection slot."""


SecureLeg = TlsStream | TlsSocket
"""An established TLS connection, for the relay to go on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contexts:
    """Both TLS contexts of one identity: dear to make, so kept until the identity changes."""

    identity: Identity
    config: MeshConfig | None
    domains: TrustDomains | None
    bundles: Bundles
    server: TlsContext
    client: TlsContext

    def describe(self) -> str:
        return describe_roots(self.bundles)


class MeshTls:
    """Shakes hands with mesh peers, with whatever identity is the newest at that moment.

    Open connections keep the certificate they began with; `open` holds them against revocations.
    """

    def __init__(
        self,
        newest: Callable[[], Identity | None],
        now: Now,
        *,
        trust_domain_aliases: Collection[TrustDomain] = (),
        mesh_config: Callable[[], MeshConfig | None] = lambda: None,
    ) -> None:
        """Take the newest identity from `newest`, and the mesh settings from `mesh_config`.

        Without those, the identity's own trust domain and `trust_domain_aliases` are admitted.
        """
        self._newest = newest
        self._now = now
        self._mesh_config = mesh_config
        self._aliases = frozenset(trust_domain_aliases)
        self._cached: _Contexts | None = None
        self.open = OpenPeers(lambda: self._contexts().bundles)

    @property
    def own_id(self) -> SpiffeId:
        """The identity that the next handshake shows. Raises NoIdentityYet."""
        return self._contexts().identity.svid.id

    async def accept(self, stream: trio.SocketStream, *, peer: str) -> SecureLeg:
        """Be the server to a client of a trust domain that is admitted.

        `peer` names the client in messages. Put a deadline round it. Raises ConnectionFailed
        leaves, and then has reset the stream.
        """
        contexts = self._contexts()
        session = contexts.server.session(
            self._now(),
            check_peer=self._members(contexts, contexts.identity.federated),
            descriptor=_descriptor_of(stream),
        )
        return await shake_hands(stream, session, peer, contexts.describe)

    async def connect(
        self,
        stream: trio.SocketStream,
        *,
        server_name: str,
        expected: Collection[str] | None,
        peer: str,
    ) -> SecureLeg:
        """Be the client of a server that must prove one of the `expected` SPIFFE IDs.

        With None any identity of the mesh will do, as in Istio where no service account is known.
        Otherwise as `accept`.
        """
        contexts = self._contexts()
        check = self._members(contexts) if expected is None else only_identities(expected)
        try:
            session = contexts.client.session(
                self._now(),
                server_name=server_name,
                check_peer=check,
                descriptor=_descriptor_of(stream),
            )
        except TlsError as error:
            reset(stream)
            raise handshake_failure(error, peer) from error
        return await shake_hands(stream, session, peer, contexts.describe)

    def _members(
        self, contexts: _Contexts, federated: frozenset[TrustDomain] = frozenset()
    ) -> PeerCheck:
        """Return a check for members of the mesh, and of the trust domains in `federated`.

        Whether those of the latter may do anything is for policy to say.
        """
        if contexts.domains is not None:
            return only_the_mesh(contexts.domains, federated)
        own = contexts.identity.svid.id.trust_domain
        return only_trust_domains(self._aliases | {own} | federated)

    def _contexts(self) -> _Contexts:
        identity, config = self._newest(), self._mesh_config()
        if identity is None:
            raise NoIdentityYet
        cached = self._cached
        if cached is None or cached.identity is not identity or cached.config != config:
            cached = self._cached = _make_contexts(identity, config)
        return cached


def _make_contexts(identity: Identity, config: MeshConfig | None) -> _Contexts:
    domains = None if config is None else TrustDomains.of(config)
    svid, bundles = identity.svid, _bundles_for(identity, domains)
    # Istio: servers look for `istio` among what clients offer, and never select it. Any other
    # choice would promise an HTTP version for an app whose bytes we do not read.
    server = server_context(svid, bundles)
    client = client_context(bundles, svid=svid, alpn=[MESH_ALPN])
    if config is not None and config.mesh_mtls.min_protocol_version is TlsProtocol.TLSV1_3:
        server.demand_1_3()
        client.demand_1_3()
    return _Contexts(
        identity=identity,
        config=config,
        domains=domains,
        bundles=bundles,
        server=server,
        client=client,
    )


def _bundles_for(identity: Identity, domains: TrustDomains | None) -> Bundles:
    """Let the mesh's roots speak for every trust domain that the mesh settings name."""
    if domains is None:
        return identity.bundles
    own = identity.bundles[identity.svid.id.trust_domain]
    bundles = dict(identity.bundles)
    for name in domains.names:
        # A name that is none of SPIFFE's can be in nobody's certificate.
        with suppress(InvalidSpiffeId):
            domain = TrustDomain(name)
            bundles.setdefault(domain, TrustBundle.of(domain, own.authorities, own.revoked))
    return bundles


def only_the_mesh(domains: TrustDomains, federated: Collection[TrustDomain] = ()) -> PeerCheck:
    """Return a check that lets in members of the mesh's trust domains and of `federated` ones."""

    def check(identity: SpiffeId) -> None:
        if not domains.accepts(str(identity)) and identity.trust_domain not in federated:
            raise outside_the_mesh(identity, domains)

    return check


def only_trust_domains(admitted: Collection[TrustDomain]) -> PeerCheck:
    """Return a check that lets in members of `admitted` and nobody else."""

    def check(identity: SpiffeId) -> None:
        if identity.trust_domain not in admitted:
            raise WrongTrustDomain(
                f"{identity} is of trust domain {identity.trust_domain}, and this proxy admits "
                f"only {_listed(admitted)}: move the client, or add --trust-domain-alias"
            )

    return check


def only_identities(expected: Collection[str]) -> PeerCheck:
    """Return a check that accepts a server that proves one of `expected`, exactly."""

    def check(identity: SpiffeId) -> None:
        if str(identity) not in expected:
            raise WrongIdentity(
                f"secure naming: expected {_listed(expected)}, but the server proved {identity}: "
                "somebody else answers at this address, or the expectation is out of date"
            )

    return check


def _listed(values: Collection[str] | Collection[TrustDomain]) -> str:
    return " or ".join(sorted(str(value) for value in values))


def describe_roots(bundles: Bundles) -> str:
    """Name the roots we trust, for whoever must find out whose roots are wrong."""
    names = [
        f"{authority.subject.rfc4514_string() or '(no name)'} for {domain}"
        for domain, bundle in sorted(bundles.items())
        for authority in bundle.authorities
    ]
    return ", ".join(names) or "no roots"


async def shake_hands(
    stream: trio.SocketStream, session: TlsSession, peer: str, roots: Callable[[], str]
) -> SecureLeg:
    """Complete a handshake with `peer`, judged by what `roots` describes.

    Raises ConnectionFailed leaves, and then, as when it is cancelled, has reset the stream.
    """
    leg: SecureLeg = (TlsStream if session.descriptor is None else TlsSocket)(stream, session)
    complete = False
    try:
        error = await _handshake_error(leg)
        if error is not None:
            await wait_delivered(stream)  # the alert, which a reset would overtake
            raise _failure(error, roots, peer) from error
        complete = True
    finally:
        if not complete:
            reset(stream)
    return leg


def _descriptor_of(stream: trio.SocketStream) -> int | None:
    """Return what OpenSSL is to read and write, or None if the bytes are to pass through trio."""
    return None if uses_plain() else stream.socket.fileno()


_HandshakeError = TlsError | PeerRejected | trio.BrokenResourceError


async def _handshake_error(leg: SecureLeg) -> _HandshakeError | None:
    try:
        await leg.do_handshake()
    except (TlsError, PeerRejected, trio.BrokenResourceError) as error:
        return error
    return None


def _failure(error: _HandshakeError, roots: Callable[[], str], peer: str) -> ConnectionFailed:
    if isinstance(error, trio.BrokenResourceError):
        return PeerClosed(peer)
    return handshake_failure(error, peer, roots=roots())
