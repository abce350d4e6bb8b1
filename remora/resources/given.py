"""The resources that a command was given: a file, a directory, or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ca.store.catalog import ident_of
from ca.store.directory import list_files, read_text
from ca.store.errors import ResourcesInvalid
from mesh.errors import ConfigError
from mesh.resources.loader import load_resources
from mesh.resources.problem import Problem
from mesh.resources.values import Resource
from mesh.resources.yaml_text import MAX_TEXT

STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Valid resources in the order they were given, what is doubtful, and what was passed over."""

    resources: tuple[Resource, ...]
    warnings: tuple[Problem, ...]
    skipped: tuple[Problem, ...] = ()


def read_given(
    sources: Sequence[str], namespace: str, *, skip_unknown_kinds: bool = False
) -> Given:
    """Read all sources. Raises ResourcesInvalid with all that is wrong, or ConfigError."""
    resources: list[Resource] = []
    problems: list[Problem] = []
    warnings: list[Problem] = []
    skipped: list[Problem] = []
    seen: dict[tuple[str, str], str] = {}
    for file, text in _texts(sources):
        loaded = load_resources(
            text, file=file, default_namespace=namespace, skip_unknown_kinds=skip_unknown_kinds
        )
        problems += loaded.problems
        warnings += loaded.warnings
        skipped += loaded.skipped
        for resource in loaded.resources:
            ident = ident_of(resource)
            if ident in seen:
                problems.append(_given_twice(file, ident, seen[ident]))
            seen[ident] = file
            resources.append(resource)
    if problems:
        raise ResourcesInvalid(problems)
    if not resources:
        raise ConfigError(f"there are no resources in {', '.join(sources)}")
    return Given(resources=tuple(resources), warnings=tuple(warnings), skipped=tuple(skipped))


def _texts(sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    for source in sources:
        path = Path(source)
        if source == STDIN:
            yield "<stdin>", _read_stdin()
        elif path.is_dir():
            try:
                listing = list_files(path)
            except OSError as error:
                raise ConfigError(f"cannot read {path}: {error.strerror}") from error
            listing.demand_whole(path)
            for file in sorted(listing.files):
                yield str(path / file), read_text(path / file)
        else:
            yield source, read_text(path)


def _read_stdin() -> str:
    try:
        return sys.stdin.read(MAX_TEXT + 1)
    except UnicodeDecodeError as error:
        raise ConfigError("standard input is not text in UTF-8") from error


def _given_twice(file: str, ident: tuple[str, str], before: str) -> Problem:
    message = f"this resource is given in {before} too"
    return Problem(
        file=file, line=0, resource=f"{ident[0]} {ident[1]}", field="metadata.name", message=message
    )
