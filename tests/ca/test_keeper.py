from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

import ca.keeper
from ca.cacerts import CERT, CHAIN, KEY, ROOT
from ca.issued_log import ISSUED_LOG
from ca.keeper import AuthorityKeeper
from ca.material import load_or_create, load_own_root, new_root, store_own_root
from ca.replicas import Replica
from ca.revocation_files import store_revocations
from ca.revocations import Revocations
from ca.root_bundle import renewal_time
from ca.sources import OwnRootSource, PluggedInSource
from ca.state import CURRENT
from mesh.errors import ConfigError
from mesh.svid import certificates_pem, private_key_pem
from tests.ca.workshop import CLUSTER, LIMITS, WEB
from tests.pki import NOW, Authority, make_root

ORIGIN = make_root("root")
NEW_ORIGIN = make_root("new root")
FIRST, SECOND = (ORIGIN.intermediate(name) for name in ("first", "second"))


def plug_in(directory: Path, signer: Authority, *roots: Authority) -> None:
    directory.mkdir(exist_ok=True)
    (directory / CERT).write_bytes(signer.pem)
    (directory / KEY).write_bytes(private_key_pem(signer.key))
    (directory / CHAIN).write_bytes(certificates_pem(signer.chain))
    (directory / ROOT).write_bytes(b"".join(root.pem for root in roots))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca.keeper, "POLL_INTERVAL", 0.01)


class Watched:
    """A keeper at work; `until` waits for its next change or refusal."""

    def __init__(self, source: Any, nursery: trio.Nursery) -> None:
        self.time = NOW
        self.keeper = AuthorityKeeper(
            source, source.load(NOW), lambda: self.time, Replica(source.state_dir)
        )
        self.changes = 0
        self.change = trio.Event()
        self.keeper.on_change(self._count)
        nursery.start_soon(self.keeper.run)

    def _count(self) -> None:
        self.changes += 1
        self.change.set()
        self.change = trio.Event()

    @property
    def signer(self) -> object:
        return self.keeper.authority().signer.certificate

    async def changed(self, count: int) -> None:
        with trio.fail_after(5):
            while self.changes < count:
                await self.change.wait()


async def refusal(logs: list[Any]) -> dict[str, Any]:
    with trio.fail_after(5):
        while True:
            for line in logs:
                if line["event"].startswith("changed CA files not used"):
                    found: dict[str, Any] = line
                    return found
            await trio.sleep(0.005)


@pytest.fixture
def cacerts(tmp_path: Path) -> Path:
    plug_in(tmp_path / "cacerts", FIRST, ORIGIN)
    return tmp_path / "cacerts"


def plugged_in(directory: Path) -> PluggedInSource:
    state = directory.parent / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    return PluggedInSource(
        directory=directory, state_dir=state, trust_domain=CLUSTER, limits=LIMITS
    )


async def test_a_new_intermediate_is_taken(cacerts: Path, nursery: trio.Nursery) -> None:
    watched = Watched(plugged_in(cacerts), nursery)
    assert watched.signer == FIRST.certificate
    plug_in(cacerts, SECOND, ORIGIN)
    await watched.changed(1)
    assert watched.signer == SECOND.certificate
    nursery.cancel_scope.cancel()


async def test_a_root_change_in_three_steps_is_taken(cacerts: Path, nursery: trio.Nursery) -> None:
    watched = Watched(plugged_in(cacerts), nursery)
    signer = NEW_ORIGIN.intermediate("third")
    for step, (one, roots) in enumerate(
        [(FIRST, [ORIGIN, NEW_ORIGIN]), (signer, [ORIGIN, NEW_ORIGIN]), (signer, [NEW_ORIGIN])], 1
    ):
        plug_in(cacerts, one, *roots)
        await watched.changed(step)
        authority = watched.keeper.authority()
        assert authority.signer.certificate == one.certificate
        assert list(authority.roots.authorities) == [root.certificate for root in roots]
    nursery.cancel_scope.cancel()


def swapped_root(cacerts: Path) -> None:
    plug_in(cacerts, NEW_ORIGIN.intermediate("third"), NEW_ORIGIN)


