"""Where the tools get their resources: files, folders, or a control plane's state directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ca.config import RESOURCES_DIR
from mesh.errors import ConfigError
from mesh.files import read_file
from mesh.resources.loader import Loaded, load_mesh_config, load_resources
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.problem import Problem
from mesh.resources.values import Resource
from remora.policy_tools.state import registered

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
"""Files of a folder that are read; all others are somebody else's."""

MESH_FILE = "mesh.yaml"
"""The mesh settings in a folder of resources."""

MAX_BYTES = 256 * 1024 * 1024
"""Bytes in one file: above any text that is read (four bytes a character), and below a device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One file that was read."""

    file: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Everything that was given: the valid resources, the settings, and what was wrong."""

    resources: tuple[Resource, ...]
    config: MeshConfig
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    skipped: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the flags of a command name; `besides` are files that are no resources."""

    paths: tuple[Path, ...] = ()
    state_dir: Path | None = None
    mesh_config: Path | None = None
    skip_unknown_kinds: bool = False
    besides: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The files that were read, and the mesh settings among them."""

    texts: tuple[Text, ...]
    config: MeshConfig
    registered: tuple[Resource, ...] = ()
    """Workloads of a state directory that stand in no file."""


def gather(given: Given) -> Holdings:
    """Read everything that is given; what is invalid is among the problems. Raises ConfigError."""
    return holdings(read_texts(given), skip_unknown_kinds=given.skip_unknown_kinds)


def read_texts(given: Given) -> Texts:
    """Read the files, and the mesh settings. Raises ConfigError."""
    paths = given.paths
    workloads: tuple[Resource, ...] = ()
    if not paths and given.state_dir is not None:
        paths = (given.state_dir / RESOURCES_DIR,)
        workloads = registered(given.state_dir)
    if not paths:
        raise ConfigError("there is nothing to read: give -f FILE_OR_FOLDER, or --state-dir")
    besides = {path.resolve() for path in given.besides}
    files = dict.fromkeys(file for path in paths for file in _files(path))
    settings = [given.mesh_config] if given.mesh_config is not None else []
    settings += [file for file in files if file.name == MESH_FILE]
    wanted = (file for file in files if file.name != MESH_FILE and file.resolve() not in besides)
    return Texts(
        texts=tuple(Text(file=str(file), content=read_text(file)) for file in wanted),
        config=_settings(settings),
        registered=workloads,
    )


def read_text(path: Path, what: str = "the file") -> str:
    """Read a file of text. Raises ConfigError."""
    try:
        return read_file(path, what, MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: byte {error.start} is wrong") from error


def holdings(given: Texts, *, skip_unknown_kinds: bool) -> Holdings:
    """Load the resources of all texts; one that an earlier file has too is a problem."""
    parts = [
        load_resources(text.content, file=text.file, skip_unknown_kinds=skip_unknown_kinds)
        for text in given.texts
    ]
    found: dict[tuple[str, str], Resource] = {}
    problems = [problem for part in parts for problem in part.problems]
    for text, part in zip(given.texts, parts, strict=True):
        problems.extend(_take(part, text.file, found))
    for workload in given.registered:
        found.setdefault((type(workload).__name__, workload.key), workload)
    return Holdings(
        resources=tuple(found.values()),
        config=given.config,
        problems=tuple(problems),
        warnings=tuple(warning for part in parts for warning in part.warnings),
        skipped=tuple(skipped for part in parts for skipped in part.skipped),
    )


def _take(part: Loaded, file: str, found: dict[tuple[str, str], Resource]) -> Iterator[Problem]:
    for resource in part.resources:
        kind = type(resource).__name__
        if (kind, resource.key) not in found:
            found[kind, resource.key] = resource
            continue
        message = "another file has this resource too"
        name = f"{kind} {resource.key}"
        yield Problem(file=file, line=0, resource=name, field="", message=message)


def _settings(files: list[Path]) -> MeshConfig:
    if not files:
        return MeshConfig()
    if len(files) > 1:
        raise ConfigError(
            f"there are several files of mesh settings, {files[0]} and {files[1]}: keep one"
        )
    config, problems = load_mesh_config(read_text(files[0]), file=str(files[0]))
    if config is None:
        told = "; ".join(str(problem) for problem in problems)
        raise ConfigError(f"the mesh settings cannot be used: {told}")
    return config


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    try:
        inside = sorted(path.rglob("*"))
    except OSError as error:
        raise ConfigError(f"cannot read the folder {path}: {error.strerror}") from error
    for file in inside:
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix in SUFFIXES and not hidden and file.is_file():
            yield file
