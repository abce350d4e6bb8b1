"""What is in force at a control plane, from its state directory, whether it runs or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ca.config import RESOURCES_DIR
from ca.store.catalog import Catalog
from ca.store.directory import MESH_FILE, list_files, read_resources, read_text
from ca.store.lock import reading
from ca.store.memory import MEMORY_FILE, Memory
from ca.store.store import PUT
from mesh.errors import ConfigError
from mesh.resources.loader import Loaded, load_mesh_config
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.problem import Problem, Refused
from mesh.resources.values import Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """What proxies are sent; `unread` never was good, and `problems` are with what stands there.

    Where a file is wrong, its last good version is in force.
    """

    resources: tuple[Resource, ...]
    unread: tuple[Refused, ...]
    config: MeshConfig
    problems: tuple[Problem, ...]


def registered(state_dir: Path) -> tuple[Resource, ...]:
    """Return the workloads that have registered themselves. Raises ConfigError."""
    kept, _ = Memory(state_dir / MEMORY_FILE).look()
    return tuple(one for file, found in kept.items() if file.startswith(PUT) for one in found)


def in_force(
    state_dir: Path, *, mesh_config: Path | None = None, besides: frozenset[Path] = frozenset()
) -> InForce:
    """Decide as the control plane does what counts; `besides` is passed over.

    Raises ConfigError if the directory cannot be read, or the settings never were good.
    """
    root = state_dir / RESOURCES_DIR
    kept, settings = Memory(state_dir / MEMORY_FILE).look()
    found = _read(root, besides)
    catalog = Catalog()
    for file, resources in kept.items():
        catalog.remember(file, resources)
    put = {
        file: Loaded(resources=tuple(resources))
        for file, resources in kept.items()
        if file.startswith(PUT)
    }
    gone = {file: None for file in kept if file not in found and file not in put}
    catalog.update({**found, **put, **gone})
    config, wrong = _settings(root / MESH_FILE, settings, mesh_config)
    problems = (replace(one, file=str(root / one.file)) for one in catalog.problems())
    values = catalog.in_force.values()
    return InForce(
        resources=tuple(one for one in values if not isinstance(one, Refused)),
        unread=tuple(one for one in values if isinstance(one, Refused)),
        config=config,
        problems=(*wrong, *problems),
    )


def _read(root: Path, besides: frozenset[Path]) -> dict[str, Loaded]:
    try:
        with reading(root):
            return {
                file: loaded
                for file in sorted(list_files(root).files)
                if file != MESH_FILE
                and (root / file).resolve() not in besides
                and (loaded := read_resources(root, file)) is not None
            }
    except OSError as error:
        raise ConfigError(
            f"cannot read the directory of resources {root}: {error.strerror}. Start the control "
            "plane once, which makes it, or correct --state-dir"
        ) from error


def _settings(
    file: Path, last_good: str, named: Path | None
) -> tuple[MeshConfig, tuple[Problem, ...]]:
    """Return the settings in force, and what is wrong with those that stand there."""
    if named is not None and file.exists():
        raise ConfigError(f"there are several files of mesh settings, {named} and {file}: keep one")
    if named is None and not file.exists():
        return MeshConfig(), ()
    place = named or file
    config, problems = load_mesh_config(read_text(place), file=str(place))
    if config is not None:
        return config, ()
    if named is None and last_good:
        config, _ = load_mesh_config(last_good, file="last good mesh settings")
    if config is None:
        told = "; ".join(str(problem) for problem in problems)
        raise ConfigError(f"the mesh settings cannot be used: {told}")
    return config, problems
