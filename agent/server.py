"""The agent as a program: builds its parts from one config and runs them."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import SystemRandom

import trio
import trio.abc

from agent.attest import allowed_uids, check_caller
from agent.attested import attesting_gate
from agent.bundles import BundleFollower
from agent.ca_client import CaClient, Credential
from agent.config import AgentConfig
from agent.entitlement import NodeDoor, OpenSession, SingleIdentity
from agent.jwt_source import JwtSource
from agent.node import Node
from agent.rotation import Rotation
from agent.sds import SecretService
from agent.store import SecretStore
from agent.workload_api import WorkloadApi
from mesh.clock import Now, system_now
from mesh.files import PRIVATE_DIRECTORY
from mesh.grpc import Accept, Peer, Service, serve_grpc
from mesh.log import get_logger
from mesh.spiffe import SpiffeId
from mesh.unix_socket import peer_credentials, unix_listener

log = get_logger("agent.server")

PRIVATE_SOCKET = 0o600

SHARED_SOCKET = 0o666
"""With --allow-uid and --registration: connecting needs write permission, and who calls decides."""

SHARED_DIRECTORY = 0o755
"""Of a node's socket: every process may come to it, and nobody else may put one there."""

CONCURRENT_REQUESTS = 8
"""Certificates that are asked for at once: a node that starts has dozens to get."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a started agent offers."""

    socket: Path


async def serve(
    config: AgentConfig,
    *,
    now: Now = system_now,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the agent until cancelled; it is started once its socket takes connections.

    Raises ConfigError if the socket cannot be had. A CA that is down delays secrets, no more.
    """
    parts = _Parts(config, now)
    async with unix_listener(config.socket, parts.mode, parts.directory_mode) as listener:
        _warn_of_closed_door(config)
        async with trio.open_nursery() as nursery:
            gate = parts.gate(nursery)
            await nursery.start(partial(serve_grpc, parts.service(), [listener], accept=gate))
            nursery.start_soon(parts.run)
            log.info("agent ready", socket=str(config.socket), ca=str(config.ca_address))
            task_status.started(Running(socket=config.socket))


class _Parts:
    """What an agent is made of: one identity for all callers, or a node's entries."""

    def __init__(self, config: AgentConfig, now: Now) -> None:
        """Build everything. Raises ConfigError."""
        self._config = config
        self._now = now
        self._random = SystemRandom()
        self._store = SecretStore()
        self._requests = trio.CapacityLimiter(CONCURRENT_REQUESTS)
        if config.registration is None:
            own = self._rotation(None, Credential(token_file=config.token_file))
            self._open_session: OpenSession = SingleIdentity(lambda: own.identity)
            self._credential_of = own.credential_of
            self._keep_certificates = own.run
        else:
            node = Node(config, config.registration, self._store, self._rotation)
            self._open_session = NodeDoor(lambda: node.registrations)
            self._credential_of = node.credential_of
            self._keep_certificates = node.run
        client = self._client(Credential(token_file=config.token_file))
        self._follower = BundleFollower(client, self._store, config.trust_domain, self._random)

    async def run(self) -> None:
        """Keep certificates and bundles fresh, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_certificates)
            nursery.start_soon(self._follower.run)

    @property
    def mode(self) -> int:
        """The socket's mode: whether others may connect, and be judged by who they are."""
        return SHARED_SOCKET if self._shared else PRIVATE_SOCKET

    @property
    def directory_mode(self) -> int:
        """The mode of the socket's directory, if it has to be made."""
        return SHARED_DIRECTORY if self._config.registration else PRIVATE_DIRECTORY

    @property
    def _shared(self) -> bool:
        return bool(self._config.allow_uids or self._config.registration)

    def gate(self, nursery: trio.Nursery) -> Accept:
        """Return what decides who may connect at all."""
        if self._config.registration is None:
            return _gate(allowed_uids(os.geteuid(), self._config.allow_uids))
        return attesting_gate(nursery)

    def service(self) -> Service:
        """Return everything that is served on the socket."""
        service = Service()
        SecretService(
            store=self._store,
            open_session=self._open_session,
            trust_domain=self._config.trust_domain,
            now=self._now,
        ).register(service)
        WorkloadApi(
            store=self._store,
            open_session=self._open_session,
            trust_domain=self._config.trust_domain,
            jwt_issuer=JwtSource(self._client_of, self._follower, self._store, self._now),
            now=self._now,
        ).register(service)
        return service

    def _client_of(self, identity: SpiffeId) -> CaClient | None:
        credential = self._credential_of(identity)
        return None if credential is None else self._client(credential)

    def _client(self, credential: Credential) -> CaClient:
        return CaClient(
            self._config,
            now=self._now,
            random=self._random,
            credential=credential,
            requests=self._requests,
        )

    def _rotation(self, identity: SpiffeId | None, credential: Credential) -> Rotation:
        return Rotation(
            self._config,
            self._client(credential),
            self._store,
            now=self._now,
            random=self._random,
            identity=identity,
        )


def _gate(allowed: Collection[int]) -> Accept:
    async def accept(stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer]:
        await trio.lowlevel.checkpoint()
        caller = peer_credentials(stream)
        check_caller(caller, allowed)
        return stream, Peer(address=f"pid {caller.pid}", credentials=caller)

    return accept


def _warn_of_closed_door(config: AgentConfig) -> None:
    """Say that users allowed by flag cannot get through the socket's private directory."""
    directory = config.socket.parent
    if config.allow_uids and not directory.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH):
        log.warning(
            "users given by --allow-uid cannot reach the socket: its directory is closed to them",
            directory=str(directory),
            remedy="chmod go+x",
        )
