"""Where a CA's authority comes from: a root of its own, or a CA that is plugged in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ca.authority import Authority, TtlLimits
from ca.cacerts import CRL as PLUGGED_IN_CRL
from ca.cacerts import ISTIO_LAYOUT, TLS_LAYOUT, load_plugged_in
from ca.issued_log import IssuedLog
from ca.join_tokens import JoinTokens
from ca.material import load_own_root, renewed_root, store_own_root
from ca.revocation_files import REVOCATIONS, catch_up, load_revocations, revocation_lists
from ca.root_bundle import renewal_time
from ca.state import CURRENT, LINKED, locked
from mesh.bundle import TrustBundle
from mesh.spiffe import TrustDomain

FileSignature = tuple[str, int, int, int] | str
Signature = tuple[FileSignature, ...]
"""What files look like from outside: changes whenever one of them does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRootSource:
    """The self-signed CA of a state directory. It changes by `remora ca root` and by renewal."""

    state_dir: Path
    trust_domain: TrustDomain
    limits: TtlLimits

    def signature(self) -> Signature:
        """Return what changes with the files."""
        return _signature(self.state_dir, (CURRENT, *LINKED, REVOCATIONS))

    def load(self, now: datetime) -> Authority:
        """Read the files."""
        own = load_own_root(self.state_dir, self.trust_domain, now)
        revocations = catch_up(self.state_dir, load_revocations(self.state_dir), now)
        lists = revocation_lists(self.state_dir, own.signers, revocations, now)
        return Authority(
            signer=own.signer,
            roots=TrustBundle.of(self.trust_domain, own.roots.authorities, lists),
            limits=self.limits,
            former=own.former,
            revocations=revocations,
            generation=own.generation,
        )

    def upkeep(self, now: datetime) -> None:
        """Renew the root if that is due, and drop what has ended."""
        _clean_up(self.state_dir, now)
        self.renew_if_due(now)

    def renew_if_due(self, now: datetime) -> bool:
        """Give the root a new life if little of the old one is left. True if that was done.

        Of several CAs one does it, and the others find it done. Blocks. Raises ConfigError.
        """
        own = load_own_root(self.state_dir, self.trust_domain, now)
        if now < renewal_time(own.signer.certificate):
            return False
        with locked(self.state_dir):
            own = load_own_root(self.state_dir, self.trust_domain, now)
            if now < renewal_time(own.signer.certificate):
                return False
            store_own_root(self.state_dir, renewed_root(own, now))
            return True


@dataclass(frozen=True, slots=True, kw_only=True)
class PluggedInSource:
    """A CA in Istio's `cacerts` layout. It changes when an operator replaces the files."""

    directory: Path
    state_dir: Path
    trust_domain: TrustDomain
    limits: TtlLimits

    def signature(self) -> Signature:
        """Return what changes with the files."""
        names = (*ISTIO_LAYOUT, *TLS_LAYOUT, PLUGGED_IN_CRL)
        return _signature(self.directory, names) + _signature(self.state_dir, (REVOCATIONS,))

    def load(self, now: datetime) -> Authority:
        """Read the files."""
        found = load_plugged_in(self.directory, self.trust_domain, now)
        revocations = catch_up(self.state_dir, load_revocations(self.state_dir), now)
        lists = revocation_lists(self.state_dir, [found.signer], revocations, now)
        return Authority(
            signer=found.signer,
            intermediates=found.intermediates,
            roots=TrustBundle.of(
                self.trust_domain, found.roots.authorities, [*found.revoked, *lists]
            ),
            limits=self.limits,
            revocations=revocations,
        )

    def upkeep(self, now: datetime) -> None:
        """Drop what has ended."""
        _clean_up(self.state_dir, now)


def _clean_up(state_dir: Path, now: datetime) -> None:
    JoinTokens(state_dir).sweep(now)
    ledger = IssuedLog(state_dir)
    try:
        ledger.compact(now)
    finally:
        ledger.close()


def _signature(directory: Path, names: tuple[str, ...]) -> Signature:
    return tuple(_file_signature(directory / name) for name in names)


def _file_signature(path: Path) -> FileSignature:
    try:
        status = path.stat()
    except OSError:
        return path.name
    return path.name, status.st_ino, status.st_mtime_ns, status.st_size
