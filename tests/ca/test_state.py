from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

import ca.state
from ca.material import (
    OwnRoot,
    load_or_create,
    load_own_root,
    load_token_key,
    new_root,
    renewed_root,
    store_own_root,
)
from ca.state import CA_CERT, CA_KEY, CURRENT, LINKED, ROOT_CERT, VERSION_FILE, check_version
from mesh.bundle import TrustBundle
from mesh.errors import ConfigError
from mesh.svid import certificates_pem
from tests.ca.workshop import CLUSTER
from tests.pki import NOW, make_root


@pytest.fixture
def state(tmp_path: Path) -> Path:
    load_or_create(tmp_path / "state", CLUSTER, NOW)
    return tmp_path / "state"


def own(state: Path) -> OwnRoot:
    return load_own_root(state, CLUSTER, NOW)


def prepared(before: OwnRoot) -> OwnRoot:
    upcoming = new_root(CLUSTER, NOW)
    roots = TrustBundle.of(CLUSTER, [*before.roots.authorities, upcoming.certificate])
    return replace(before, upcoming=upcoming, roots=roots)


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("version", [b"2\n", b"999", b"one", b""])
def test_the_directory_of_a_newer_version_is_refused_untouched(state: Path, version: bytes) -> None:
    (state / VERSION_FILE).write_bytes(version)
    before = content(state)
    for use in (
        lambda: load_or_create(state, CLUSTER, NOW),
        lambda: own(state),
        lambda: load_token_key(state),
    ):
        with pytest.raises(ConfigError, match=r"newer Remora|not a version"):
            use()
    assert content(state) == before


def test_a_directory_without_a_version_is_of_the_first(state: Path, tmp_path: Path) -> None:
    (state / VERSION_FILE).unlink()
    check_version(state)
    check_version(tmp_path / "nowhere")
    own(state)


def test_what_is_stored_is_loaded_and_the_plain_names_follow(state: Path) -> None:
    before = own(state)
    after = prepared(before)
    store_own_root(state, after)
    loaded = own(state)
    assert loaded.roots == after.roots
    assert loaded.upcoming is not None
    assert loaded.upcoming.certificate == new_certificate(after)
    assert (state / ROOT_CERT).read_bytes() == after.roots.pem()
    store_own_root(state, before)
    assert own(state).upcoming is None
    assert (state / ROOT_CERT).read_bytes() == before.roots.pem()
    assert len(list(state.glob("generation-*"))) == 1, "keys out of use are gone"
    assert {path.stat().st_mode & 0o777 for path in state.glob("generation-*/*key*")} == {0o600}


def new_certificate(own: OwnRoot) -> object:
    assert own.upcoming is not None
    return own.upcoming.certificate


class CrashedError(Exception):
    pass


@pytest.mark.parametrize("step", range(12))
def test_a_crash_at_any_step_leaves_the_old_or_the_new(
    state: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    before = own(state)
    after = prepared(before)
    left = [step]

    def crashing(name: str) -> None:
        real = getattr(ca.state, name)

        def call(*args: object) -> object:
            if left[0] == 0:
                raise CrashedError
            left[0] -= 1
            return real(*args)

        monkeypatch.setattr(ca.state, name, call)

    for name in ("write_private", "_link", "sync_directory"):
        crashing(name)
    with pytest.raises(CrashedError):
        store_own_root(state, after)
    monkeypatch.undo()
    found = own(state)
    assert found.roots in (before.roots, after.roots)
    assert found.signer.certificate == before.signer.certificate
    store_own_root(state, after)
    assert own(state).roots == after.roots


def test_a_reader_never_sees_a_mixture(state: Path) -> None:
    first = own(state)
    second = OwnRoot(
        signer=(other := new_root(CLUSTER, NOW)),
        roots=TrustBundle.of(CLUSTER, [other.certificate]),
    )
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for one in (second, first):
                store_own_root(state, one)
                stop.wait(0.005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {own(state).signer.certificate.serial_number for _ in range(100)}
    finally:
        stop.set()
        writer.join()
    assert seen <= {
        first.signer.certificate.serial_number,
        second.signer.certificate.serial_number,
    }


def test_a_file_that_an_operator_put_in_place_of_a_link_counts(state: Path) -> None:
    store_own_root(state, prepared(own(state)))
    extra = make_root("extra")
    pem = (state / ROOT_CERT).read_bytes() + certificates_pem([extra.certificate])
    (state / ROOT_CERT).unlink()
    (state / ROOT_CERT).write_bytes(pem)
    assert extra.certificate in own(state).roots.authorities
    store_own_root(state, own(state))
    assert extra.certificate in own(state).roots.authorities
    assert own(state).upcoming is not None
    assert all((state / name).is_symlink() for name in LINKED)


def test_a_generation_that_lost_a_file_is_refused(state: Path) -> None:
    store_own_root(state, own(state))
    (state / CURRENT / CA_KEY).unlink()
    with pytest.raises(ConfigError, match="cannot read key"):
        own(state)


def test_a_renewed_root_keeps_key_and_name_and_verifies_what_the_old_one_signed(
    state: Path,
) -> None:
    before = own(state)
    after = renewed_root(before, NOW + timedelta(days=3000))
    old, new = before.signer.certificate, after.signer.certificate
    assert new.public_key() == old.public_key()
    assert (new.subject, new.issuer) == (old.subject, old.issuer)
    assert new.serial_number != old.serial_number
    assert new.not_valid_after_utc > old.not_valid_after_utc
    assert after.roots.authorities == (new,)
    new.verify_directly_issued_by(old)
    store_own_root(state, after)
    assert load_own_root(state, CLUSTER, NOW + timedelta(days=3000)).roots == after.roots


def test_names(state: Path) -> None:
    assert set(LINKED) == {CA_KEY, CA_CERT, ROOT_CERT}
