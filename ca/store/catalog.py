"""What is in force, from the files that say it: good documents, and last good ones for bad.

A document that is refused changes nothing: the last good version of its resource stays in force.
Where there is none, its name is in force as something unreadable, which everybody who enforces it
takes for the worst. A document that cannot even be named may stand for any resource that its file
held before, or a file that vanished together with its coming, so all of those stay; where there is
none, something unreadable is in force that is named after the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mesh.resources.loader import KINDS, UNKNOWN, Loaded
from mesh.resources.problem import Problem, Refused
from mesh.resources.values import Resource

Ident = tuple[str, str]
"""A resource's kind, and its name as `NAMESPACE/NAME`."""

InForce = Resource | Refused
"""A resource, or the name of one that is there and cannot be read."""


EVERYWHERE = "*"
"""Stands for the namespace of something unreadable that may be in any; none has such a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One name whose meaning has changed; None is for what was not there, or is no more."""

    ident: Ident
    before: InForce | None
    after: InForce | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """What one file contributes; an ident is in one of the three mappings at most."""

    good: Mapping[Ident, Resource] = field(default_factory=dict[Ident, Resource])
    kept: Mapping[Ident, Resource] = field(default_factory=dict[Ident, Resource])
    unread: Mapping[Ident, Refused] = field(default_factory=dict[Ident, Refused])
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    @property
    def last_good(self) -> Mapping[Ident, Resource]:
        """What to fall back on when the file goes bad."""
        return {**self.kept, **self.good}

    @property
    def held(self) -> Mapping[Ident, InForce]:
        """Everything that the file stands for."""
        return {**self.unread, **self.last_good}

    def idents(self) -> Iterator[Ident]:
        """Yield every name that the file says something about."""
        yield from self.held


class Catalog:
    """All files together. Where two say the same name, the first file in byte order counts."""

    def __init__(self) -> None:
        self.files: dict[str, FileState] = {}
        self._owners: dict[Ident, set[str]] = {}
        self._in_force: dict[Ident, InForce] = {}
        self._given_twice: set[Ident] = set()
        self._troubled: set[str] = set()

    @property
    def in_force(self) -> Mapping[Ident, InForce]:
        """Everything by name."""
        return self._in_force

    def remember(self, file: str, resources: Iterable[Resource]) -> None:
        """Take what an earlier run held as last good of a file; it is not in force by that."""
        self.files[file] = FileState(kept={ident_of(one): one for one in resources})

    def update(self, files: Mapping[str, Loaded | None]) -> tuple[Change, ...]:
        """Take what some files hold now, None for a file that is gone, and return what changed."""
        touched: dict[Ident, None] = {}
        vanished = self._vanished(files)
        for file, loaded in files.items():
            old = self.files.pop(file, FileState())
            self._troubled.discard(file)
            for ident in old.idents():
                touched[ident] = None
                self._owners.get(ident, set()).discard(file)
            if loaded is None:
                continue
            new = self.files[file] = self._state(file, old, loaded, vanished)
            if new.problems:
                self._troubled.add(file)
            for ident in new.idents():
                touched[ident] = None
                self._owners.setdefault(ident, set()).add(file)
        return tuple(change for ident in touched if (change := self._settle(ident)) is not None)

    def problems(self) -> Iterator[Problem]:
        """Yield everything that is wrong now, file by file."""
        for file in sorted(self._troubled):
            yield from self.files[file].problems
        for kind, key in sorted(self._given_twice):
            first, *others = sorted(self._owners[kind, key])
            for other in others:
                message = f"this resource is given in {first} too, and that one counts"
                yield Problem(
                    file=other, line=0, resource=f"{kind} {key}", field="", message=message
                )

    def _vanished(self, files: Mapping[str, Loaded | None]) -> Mapping[Ident, InForce]:
        """Return what files hold that are gone now, as far as no other file has it readably."""
        held: dict[Ident, InForce] = {}
        for file, loaded in files.items():
            if loaded is None and file in self.files:
                held |= self.files[file].held
        for loaded in files.values():
            for resource in () if loaded is None else loaded.resources:
                held.pop(ident_of(resource), None)
        return held

    def _state(
        self, file: str, old: FileState, loaded: Loaded, vanished: Mapping[Ident, InForce]
    ) -> FileState:
        if loaded.empty and old.held:
            loaded = _emptied(file)
        good = {ident_of(one): one for one in loaded.resources}
        named = {(one.kind, f"{one.namespace}/{one.name}"): one for one in loaded.refused}
        meant = {**named, **dict(self._fallbacks(old, named))}
        said = good.keys() | named.keys()
        held = {i: one for i, one in {**vanished, **old.held}.items() if i not in said}
        for one in loaded.unnamed:
            meant |= _may_mean(one, held) or _announced(one, file)
        bad = {ident: value for ident, value in meant.items() if ident not in good}
        return FileState(
            good=good,
            kept={i: one for i, one in bad.items() if isinstance(one, Resource)},
            unread={i: one for i, one in bad.items() if isinstance(one, Refused)},
            problems=loaded.problems,
            warnings=loaded.warnings,
        )

    def _fallbacks(
        self, old: FileState, named: Iterable[Ident]
    ) -> Iterator[tuple[Ident, Resource]]:
        """Yield what was good of each name that is bad now."""
        for ident in named:
            fallback = old.last_good.get(ident) or self._in_force.get(ident)
            if isinstance(fallback, Resource):
                yield ident, fallback

    def _settle(self, ident: Ident) -> Change | None:
        before, after = self._in_force.get(ident), self._decide(ident)
        if after is None:
            self._in_force.pop(ident, None)
        else:
            self._in_force[ident] = after
        return None if before == after else Change(ident=ident, before=before, after=after)

    def _decide(self, ident: Ident) -> InForce | None:
        owners = sorted(self._owners.get(ident, ()))
        if len(owners) > 1:
            self._given_twice.add(ident)
        else:
            self._given_twice.discard(ident)
        if not owners:
            self._owners.pop(ident, None)
            return None
        states = [self.files[owner] for owner in owners]
        mappings: list[Mapping[Ident, InForce]] = [
            *(state.good for state in states),
            *(state.kept for state in states),
            *(state.unread for state in states),
        ]
        return next(mapping[ident] for mapping in mappings if ident in mapping)


def ident_of(resource: Resource) -> Ident:
    """Return the name that a resource goes by."""
    return type(resource).__name__, resource.key


def _may_mean(unnamed: Refused, held: Mapping[Ident, InForce]) -> dict[Ident, InForce]:
    """Return what a document without a name may stand for: anything, but for what it does say."""
    key = f"{unnamed.namespace}/{unnamed.name}"
    known = bool(unnamed.namespace and unnamed.name)
    return {ident: one for ident, one in held.items() if not known or ident[1] == key}


def _announced(unnamed: Refused, file: str) -> dict[Ident, InForce]:
    """Return what stands for a document that never was good, nothing for another controller's."""
    if unnamed.kind not in KINDS:
        return {}
    shown = file.encode(errors="replace").decode()
    one = Refused(unnamed.kind, unnamed.namespace or EVERYWHERE, f"unreadable-{shown}")
    return {(one.kind, f"{one.namespace}/{one.name}"): one}


def _emptied(file: str) -> Loaded:
    """Return what an empty file says that held something: a writer failed, as on a full disk."""
    message = "the file is empty, and what it held stays: remove the file to remove that"
    problem = Problem(file=file, line=0, resource="", field="", message=message)
    return Loaded(problems=(problem,), unnamed=(UNKNOWN,))
