"""The agent as a program: builds its parts from one config and runs them."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
import trio.abc

from agent.assembly import Assembly, ca_agent, mounted_agent
from agent.attest import allowed_uids, check_caller
from agent.attested import attesting_gate
from agent.config import AgentConfig, MountedConfig
from agent.metrics import CONTENT_TYPE
from agent.readiness import missing
from agent.sds import SecretService
from agent.workload_api import WorkloadApi
from mesh.address import Address
from mesh.clock import Now, system_now
from mesh.errors import ConfigError
from mesh.files import PRIVATE_DIRECTORY
from mesh.grpc import Accept, Peer, Service, serve_grpc
from mesh.http_endpoint import Page, serve_pages
from mesh.log import get_logger
from mesh.spiffe import TrustDomain
from mesh.unix_socket import peer_credentials, unix_listener

log = get_logger("agent.server")

PRIVATE_SOCKET = 0o600

SHARED_SOCKET = 0o666
"""With --allow-uid and --registration: connecting needs write permission, and who calls decides."""

SHARED_DIRECTORY = 0o755
"""Of a node's socket: every process may come to it, and nobody else may put one there."""

READY_PATH = "/healthz/ready"
"""Istio: where readiness is asked for."""


Config = AgentConfig | MountedConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a started agent offers."""

    socket: Path
    status: Address | None = None


async def serve(
    config: Config,
    *,
    now: Now = system_now,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the agent until cancelled; it is started once its socket takes connections.

    Raises ConfigError if the socket cannot be had. A CA that is down delays secrets, no more.
    """
    agent = ca_agent(config, now) if isinstance(config, AgentConfig) else mounted_agent(config, now)
    node = isinstance(config, AgentConfig) and config.registration is not None
    shared = node or bool(config.allow_uids)
    async with unix_listener(
        config.socket,
        SHARED_SOCKET if shared else PRIVATE_SOCKET,
        SHARED_DIRECTORY if node else PRIVATE_DIRECTORY,
    ) as listener:
        _warn_of_closed_door(config.socket, shared=shared)
        async with trio.open_nursery() as nursery:
            own = allowed_uids(os.geteuid(), config.allow_uids)
            gate = attesting_gate(nursery) if node else _gate(own)
            service = _service(agent, config.trust_domain, now)
            await nursery.start(partial(serve_grpc, service, [listener], accept=gate))
            status = await _serve_status(agent, config, nursery, now)
            for keeper in agent.keepers:
                nursery.start_soon(keeper)
            log.info("agent ready", socket=str(config.socket), **_source(config))
            task_status.started(Running(socket=config.socket, status=status))


def _service(agent: Assembly, trust_domain: TrustDomain, now: Now) -> Service:
    """Return everything that is served on the socket."""
    service = Service()
    SecretService(
        store=agent.store, open_session=agent.open_session, trust_domain=trust_domain, now=now
    ).register(service)
    WorkloadApi(
        store=agent.store,
        open_session=agent.open_session,
        trust_domain=trust_domain,
        jwt_issuer=agent.jwt_issuer,
        now=now,
    ).register(service)
    agent.discovery.register(service)
    return service


async def _serve_status(
    agent: Assembly, config: Config, nursery: trio.Nursery, now: Now
) -> Address | None:
    """Serve readiness and metrics over HTTP, if an address for it is given."""
    address = config.status_listen
    if address is None:
        return None
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror}; choose another --status-listen"
        ) from error

    def ready() -> Page:
        faults = missing(agent.store.holdings, agent.wanted(), config.trust_domain, now())
        text = "".join(f"{fault}\n" for fault in faults) or "ready\n"
        return Page(status=503 if faults else 200, body=text.encode())

    def metrics() -> Page:
        text = agent.metrics.exposition(agent.store.holdings, agent.default(), now())
        return Page(body=text.encode(), content_type=CONTENT_TYPE)

    await nursery.start(serve_pages, {READY_PATH: ready, "/metrics": metrics}, listeners)
    host, port, *_ = listeners[0].socket.getsockname()
    return Address(host, port)


def _source(config: Config) -> dict[str, str]:
    if isinstance(config, AgentConfig):
        return {"ca": str(config.ca_address)}
    return {"certificates": str(config.directory)}


def _gate(allowed: Collection[int]) -> Accept:
    async def accept(stream: trio.SocketStream) -> tuple[trio.abc.Stream, Peer]:
        await trio.lowlevel.checkpoint()
        caller = peer_credentials(stream)
        check_caller(caller, allowed)
        return stream, Peer(address=f"pid {caller.pid}", credentials=caller)

    return accept


def _warn_of_closed_door(socket: Path, *, shared: bool) -> None:
    """Say that other users cannot get through the socket's private directory."""
    directory = socket.parent
    if shared and not directory.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH):
        log.warning(
            "other users cannot reach the socket: its directory is closed to them",
            directory=str(directory),
            remedy="chmod go+x",
        )
