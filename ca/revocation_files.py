"""What is revoked, and the lists that say so, in the state directory.

The lists are made once for all CAs of the directory: each signature differs, and peers would take
every replica's list for a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ca.crl import is_current, make_list
from ca.issued_log import ISSUED_LOG, read_all
from ca.ledger import IssuedRecord, in_use
from ca.revocations import Revocations, read_revocations, write_revocations
from ca.state import PUBLIC_MODE, locked
from ca.template import Signer
from mesh.errors import ConfigError
from mesh.files import read_file, write_private
from mesh.revocation import RevocationList, lists_pem, parse_lists_pem

REVOCATIONS = "revocations.json"
REVOCATION_LISTS = "ca-crl.pem"

MAX_REVOCATIONS = 64 * 1024 * 1024
"""Bytes: about 300,000 certificates."""


def load_revocations(state_dir: Path) -> Revocations:
    """Return what is revoked at this moment. Blocks. Raises ConfigError."""
    path = state_dir / REVOCATIONS
    if not path.exists():
        return Revocations()
    return read_revocations(read_file(path, "revocations", MAX_REVOCATIONS), str(path))


def store_revocations(state_dir: Path, revocations: Revocations) -> None:
    """Put other revocations into force, under the lock. Blocks. Raises ConfigError."""
    write_private(state_dir / REVOCATIONS, write_revocations(revocations))


def catch_up(state_dir: Path, revocations: Revocations, now: datetime) -> Revocations:
    """Revoke what revoked identities got since: from a CA that did not know of it yet.

    Each CA does so when it takes up a revocation, after which it issues nothing of the kind.
    Blocks. Raises ConfigError.
    """
    if not revocations.identities or not _got_since(state_dir, revocations, now):
        return revocations
    with locked(state_dir):
        revocations = load_revocations(state_dir)
        after = revocations.revoke(_got_since(state_dir, revocations, now), now)
        store_revocations(state_dir, after)
        return after


def _got_since(state_dir: Path, revocations: Revocations, now: datetime) -> list[IssuedRecord]:
    if not (state_dir / ISSUED_LOG).exists():
        return []  # lost, and the CA that starts now begins another
    known = in_use(read_all(state_dir), now, revocations.serials)
    return [record for record in known if record.identity in revocations.identities]


def revocation_lists(
    state_dir: Path, signers: Sequence[Signer], revocations: Revocations, now: datetime
) -> tuple[RevocationList, ...]:
    """Return a list for each of `signers`; none at all before anything was ever revoked.

    Whichever CA finds the lists outdated makes them anew for all. Blocks. Raises ConfigError.
    """
    if not (state_dir / REVOCATIONS).exists():
        return ()
    revoked = list(revocations.certificates.values())
    known = _load(state_dir)
    if is_current(known, signers, revoked, now):
        return known
    with locked(state_dir):
        known = _load(state_dir)
        if is_current(known, signers, revoked, now):
            return known
        made = tuple(make_list(signer, revoked, now) for signer in signers)
        write_private(state_dir / REVOCATION_LISTS, lists_pem(made), PUBLIC_MODE)
        return made


def _load(state_dir: Path) -> tuple[RevocationList, ...]:
    path = state_dir / REVOCATION_LISTS
    if not path.exists():
        return ()
    try:
        return parse_lists_pem(read_file(path, "revocation lists", MAX_REVOCATIONS))
    except ValueError as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): remove it, and it is made anew"
        ) from error
