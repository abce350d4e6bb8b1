"""The directory of resources, followed live.

What is refused changes nothing, and a directory that cannot be read changes nothing either: it is
taken for a fault of the machine, not for the wish to have no policy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import trio

from ca.store.catalog import Catalog, Change
from ca.store.directory import (
    MESH_FILE,
    Signature,
    list_files,
    read_resources,
    read_text,
    sign_all,
    unreadable,
)
from ca.store.lock import reading
from ca.store.memory import Memory
from ca.store.settings import Settings
from ca.store.watch import DirectoryWatch, Dirty
from mesh.clock import Now
from mesh.errors import ConfigError
from mesh.log import get_logger
from mesh.resources.loader import Loaded
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.problem import Problem
from mesh.resources.values import Resource

QUIET = 0.05
"""Seconds between two loads: the first change is loaded at once, a burst of them together. Istio
waits 100 ms even before the first."""

POLL = 5.0
"""Seconds between looks at the whole directory, for what the kernel does not tell: files behind
symlinks that lead elsewhere, and network file systems."""

POLL_ALONE = 1.0
"""The same where the kernel tells nothing, or the directory is gone."""

SETTLED = timedelta(seconds=0.5)
"""A file that is written in place is read when its writer closes it, or when it has been left
alone for so long."""

PUT = "~registered/"
"""Before the source of what stands in no file. In byte order it comes after names of files."""

_MOST_LOGGED = 20

_log = get_logger("ca.store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What changed together. `settings` tells whether the mesh settings are among it."""

    changes: tuple[Change, ...] = ()
    settings: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What was found in the directory: contents by path, None for files that are gone."""

    files: Mapping[str, Loaded | None]
    signatures: Mapping[str, Signature | None]
    settings: str | ConfigError | None
    directories: tuple[str, ...] = ()
    unsettled: bool = False


@dataclass(slots=True)
class _Known:
    """What the last look at the directory found; `gone` says why there was nothing to see."""

    signatures: dict[str, Signature] = field(default_factory=dict[str, Signature])
    gone: str = ""
    unsettled: bool = False
    loaded_at: float = float("-inf")


class ResourceStore:
    """Resources and mesh settings, as the directory says them and the memory completes them.

    Whoever is to hear of changes is `on_change`, called with each batch of them.
    """

    def __init__(self, root: Path, memory: Memory, trust_domain: str, now: Now) -> None:
        self.catalog = Catalog()
        self.on_change: Callable[[Batch], None] = lambda _batch: None
        self._root = root
        self._memory = memory
        self._now = now
        self._settings = Settings(trust_domain)
        self._known = _Known()
        self._complained: frozenset[Problem] = frozenset()

    @property
    def config(self) -> MeshConfig | None:
        """The mesh settings in force; None while they are there but never were good."""
        return self._settings.config

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong in the directory now."""
        return (*self._directory_problems(), *self._settings.problems, *self.catalog.problems())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load everything, then follow the directory. Raises ConfigError if it cannot be read."""
        with ExitStack() as stack:
            watch = self._begin_watching(stack)
            await self._recall()
            await self._load(Dirty(everything=True), watch, first=True)
            await self._load(Dirty(everything=True), watch)
            task_status.started()
            while True:
                await self._load(await self._next(watch), watch)

    def registered(self) -> dict[str, Resource]:
        """Return what `put` had put by an earlier run, by its source; it is not in force yet."""
        return {
            file.removeprefix(PUT): resource
            for file, state in self.catalog.files.items()
            if file.startswith(PUT)
            for resource in state.last_good.values()
        }

    async def put(self, source: str, resource: Resource | None) -> None:
        """Put a resource in force that stands in no file, or remove it.

        It is kept in memory like any other. A file that says the same name comes before it.
        """
        loaded = None if resource is None else Loaded(resources=(resource,))
        await self._take({PUT + source: loaded}, settings=False)

    async def _recall(self) -> None:
        remembered, settings = await trio.to_thread.run_sync(self._memory.read)
        for file, resources in remembered.items():
            self.catalog.remember(file, resources)
        self._settings.remember(settings)

    async def _next(self, watch: DirectoryWatch | None) -> Dirty:
        """Wait for something to have changed, and until a burst of changes may be over."""
        known = self._known
        pause = SETTLED.total_seconds() if known.unsettled else POLL
        if watch is None or known.gone:
            pause = POLL_ALONE
        dirty = Dirty(everything=True)
        if watch is None:
            await trio.sleep(pause)
            return dirty
        with trio.move_on_after(pause):
            dirty = await watch.changed()
        with trio.move_on_at(known.loaded_at + QUIET):
            while True:
                dirty |= await watch.changed()
        return dirty

    def _begin_watching(self, stack: ExitStack) -> DirectoryWatch | None:
        try:
            return stack.enter_context(DirectoryWatch(self._root))
        except OSError as error:
            self._cannot_watch(error)
            return None

    @staticmethod
    def _cannot_watch(error: OSError) -> None:
        _log.warning(
            "the kernel tells no changes of files; looking for them instead",
            error=error.strerror,
            remedy="raise fs.inotify.max_user_instances and max_user_watches",
        )

    async def _load(
        self, dirty: Dirty, watch: DirectoryWatch | None, *, first: bool = False
    ) -> None:
        try:
            found = await trio.to_thread.run_sync(self._read, dirty)
        except OSError as error:
            if first:
                raise ConfigError(
                    f"cannot read the directory of resources {self._root}: {error.strerror}"
                ) from error
            self._complain_of_directory(error)
            return
        self._known.gone = ""
        self._known.unsettled = found.unsettled
        self._known.loaded_at = trio.current_time()
        self._watch(watch, found.directories)
        for path, signature in found.signatures.items():
            if signature is None:
                self._known.signatures.pop(path, None)
            else:
                self._known.signatures[path] = signature
        settings = MESH_FILE in found.signatures and self._settings.take(found.settings, MESH_FILE)
        await self._take(found.files, settings=settings)

    def _complain_of_directory(self, error: OSError) -> None:
        if not self._known.gone:
            _log.error(
                "the directory of resources cannot be read; everything stays as it was",
                reason="resources_unreadable",
                directory=str(self._root),
                error=error.strerror,
            )
        self._known.gone = f"cannot read the directory of resources: {error.strerror}"

    def _directory_problems(self) -> Iterator[Problem]:
        if self._known.gone:
            yield Problem(
                file=str(self._root), line=0, resource="", field="", message=self._known.gone
            )

    def _watch(self, watch: DirectoryWatch | None, directories: Iterable[str]) -> None:
        if watch is None:
            return
        try:
            watch.watch(directories)
        except OSError as error:
            self._cannot_watch(error)

    def _read(self, dirty: Dirty) -> _Read:
        """Read what is new; in a thread. Raises OSError if the directory cannot be read."""
        with reading(self._root):
            if not dirty.everything:
                signatures, failed = sign_all(self._root, dirty.paths)
                self._root.stat()
                return self._read_files(signatures, failed)
            listing = list_files(self._root)
            known = self._known.signatures
            remembered = set(known) | {
                file for file in self.catalog.files if not file.startswith(PUT)
            }
            places = listing.failed
            failed = dict(listing.failed)
            gone: dict[str, None] = {}
            for path in remembered - set(listing.files) - set(places):
                place = _place_of(path, places)
                if place is None:
                    gone[path] = None
                else:
                    failed.pop(place, None)
                    failed[path] = f"cannot read {place}: {places[place]}"
            changed = {path: it for path, it in listing.files.items() if known.get(path) != it}
            unsettled = {
                path
                for path, it in changed.items()
                if path not in dirty.paths and self._is_being_written(known.get(path), it)
            }
            found = self._read_files(
                gone | {path: it for path, it in changed.items() if path not in unsettled},
                failed,
                directories=tuple(listing.directories),
                unsettled=bool(unsettled),
            )
            return self._without_begun(found, dirty)

    def _is_being_written(self, before: Signature | None, after: Signature) -> bool:
        if before is None or before[:2] != after[:2]:
            return False
        return self._is_fresh(after)

    def _is_fresh(self, signature: Signature) -> bool:
        return self._now().timestamp() - signature[3] / 1e9 < SETTLED.total_seconds()

    def _without_begun(self, found: _Read, dirty: Dirty) -> _Read:
        """Leave out new files that cannot be read yet: their writer may only have begun.

        At the start none is left out, as nobody may run without what it is going to hold.
        """
        if self._known.loaded_at == float("-inf"):
            return found
        begun = {
            path
            for path, loaded in found.files.items()
            if loaded is not None
            and loaded.unnamed
            and path not in self.catalog.files
            and path not in dirty.paths
            and (signature := found.signatures[path]) is not None
            and self._is_fresh(signature)
        }
        return replace(
            found,
            files={path: it for path, it in found.files.items() if path not in begun},
            signatures={path: it for path, it in found.signatures.items() if path not in begun},
            unsettled=found.unsettled or bool(begun),
        )

    def _read_files(
        self,
        signatures: Mapping[str, Signature | None],
        failed: Mapping[str, str],
        *,
        directories: tuple[str, ...] = (),
        unsettled: bool = False,
    ) -> _Read:
        settings: str | ConfigError | None = None
        if MESH_FILE in failed:
            settings = ConfigError(f"cannot read {self._root / MESH_FILE}: {failed[MESH_FILE]}")
        if signatures.get(MESH_FILE):
            try:
                settings = read_text(self._root / MESH_FILE)
            except ConfigError as error:
                settings = error
        files = {
            path: read_resources(self._root, path) if signature else None
            for path, signature in sorted(signatures.items())
            if path != MESH_FILE
        } | {
            path: unreadable(path, why) for path, why in sorted(failed.items()) if path != MESH_FILE
        }
        return _Read(
            files=files,
            signatures={**signatures, **dict.fromkeys(failed)},
            settings=settings,
            directories=directories,
            unsettled=unsettled,
        )

    async def _take(self, files: Mapping[str, Loaded | None], *, settings: bool) -> None:
        before = {file: self._last_good(file) for file in files}
        changes = self.catalog.update(files)
        if changes or settings:
            self.on_change(Batch(changes=changes, settings=settings))
            _log_changes(changes, settings=settings)
        self._complain()
        rows = {file: now for file in files if (now := self._last_good(file)) != before[file]}
        if rows or settings:
            await self._remember(rows)

    def _last_good(self, file: str) -> tuple[Resource, ...]:
        state = self.catalog.files.get(file)
        return () if state is None else tuple(state.last_good.values())

    async def _remember(self, rows: Mapping[str, tuple[Resource, ...]]) -> None:
        try:
            await trio.to_thread.run_sync(self._memory.write, rows, self._settings.good_text)
        except sqlite3.Error as error:
            _log.error(
                "last good resources not kept on disk", reason="memory_failed", error=str(error)
            )

    def _complain(self) -> None:
        problems = frozenset(self.problems)
        for problem in self.problems:
            if problem not in self._complained:
                _log.error(
                    "resource refused; its last good version stays in force, and where there is "
                    "none, proxies that it may be about deny",
                    reason="bad_resource",
                    detail=str(problem),
                )
        if self._complained and not problems:
            _log.info("all resources are good again")
        self._complained = problems


def _place_of(path: str, failed: Iterable[str]) -> str | None:
    """Return the directory in which a file may still be, because nobody could look there."""
    return next((place for place in failed if path.startswith(f"{place}/")), None)


def _log_changes(changes: tuple[Change, ...], *, settings: bool) -> None:
    names = [f"{kind} {key}" for kind, key in (change.ident for change in changes)]
    if settings:
        names.insert(0, "MeshConfig")
    more = len(names) - _MOST_LOGGED
    shown = names[:_MOST_LOGGED] + ([f"and {more} more"] if more > 0 else [])
    _log.info("resources changed", count=len(names), resources=shown)
