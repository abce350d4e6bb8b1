"""The directory followed live, by real files and the real kernel."""

from __future__ import annotations

import errno
import shutil
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio

from ca.store import store as store_module
from ca.store.directory import read_resources
from ca.store.memory import Memory
from ca.store.store import Batch, ResourceStore
from ca.store.writer import read_texts
from mesh.clock import system_now
from mesh.errors import ConfigError
from mesh.resources.problem import Refused
from tests.ca.discovery.builders import authz
from tests.ca.store.test_catalog import BAD, GOOD, NOT_YAML, OTHER, P, Q

ALLOW = GOOD.replace("DENY", "ALLOW")


class Following:
    """A store at work; what it tells is kept."""

    def __init__(self, store: ResourceStore, root: Path) -> None:
        self.store = store
        self.root = root
        self.batches: list[Batch] = []
        self._news = trio.lowlevel.ParkingLot()
        store.on_change = self._take

    def _take(self, batch: Batch) -> None:
        self.batches.append(batch)
        self._news.unpark_all()

    async def until(self, done: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not done():
                await self._news.park()

    @property
    def names(self) -> set[str]:
        return {key for _, key in self.store.catalog.in_force}

    def action(self) -> str:
        policy = self.store.catalog.in_force[P]
        return "unreadable" if isinstance(policy, Refused) else policy.spec.action  # type: ignore[attr-defined]


@asynccontextmanager
async def following(
    root: Path, memory: Path, trust_domain: str = "cluster.local"
) -> AsyncGenerator[Following]:
    store = ResourceStore(root, Memory(memory), trust_domain, system_now)
    seen = Following(store, root)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield seen
        nursery.cancel_scope.cancel()


@pytest.fixture
async def seen(tmp_path: Path) -> AsyncGenerator[Following]:
    root = tmp_path / "resources"
    root.mkdir()
    async with following(root, tmp_path / "memory") as one:
        yield one


async def test_files_come_change_and_go(seen: Following) -> None:
    file = seen.root / "a.yaml"
    file.write_text(GOOD)
    await seen.until(lambda: seen.names == {"app/p"})
    file.write_text(GOOD + "---" + OTHER)
    await seen.until(lambda: seen.names == {"app/p", "app/q"})
    file.unlink()
    await seen.until(lambda: not seen.names)


async def test_a_temporary_file_and_a_rename_are_one_change(seen: Following) -> None:
    file = seen.root / "a.yaml"
    file.write_text(ALLOW)
    await seen.until(lambda: seen.names == {"app/p"})
    (seen.root / ".a.yaml.swp").write_text(GOOD)
    (seen.root / "a.yaml~").write_text(ALLOW)
    (seen.root / ".a.yaml.swp").rename(file)
    await seen.until(lambda: seen.action() == "DENY")
    assert len(seen.batches) == 2


async def test_what_is_still_being_written_is_not_read(seen: Following) -> None:
    file = seen.root / "a.yaml"
    file.write_text(GOOD + "---" + OTHER)
    await seen.until(lambda: len(seen.names) == 2)
    with file.open("w") as writing:
        writing.write(GOOD)
        writing.flush()
        (seen.root / "b").mkdir()  # makes everything be looked at
        (seen.root / "b" / "c.yaml").write_text(OTHER.replace("name: q", "name: r"))
        await seen.until(lambda: "app/r" in seen.names)
        assert "app/q" in seen.names
        writing.write("---" + OTHER)
    await seen.until(lambda: len(seen.names) == 3)
    assert all(change.after is not None for batch in seen.batches for change in batch.changes)


async def test_a_new_file_that_is_still_being_written_denies_nobody(
    seen: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SETTLED", timedelta(seconds=30))
    with (seen.root / "a.yaml").open("w") as writing:
        writing.write(NOT_YAML)
        writing.flush()
        (seen.root / "b").mkdir()  # makes everything be looked at
        (seen.root / "b" / "c.yaml").write_text(OTHER)
        await seen.until(lambda: "app/q" in seen.names)
        assert seen.names == {"app/q"}
        writing.seek(0)
        writing.truncate()
        writing.write(GOOD)
    await seen.until(lambda: seen.names == {"app/p", "app/q"})
    changes = [change for batch in seen.batches for change in batch.changes]
    assert not any(isinstance(change.after, Refused) for change in changes)


async def test_directories_come_and_go_with_what_is_in_them(seen: Following) -> None:
    (seen.root / "one" / "two").mkdir(parents=True)
    (seen.root / "one" / "two" / "a.yaml").write_text(GOOD)
    await seen.until(lambda: seen.names == {"app/p"})
    (seen.root / "one" / "two" / "a.yaml").write_text(GOOD + "---" + OTHER)
    await seen.until(lambda: seen.names == {"app/p", "app/q"})
    shutil.rmtree(seen.root / "one")
    await seen.until(lambda: not seen.names)


async def test_a_configuration_volume_swaps_everything_by_a_symlink(seen: Following) -> None:
    for version, text in (("..1", ALLOW), ("..2", GOOD)):
        (seen.root / version).mkdir()
        (seen.root / version / "a.yaml").write_text(text)
    (seen.root / "..data").symlink_to("..1")
    (seen.root / "a.yaml").symlink_to("..data/a.yaml")
    await seen.until(lambda: seen.names == {"app/p"})
    assert seen.action() == "ALLOW"
    (seen.root / "..data_tmp").symlink_to("..2")
    (seen.root / "..data_tmp").rename(seen.root / "..data")
    await seen.until(lambda: seen.action() == "DENY")


async def complaint(logs: Sequence[Mapping[str, Any]], reason: str) -> None:
    """Wait for a line of the log, which nothing else tells of."""
    with trio.fail_after(5):
        while not any(line.get("reason") == reason for line in logs):  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_a_directory_that_vanishes_changes_nothing(
    seen: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "POLL_ALONE", 0.05)
    (seen.root / "a.yaml").write_text(GOOD)
    await seen.until(lambda: seen.names == {"app/p"})
    away = seen.root.with_name("away")
    with structlog.testing.capture_logs() as logs:
        seen.root.rename(away)
        await complaint(logs, "resources_unreadable")
    assert seen.names == {"app/p"}
    away.rename(seen.root)
    (seen.root / "b.yaml").write_text(OTHER)
    await seen.until(lambda: seen.names == {"app/p", "app/q"})


@pytest.fixture
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "POLL", 0.05)


async def test_a_symlink_that_leads_nowhere_loses_nothing(
    looking_often: None, seen: Following, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    (shared / "team").mkdir(parents=True)
    (shared / "a.yaml").write_text(GOOD)
    (shared / "team" / "b.yaml").write_text(OTHER)
    (seen.root / "a.yaml").symlink_to(shared / "a.yaml")
    (seen.root / "team").symlink_to(shared / "team")
    await seen.until(lambda: seen.names == {"app/p", "app/q"})
    with structlog.testing.capture_logs() as logs:
        shared.rename(tmp_path / "away")
        await complaint(logs, "bad_resource")
        await problems(seen, {"a.yaml", "team/b.yaml"})
    assert seen.names == {"app/p", "app/q"}
    assert seen.action() == "DENY"
    (tmp_path / "away").rename(shared)
    await problems(seen, set())
    (seen.root / "a.yaml").unlink()
    (seen.root / "team").unlink()
    await seen.until(lambda: not seen.names)


async def test_what_cannot_be_looked_at_after_a_restart_is_as_it_was(
    looking_often: None, tmp_path: Path
) -> None:
    root = tmp_path / "resources"
    (root / "team").mkdir(parents=True)
    (root / "a.yaml").write_text(GOOD)
    (root / "team" / "b.yaml").write_text(OTHER)
    async with following(root, tmp_path / "memory"):
        pass
    (root / "a.yaml").unlink()
    (root / "a.yaml").symlink_to("a.yaml")
    shutil.rmtree(root / "team")
    (root / "team").symlink_to("nowhere")
    async with following(root, tmp_path / "memory") as seen:
        assert seen.names == {"app/p", "app/q"}
        assert {one.file for one in seen.store.problems} == {"a.yaml", "team/b.yaml"}
    async with following(root, tmp_path / "nothing") as seen:
        assert seen.names == {"*/unreadable-a.yaml", "*/unreadable-team"}
        (root / "team").unlink()
        (root / "a.yaml").unlink()
        await seen.until(lambda: not seen.names)


async def test_a_file_that_the_machine_cannot_look_at_is_not_gone(
    looking_often: None, seen: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    (seen.root / "a.yaml").write_text(GOOD)
    await seen.until(lambda: seen.names == {"app/p"})
    stat = Path.stat

    def stale(path: Path, **options: Any) -> Any:
        if path.name == "a.yaml":
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **options)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "stat", stale)
        await problems(seen, {"a.yaml"})
        assert seen.action() == "DENY"
    await problems(seen, set())


async def test_mesh_settings_behind_a_symlink_that_leads_nowhere_stay(tmp_path: Path) -> None:
    root = tmp_path / "resources"
    root.mkdir()
    (root / "mesh.yaml").write_text("rootNamespace: mesh-root\n")
    async with following(root, tmp_path / "memory"):
        pass
    (root / "mesh.yaml").unlink()
    (root / "mesh.yaml").symlink_to("nowhere")
    async with following(root, tmp_path / "memory") as seen:
        assert seen.store.config is not None
        assert seen.store.config.root_namespace == "mesh-root"
        assert [one.file for one in seen.store.problems] == ["mesh.yaml"]


async def test_a_file_cut_to_nothing_keeps_what_it_held_until_it_is_removed(
    seen: Following,
) -> None:
    (seen.root / "mesh.yaml").write_text("rootNamespace: mesh-root\n")
    (seen.root / "a.yaml").write_text(GOOD)
    await seen.until(lambda: seen.names == {"app/p"})
    (seen.root / "a.yaml").write_text("")
    (seen.root / "mesh.yaml").write_text("")
    await problems(seen, {"a.yaml", "mesh.yaml"})
    assert seen.action() == "DENY"
    assert seen.store.config is not None
    assert seen.store.config.root_namespace == "mesh-root"
    (seen.root / "a.yaml").unlink()
    (seen.root / "mesh.yaml").unlink()
    await seen.until(lambda: not seen.names and seen.batches[-1].settings)
    assert seen.store.problems == ()


async def test_a_file_that_is_renamed_and_broken_at_once_keeps_what_it_held(
    seen: Following,
) -> None:
    (seen.root / "a.yaml").write_text(GOOD)
    await seen.until(lambda: seen.names == {"app/p"})
    (seen.root / ".new").write_text(NOT_YAML)
    (seen.root / ".new").rename(seen.root / "b.yaml")
    (seen.root / "a.yaml").unlink()
    await problems(seen, {"b.yaml"})
    assert seen.action() == "DENY"


def test_a_file_that_goes_before_it_is_read_is_gone(tmp_path: Path) -> None:
    assert read_resources(tmp_path, "a.yaml") is None
    (tmp_path / "a.yaml").symlink_to("nowhere")
    loaded = read_resources(tmp_path, "a.yaml")
    assert loaded is not None
    assert loaded.problems


async def test_a_broken_file_at_the_first_start_is_announced(tmp_path: Path) -> None:
    root = tmp_path / "resources"
    root.mkdir()
    (root / "a.yaml").write_text(NOT_YAML)
    with structlog.testing.capture_logs() as logs:
        async with following(root, tmp_path / "memory") as seen:
            assert seen.names == {"*/unreadable-a.yaml"}
            assert [one.file for one in seen.store.problems] == ["a.yaml"]
    [complaint] = [line for line in logs if line.get("reason") == "bad_resource"]
    assert "where there is none, proxies that it may be about deny" in complaint["event"]


async def test_more_directories_than_are_read_change_nothing_and_are_said(
    seen: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    (seen.root / "a.yaml").write_text(GOOD)
    await seen.until(lambda: seen.names == {"app/p"})
    monkeypatch.setattr("ca.store.directory.MAX_DIRECTORIES", 3)
    with structlog.testing.capture_logs() as logs:
        for name in "bcd":
            (seen.root / name).mkdir()
        await complaint(logs, "resources_unreadable")
    [problem] = seen.store.problems
    assert "it holds more than 3 directories" in problem.message
    assert seen.names == {"app/p"}
    with pytest.raises(ConfigError, match=r"more than 3 directories$"):
        read_texts(seen.root)


async def problems(seen: Following, files: set[str]) -> None:
    with trio.fail_after(5):
        while {one.file for one in seen.store.problems} != files:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_hundreds_of_files(seen: Following) -> None:
    for number in range(300):
        text = GOOD.replace("name: p", f"name: p{number}")
        (seen.root / f"{number}.yaml").write_text(text)
    await seen.until(lambda: len(seen.names) == 300)
    assert len(seen.batches) < 100


async def test_a_bad_document_is_complained_of_once_and_changes_nothing(seen: Following) -> None:
    file = seen.root / "a.yaml"
    file.write_text(GOOD)
    await seen.until(lambda: seen.names == {"app/p"})
    with structlog.testing.capture_logs() as logs:
        file.write_text(BAD)
        (seen.root / "b.yaml").write_text(OTHER)
        await seen.until(lambda: "app/q" in seen.names)
        (seen.root / "b.yaml").unlink()
        await seen.until(lambda: "app/q" not in seen.names)
    complaints = [line for line in logs if line["log_level"] == "error"]
    assert len(complaints) == 1
    assert complaints[0]["reason"] == "bad_resource"
    assert complaints[0]["detail"].startswith("a.yaml:5: AuthorizationPolicy app/p: spec.action")
    assert seen.action() == "DENY"


async def test_the_last_good_version_survives_a_restart(tmp_path: Path) -> None:
    root = tmp_path / "resources"
    root.mkdir()
    (root / "a.yaml").write_text(GOOD + "---" + OTHER)
    async with following(root, tmp_path / "memory"):
        pass
    (root / "a.yaml").write_text(BAD)
    (root / "new.yaml").write_text(BAD.replace("name: p", "name: n"))
    for _ in range(2):
        async with following(root, tmp_path / "memory") as seen:
            assert seen.action() == "DENY"
            assert isinstance(seen.store.catalog.in_force["AuthorizationPolicy", "app/n"], Refused)
            assert Q not in seen.store.catalog.in_force
    (root / "a.yaml").unlink()
    async with following(root, tmp_path / "memory") as seen:
        assert P not in seen.store.catalog.in_force


async def test_a_damaged_memory_is_put_aside(tmp_path: Path) -> None:
    root = tmp_path / "resources"
    root.mkdir()
    (root / "a.yaml").write_text(GOOD)
    memory = tmp_path / "last-good.sqlite"
    memory.write_bytes(b"x" * 10_000)
    async with following(root, memory) as seen:
        assert seen.names == {"app/p"}
    assert (tmp_path / "last-good.damaged").read_bytes() == b"x" * 10_000
    assert memory.stat().st_mode & 0o777 == 0o600


async def test_the_mesh_settings_are_followed_and_keep_the_last_good(tmp_path: Path) -> None:
    root = tmp_path / "resources"
    root.mkdir()
    async with following(root, tmp_path / "memory", "prod.example") as seen:
        assert seen.store.config is not None
        assert seen.store.config.trust_domain == "prod.example"
        (root / "mesh.yaml").write_text("rootNamespace: mesh-root\n")
        await seen.until(lambda: bool(seen.batches))
        assert seen.batches[-1].settings
        assert seen.store.config.root_namespace == "mesh-root"
        assert seen.store.config.trust_domain == "prod.example"
        (root / "mesh.yaml").write_text("rootNamespace: other\ntrustDomain: elsewhere\n")
        (root / "a.yaml").write_text(GOOD)
        await seen.until(lambda: seen.names == {"app/p"})
        assert seen.store.config.root_namespace == "mesh-root"
        [problem] = seen.store.problems
        assert (problem.file, problem.line, problem.field) == ("mesh.yaml", 2, "trustDomain")
    async with following(root, tmp_path / "memory", "prod.example") as seen:
        assert seen.store.config is not None
        assert seen.store.config.root_namespace == "mesh-root"
    async with following(root, tmp_path / "other", "prod.example") as seen:
        assert seen.store.config is None
        (root / "mesh.yaml").unlink()
        await seen.until(lambda: seen.store.config is not None)


async def test_what_stands_in_no_file_is_kept_until_it_is_taken_back(tmp_path: Path) -> None:
    root = tmp_path / "resources"
    root.mkdir()
    policy = authz("app/p")
    async with following(root, tmp_path / "memory") as seen:
        await seen.store.put("app/p", policy)
        assert seen.action() == "ALLOW"
        (root / "a.yaml").write_text(GOOD)
        await seen.until(lambda: seen.action() == "DENY")
        (root / "a.yaml").unlink()
        await seen.until(lambda: seen.action() == "ALLOW")
    async with following(root, tmp_path / "memory") as seen:
        assert seen.names == set()
        assert seen.store.registered() == {"app/p": policy}
        await seen.store.put("app/p", None)
    async with following(root, tmp_path / "memory") as seen:
        assert seen.store.registered() == {}


async def test_a_directory_that_is_not_there_is_said_plainly(tmp_path: Path) -> None:
    store = ResourceStore(tmp_path / "none", Memory(tmp_path / "memory"), "td", system_now)
    with pytest.raises(
        ConfigError, match=r"cannot read the directory of resources .*none: No such"
    ):
        await store.run()
