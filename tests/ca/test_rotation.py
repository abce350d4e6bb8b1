from __future__ import annotations

from datetime import timedelta

import pytest

from ca import rotation
from ca.errors import RotationRefused, RotationTooEarly
from ca.ledger import SETTLING, IssuedRecord, anchor_id, compact, in_use, read_records, write_record
from ca.material import OwnRoot, new_root, renewed_root
from ca.rotation import Phase
from mesh.bundle import TrustBundle
from tests.ca.workshop import CLUSTER, WEB
from tests.pki import NOW, make_root

HOUR = timedelta(hours=1)
FIRST, SECOND = new_root(CLUSTER, NOW), new_root(CLUSTER, NOW)
A, B = anchor_id(FIRST.certificate), anchor_id(SECOND.certificate)
STEADY = OwnRoot(signer=FIRST, roots=TrustBundle.of(CLUSTER, [FIRST.certificate]))
PREPARED = rotation.prepare(STEADY, SECOND)
ACTIVATED = rotation.activate(PREPARED, [])


def record(
    serial: int,
    roots: str = "A",
    *,
    signer: str = A,
    life: timedelta = HOUR,
    replaces: int | None = None,
    identity: str = str(WEB),
    age: timedelta = SETTLING,
) -> IssuedRecord:
    known = {"A": A, "B": B}
    return IssuedRecord(
        serial=serial,
        identity=identity,
        issued_at=NOW - age,
        not_after=NOW + life,
        signer=signer,
        roots=frozenset(known[name] for name in roots),
        replaces=replaces,
    )


# ledger -------------------------------------------------------------------------------------


def test_records_survive_writing() -> None:
    records = [record(1), record(2, "AB", replaces=1), record(2**127, signer=B)]
    data = b"".join(write_record(one) for one in records)
    assert list(read_records(data)) == records


@pytest.mark.parametrize(
    "line", [b"", b"junk", b"[]", b"{}", b'{"serial":1}', b'{"serial":"xyz"}', b"\xff", b"[" * 9999]
)
def test_a_torn_line_costs_no_other(line: bytes) -> None:
    data = write_record(record(1)) + line + b"\n" + write_record(record(2))
    assert [one.serial for one in read_records(data)] == [1, 2]


def test_ended_replaced_and_revoked_certificates_are_not_in_use() -> None:
    records = [
        record(1),
        record(2, replaces=1),
        record(3, life=timedelta(0)),
        record(4),
        record(5),
    ]
    assert [one.serial for one in in_use(records, NOW, {4})] == [2, 5]


def test_a_certificate_is_replaced_once_its_holder_has_not_asked_again_for_a_while() -> None:
    """The answer may have been lost on the way, and the holder goes on with what it has."""
    second = timedelta(seconds=1)
    asked = [record(1), record(2, replaces=1, age=SETTLING - second)]
    assert [one.serial for one in in_use(asked, NOW)] == [1, 2]
    assert [one.serial for one in in_use(asked, NOW + second)] == [2]
    asked_again = [*asked, record(3, replaces=1, age=-second)]
    assert [one.serial for one in in_use(asked_again, NOW + second)] == [1, 2, 3]


def test_nobody_can_say_that_anothers_certificate_was_replaced() -> None:
    records = [record(1), record(2, replaces=1, identity="spiffe://cluster.local/ns/evil/sa/x")]
    assert [one.serial for one in in_use(records, NOW)] == [1, 2]


def test_compacting_keeps_what_has_not_ended() -> None:
    records = [record(1), record(2, life=-HOUR), record(3, replaces=1)]
    data = b"".join(write_record(one) for one in records)
    assert [one.serial for one in read_records(compact(data, NOW))] == [1, 3]


def test_a_root_with_a_new_life_keeps_its_name_and_another_root_has_another() -> None:
    renewed = renewed_root(STEADY, NOW + HOUR).signer.certificate
    assert renewed != FIRST.certificate
    assert anchor_id(renewed) == A
    assert len({A, B, anchor_id(make_root().certificate)}) == 3


# the three steps ----------------------------------------------------------------------------


def test_the_three_steps() -> None:
    assert (PREPARED.signer, PREPARED.upcoming, PREPARED.former) == (FIRST, SECOND, None)
    assert PREPARED.roots.authorities == (FIRST.certificate, SECOND.certificate)
    assert (ACTIVATED.signer, ACTIVATED.upcoming, ACTIVATED.former) == (SECOND, None, FIRST)
    assert ACTIVATED.roots == PREPARED.roots
    done = rotation.retire(ACTIVATED, [])
    assert (done.signer, done.upcoming, done.former) == (SECOND, None, None)
    assert done.roots.authorities == (SECOND.certificate,)


def take(step: str, own: OwnRoot) -> None:
    if step == "prepare":
        rotation.prepare(own, SECOND)
    elif step == "activate":
        rotation.activate(own, ())
    else:
        rotation.retire(own, ())


def test_each_step_only_after_the_one_before() -> None:
    for own, wrong in (
        (STEADY, ["activate", "retire"]),
        (PREPARED, ["prepare", "retire"]),
        (ACTIVATED, ["prepare", "activate"]),
    ):
        expected = rotation.status(own, ()).next_step
        for step in wrong:
            with pytest.raises(RotationRefused, match=f"next step is `remora ca root {expected}`"):
                take(step, own)


def test_activation_waits_for_whoever_was_not_given_the_new_root() -> None:
    certificates = [record(1, "A"), record(2, "AB")]
    with pytest.raises(RotationTooEarly, match=r"1 certificates .*2026-06-01T13:00:00Z.*sa/web"):
        rotation.activate(PREPARED, certificates)
    found = rotation.status(PREPARED, certificates)
    assert (found.phase, found.ready) == (Phase.PREPARED, False)
    assert [one.serial for one in found.waiting_for] == [1]
    assert found.ready_at == NOW + HOUR
    rotation.activate(PREPARED, [record(2, "AB")])


def test_retirement_waits_for_whoever_shows_a_certificate_of_the_old_root() -> None:
    certificates = [record(1, "AB", signer=A), record(2, "AB", signer=B)]
    with pytest.raises(RotationTooEarly, match="1 certificates that the old root signed"):
        rotation.retire(ACTIVATED, certificates)
    rotation.retire(ACTIVATED, certificates[1:])


def test_retirement_keeps_roots_that_an_operator_added() -> None:
    extra = make_root("extra").certificate
    own = OwnRoot(signer=FIRST, roots=TrustBundle.of(CLUSTER, [extra, FIRST.certificate]))
    done = rotation.retire(rotation.activate(rotation.prepare(own, SECOND), []), [])
    assert done.roots.authorities == (extra, SECOND.certificate)
