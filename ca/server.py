"""`remora ca serve`: everything built from one configuration, and started."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
import trio.abc

from ca.authenticate import Authenticator, TokenAuthenticator
from ca.authority import Authority
from ca.config import CaConfig
from ca.jwks import TokenKey, parse_jwks
from ca.material import ROOT_CERT, Material, load_or_create
from ca.service import CertificateService
from ca.serving import ServingCertificate
from ca.tokens import TrustedIssuer, own_issuer
from mesh.address import Address
from mesh.clock import Now, system_now
from mesh.errors import ConfigError
from mesh.files import read_file
from mesh.grpc import Accept, Limits, Peer, Service, serve_grpc
from mesh.log import get_logger
from mesh.tls_stream import TlsStream

_log = get_logger("ca")

LIMITS = Limits(request_timeout=10.0, unanswered_bytes=256 * 1024)
"""Whoever has not proven an identity can hold a call for ten seconds, and a few CSRs' worth of
memory: a CSR has at most 64 KiB (MAX_CSR_BYTES), and real ones one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A CA that accepts connections at `addresses`."""

    addresses: tuple[Address, ...]


async def serve(
    config: CaConfig,
    *,
    now: Now = system_now,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the CA until cancelled. Raises ConfigError if it cannot start."""
    keys = await _read_jwks(config)
    material = await _load_material(config, now)
    authority = Authority(signer=material.signer, roots=material.roots, limits=config.ttl_limits)
    authenticators = _authenticators(config, material, keys)
    service = Service()
    CertificateService(authority=authority, authenticators=authenticators, now=now).register(
        service
    )
    serving = ServingCertificate(authority, config.identity, config.server_names, now)
    listeners = await _listen(config.listen)
    running = Running(addresses=tuple(_address(at.socket.getsockname()) for at in listeners))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serving.keep_renewing)
        await nursery.start(
            partial(serve_grpc, service, listeners, accept=_tls_accept(serving), limits=LIMITS)
        )
        _log.info(
            "ca ready",
            addresses=[str(address) for address in running.addresses],
            trust_domain=str(config.trust_domain),
            root_cert=str(config.state_dir / ROOT_CERT),
            root_not_after=material.signer.certificate.not_valid_after_utc.isoformat(),
        )
        task_status.started(running)


async def _load_material(config: CaConfig, now: Now) -> Material:
    # Not abandoned on cancellation: a process that ends halfway would leave half a CA.
    material = await trio.to_thread.run_sync(
        load_or_create, config.state_dir, config.trust_domain, now()
    )
    if material.created:
        _log.info(
            "root created", state_dir=str(config.state_dir), trust_domain=str(config.trust_domain)
        )
    return material


async def _read_jwks(config: CaConfig) -> tuple[TokenKey, ...]:
    if config.jwks is None:
        return ()
    data = await trio.to_thread.run_sync(read_file, config.jwks, "key set")
    return parse_jwks(data, str(config.jwks))


def _authenticators(
    config: CaConfig, material: Material, keys: tuple[TokenKey, ...]
) -> tuple[Authenticator, ...]:
    """Return the ways to prove an identity, in the order they are tried."""
    audiences = frozenset(config.token_audiences)
    issuers = {"own-token": own_issuer(material.token_key.public_key(), audiences)}
    if keys:
        issuers["jwks"] = TrustedIssuer(keys=keys, issuer=config.jwks_issuer, audiences=audiences)
    return tuple(
        TokenAuthenticator(name=name, issuer=issuer, trust_domain=config.trust_domain)
        for name, issuer in issuers.items()
    )


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
        stream = TlsStream(socket, serving.session())
        await stream.do_handshake()
        return stream, Peer(address=address, tls=stream.session)

    return accept


def _address(name: tuple[Any, ...]) -> Address:
    """Turn what the socket module calls an address into ours; IPv6 ones have more parts."""
    return Address(host=name[0], port=name[1])
