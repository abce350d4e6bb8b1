"""What `remora analyze` does: read, analyse, print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from mesh.errors import ConfigError
from mesh.policy.inventory import Inventory
from mesh.resources.errors import ResourceError, UnreadableDocument
from mesh.resources.loader import unpacked
from mesh.resources.mesh_config import MeshConfig
from mesh.resources.tree import plain
from mesh.resources.yaml_text import read_documents
from remora.policy_tools.advice.everything import Findings, Material, analyze_all
from remora.policy_tools.advice.logs import Seen, log_advice, read_log
from remora.policy_tools.advice.message import Advice, Level
from remora.policy_tools.ask import print_json, print_lines
from remora.policy_tools.sources import Given, Text, Texts, holdings, read_texts
from remora.policy_tools.world import World


def run(given: Given, logs: Sequence[Path], *, fail_on: Level, as_json: bool) -> bool:
    """Analyse what is given; return whether nothing is as bad as `fail_on`. Raises ConfigError."""
    texts = read_texts(given)
    material = read_material(texts, skip_unknown_kinds=given.skip_unknown_kinds)
    findings = analyze_all(material)
    found = list(findings.advice)
    world = World(material.resources, material.cluster.config)
    names = {one.address: one.name for one in world.registry.members.values() if one.address}
    for log in logs:
        seen = _read_log(log)
        found.extend(log_advice(seen, names))
    if as_json:
        print_json([_data(one) for one in found])
    else:
        print_lines(list(_lines(found, findings)))
    return not any(one.level.reaches(fail_on) for one in found)


def read_material(texts: Texts, *, skip_unknown_kinds: bool) -> Material:
    """Load the resources, and what a cluster holds besides."""
    held = holdings(texts, skip_unknown_kinds=True)
    # A cluster's objects are of kinds that were skipped: only where there are some, read again.
    files = {skipped.file for skipped in held.skipped}
    others = [text for text in texts.texts if text.file in files]
    return Material(
        resources=held.resources,
        problems=held.problems,
        warnings=held.warnings,
        skipped=() if skip_unknown_kinds else held.skipped,
        cluster=_cluster(others, texts.config),
    )


def _cluster(texts: Sequence[Text], config: MeshConfig) -> Inventory:
    objects = (one for text in texts for one in _objects(text.content))
    return Inventory.of_cluster(objects, config)


def _objects(content: str) -> Iterator[object]:
    """Yield every document as plain data; what cannot be read was told of when it was loaded."""
    try:
        for document in read_documents(content):
            if not isinstance(document, UnreadableDocument):
                yield from (plain(node) for node in unpacked(document))
    except ResourceError:
        return


def _read_log(path: Path) -> Seen:
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            seen = read_log(lines)
    except OSError as error:
        raise ConfigError(f"cannot read the log {path}: {error.strerror}") from error
    if seen.unreadable:
        typer.echo(
            f"{path}: passed over {seen.unreadable} of its lines, which are no JSON objects: run "
            "the proxy with --log-format json",
            err=True,
        )
    return seen


def _lines(found: Sequence[Advice], findings: Findings) -> Iterator[str]:
    yield from map(str, found)
    for sentence in findings.unchecked:
        yield f"note: {sentence}"
    counts = [f"{sum(one.level is level for one in found)} {level}" for level in reversed(Level)]
    yield f"{', '.join(counts)}" if found else "nothing to report"


def _data(one: Advice) -> dict[str, str]:
    return {
        "code": one.code,
        "name": one.name,
        "level": str(one.level),
        "origin": one.resource,
        "message": one.text,
    }
