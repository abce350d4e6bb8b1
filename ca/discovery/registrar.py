"""Keeping the WorkloadEntries of proxies that register themselves, as long as these are there."""

from __future__ import annotations

import trio
from msgspec.structs import replace

from ca.discovery.errors import NodeRefused, NoSuchGroup
from ca.discovery.registration import GRACE, entry_for
from ca.discovery.world import World
from ca.store.store import ResourceStore
from mesh.clock import Now
from mesh.discovery.node import ProxyNode
from mesh.log import get_logger
from mesh.resources.networking import WorkloadEntry
from mesh.resources.tree import show_path
from mesh.resources.validate_registry import workload_entry_findings

_log = get_logger("ca.discovery")


class Registrar:
    """Makes an entry when a proxy comes, and removes it a while after the proxy has gone."""

    def __init__(self, store: ResourceStore, world: World, now: Now) -> None:
        self._store = store
        self._world = world
        self._now = now
        self._owners: dict[str, set[object]] = {}
        self._departures: dict[str, object] = {}
        self._entries: dict[str, WorkloadEntry] = {}
        self._leaving: trio.MemorySendChannel[tuple[str, object]]
        self._left: trio.MemoryReceiveChannel[tuple[str, object]]
        self._leaving, self._left = trio.open_memory_channel(float("inf"))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Remove entries whose time has come. Those of an earlier run get the grace period too."""
        for name, entry in self._store.registered().items():
            if isinstance(entry, WorkloadEntry):
                self._entries[name] = entry
                await self._store.put(name, entry)
                self._depart(name)
        async with trio.open_nursery() as nursery:
            task_status.started()
            async for name, departure in self._left:
                nursery.start_soon(self._remove_later, name, departure)

    async def register(self, node: ProxyNode) -> tuple[WorkloadEntry, object]:
        """Put a proxy's entry in force; return it, and what to `leave` with.

        Raises NodeRefused.
        """
        group = self._world.groups.get(f"{node.namespace}/{node.group}")
        if group is None:
            raise NoSuchGroup(
                f"there is no WorkloadGroup {node.namespace}/{node.group} to register under: "
                "apply it first"
            )
        entry = entry_for(node, group, self._now())
        for found in workload_entry_findings(entry.spec):
            if not found.warning:
                raise NodeRefused(
                    f"cannot register {entry.key}: {show_path(found.path)}: {found.message}"
                )
        owner = object()
        self._owners.setdefault(entry.key, set()).add(owner)
        self._departures.pop(entry.key, None)
        if not _same(self._entries.get(entry.key), entry):
            self._entries[entry.key] = entry
            await self._store.put(entry.key, entry)
        _log.info("workload registered", entry=entry.key, address=entry.spec.address)
        return entry, owner

    def leave(self, name: str, owner: object) -> None:
        """Say that a proxy has gone; if none is there by then, their entry goes too.

        Several may be behind one entry: an old process and the one that takes over from it.
        """
        owners = self._owners[name]
        owners.remove(owner)
        if not owners:
            del self._owners[name]
            self._depart(name)

    def _depart(self, name: str) -> None:
        departure = self._departures[name] = object()
        self._leaving.send_nowait((name, departure))

    async def _remove_later(self, name: str, departure: object) -> None:
        await trio.sleep(GRACE.total_seconds())
        if self._departures.get(name) is not departure:
            return
        del self._departures[name]
        self._entries.pop(name, None)
        await self._store.put(name, None)
        _log.info("workload gone", entry=name)


def _same(old: WorkloadEntry | None, new: WorkloadEntry) -> bool:
    """Tell whether an entry says the same but for when its proxy connected."""
    if old is None:
        return False
    times = {
        "creation_timestamp": old.metadata.creation_timestamp,
        "annotations": old.metadata.annotations,
    }
    return replace(new, metadata=replace(new.metadata, **times)) == old
