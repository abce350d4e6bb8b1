"""`remora ca serve`: everything built from one configuration, and started."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
import trio.abc

from ca.audit import AuditLog
from ca.bundle_endpoint import bundle_pages, tls_accept
from ca.bundle_publisher import BundlePublisher
from ca.bundle_service import BundleService
from ca.config import CaConfig
from ca.control_plane import ControlPlane
from ca.decisions import Decisions
from ca.discovery.fleet import MAX_PROXIES
from ca.federator import Federator
from ca.issued_log import IssuedLog
from ca.issuers import authenticator_chain, remote_issuers
from ca.jwt_keys import load_jwt_keys
from ca.keeper import AuthorityKeeper, open_authority
from ca.metrics import CONTENT_TYPE
from ca.rate_limit import RateLimiter
from ca.service import CertificateService
from ca.serving import ServingCertificate
from mesh.address import Address
from mesh.clock import Now, system_now
from mesh.errors import ConfigError
from mesh.grpc import Accept, Limits, Peer, Service, serve_grpc
from mesh.http_endpoint import Page, serve_pages
from mesh.keepalive import keep_alive
from mesh.log import get_logger
from mesh.tls_stream import TlsStream

_log = get_logger("ca")

LIMITS = Limits(
    connections=MAX_PROXIES + 2000,
    unanswered_connections=2000,
    unanswered_bytes=128 * 1024,
    request_timeout=10.0,
)
"""Every proxy has a stream, and some agents ask for certificates meanwhile. Whoever has not proven
an identity can hold a call for ten seconds, and two CSRs' worth of memory: a CSR has at most
64 KiB (MAX_CSR_BYTES), and real ones one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A CA that accepts connections at `addresses`, and scrapes at `metrics` if it was told to."""

    addresses: tuple[Address, ...]
    metrics: Address | None = None
    bundle_endpoint: Address | None = None


async def serve(
    config: CaConfig,
    *,
    now: Now = system_now,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the CA until cancelled. Raises ConfigError if it cannot start."""
    issuers = await remote_issuers(config, now())
    keeper, token_key = await open_authority(config, now)
    decisions = Decisions(audit=AuditLog(config.state_dir), ledger=IssuedLog(config.state_dir))
    publisher = await _publish_bundle(config, keeper, now)
    service = Service()
    certificates = CertificateService(
        authority=keeper.authority,
        authenticators=authenticator_chain(config, token_key, issuers, keeper.revoked_serials),
        now=now,
        trusted_nodes=frozenset(config.trusted_nodes),
        limiter=RateLimiter(config.rate_limit, config.identity_rate_limit, now()),
        decisions=decisions,
    )
    certificates.register(service)
    federator = await trio.to_thread.run_sync(Federator, config.federation, config.state_dir, now)
    BundleService(
        publisher=publisher,
        identify=certificates.identify,
        is_revoked=keeper.is_revoked,
        audit=decisions.audit,
        trusted_nodes=frozenset(config.trusted_nodes),
        federated=federator.bundles,
        now=now,
    ).register(service)
    control = ControlPlane(config, certificates.identify_for_stream, now)
    control.register(service)
    serving = ServingCertificate(keeper.authority, config.identity, config.server_names, now)
    keeper.on_change(serving.renew)
    listeners = await _listen(config.listen)
    async with trio.open_nursery() as nursery:
        running = Running(
            addresses=tuple(_address(at.socket.getsockname()) for at in listeners),
            metrics=await _serve_metrics(config, nursery, decisions, keeper, now),
            bundle_endpoint=await _serve_bundle(config, nursery, publisher, serving),
        )
        nursery.start_soon(serving.keep_renewing)
        nursery.start_soon(keeper.run)
        nursery.start_soon(publisher.keep_keys)
        nursery.start_soon(federator.run)
        await nursery.start(control.run)
        await nursery.start(
            partial(serve_grpc, service, listeners, accept=_tls_accept(serving), limits=LIMITS)
        )
        _log.info(
            "ca ready",
            addresses=[str(address) for address in running.addresses],
            trust_domain=str(config.trust_domain),
            root_cert=str(config.root_cert),
            resources=str(config.resources_dir),
            signer_not_after=keeper.authority().signer.certificate.not_valid_after_utc.isoformat(),
        )
        task_status.started(running)


async def _publish_bundle(config: CaConfig, keeper: AuthorityKeeper, now: Now) -> BundlePublisher:
    keyring = await trio.to_thread.run_sync(load_jwt_keys, config.state_dir, now())
    return BundlePublisher(config.state_dir, lambda: keeper.authority().roots, keyring, now)


async def _serve_metrics(
    config: CaConfig,
    nursery: trio.Nursery,
    decisions: Decisions,
    keeper: AuthorityKeeper,
    now: Now,
) -> Address | None:
    if config.metrics_listen is None:
        return None

    def metrics() -> Page:
        authority = keeper.authority()
        chain = (authority.signer.certificate, *authority.intermediates)
        text = decisions.metrics.exposition(authority.roots.authorities, chain, now())
        return Page(body=text.encode("ascii"), content_type=CONTENT_TYPE)

    listeners = await _listen(config.metrics_listen)
    await nursery.start(serve_pages, {"/metrics": metrics}, listeners)
    return _address(listeners[0].socket.getsockname())


async def _serve_bundle(
    config: CaConfig,
    nursery: trio.Nursery,
    publisher: BundlePublisher,
    serving: ServingCertificate,
) -> Address | None:
    endpoint = config.federation.endpoint
    if endpoint is None:
        return None
    accept = tls_accept(endpoint, serving.session)
    listeners = await _listen(endpoint.listen)
    await nursery.start(serve_pages, bundle_pages(publisher), listeners, accept)
    address = _address(listeners[0].socket.getsockname())
    _log.info("bundle endpoint ready", address=str(address))
    return address


async def _listen(address: Address) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror}. Is another CA running there? "
            "Choose another address with --listen"
        ) from error


def _tls_accept(serving: ServingCertificate) -> Accept:
    """Take connections by TLS, with the certificate that is newest when they come."""

    async def accept(socket: trio.SocketStream) -> tuple[trio.abc.Stream, Peer]:
        address = str(_address(socket.socket.getpeername()))
        keep_alive(socket)
        stream = TlsStream(socket, serving.session())
        await stream.do_handshake()
        return stream, Peer(address=address, tls=stream.session)

    return accept


def _address(name: tuple[Any, ...]) -> Address:
    """Turn what the socket module calls an address into ours; IPv6 ones have more parts."""
    return Address(host=name[0], port=name[1])
