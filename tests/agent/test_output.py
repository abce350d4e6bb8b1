"""Certificates on disk: whole generations, one link."""

from __future__ import annotations

import stat
import subprocess
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from agent.answer import Issued
from agent.mounted import load_mounted
from agent.output import CertificateOutput, write_generation
from agent.store import SecretStore
from mesh.bundle import TrustBundle
from mesh.errors import ConfigError
from mesh.spiffe import SpiffeId, TrustDomain
from mesh.svid import X509Svid
from tests.pki import NOW, Authority, make_root, svid_pem

DOMAIN = TrustDomain("cluster.local")
WEB = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/web")
NAMES = ["cert-chain.pem", "key.pem", "root-cert.pem"]


class Bench:
    def __init__(self, directory: Path, root: Authority) -> None:
        self.directory, self.root, self.store = directory, root, SecretStore()
        self.time = NOW
        self.output = CertificateOutput(
            directory, self.store, lambda: WEB, DOMAIN, lambda: self.time
        )

    def issue(self) -> X509Svid:
        self.time += timedelta(seconds=1)
        svid = self.root.issue(str(WEB), not_after=NOW + timedelta(hours=5))
        bundle = TrustBundle.of(DOMAIN, [self.root.certificate])
        self.store.put(Issued(svid=svid, bundle=bundle, created=NOW))
        return svid

    async def written(self, svid: X509Svid) -> None:
        with trio.fail_after(5):
            while self.serial() != svid.serial:  # noqa: ASYNC110 - files have no events
                await trio.sleep(0.01)

    def serial(self) -> int | None:
        if not (self.directory / "key.pem").exists():
            return None
        return load_mounted(self.directory, DOMAIN, NOW).svid.serial


async def test_each_certificate_is_written_and_older_ones_removed(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    bench = Bench(tmp_path / "certs", make_root().intermediate())
    nursery.start_soon(bench.output.run)
    for _ in range(3):
        await bench.written(bench.issue())
    assert sorted(p.name for p in bench.directory.iterdir() if p.name[:2] != "..") == NAMES
    with trio.fail_after(5):
        while len(list(bench.directory.glob("..[0-9]*"))) > 1:  # noqa: ASYNC110 - a thread removes
            await trio.sleep(0.01)
    for name in NAMES:
        assert stat.S_IMODE((bench.directory / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(bench.directory.stat().st_mode) == 0o700


async def test_openssl_accepts_the_chain(tmp_path: Path, nursery: trio.Nursery) -> None:
    root = make_root()
    bench = Bench(tmp_path / "certs", root)
    bench.root = root.intermediate()
    svid = bench.root.issue(str(WEB), not_after=NOW + timedelta(days=2))
    bundle = TrustBundle.of(DOMAIN, [root.certificate])
    bench.store.put(Issued(svid=svid, bundle=bundle, created=NOW))
    nursery.start_soon(bench.output.run)
    await bench.written(svid)
    chain, roots = bench.directory / "cert-chain.pem", bench.directory / "root-cert.pem"
    command = ["openssl", "verify", "-attime", str(int(NOW.timestamp())), "-CAfile", str(roots)]
    done = subprocess.run(  # noqa: ASYNC221
        [*command, "-untrusted", str(chain), str(chain)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_nothing_is_written_again_that_has_not_changed(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    bench = Bench(tmp_path / "certs", make_root())
    nursery.start_soon(bench.output.run)
    await bench.written(bench.issue())
    before = (bench.directory / "..data").readlink()
    bench.store.announce()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert (bench.directory / "..data").readlink() == before


async def test_a_reader_never_sees_a_key_beside_another_chain(tmp_path: Path) -> None:
    """One thread writes on and on; whoever opens the current generation finds a pair."""
    root = make_root()
    pairs = [svid_pem(root.issue(str(WEB))) for _ in range(5)]
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            chain, key = pairs[number % len(pairs)]
            files = {"key.pem": key, "cert-chain.pem": chain, "root-cert.pem": root.pem}
            write_generation(tmp_path, f"..{number}", files)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = 0
        while seen < 200:
            try:
                current = (tmp_path / "..data").resolve(strict=True)
                pair = (
                    (current / "cert-chain.pem").read_bytes(),
                    (current / "key.pem").read_bytes(),
                )
            except FileNotFoundError:
                continue  # not there yet, or removed while we looked: look again
            assert pair in pairs
            seen += 1
    finally:
        stop.set()
        writer.join()


async def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="writable by others"):
        Bench(tmp_path, make_root())


async def test_what_cannot_be_written_is_logged_and_tried_again(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    bench = Bench(tmp_path / "certs", make_root())
    (bench.directory / "..data").mkdir()  # cannot be replaced by a link
    with structlog.testing.capture_logs() as logs:
        nursery.start_soon(bench.output.run)
        bench.issue()
        with trio.fail_after(5):
            while not logs:  # noqa: ASYNC110 - a log has no events
                await trio.sleep(0.01)
    assert logs[0]["event"] == "certificate not written"
    (bench.directory / "..data").rmdir()
    await bench.written(bench.issue())
