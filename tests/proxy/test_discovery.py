"""Following a control plane over a real socket: its coming, its going, and its changes."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from mesh.discovery.codec import encode_unreadable
from mesh.discovery.types import MESH_CONFIG_URL, URL_OF
from mesh.errors import ConfigError
from mesh.resources.networking import ServiceEntry
from mesh.resources.problem import Refused
from mesh.resources.security import AuthorizationPolicy
from proxy.backoff import LONGEST_PAUSE
from proxy.discovery import follow_policy
from proxy.discovery_state import SUBSCRIBED, DiscoveryState
from proxy.last_good import FILE_NAME
from proxy.received import Received
from tests.proxy.control import NODE
from tests.proxy.fake_control_plane import ControlPlane, served
from tests.proxy.test_discovery_state import DENY, STRICT

POLICY_URL = URL_OF[AuthorizationPolicy]

PATIENCE = 30
"""Seconds for what happens at once: machines that run tests are busy."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A path short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="remora-") as name:
        yield Path(name)


class Inbox:
    """What was published, and a way to wait for it."""

    def __init__(self) -> None:
        self.seen: list[Received] = []
        self._changed = trio.Event()

    def publish(self, received: Received) -> None:
        self.seen.append(received)
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, wanted: Callable[[Received], bool]) -> Received:
        with trio.fail_after(PATIENCE):
            while not (self.seen and wanted(self.seen[-1])):
                await self._changed.wait()
        return self.seen[-1]


@asynccontextmanager
async def following(
    socket: Path, state: DiscoveryState | None = None, state_dir: Path | None = None
) -> AsyncIterator[Inbox]:
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            follow_policy, socket, state or DiscoveryState(NODE), inbox.publish, state_dir
        )
        yield inbox
        nursery.cancel_scope.cancel()


async def written(file: Path) -> None:
    with trio.fail_after(PATIENCE):
        while not file.exists():  # noqa: ASYNC110 - a file has no event
            await trio.sleep(0.01)


def anything(received: Received) -> bool:
    return True


async def test_everything_is_received_and_acknowledged(folder: Path) -> None:
    plane = ControlPlane(DENY, STRICT)
    async with served(plane, folder / "s"), following(folder / "s") as inbox:
        received = await inbox.until(anything)
        await trio.testing.wait_all_tasks_blocked()
    assert received.authorization_policies == (DENY,)
    assert received.peer_authentications == (STRICT,)
    assert plane.nodes == [NODE]
    assert plane.subscribed == {url: ["*"] for url in SUBSCRIBED}
    assert len(plane.acks) == len(SUBSCRIBED)
    assert plane.nacks == []


async def test_nothing_is_published_before_every_type_was_answered(folder: Path) -> None:
    plane = ControlPlane(DENY)
    plane.hold_back = {URL_OF[ServiceEntry]}
    async with served(plane, folder / "s"), following(folder / "s") as inbox:
        with trio.fail_after(PATIENCE):
            while len(plane.acks) < len(SUBSCRIBED) - 1:
                await trio.testing.wait_all_tasks_blocked()
        assert inbox.seen == []


async def test_a_change_is_published_and_acknowledged(folder: Path) -> None:
    plane = ControlPlane(STRICT)
    async with served(plane, folder / "s"), following(folder / "s") as inbox:
        await inbox.until(anything)
        await plane.change(STRICT, DENY)
        received = await inbox.until(lambda one: bool(one.authorization_policies))
        await trio.testing.wait_all_tasks_blocked()
        assert received.peer_authentications is inbox.seen[-2].peer_authentications
        assert plane.acks[-1].type_url == POLICY_URL


