"""What an operator does to a CA's state directory, beside the CAs that run on it.

Each operation holds the directory's lock from its decision to its effect, and leaves a line in the
audit log. The CAs take up the change by themselves. All of this blocks, and raises ConfigError,
RotationRefused, RotationTooEarly.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography.x509.oid import NameOID

from ca import rotation
from ca.audit import AuditLog
from ca.errors import NothingToRevoke, RotationTooEarly
from ca.issued_log import read_all, read_in_use
from ca.ledger import IssuedRecord, anchor_id, in_use
from ca.material import OwnRoot, load_certificates, load_own_root, new_root, store_own_root
from ca.replicas import running
from ca.revocation_files import load_revocations, store_revocations
from ca.revocations import Revocations
from ca.rotation import RotationStatus
from ca.state import CA_CERT, check_version, generation, locked
from mesh.errors import ConfigError
from mesh.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain


def root_status(state_dir: Path, now: datetime) -> RotationStatus:
    """Tell where the rotation of the root stands."""
    return rotation.status(_own_root(state_dir, now), _in_use(state_dir, now))


def prepare_root(state_dir: Path, now: datetime) -> RotationStatus:
    """Make the next root and have it trusted."""

    def change(own: OwnRoot) -> OwnRoot:
        return rotation.prepare(own, new_root(own.roots.trust_domain, now))

    return _change_root(state_dir, now, "root_prepared", change)


def activate_root(state_dir: Path, now: datetime) -> RotationStatus:
    """Sign with the prepared root."""
    return _change_root(
        state_dir,
        now,
        "root_activated",
        lambda own: rotation.activate(own, _in_use(state_dir, now)),
    )


def retire_root(state_dir: Path, now: datetime) -> RotationStatus:
    """Have the old root trusted no more."""
    return _change_root(
        state_dir,
        now,
        "root_retired",
        lambda own: rotation.retire(own, _in_use(state_dir, now)),
    )


def revoke_serial(state_dir: Path, serial: int, now: datetime) -> list[IssuedRecord]:
    """Revoke one certificate."""
    found = [record for record in read_all(state_dir) if record.serial == serial]
    if not found or now >= found[0].not_after:
        raise NothingToRevoke(
            f"no certificate in use has the serial number {serial:x}: it has ended, or another "
            "CA issued it. The audit log has the serial numbers"
        )
    _change_revocations(state_dir, now, lambda before: before.revoke(found, now))
    _audit(state_dir, now, "certificate_revoked", found)
    return found


def revoke_identity(state_dir: Path, identity: SpiffeId, now: datetime) -> list[IssuedRecord]:
    """Revoke everything that an identity has, and let it have nothing more."""
    found: list[IssuedRecord] = []

    def change(before: Revocations) -> Revocations:
        # In this order: what is issued between the two is caught by the second reading.
        banned = before.revoke_identity(identity, now)
        found[:] = [
            record
            for record in in_use(read_all(state_dir), now, before.serials)
            if record.identity == str(identity)
        ]
        return banned.revoke(found, now)

    _change_revocations(state_dir, now, lambda before: before.revoke_identity(identity, now))
    _change_revocations(state_dir, now, change)
    _audit(state_dir, now, "identity_revoked", found, identity=identity)
    return found


def restore_identity(state_dir: Path, identity: SpiffeId, now: datetime) -> None:
    """Let an identity have certificates again."""

    def change(before: Revocations) -> Revocations:
        if not before.is_revoked(identity):
            raise NothingToRevoke(f"{identity} is not revoked")
        return before.restore_identity(identity)

    _change_revocations(state_dir, now, change)
    _audit(state_dir, now, "identity_restored", [], identity=identity)


def _change_root(
    state_dir: Path, now: datetime, event: str, change: Callable[[OwnRoot], OwnRoot]
) -> RotationStatus:
    check_version(state_dir)
    with locked(state_dir):
        _check_replicas(state_dir, now)
        after = change(_own_root(state_dir, now))
        store_own_root(state_dir, after)
    audit = AuditLog(state_dir)
    audit.record(
        event,
        now,
        signer=anchor_id(after.signer.certificate),
        roots=" ".join(anchor_id(root) for root in after.roots.authorities),
    )
    audit.close()
    return root_status(state_dir, now)


def _check_replicas(state_dir: Path, now: datetime) -> None:
    """Refuse a step while some CA still works with what was in force before the last one."""
    current = generation(state_dir)
    late = [note for note in running(state_dir, now) if note.generation != current]
    if late:
        raise RotationTooEarly(
            f"too early: {len(late)} of the CAs on {state_dir} have not taken up the last change "
            "yet, which takes seconds. If it takes longer, see their logs"
        )


def _change_revocations(
    state_dir: Path, now: datetime, change: Callable[[Revocations], Revocations]
) -> None:
    check_version(state_dir)
    with locked(state_dir):
        after = change(load_revocations(state_dir)).without_ended(now)
        store_revocations(state_dir, after)


def _audit(
    state_dir: Path,
    now: datetime,
    event: str,
    records: list[IssuedRecord],
    *,
    identity: SpiffeId | None = None,
) -> None:
    audit = AuditLog(state_dir)
    if identity is not None:
        audit.record(event, now, identity=str(identity))
    for record in records:
        audit.record(
            "certificate_revoked", now, identity=record.identity, serial=f"{record.serial:x}"
        )
    audit.close()


def _in_use(state_dir: Path, now: datetime) -> list[IssuedRecord]:
    return read_in_use(state_dir, now, load_revocations(state_dir).serials)


def _own_root(state_dir: Path, now: datetime) -> OwnRoot:
    check_version(state_dir)
    if not (state_dir / CA_CERT).exists():
        raise ConfigError(
            f"{state_dir} holds no root of its own. A CA that was plugged in with --ca-certs is "
            "rotated by replacing its files"
        )
    return load_own_root(state_dir, _trust_domain(state_dir / CA_CERT), now)


def _trust_domain(path: Path) -> TrustDomain:
    """Read the trust domain from the root's name, where `ca.template.root_name` has put it."""
    certificate = load_certificates(path, "CA certificate")[0]
    names = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    try:
        return TrustDomain.parse(str(names[0].value))
    except (IndexError, InvalidSpiffeId) as error:
        raise ConfigError(f"{path} is not a root that this CA made") from error
