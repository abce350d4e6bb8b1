"""What an agent is made of, in each of its three forms."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import SystemRandom

import trio
from cryptography import x509

from agent.bundles import BundleFollower
from agent.ca_client import CaClient, Credential
from agent.config import AgentConfig, MountedConfig
from agent.discovery import Discovery, DiscoveryForwarder, NoDiscovery
from agent.entitlement import NodeDoor, OpenSession, SingleIdentity
from agent.errors import JwtUnavailable, MountedUnusable
from agent.jwt_source import JwtSource
from agent.metrics import AgentMetrics
from agent.mounted import MountedCertificates, load_mounted
from agent.node import Node
from agent.output import CertificateOutput
from agent.readiness import Wanted
from agent.rotation import Rotation
from agent.store import SecretStore
from agent.workload_api import JwtIssuer
from mesh.clock import Now
from mesh.grpc import Status
from mesh.jwt_svid import JwtSvid
from mesh.spiffe import SpiffeId
from mesh.svid import X509Svid

CONCURRENT_REQUESTS = 8
"""Certificates that are asked for at once: a node that starts has dozens to get."""

Keeper = Callable[[], Awaitable[None]]
"""Keeps something up to date until cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """The parts that the socket and the status pages are served from."""

    store: SecretStore
    open_session: OpenSession
    jwt_issuer: JwtIssuer
    discovery: Discovery
    keepers: tuple[Keeper, ...]
    metrics: AgentMetrics
    wanted: Callable[[], Sequence[Wanted]]
    default: Callable[[], SpiffeId | None]


class NoJwtIssuer:
    """An agent that asks no CA has no JWT-SVIDs."""

    async def fetch(self, identity: SpiffeId, audiences: tuple[str, ...]) -> JwtSvid:
        """Raise JwtUnavailable."""
        await trio.lowlevel.checkpoint()
        raise JwtUnavailable(
            Status.UNIMPLEMENTED,
            f"no CA is asked here, so there are no JWT-SVIDs of {identity} for {audiences}",
        )


def mounted_agent(config: MountedConfig, now: Now) -> Assembly:
    """Build an agent whose certificates come from files."""
    store, metrics = SecretStore(), AgentMetrics()
    mounted = MountedCertificates(config.directory, config.trust_domain, store, now, metrics)
    return Assembly(
        store=store,
        open_session=SingleIdentity(lambda: mounted.identity),
        jwt_issuer=NoJwtIssuer(),
        discovery=NoDiscovery(),
        keepers=(mounted.run,),
        metrics=metrics,
        wanted=lambda: [Wanted(identity=mounted.identity, failure=mounted.failure)],
        default=lambda: mounted.identity,
    )


def ca_agent(config: AgentConfig, now: Now) -> Assembly:
    """Build an agent of one identity, or of a whole node. Raises ConfigError."""
    return _CaParts(config, now).assemble()


class _CaParts:
    """The parts of an agent that asks a CA."""

    def __init__(self, config: AgentConfig, now: Now) -> None:
        self._config = config
        self._now = now
        self._random = SystemRandom()
        self._store = SecretStore()
        self._metrics = AgentMetrics()
        self._requests = trio.CapacityLimiter(CONCURRENT_REQUESTS)
        self._node_credential = Credential(token_file=config.token_file)

    def assemble(self) -> Assembly:
        if self._config.registration is None:
            return self._single()
        node = Node(self._config, self._config.registration, self._store, self._rotation)
        return self._assembly(
            NodeDoor(lambda: node.registrations),
            credential_of=node.credential_of,
            keepers=(node.run,),
            wanted=node.wanted,
            default=lambda: None,
        )

    def _single(self) -> Assembly:
        own = self._rotation(None, self._node_credential)
        keepers: tuple[Keeper, ...] = (own.run,)
        if self._config.output_certs is not None:
            output = CertificateOutput(
                self._config.output_certs,
                self._store,
                lambda: own.identity,
                self._config.trust_domain,
                self._now,
            )
            keepers += (output.run,)
        return self._assembly(
            SingleIdentity(lambda: own.identity),
            credential_of=own.credential_of,
            keepers=keepers,
            wanted=lambda: [own.wanted],
            default=lambda: own.identity,
        )

    def _assembly(
        self,
        open_session: OpenSession,
        *,
        credential_of: Callable[[SpiffeId], Credential | None],
        keepers: tuple[Keeper, ...],
        wanted: Callable[[], Sequence[Wanted]],
        default: Callable[[], SpiffeId | None],
    ) -> Assembly:
        client = self._client(self._node_credential)
        follower = BundleFollower(client, self._store, self._config.trust_domain, self._random)

        def client_of(identity: SpiffeId) -> CaClient | None:
            credential = credential_of(identity)
            return None if credential is None else self._client(credential, identity)

        def speaker_for(identity: SpiffeId) -> CaClient | None:
            credential = credential_of(identity)
            if credential is None:
                return None
            client = self._client(credential, identity)
            client.svid = lambda: self._held(identity)
            return client

        return Assembly(
            store=self._store,
            open_session=open_session,
            discovery=DiscoveryForwarder(open_session, speaker_for),
            jwt_issuer=JwtSource(client_of, follower, self._store, self._now),
            keepers=(*keepers, follower.run),
            metrics=self._metrics,
            wanted=wanted,
            default=default,
        )

    def _client(self, credential: Credential, identity: SpiffeId | None = None) -> CaClient:
        client = CaClient(
            self._config,
            now=self._now,
            random=self._random,
            credential=credential,
            requests=self._requests,
            metrics=self._metrics,
        )
        client.svid = lambda: self._svid(credential, identity)
        client.roots = self._roots
        return client

    def _rotation(self, identity: SpiffeId | None, credential: Credential) -> Rotation:
        client = self._client(credential, identity)
        rotation = Rotation(
            self._config,
            client,
            self._store,
            now=self._now,
            random=self._random,
            identity=identity,
        )
        client.svid = lambda: self._svid(credential, rotation.identity)
        return rotation

    def _roots(self) -> Sequence[x509.Certificate]:
        held = self._store.holdings.roots.get(self._config.trust_domain)
        return () if held is None else held.bundle.authorities

    def _svid(self, credential: Credential, identity: SpiffeId | None) -> X509Svid | None:
        """Return the certificate to show the CA: the one held, else the one provisioned.

        None when the node acts for others, since the CA would take it for the workload itself.
        """
        if credential.acting_for is not None:
            return None
        now = self._now()
        held = None if identity is None else self._held(identity)
        if held is not None:
            return held
        if self._config.prov_cert is None:
            return None
        try:
            issued = load_mounted(self._config.prov_cert, self._config.trust_domain, now)
        except MountedUnusable:
            return None
        return issued.svid if identity in {None, issued.svid.id} else None

    def _held(self, identity: SpiffeId) -> X509Svid | None:
        """Return the certificate of an identity, if there is one that is valid."""
        held = self._store.holdings.svid(identity, self._now())
        return None if held is None else held.issued.svid