async def test_what_is_not_understood_is_refused_and_published_as_such(folder: Path) -> None:
    broken = POLICY_URL, encode_unreadable(Refused("AuthorizationPolicy", "foo", "new"), "")
    plane = ControlPlane()
    with capture_logs() as lines:
        async with served(plane, folder / "s"), following(folder / "s") as inbox:
            await inbox.until(anything)
            await plane.change(DENY, unreadable=[broken])
            received = await inbox.until(lambda one: bool(one.unread))
            await trio.testing.wait_all_tasks_blocked()
    assert received.authorization_policies == (DENY,)
    assert "AuthorizationPolicy foo/new" in plane.nacks[0].error_detail.message
    assert [line["reason"] for line in lines if line["event"] == "policy not understood"] == [
        "resource_not_understood"
    ]


async def test_after_a_break_only_the_difference_is_sent(folder: Path) -> None:
    plane = ControlPlane(STRICT, DENY)
    with capture_logs() as lines:
        async with served(plane, folder / "s"), following(folder / "s") as inbox:
            await inbox.until(anything)
            plane._held[POLICY_URL].clear()
            plane.hang_up()
            received = await inbox.until(lambda one: not one.authorization_policies)
    assert received.peer_authentications is inbox.seen[0].peer_authentications
    assert set(plane.known_before[POLICY_URL]) == {"foo/deny"}
    assert set(plane.known_before[MESH_CONFIG_URL]) == {"mesh"}
    (complaint,) = [line for line in lines if line.get("reason") == "control_plane_unreachable"]
    assert "what came last stays in force" in complaint["detail"]


async def test_a_control_plane_that_comes_late_is_waited_for(
    folder: Path, mock_clock: trio.testing.MockClock
) -> None:
    with capture_logs() as lines:
        async with following(folder / "s") as inbox:
            for _ in range(20):
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(LONGEST_PAUSE)
            assert inbox.seen == []
            complaints = [one for one in lines if one["log_level"] == "warning"]
            async with served(ControlPlane(DENY), folder / "s"):
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(LONGEST_PAUSE)
                await inbox.until(anything)
    assert [one["reason"] for one in complaints] == ["control_plane_unreachable"]
    assert "nothing answers on" in complaints[0]["detail"]
    assert "the ports stay closed" in complaints[0]["detail"]


async def test_the_last_good_policies_are_kept_and_used_while_nobody_answers(folder: Path) -> None:
    kept = folder / "kept"
    async with served(ControlPlane(DENY), folder / "s"):
        async with following(folder / "s", state_dir=kept) as inbox:
            await inbox.until(anything)
            await written(kept / FILE_NAME)
    async with following(folder / "s", state_dir=kept) as inbox:
        received = await inbox.until(anything)
    assert received.authorization_policies == (DENY,)


async def test_a_damaged_file_opens_no_door(folder: Path) -> None:
    kept = folder / "kept"
    kept.mkdir(mode=0o700)
    (kept / FILE_NAME).write_bytes(b"{}")
    with capture_logs() as lines:
        async with following(folder / "s", state_dir=kept) as inbox:
            await trio.testing.wait_all_tasks_blocked()
            assert inbox.seen == []
    (line,) = [line for line in lines if line.get("reason") == "last_good_refused"]
    assert line["log_level"] == "warning"
    assert "waiting for the control plane instead" in line["detail"]


async def test_what_came_while_we_were_away_replaces_what_was_kept(folder: Path) -> None:
    kept = folder / "kept"
    async with served(ControlPlane(DENY), folder / "s"):
        async with following(folder / "s", state_dir=kept) as inbox:
            await inbox.until(anything)
            await written(kept / FILE_NAME)
    async with served(ControlPlane(STRICT), folder / "s"):
        async with following(folder / "s", state_dir=kept) as inbox:
            received = await inbox.until(
                lambda one: bool(one.peer_authentications) and not one.authorization_policies
            )
    assert received.peer_authentications == (STRICT,)


async def test_a_directory_that_cannot_be_used_ends_the_proxy(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.RaisesGroup(ConfigError, flatten_subgroups=True):
        await follow_policy(folder / "s", DiscoveryState(NODE), Inbox().publish, folder)
