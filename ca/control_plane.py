"""The part of `remora ca serve` that holds policy and the registry, and distributes them."""

from __future__ import annotations

import os
from pathlib import Path

import trio
import trio.abc

from ca.config import CaConfig
from ca.discovery.fleet import Fleet
from ca.discovery.registrar import Registrar
from ca.discovery.service import DiscoveryService, Identify
from ca.discovery.status import StatusService
from ca.errors import StatusRefused
from ca.store.memory import MEMORY_FILE, Memory
from ca.store.store import ResourceStore
from mesh.clock import Now
from mesh.errors import ConfigError
from mesh.grpc import Peer, Service, serve_grpc
from mesh.log import get_logger
from mesh.resources.mesh_config import MeshConfig
from mesh.unix_socket import peer_credentials, unix_listener

ADMIN_SOCKET = "admin.sock"
"""In the state directory."""

RESOURCES_MODE = 0o755
"""Of the directory of resources: they are no secrets, and only the owner may change them."""

_log = get_logger("ca")


class ControlPlane:
    """Store, fleet and services, built from one configuration."""

    def __init__(self, config: CaConfig, identify: Identify, now: Now) -> None:
        self._config = config
        self._identify = identify
        self._now = now
        trust_domain = str(config.trust_domain)
        memory = Memory(config.state_dir / MEMORY_FILE)
        self.store = ResourceStore(config.resources_dir, memory, trust_domain, now)
        self.fleet = Fleet(MeshConfig(trust_domain=trust_domain), now)
        self._registrar = Registrar(self.store, self.fleet.world, now)
        self.store.on_change = lambda batch: self.fleet.publish(batch, self.store.config)

    def register(self, service: Service) -> None:
        """Add discovery to a gRPC service."""
        discovery = DiscoveryService(self.fleet, self._registrar, self._identify, self._now)
        discovery.register(service)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the resources until cancelled; started when they are loaded.

        Raises ConfigError if they cannot be read.
        """
        if self._config.resources is None:
            _make_directory(self._config.resources_dir)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.store.run)
            await nursery.start(self._registrar.run)
            nursery.start_soon(self._serve_status)
            task_status.started()

    async def _serve_status(self) -> None:
        """Tell the operator who has what. Without it everything else goes on."""
        service = Service()
        StatusService(self.fleet, self.store).register(service)
        path = self._config.state_dir / ADMIN_SOCKET
        try:
            async with unix_listener(path) as listener:
                await serve_grpc(service, [listener], accept=_accept_owner)
        except ConfigError as error:
            _log.warning("no status for `remora proxy-status`", reason=error.reason, why=str(error))


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=RESOURCES_MODE, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make directory {path}: {error.strerror}") from error


async def _accept_owner(stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer]:
    await trio.lowlevel.checkpoint()
    caller = peer_credentials(stream)
    if caller.uid not in {0, os.geteuid()}:
        raise StatusRefused(f"user {caller.uid} may not ask for the status of proxies")
    return stream, Peer(address=f"pid {caller.pid}", credentials=caller)
