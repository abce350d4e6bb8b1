"""A node's entries: a certificate for each, and what happens when the file changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import structlog.testing
import trio
import trio.testing

from agent.ca_client import CaClient, Credential
from agent.node import Node
from agent.registration import RegistrationInvalid
from agent.rotation import Rotation
from agent.store import SecretStore, Wakeup
from mesh.clock import trio_now
from mesh.spiffe import SpiffeId
from tests.agent.fake_ca import FakeCa, make_config
from tests.pki import NOW

HTTPBIN = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/httpbin")
SLEEP = SpiffeId.parse("spiffe://cluster.local/ns/foo/sa/sleep")
DAY = 86400.0
LOOKED = 200.0
"""Seconds until a change of the file has been noticed for sure."""

Clock = trio.testing.MockClock


def entry(identity: SpiffeId, token_file: str = "", uid: int = 1000) -> str:
    lines = [f"- spiffeId: {identity}", f"  selectors: ['unix:uid:{uid}']"]
    return "\n".join([*lines, f"  tokenFile: {token_file}"] if token_file else lines) + "\n"


@pytest.fixture(autouse=True)
def _rare_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a day of looking at the file be quick, too."""
    monkeypatch.setattr("agent.watch.INTERVAL", 60.0)


class Bench:
    """A node without its socket, against a CA of its own."""

    def __init__(self, directory: Path, nursery: trio.Nursery, *entries: str) -> None:
        self.now = trio_now(NOW)
        self.ca = FakeCa(now=self.now, nursery=nursery)
        self.file = directory / "registration.yaml"
        self.write(*entries)
        self.config = make_config(directory, self.ca, account=None, registration=self.file)
        self.store = SecretStore()
        self.node = Node(self.config, self.file, self.store, self.rotation)
        nursery.start_soon(self.node.run)

    def write(self, *entries: str) -> None:
        self.file.write_text("entries:\n" + "".join(entries) if entries else "entries: []")

    def rotation(self, identity: SpiffeId, credential: Credential) -> Rotation:
        random = Random(1)
        client = CaClient(
            self.config, now=self.now, random=random, dial=self.ca.dial, credential=credential
        )
        return Rotation(
            self.config, client, self.store, now=self.now, random=random, identity=identity
        )

    @property
    def identities(self) -> set[SpiffeId]:
        return set(self.store.holdings.svids)


async def test_each_identity_gets_a_certificate_and_keeps_it_fresh(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    bench = Bench(tmp_path, nursery, entry(HTTPBIN), entry(SLEEP), entry(SLEEP, uid=1001))
    await trio.sleep(2)
    assert bench.identities == {HTTPBIN, SLEEP}
    assert len(bench.ca.seen) == 2, "two entries of one identity share a certificate"
    await trio.sleep(DAY * 0.75)
    assert len(bench.ca.seen) == 4


async def test_the_node_acts_for_workloads_without_a_token_of_their_own(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    bench = Bench(tmp_path, nursery, entry(HTTPBIN), entry(SLEEP, "sleep.token"))
    bench.ca.identities["token-of-sleep"] = str(SLEEP)
    (tmp_path / "sleep.token").write_text("token-of-sleep")
    await trio.sleep(2)
    assert bench.identities == {HTTPBIN, SLEEP}
    asked = {tuple(seen.authorization): seen.acting_for for seen in bench.ca.seen}
    assert asked == {
        ("Bearer a.token.of-httpbin",): str(HTTPBIN),
        ("Bearer token-of-sleep",): "",
    }


async def test_a_certificate_for_somebody_else_is_thrown_away(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    bench = Bench(tmp_path, nursery, entry(SLEEP, "sleep.token"))
    (tmp_path / "sleep.token").write_text("token-of-sleep")
    bench.ca.identities["token-of-sleep"] = str(HTTPBIN)
    with structlog.testing.capture_logs() as logs:
        await trio.sleep(2)
    assert bench.identities == set()
    assert "answer_foreign_identity" in {line.get("reason") for line in logs}


async def test_one_identity_without_a_token_does_not_hold_up_the_others(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    bench = Bench(tmp_path, nursery, entry(HTTPBIN, "missing.token"), entry(SLEEP))
    bench.ca.identities[""] = "spiffe://cluster.local/ns/x/sa/nobody"
    await trio.sleep(2)
    assert bench.identities == {SLEEP}


async def test_entries_come_and_go_with_the_file(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    bench = Bench(tmp_path, nursery, entry(HTTPBIN))
    await trio.sleep(LOOKED)
    bench.write(entry(SLEEP))
    await trio.sleep(LOOKED)
    assert bench.identities == {SLEEP}
    assert [e.identity for e in bench.node.registrations.entries] == [SLEEP]
    bench.ca.seen.clear()
    await trio.sleep(DAY)
    assert {seen.acting_for for seen in bench.ca.seen} == {str(SLEEP)}, "the other is not renewed"


async def test_subscribers_hear_of_changed_entries(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    bench, wakeup = Bench(tmp_path, nursery, entry(HTTPBIN)), Wakeup()
    await trio.sleep(LOOKED)
    with bench.store.subscribed(wakeup):
        bench.write(entry(HTTPBIN, uid=1001))
        with trio.fail_after(LOOKED):
            await wakeup.wait()
        serial = bench.store.holdings.svids[HTTPBIN].issued.svid.serial
        await trio.sleep(LOOKED)
        assert bench.store.holdings.svids[HTTPBIN].issued.svid.serial == serial


def garble(file: Path) -> None:
    file.write_text("entries: [")


@pytest.mark.parametrize("spoil", [garble, Path.unlink])
async def test_a_file_that_cannot_be_used_changes_nothing(
    tmp_path: Path,
    nursery: trio.Nursery,
    autojump_clock: Clock,
    spoil: Callable[[Path], None],
) -> None:
    bench = Bench(tmp_path, nursery, entry(HTTPBIN))
    await trio.sleep(LOOKED)
    with structlog.testing.capture_logs() as logs:
        spoil(bench.file)
        await trio.sleep(LOOKED)
    assert bench.identities == {HTTPBIN}
    [line] = [line for line in logs if line.get("reason") == "registration_invalid"]
    assert "stay in force" in line["event"]
    bench.write(entry(SLEEP))
    await trio.sleep(LOOKED)
    assert bench.identities == {SLEEP}


async def test_another_token_file_means_another_certificate(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    bench = Bench(tmp_path, nursery, entry(SLEEP))
    await trio.sleep(LOOKED)
    (tmp_path / "sleep.token").write_text("token-of-sleep")
    bench.ca.identities["token-of-sleep"] = str(SLEEP)
    bench.write(entry(SLEEP, "sleep.token"))
    await trio.sleep(LOOKED)
    assert bench.ca.seen[-1].authorization == ["Bearer token-of-sleep"]
    assert bench.identities == {SLEEP}


async def test_a_bad_file_stops_the_start(tmp_path: Path, nursery: trio.Nursery) -> None:
    with pytest.raises(RegistrationInvalid):
        Bench(tmp_path, nursery, "- {}\n")
