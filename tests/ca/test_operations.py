from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from ca.audit import AUDIT_LOG
from ca.errors import NothingToRevoke, RotationRefused, RotationTooEarly
from ca.issued_log import ISSUED_LOG, IssuedLog
from ca.ledger import SETTLING, IssuedRecord, anchor_id
from ca.material import load_or_create, load_own_root
from ca.operations import (
    activate_root,
    prepare_root,
    restore_identity,
    retire_root,
    revoke_identity,
    revoke_serial,
    root_status,
)
from ca.replicas import MAX_SILENCE, Replica
from ca.revocation_files import REVOCATIONS, catch_up, load_revocations
from ca.rotation import Phase
from ca.state import CA_CERT, VERSION_FILE, generation
from mesh.errors import ConfigError
from mesh.spiffe import SpiffeId
from tests.ca.workshop import CLUSTER, WEB
from tests.pki import NOW

HOUR = timedelta(hours=1)
OTHER = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/other")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A directory on which a CA has run."""
    load_or_create(tmp_path / "state", CLUSTER, NOW)
    IssuedLog(tmp_path / "state").close()
    return tmp_path / "state"


def issue(
    state: Path,
    serial: int,
    identity: SpiffeId = WEB,
    *,
    replaces: int | None = None,
    life: timedelta = HOUR,
) -> None:
    """Record a certificate as the CA does that runs on the directory now."""
    own = load_own_root(state, CLUSTER, NOW)
    log = IssuedLog(state)
    log.add(
        IssuedRecord(
            serial=serial,
            identity=str(identity),
            issued_at=NOW - SETTLING,
            not_after=NOW + life,
            signer=anchor_id(own.signer.certificate),
            roots=frozenset(anchor_id(root) for root in own.roots.authorities),
            replaces=replaces,
        )
    )
    log.close()


def events(state: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (state / AUDIT_LOG).read_text().splitlines()]


def test_a_rotation_waits_for_each_workload_and_then_goes_on(state: Path) -> None:
    first = load_own_root(state, CLUSTER, NOW).signer.certificate
    issue(state, 1)
    issue(state, 2, OTHER)
    assert prepare_root(state, NOW).phase is Phase.PREPARED
    for serial, identity in ((3, WEB), (4, OTHER)):
        with pytest.raises(RotationTooEarly):
            activate_root(state, NOW)
        issue(state, serial, identity, replaces=serial - 2)
    assert activate_root(state, NOW).phase is Phase.ACTIVATED
    for serial, identity in ((5, WEB), (6, OTHER)):
        with pytest.raises(RotationTooEarly):
            retire_root(state, NOW)
        issue(state, serial, identity, replaces=serial - 2)
    assert retire_root(state, NOW).phase is Phase.STEADY
    own = load_own_root(state, CLUSTER, NOW)
    assert first not in own.roots.authorities
    assert own.roots.authorities == (own.signer.certificate,)
    assert events(state) == ["root_prepared", "root_activated", "root_retired"]


def test_time_or_revocation_ends_the_wait_too(state: Path) -> None:
    issue(state, 1)
    issue(state, 2)
    prepare_root(state, NOW)
    revoke_serial(state, 1, NOW)
    assert [one.serial for one in root_status(state, NOW).waiting_for] == [2]
    with pytest.raises(RotationTooEarly):
        activate_root(state, NOW)
    activate_root(state, NOW + HOUR)


def test_a_replica_that_is_behind_is_waited_for_unless_it_is_gone(state: Path) -> None:
    replica, gone = Replica(state), Replica(state)
    replica.note("", NOW)
    gone.note("", NOW - MAX_SILENCE - timedelta(seconds=1))
    prepare_root(state, NOW)
    with pytest.raises(RotationTooEarly, match="1 of the CAs"):
        activate_root(state, NOW)
    replica.note(generation(state), NOW)
    activate_root(state, NOW)
    with pytest.raises(RotationTooEarly):
        retire_root(state, NOW)
    replica.remove()
    retire_root(state, NOW)


def test_without_a_record_of_what_was_issued_nothing_is_safe(state: Path) -> None:
    prepare_root(state, NOW)
    (state / ISSUED_LOG).unlink()
    with pytest.raises(ConfigError, match="no record of issued certificates"):
        activate_root(state, NOW)
    assert load_own_root(state, CLUSTER, NOW).upcoming is not None


