"""What `apply` and `delete` change in a directory of files, decided before anything is written.

A resource is changed where it stands: its document is replaced, and all others of its file stay as
somebody wrote them. A new one gets a file of its own.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import msgspec
import yaml
from msgspec.structs import replace

from ca.store.catalog import Ident, ident_of
from ca.store.errors import EditRefused, ResourceConflict, ResourceNotFound
from mesh.resources.loader import load_resources
from mesh.resources.values import Resource
from mesh.resources.yaml_text import cut_at_marks

MARK = "---\n"


class Verb(enum.StrEnum):
    """What happened to a resource, in kubectl's words."""

    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happens to one resource; `resource` is as it will stand, None for a deleted one."""

    ident: Ident
    verb: Verb
    resource: Resource | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that happens, and the texts to write by path; None removes a file."""

    outcomes: tuple[Outcome, ...]
    files: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a resource stands: file and document. `resource` is None if it cannot be read."""

    file: str
    index: int
    resource: Resource | None
    alone: bool


@dataclass(slots=True)
class _Editing:
    """The directory while it is being changed, file by file in documents."""

    texts: Mapping[str, str]
    pieces: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def find(self, ident: Ident) -> _Place | None:
        """Return where a resource stands; of several places the first by path, as it counts."""
        name = ident[1].partition("/")[2]
        for file in sorted({*self.texts, *self.pieces}):
            if file not in self.pieces and name not in self.texts[file]:
                continue
            for index, piece in enumerate(self._pieces(file)):
                place = _place_in(piece, file, index, ident) if name in piece else None
                if place is not None:
                    return place
        return None

    def write(self, place: _Place | None, resource: Resource) -> None:
        """Put a resource's text where it stands, or into a file of its own."""
        if place is None:
            file = file_for(ident_of(resource))
            if file in self.texts or file in self.pieces:
                pieces = self._pieces(file)
                if not pieces[-1].endswith("\n"):
                    pieces[-1] += "\n"
                pieces.append(MARK + dump(resource))
            else:
                self.pieces[file] = [dump(resource)]
            return
        pieces = self._pieces(place.file)
        mark = MARK if pieces[place.index].startswith("---") else ""
        pieces[place.index] = mark + dump(resource)

    def remove(self, place: _Place) -> None:
        """Remove a resource's document."""
        self._pieces(place.file)[place.index] = ""

    def changed(self) -> dict[str, str | None]:
        """Return the new text of every file that is changed; None if nothing is left in it."""
        texts = {file: "".join(pieces) for file, pieces in self.pieces.items()}
        return {
            file: text if _has_content(text) else None
            for file, text in texts.items()
            if text != self.texts.get(file)
        }

    def _pieces(self, file: str) -> list[str]:
        if file not in self.pieces:
            self.pieces[file] = [piece for piece, _ in cut_at_marks(self.texts[file])]
        return self.pieces[file]


def plan_apply(texts: Mapping[str, str], resources: Sequence[Resource], now: datetime) -> Plan:
    """Plan to put resources in place. Raises ResourceConflict, EditRefused.

    A resource that says a resourceVersion is meant for exactly that version.
    """
    editing = _Editing(texts)
    outcomes: list[Outcome] = []
    for resource in resources:
        ident = ident_of(resource)
        place = editing.find(ident)
        _check_version(resource, place)
        if place is not None and place.resource is not None and _same(resource, place.resource):
            outcomes.append(Outcome(ident=ident, verb=Verb.UNCHANGED, resource=place.resource))
            continue
        if place is not None:
            _check_alone(ident, place)
        stamped = _stamp(resource, None if place is None else place.resource, now)
        editing.write(place, stamped)
        verb = Verb.CREATED if place is None else Verb.CONFIGURED
        outcomes.append(Outcome(ident=ident, verb=verb, resource=stamped))
    return Plan(outcomes=tuple(outcomes), files=editing.changed())