def junk(cacerts: Path) -> None:
    (cacerts / CERT).write_bytes(b"junk")


def lost(cacerts: Path) -> None:
    (cacerts / KEY).unlink()


def unreadable_record(cacerts: Path) -> None:
    """What a revoked identity got since cannot be found out."""
    state = cacerts.parent / "state"
    now = Revocations().revoke_identity(WEB, NOW)
    (state / ISSUED_LOG).mkdir()
    store_revocations(state, now)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (swapped_root, "roots_changed_at_once"),
        (junk, "plugged_in_ca_unusable"),
        (lost, "plugged_in_ca_unusable"),
        (unreadable_record, "bad_config"),
    ],
)
async def test_a_change_that_cannot_be_used_leaves_the_old_ca_in_force(
    cacerts: Path, nursery: trio.Nursery, spoil: Any, reason: str
) -> None:
    watched = Watched(plugged_in(cacerts), nursery)
    with capture_logs() as logs:
        spoil(cacerts)
        line = await refusal(logs)
    assert line["reason"] == reason
    assert watched.signer == FIRST.certificate
    if spoil is unreadable_record:
        (cacerts.parent / "state" / ISSUED_LOG).rmdir()
    plug_in(cacerts, SECOND, ORIGIN)
    await watched.changed(1)
    assert watched.signer == SECOND.certificate
    nursery.cancel_scope.cancel()


async def test_files_that_are_still_being_copied_are_not_judged(
    cacerts: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = plugged_in(cacerts)
    moving = itertools.count()
    watched = Watched(source, nursery)
    real = PluggedInSource.signature
    monkeypatch.setattr(PluggedInSource, "signature", lambda self: (f"{next(moving)}", *real(self)))
    with capture_logs() as logs:
        (cacerts / CERT).write_bytes(b"half a cert")
        await trio.sleep(0.1)
    assert not logs
    monkeypatch.undo()
    assert watched.signer == FIRST.certificate
    nursery.cancel_scope.cancel()


def own_source(state: Path) -> OwnRootSource:
    load_or_create(state, CLUSTER, NOW)
    return OwnRootSource(state_dir=state, trust_domain=CLUSTER, limits=LIMITS)


async def test_what_one_replica_changes_the_others_take_up(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    source = own_source(tmp_path / "state")
    watched = Watched(source, nursery)
    later = renewal_time(load_own_root(tmp_path / "state", CLUSTER, NOW).signer.certificate)
    assert not source.renew_if_due(later - timedelta(seconds=1))
    watched.time = later
    assert source.renew_if_due(later)
    await watched.changed(1)
    (root,) = watched.keeper.authority().roots.authorities
    assert root.not_valid_before_utc > NOW
    assert watched.signer == root
    nursery.cancel_scope.cancel()


def test_of_many_replicas_that_find_the_root_due_one_renews_it(tmp_path: Path) -> None:
    source = own_source(tmp_path / "state")
    later = renewal_time(load_own_root(tmp_path / "state", CLUSTER, NOW).signer.certificate)
    with ThreadPoolExecutor(8) as pool:
        renewed = list(pool.map(source.renew_if_due, [later] * 8))
    assert sorted(renewed) == [False] * 7 + [True]


async def test_a_root_that_somebody_swapped_is_not_taken_up(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    state = tmp_path / "state"
    watched = Watched(own_source(state), nursery)
    before = watched.signer
    other = new_root(CLUSTER, NOW)
    own = load_own_root(state, CLUSTER, NOW)
    with capture_logs() as logs:
        store_own_root(
            state,
            type(own)(signer=other, roots=type(own.roots).of(CLUSTER, [other.certificate])),
        )
        line = await refusal(logs)
    assert line["reason"] == "roots_changed_at_once"
    assert watched.signer == before
    nursery.cancel_scope.cancel()


def test_a_directory_that_is_gone_has_a_signature_too(tmp_path: Path) -> None:
    assert CURRENT in own_source(tmp_path / "state").signature()
    assert plugged_in(tmp_path / "nowhere").signature()
    with pytest.raises(ConfigError, match="cannot read --ca-certs"):
        partial(plugged_in(tmp_path / "nowhere").load, NOW)()
