"""Certificates from files: what is taken over, and when."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from agent.errors import MountedUnusable
from agent.metrics import AgentMetrics
from agent.mounted import MountedCertificates, load_mounted
from agent.store import SecretStore
from mesh.clock import trio_now
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import X509Svid
from tests.pki import NOW, Authority, make_root, svid_pem

DOMAIN = TrustDomain("cluster.local")
WEB = "spiffe://cluster.local/ns/foo/sa/web"
WEB_ID = SpiffeId.parse(WEB)

Clock = trio.testing.MockClock


def write(directory: Path, root: Authority, svid: X509Svid) -> None:
    chain, key = svid_pem(svid)
    (directory / "cert-chain.pem").write_bytes(chain)
    (directory / "key.pem").write_bytes(key)
    (directory / "root-cert.pem").write_bytes(root.pem)


@pytest.fixture
def root() -> Authority:
    return make_root()


def test_load(tmp_path: Path, root: Authority) -> None:
    svid = root.issue(WEB)
    write(tmp_path, root, svid)
    issued = load_mounted(tmp_path, DOMAIN, NOW)
    assert issued.svid.leaf == svid.leaf
    assert issued.bundle.authorities == (root.certificate,)


def test_a_root_that_cannot_be_read_is_passed_over(tmp_path: Path, root: Authority) -> None:
    write(tmp_path, root, root.issue(WEB))
    junk = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    (tmp_path / "root-cert.pem").write_bytes(junk + root.pem + junk)
    assert load_mounted(tmp_path, DOMAIN, NOW).bundle.authorities == (root.certificate,)


@pytest.mark.parametrize("fault", ["missing", "key", "root", "domain", "expired", "no roots"])
def test_what_cannot_be_used(tmp_path: Path, root: Authority, fault: str) -> None:
    svid = root.issue("spiffe://other/web" if fault == "domain" else WEB)
    if fault == "expired":
        svid = root.issue(WEB, not_before=NOW.replace(year=2025), not_after=NOW.replace(month=5))
    write(tmp_path, make_root("other") if fault == "root" else root, svid)
    if fault == "missing":
        (tmp_path / "key.pem").unlink()
    if fault == "key":
        (tmp_path / "key.pem").write_bytes(svid_pem(root.issue(WEB))[1])
    if fault == "no roots":
        (tmp_path / "root-cert.pem").write_bytes(b"")
    with pytest.raises(MountedUnusable):
        load_mounted(tmp_path, DOMAIN, NOW)


class Bench:
    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.store, self.metrics = SecretStore(), AgentMetrics()
        self.mounted = MountedCertificates(
            directory, DOMAIN, self.store, trio_now(NOW), self.metrics
        )
        nursery.start_soon(self.mounted.run)

    @property
    def serial(self) -> int | None:
        issued = self.store.issued(WEB_ID)
        return None if issued is None else issued.svid.serial


async def test_new_files_are_taken_over(
    tmp_path: Path, root: Authority, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    bench = Bench(tmp_path, nursery)
    await trio.sleep(30)
    assert bench.serial is None
    assert "cannot read" in (bench.mounted.failure or "")
    for svid in (root.issue(WEB), root.issue(WEB), root.issue(WEB)):
        write(tmp_path, root, svid)
        await trio.sleep(30)
        assert bench.serial == svid.serial
    assert bench.mounted.failure is None
    assert bench.mounted.identity == WEB_ID


async def test_a_key_alone_that_changes_is_noticed_and_waited_for(
    tmp_path: Path, root: Authority, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    first, second = root.issue(WEB), root.issue(WEB)
    write(tmp_path, root, first)
    bench = Bench(tmp_path, nursery)
    await trio.sleep(5)
    (tmp_path / "key.pem").write_bytes(svid_pem(second)[1])
    await trio.sleep(5)
    assert bench.serial == first.serial, "the pair is not complete"
    (tmp_path / "cert-chain.pem").write_bytes(svid_pem(second)[0])
    await trio.sleep(30)
    assert bench.serial == second.serial


async def test_bad_files_change_nothing_and_are_counted(
    tmp_path: Path, root: Authority, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    svid = root.issue(WEB)
    write(tmp_path, root, svid)
    bench = Bench(tmp_path, nursery)
    await trio.sleep(5)
    with structlog.testing.capture_logs() as logs:
        (tmp_path / "key.pem").unlink()
        await trio.sleep(60)
    assert bench.serial == svid.serial
    assert bench.metrics.value("num_file_secret_failures_total") == 1
    assert [line["reason"] for line in logs] == ["certificate_files_unusable"]


async def test_a_running_agent_stays_who_it_is(
    tmp_path: Path, root: Authority, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    svid = root.issue(WEB)
    write(tmp_path, root, svid)
    bench = Bench(tmp_path, nursery)
    await trio.sleep(5)
    write(tmp_path, root, root.issue(f"{WEB}-2"))
    await trio.sleep(60)
    assert bench.serial == svid.serial
    assert "stays what it is" in (bench.mounted.failure or "")


async def test_kubernetes_swaps_of_a_link_many_times(
    tmp_path: Path, root: Authority, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    for name in ("cert-chain.pem", "key.pem", "root-cert.pem"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    bench = Bench(tmp_path, nursery)
    for number in range(10):
        generation = tmp_path / f"..{number}"
        generation.mkdir()
        svid = root.issue(WEB)
        write(generation, root, svid)
        (tmp_path / "draft").symlink_to(generation.name)
        (tmp_path / "draft").rename(tmp_path / "..data")
        await trio.sleep(30)
        assert bench.serial == svid.serial
