"""The authority in force, kept up with the files it is made from while the CA runs.

Files are looked at once a second, which also works where several CAs share a directory over a
network. What was changed is judged as at the start; if it does not pass, the authority in force
stays, and the log says why.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Protocol

import trio
from cryptography.hazmat.primitives.asymmetric import ec

from ca.authority import Authority
from ca.config import CaConfig
from ca.errors import RootsChangedAtOnce
from ca.material import load_or_create, load_or_create_token_key
from ca.replicas import HEARTBEAT, Replica
from ca.root_bundle import safe_change
from ca.sources import OwnRootSource, PluggedInSource, Signature
from mesh.clock import Now, sleep_until
from mesh.errors import ConfigError
from mesh.log import get_logger
from mesh.spiffe import SpiffeId

POLL_INTERVAL = 1.0
"""Seconds between two looks at the files; a look is a dozen calls of stat. Also how long files
must stand still before they are read: an operator copies them one after the other."""

UPKEEP_INTERVAL = timedelta(hours=1)
"""Istio: CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL."""

_log = get_logger("ca")


class Source(Protocol):
    """Where an authority comes from."""

    def signature(self) -> Signature:
        """Return what changes with the files. Does not raise."""
        ...

    def load(self, now: datetime) -> Authority:
        """Read and judge the files. Blocks. Raises ConfigError."""
        ...

    def upkeep(self, now: datetime) -> None:
        """Do what time demands. Blocks. Raises ConfigError, OSError."""
        ...


class AuthorityKeeper:
    """Holds the authority in force, which `source` gave. `replica` tells other CAs of this one."""

    def __init__(self, source: Source, authority: Authority, now: Now, replica: Replica) -> None:
        self._source = source
        self._authority = authority
        self._seen = source.signature()
        self._now = now
        self._replica = replica
        self._on_change: list[Callable[[], None]] = []

    def authority(self) -> Authority:
        """Return the authority in force."""
        return self._authority

    def is_revoked(self, identity: SpiffeId) -> bool:
        """Tell whether an identity may have nothing at this moment."""
        return self._authority.revocations.is_revoked(identity)

    def revoked_serials(self) -> Collection[int]:
        """Return the serial numbers that are no good at this moment."""
        return self._authority.revocations.serials

    def on_change(self, call: Callable[[], None]) -> None:
        """Let `call` be called after every change."""
        self._on_change.append(call)

    async def run(self) -> None:
        """Follow the files, and do what time demands, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                nursery.start_soon(self._keep_up)
                nursery.start_soon(self._leave_notes)
        finally:
            self._replica.remove()

    async def _keep_up(self) -> None:
        # At a random time first, so that CAs that started together do not look together.
        delay = UPKEEP_INTERVAL * (secrets.randbelow(1000) / 1000)
        while True:
            await sleep_until(self._now() + delay, self._now)
            delay = UPKEEP_INTERVAL
            try:
                await trio.to_thread.run_sync(self._source.upkeep, self._now())
            except (ConfigError, OSError) as error:
                _log.error("upkeep of the CA's files failed", why=str(error))
            # Also for revocation lists, which are made anew before they are overdue.
            await self._reload()

    async def _leave_notes(self) -> None:
        while True:
            await self._note()
            await trio.sleep(HEARTBEAT.total_seconds())

    async def _note(self) -> None:
        try:
            await trio.to_thread.run_sync(
                self._replica.note, self._authority.generation, self._now()
            )
        except ConfigError as error:
            _log.error("no note left for other CAs", reason=error.reason, why=str(error))

    async def _watch(self) -> None:
        while True:
            await trio.sleep(POLL_INTERVAL)
            signature = self._source.signature()
            if signature == self._seen:
                continue
            await trio.sleep(POLL_INTERVAL)
            if self._source.signature() == signature:
                self._seen = signature
                await self._reload()

    async def _reload(self) -> None:
        try:
            authority = await trio.to_thread.run_sync(self._source.load, self._now())
            self._check_change(authority)
        except (ConfigError, OSError) as error:
            _log.error(
                "changed CA files not used: the CA in force stays",
                reason=error.reason if isinstance(error, ConfigError) else "io_error",
                why=str(error),
            )
            return
        self._authority = authority
        _log.info(
            "changed CA files in force",
            signer_serial=f"{authority.signer.certificate.serial_number:x}",
            signer_not_after=authority.signer.certificate.not_valid_after_utc.isoformat(),
            roots=len(authority.roots.authorities),
        )
        for call in self._on_change:
            call()
        await self._note()

    def _check_change(self, new: Authority) -> None:
        if not safe_change(self._authority.roots.authorities, new.roots.authorities):
            raise RootsChangedAtOnce(
                "the new roots neither contain those in force nor are contained in them, so "
                "workloads would stop trusting each other: first add the new root to the old "
                "ones, and remove the old one when all have the new"
            )


async def open_authority(
    config: CaConfig, now: Now
) -> tuple[AuthorityKeeper, ec.EllipticCurvePrivateKey]:
    """Load the CA that the configuration asks for, and the key of its token issuer.

    Raises ConfigError.
    """
    # Not abandoned on cancellation: a process that ends halfway would leave half a CA.
    source, token_key = await trio.to_thread.run_sync(_open_source, config, now())
    authority = await trio.to_thread.run_sync(source.load, now())
    return AuthorityKeeper(source, authority, now, Replica(config.state_dir)), token_key


def _open_source(config: CaConfig, now: datetime) -> tuple[Source, ec.EllipticCurvePrivateKey]:
    if config.ca_certs is not None:
        token_key = load_or_create_token_key(config.state_dir)
        plugged_in = PluggedInSource(
            directory=config.ca_certs,
            state_dir=config.state_dir,
            trust_domain=config.trust_domain,
            limits=config.ttl_limits,
        )
        return plugged_in, token_key
    material = load_or_create(config.state_dir, config.trust_domain, now)
    if material.created:
        _log.info(
            "root created", state_dir=str(config.state_dir), trust_domain=str(config.trust_domain)
        )
    own = OwnRootSource(
        state_dir=config.state_dir, trust_domain=config.trust_domain, limits=config.ttl_limits
    )
    return own, material.token_key
