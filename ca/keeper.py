"""The authority in force, kept up with the files it is made from while the CA runs.

Files are looked at once a second, which also works where several CAs share a directory over a
network. What was changed is judged as at the start; if it does not pass, the authority in force
stays, and the log says why.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import trio
from cryptography.hazmat.primitives.asymmetric import ec

from ca.authority import Authority, TtlLimits
from ca.cacerts import CRL as PLUGGED_IN_CRL
from ca.cacerts import ISTIO_LAYOUT, TLS_LAYOUT, load_plugged_in
from ca.config import CaConfig
from ca.errors import RootsChangedAtOnce
from ca.material import (
    OwnRoot,
    load_or_create,
    load_or_create_token_key,
    load_own_root,
    renewed_root,
    store_own_root,
)
from ca.root_bundle import renewal_time, safe_change
from ca.state import CURRENT, LINKED, locked
from mesh.clock import Now, sleep_until
from mesh.errors import ConfigError
from mesh.log import get_logger
from mesh.spiffe import TrustDomain

POLL_INTERVAL = 1.0
"""Seconds between two looks at the files; a look is a dozen calls of stat. Also how long files
must stand still before they are read: an operator copies them one after the other."""

RENEWAL_INTERVAL = timedelta(hours=1)
"""Istio: CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL."""

_log = get_logger("ca")

Signature = tuple[tuple[str, int, int, int] | str, ...]
"""What files look like from outside: changes whenever one of them does."""


Renew = Callable[[datetime], bool]
"""Renews a root if that is due, and tells whether it was. Blocks. Raises ConfigError."""


class Source(Protocol):
    """Where an authority comes from."""

    def signature(self) -> Signature:
        """Return what changes with the files. Does not raise."""
        ...

    def load(self, now: datetime) -> Authority:
        """Read and judge the files. Blocks. Raises ConfigError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRootSource:
    """The self-signed CA of a state directory. It changes by `remora ca root` and by renewal."""

    state_dir: Path
    trust_domain: TrustDomain
    limits: TtlLimits

    def signature(self) -> Signature:
        """Return what changes with the files."""
        return _signature(self.state_dir, (CURRENT, *LINKED))

    def load(self, now: datetime) -> Authority:
        """Read the files."""
        return self.authority(load_own_root(self.state_dir, self.trust_domain, now))

    def authority(self, own: OwnRoot) -> Authority:
        """Make an authority of what was read."""
        return Authority(signer=own.signer, roots=own.roots, limits=self.limits, former=own.former)

    def renew_if_due(self, now: datetime) -> bool:
        """Give the root a new life if little of the old one is left. True if that was done.

        Of several CAs one does it, and the others find it done. Blocks. Raises ConfigError.
        """
        if now < renewal_time(self._own(now).signer.certificate):
            return False
        with locked(self.state_dir):
            own = self._own(now)
            if now < renewal_time(own.signer.certificate):
                return False
            store_own_root(self.state_dir, renewed_root(own, now))
            return True

    def _own(self, now: datetime) -> OwnRoot:
        return load_own_root(self.state_dir, self.trust_domain, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluggedInSource:
    """A CA in Istio's `cacerts` layout. It changes when an operator replaces the files."""

    directory: Path
    trust_domain: TrustDomain
    limits: TtlLimits

    def signature(self) -> Signature:
        """Return what changes with the files."""
        return _signature(self.directory, (*ISTIO_LAYOUT, *TLS_LAYOUT, PLUGGED_IN_CRL))

    def load(self, now: datetime) -> Authority:
        """Read the files."""
        found = load_plugged_in(self.directory, self.trust_domain, now)
        return Authority(
            signer=found.signer,
            intermediates=found.intermediates,
            roots=found.roots,
            limits=self.limits,
        )


class AuthorityKeeper:
    """Holds the authority in force."""

    def __init__(
        self, source: Source, authority: Authority, now: Now, *, renew: Renew | None = None
    ) -> None:
        self._source = source
        self._authority = authority
        self._seen = source.signature()
        self._now = now
        self._renew = renew
        self._on_change: list[Callable[[], None]] = []

    def authority(self) -> Authority:
        """Return the authority in force."""
        return self._authority

    def on_change(self, call: Callable[[], None]) -> None:
        """Let `call` be called after every change."""
        self._on_change.append(call)

    async def run(self) -> None:
        """Follow the files, and renew a root of our own when it is due, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            if self._renew is not None:
                nursery.start_soon(self._keep_renewed, self._renew)

    async def _keep_renewed(self, renew: Renew) -> None:
        # At a random time first, so that CAs that started together do not look together.
        delay = RENEWAL_INTERVAL * (secrets.randbelow(1000) / 1000)
        while True:
            await sleep_until(self._now() + delay, self._now)
            delay = RENEWAL_INTERVAL
            try:
                if await trio.to_thread.run_sync(renew, self._now()):
                    _log.info("root renewed")
            except ConfigError as error:
                _log.error("root not renewed", reason=error.reason, why=str(error))

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
        except ConfigError as error:
            _log.error(
                "changed CA files not used: the CA in force stays",
                reason=error.reason,
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
    if config.ca_certs is not None:
        plugged_in = PluggedInSource(
            directory=config.ca_certs, trust_domain=config.trust_domain, limits=config.ttl_limits
        )
        token_key = await trio.to_thread.run_sync(load_or_create_token_key, config.state_dir)
        authority = await trio.to_thread.run_sync(plugged_in.load, now())
        return AuthorityKeeper(plugged_in, authority, now), token_key
    # Not abandoned on cancellation: a process that ends halfway would leave half a CA.
    material = await trio.to_thread.run_sync(
        load_or_create, config.state_dir, config.trust_domain, now()
    )
    if material.created:
        _log.info(
            "root created", state_dir=str(config.state_dir), trust_domain=str(config.trust_domain)
        )
    source = OwnRootSource(
        state_dir=config.state_dir, trust_domain=config.trust_domain, limits=config.ttl_limits
    )
    keeper = AuthorityKeeper(source, source.authority(material.own), now, renew=source.renew_if_due)
    return keeper, material.token_key


def _signature(directory: Path, names: tuple[str, ...]) -> Signature:
    return tuple(_file_signature(directory / name) for name in names)


def _file_signature(path: Path) -> tuple[str, int, int, int] | str:
    try:
        status = path.stat()
    except OSError:
        return path.name
    return path.name, status.st_ino, status.st_mtime_ns, status.st_size