def test_a_step_out_of_order_changes_nothing(state: Path) -> None:
    before = generation(state)
    for step in (activate_root, retire_root):
        with pytest.raises(RotationRefused):
            step(state, NOW)
    assert generation(state) == before
    prepare_root(state, NOW)
    with pytest.raises(RotationRefused):
        prepare_root(state, NOW)


def test_a_directory_without_a_root_or_of_a_newer_version(state: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no root of its own"):
        prepare_root(tmp_path, NOW)
    (state / VERSION_FILE).write_text("2")
    for use in (prepare_root, root_status):
        with pytest.raises(ConfigError, match="newer Remora"):
            use(state, NOW)
    with pytest.raises(ConfigError, match="newer Remora"):
        revoke_identity(state, WEB, NOW)
    assert not (state / REVOCATIONS).exists()


def test_a_root_of_another_maker_is_not_rotated(state: Path) -> None:
    (state / CA_CERT).write_bytes(b"junk")
    with pytest.raises(ConfigError, match="not a PEM file"):
        prepare_root(state, NOW)


def test_a_serial_number_is_revoked_once_and_known_after(state: Path) -> None:
    issue(state, 1)
    issue(state, 2)
    assert [one.serial for one in revoke_serial(state, 1, NOW)] == [1]
    revoke_serial(state, 1, NOW + timedelta(minutes=1))
    found = load_revocations(state)
    assert found.serials == {1}
    assert found.certificates[1].revoked_at == NOW
    assert not found.is_revoked(WEB)
    for unknown in (3, 0):
        with pytest.raises(NothingToRevoke):
            revoke_serial(state, unknown, NOW)
    with pytest.raises(NothingToRevoke):
        revoke_serial(state, 2, NOW + HOUR)


def test_an_identity_is_revoked_with_all_it_has_also_what_was_replaced(state: Path) -> None:
    issue(state, 1)
    issue(state, 2)
    issue(state, 3, OTHER)
    assert {one.serial for one in revoke_identity(state, WEB, NOW)} == {1, 2}
    found = load_revocations(state)
    assert found.serials == {1, 2}
    assert found.is_revoked(WEB)
    assert not found.is_revoked(OTHER)
    restore_identity(state, WEB, NOW)
    assert not load_revocations(state).is_revoked(WEB)
    assert load_revocations(state).serials == {1, 2}, "what it had stays revoked"
    with pytest.raises(NothingToRevoke):
        restore_identity(state, WEB, NOW)


def test_what_a_ca_issued_before_it_knew_is_revoked_when_it_knows(state: Path) -> None:
    revoke_identity(state, WEB, NOW)
    issue(state, 1)
    issue(state, 2, OTHER)
    assert catch_up(state, load_revocations(state), NOW).serials == {1}
    assert load_revocations(state).serials == {1}
    before = (state / REVOCATIONS).stat().st_mtime_ns
    catch_up(state, load_revocations(state), NOW)
    assert (state / REVOCATIONS).stat().st_mtime_ns == before


def test_a_ca_whose_record_was_lost_starts_and_still_bans(state: Path) -> None:
    revoke_identity(state, WEB, NOW)
    (state / ISSUED_LOG).unlink()
    assert catch_up(state, load_revocations(state), NOW).is_revoked(WEB)


def test_ended_certificates_are_forgotten_identities_are_not(state: Path) -> None:
    issue(state, 1)
    issue(state, 2, OTHER, life=10 * HOUR)
    revoke_identity(state, WEB, NOW)
    revoke_serial(state, 2, NOW + 2 * HOUR)
    found = load_revocations(state)
    assert found.serials == {2}
    assert found.is_revoked(WEB)


@pytest.mark.parametrize("content", [b"", b"junk", b"{}", b"[]", b'{"certificates": [1]}'])
def test_revocations_that_cannot_be_read_never_pass_for_none(state: Path, content: bytes) -> None:
    (state / REVOCATIONS).write_bytes(content)
    with pytest.raises(ConfigError, match="no record of revocations"):
        load_revocations(state)
