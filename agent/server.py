"""The agent as a program: builds its parts from one config and runs them."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

import trio
import trio.abc

from agent.attest import allowed_uids, check_caller
from agent.ca_client import CaClient
from agent.config import AgentConfig
from agent.rotation import Rotation
from agent.sds import sds_service
from agent.store import SecretStore
from mesh.clock import Now, system_now
from mesh.grpc import Accept, Peer, serve_grpc
from mesh.log import get_logger
from mesh.unix_socket import peer_credentials, unix_listener

log = get_logger("agent.server")

PRIVATE_SOCKET = 0o600

SHARED_SOCKET = 0o666
"""With --allow-uid: connecting needs write permission, and the caller's credentials decide."""


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
    random = SystemRandom()
    store = SecretStore()
    client = CaClient(config, now=now, random=random)
    rotation = Rotation(config, client, store, now=now, random=random)
    gate = _gate(allowed_uids(os.geteuid(), config.allow_uids))
    mode = SHARED_SOCKET if config.allow_uids else PRIVATE_SOCKET
    async with unix_listener(config.socket, mode) as listener:
        _warn_of_closed_door(config)
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve_secrets, store, now, listener, gate)
            nursery.start_soon(rotation.run)
            log.info("agent ready", socket=str(config.socket), ca=str(config.ca_address))
            task_status.started(Running(socket=config.socket))


async def _serve_secrets(
    store: SecretStore,
    now: Now,
    listener: trio.SocketListener,
    gate: Accept,
    task_status: trio.TaskStatus[object],
) -> None:
    await serve_grpc(sds_service(store, now), [listener], accept=gate, task_status=task_status)


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