def plan_delete(texts: Mapping[str, str], idents: Iterable[Ident]) -> Plan:
    """Plan to remove resources. Raises ResourceNotFound, EditRefused."""
    editing = _Editing(texts)
    outcomes: list[Outcome] = []
    for ident in idents:
        place = editing.find(ident)
        if place is None:
            raise ResourceNotFound(f"there is no {ident[0]} {ident[1]}")
        while place is not None:  # a name that is given twice goes altogether
            _check_alone(ident, place)
            editing.remove(place)
            place = editing.find(ident)
        outcomes.append(Outcome(ident=ident, verb=Verb.DELETED))
    return Plan(outcomes=tuple(outcomes), files=editing.changed())


def file_for(ident: Ident) -> str:
    """Return the path of the file that a new resource gets."""
    kind, (namespace, _, name) = ident[0], ident[1].partition("/")
    return f"{namespace}/{kind.lower()}.{name}.yaml"


def as_object(resource: Resource) -> dict[str, Any]:
    """Return a resource as plain data, in the order that people write it."""
    data = cast("dict[str, Any]", msgspec.to_builtins(resource, str_keys=True))
    order = ("apiVersion", "kind", "metadata")
    return {key: data[key] for key in order} | {"spec": data.get("spec", {})}


def dump(resource: Resource) -> str:
    """Write a resource as YAML."""
    return yaml.safe_dump(as_object(resource), sort_keys=False, allow_unicode=True)


def _place_in(piece: str, file: str, index: int, ident: Ident) -> _Place | None:
    loaded = load_resources(piece, file=file)
    names = [ident_of(one) for one in loaded.resources]
    refused = [(one.kind, f"{one.namespace}/{one.name}") for one in loaded.refused]
    alone = len(names) + len(refused) + len(loaded.unnamed) == 1
    for resource in loaded.resources:
        if ident_of(resource) == ident:
            return _Place(file, index, resource, alone)
    return _Place(file, index, None, alone) if ident in refused else None


def _check_alone(ident: Ident, place: _Place) -> None:
    if not place.alone:
        raise EditRefused(
            f"{ident[0]} {ident[1]} stands in a list together with others, in {place.file}: "
            "edit that file, or give each resource a document of its own"
        )


def _check_version(resource: Resource, place: _Place | None) -> None:
    wanted = resource.metadata.resource_version
    if not wanted:
        return
    found = "" if place is None or place.resource is None else _version_of(place.resource)
    if wanted != found:
        kind, key = ident_of(resource)
        state = f"has the version {found}" if found else "is not there"
        raise ResourceConflict(
            f"{kind} {key} was to be changed at the version {wanted}, but it {state}: somebody "
            "else has changed it meanwhile; get it again and make your change to that"
        )


def _version_of(resource: Resource) -> str:
    return resource.metadata.resource_version or "(none)"


def _same(new: Resource, old: Resource) -> bool:
    """Tell whether a resource says the same but for what is assigned to it."""
    return _unassigned(new) == _unassigned(old)


def _unassigned(resource: Resource) -> Resource:
    metadata = replace(resource.metadata, creation_timestamp=None, resource_version="")
    return replace(resource, metadata=metadata)


def _stamp(new: Resource, old: Resource | None, now: datetime) -> Resource:
    """Assign what the store assigns: when the resource was made, and its version.

    Versions are times in microseconds, so that a name that is deleted and made again never
    repeats one, with nothing to remember.
    """
    before = "0" if old is None else old.metadata.resource_version
    version = int(now.timestamp() * 1_000_000)
    if before.isascii() and before.isdigit():
        version = max(version, int(before) + 1)
    created = now.replace(microsecond=0) if old is None else old.metadata.creation_timestamp
    metadata = replace(new.metadata, creation_timestamp=created, resource_version=str(version))
    return replace(new, metadata=metadata)


def _has_content(text: str) -> bool:
    lines = (line.strip() for line in text.splitlines())
    return any(line and line != "---" and not line.startswith("#") for line in lines)
