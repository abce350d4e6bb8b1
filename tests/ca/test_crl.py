from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from ca.crl import CRL_LIFE, CRL_RENEWAL, is_current, make_list
from ca.ledger import anchor_id
from ca.material import load_or_create, new_root
from ca.revocation_files import (
    REVOCATION_LISTS,
    load_revocations,
    revocation_lists,
    store_revocations,
)
from ca.revocations import Revocations, RevokedCertificate, parse_serial
from mesh.errors import ConfigError
from mesh.revocation import RevocationList, is_of, lists_pem
from mesh.svid import certificates_pem
from tests.ca.workshop import CLUSTER, WEB, needs_openssl, openssl
from tests.pki import NOW

FIRST, SECOND = new_root(CLUSTER, NOW), new_root(CLUSTER, NOW)
BOTH = (FIRST, SECOND)


def revoked(serial: int, signer: object = FIRST) -> RevokedCertificate:
    return RevokedCertificate(
        serial=serial,
        identity=str(WEB),
        signer=anchor_id((FIRST if signer is FIRST else SECOND).certificate),
        not_after=NOW + timedelta(hours=1),
        revoked_at=NOW,
    )


ALL = [revoked(1), revoked(2, SECOND), revoked(3)]


def test_each_key_has_a_list_of_its_own_also_an_empty_one() -> None:
    assert make_list(FIRST, ALL, NOW).serials == {1, 3}
    assert make_list(SECOND, ALL, NOW).serials == {2}
    empty = make_list(SECOND, ALL[:1], NOW)
    assert empty.serials == set()
    assert is_of(empty, SECOND.certificate)
    assert not is_of(empty, FIRST.certificate), "though both have the same name"


@needs_openssl
def test_the_openssl_command_accepts_the_list_and_refuses_by_it(tmp_path: Path) -> None:
    (tmp_path / "crl").write_bytes(lists_pem([make_list(FIRST, ALL, NOW)]))
    (tmp_path / "root").write_bytes(certificates_pem([FIRST.certificate]))
    done = openssl("crl", "-in", "crl", "-CAfile", "root", "-noout", "-text", cwd=tmp_path)
    assert b"Serial Number: 03" in done
    assert b"X509v3 CRL Number" in done


@pytest.mark.parametrize(
    ("lists", "current"),
    [
        pytest.param([make_list(one, ALL, NOW) for one in BOTH], True, id="right"),
        pytest.param([make_list(FIRST, ALL, NOW)], False, id="one-missing"),
        pytest.param([make_list(one, ALL, NOW) for one in reversed(BOTH)], False, id="swapped"),
        pytest.param([make_list(one, ALL[:2], NOW) for one in BOTH], False, id="old"),
        pytest.param([make_list(one, [*ALL, revoked(4)], NOW) for one in BOTH], False, id="newer"),
        pytest.param([], False, id="none"),
    ],
)
def test_whether_lists_say_what_they_should(lists: list[RevocationList], current: bool) -> None:
    assert is_current(lists, BOTH, ALL, NOW) is current


def test_lists_are_made_anew_long_before_they_are_overdue() -> None:
    lists = [make_list(one, ALL, NOW) for one in BOTH]
    due = NOW + CRL_LIFE - CRL_RENEWAL
    assert is_current(lists, BOTH, ALL, due)
    assert not is_current(lists, BOTH, ALL, due + timedelta(seconds=1))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    load_or_create(tmp_path / "state", CLUSTER, NOW)
    return tmp_path / "state"


def test_before_anything_was_revoked_there_is_no_list(state: Path) -> None:
    assert revocation_lists(state, BOTH, load_revocations(state), NOW) == ()
    assert not (state / REVOCATION_LISTS).exists()


def test_all_replicas_have_the_same_lists(state: Path) -> None:
    revocations = Revocations(certificates={one.serial: one for one in ALL})
    store_revocations(state, revocations)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: revocation_lists(state, BOTH, revocations, NOW), range(8)))
    assert len(set(found)) == 1
    assert [one.serials for one in found[0]] == [{1, 3}, {2}]


def test_what_is_cleared_is_cleared(state: Path) -> None:
    store_revocations(state, Revocations(certificates={1: revoked(1)}))
    assert revocation_lists(state, [FIRST], load_revocations(state), NOW)[0].serials == {1}
    store_revocations(state, Revocations())
    assert revocation_lists(state, [FIRST], load_revocations(state), NOW)[0].serials == set()


def test_spoiled_lists_are_not_passed_on(state: Path) -> None:
    store_revocations(state, Revocations())
    (state / REVOCATION_LISTS).write_bytes(
        b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
    )
    with pytest.raises(ConfigError, match="remove it"):
        revocation_lists(state, BOTH, Revocations(), NOW)


@pytest.mark.parametrize("text", ["1f", "0x1F", "00:1f", "1F"])
def test_serial_numbers_as_people_write_them(text: str) -> None:
    assert parse_serial(text) == 0x1F


@pytest.mark.parametrize("text", ["", "xyz", "0x", "-1", "1 2", "f" * 41, "\u0661"])
def test_what_is_no_serial_number(text: str) -> None:
    with pytest.raises(ConfigError, match="--serial"):
        parse_serial(text)
