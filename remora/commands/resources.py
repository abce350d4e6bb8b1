"""`remora apply`, `get` and `delete`: resources, to and from the control plane's directory."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ca.store.edit import Plan
    from mesh.resources.problem import Problem
    from mesh.resources.values import Resource


class Output(enum.StrEnum):
    """How `get` prints."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"
    NAME = "name"


StateDirOption = Annotated[
    Path, typer.Option(metavar="DIR", help="The control plane's state directory.")
]
ResourcesOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where resources are.", show_default="STATE_DIR/resources"),
]
FilesOption = Annotated[
    list[str] | None,
    typer.Option("-f", "--filename", metavar="FILE|DIR|-", help="YAML or JSON. Repeatable."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check, and change nothing.")]
STATE_DIR = Path("state/ca")


def apply(
    *,
    filename: FilesOption = None,
    namespace: Annotated[
        str, typer.Option("-n", "--namespace", help="Of resources that say none.")
    ] = "default",
    skip_unknown_kinds: Annotated[
        bool, typer.Option("--skip-unknown-kinds", help="Pass over kinds that are not read here.")
    ] = False,
    dry_run: DryRunOption = False,
    state_dir: StateDirOption = STATE_DIR,
    resources: ResourcesOption = None,
) -> None:
    """Put resources in force: all that are given, or none if one of them is wrong.

    They are validated as Istio's webhook would, and written into the control
    plane's directory, where it sees them at once; it need not be running. One
    that says metadata.resourceVersion is refused if it has changed since.
    """
    from ca.store.writer import apply as apply_all
    from mesh.clock import system_now
    from mesh.errors import ConfigError
    from remora.policy_tools.unenforced import unenforced_problem
    from remora.resources.given import read_given

    if not filename:
        raise ConfigError("nothing to apply: give a file or directory with -f")
    given = read_given(filename, namespace, skip_unknown_kinds=skip_unknown_kinds)
    for skipped in given.skipped:
        typer.echo(f"passed over: {skipped}", err=True)
    _warn([*given.warnings, *filter(None, map(unenforced_problem, given.resources))])
    root = _root(state_dir, resources)
    plan = apply_all(root, given.resources, system_now(), dry_run=dry_run)
    _say(plan, dry_run=dry_run)


def get(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Or its short name, or all.")],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None,
    *,
    namespace: Annotated[
        str | None, typer.Option("-n", "--namespace", show_default="all namespaces")
    ] = None,
    output: Annotated[Output, typer.Option("-o", "--output")] = Output.TABLE,
    state_dir: StateDirOption = STATE_DIR,
    resources: ResourcesOption = None,
) -> None:
    """Print resources as they stand in the control plane's directory.

    Asked for workloadentries, also those that are in no file because the
    workloads have registered themselves: the column SOURCE tells. What cannot
    be read there is named on standard error. Exit code 1 if the one that was
    asked for by NAME is not there.
    """
    from ca.store.errors import ResourceNotFound
    from ca.store.writer import read_unchanging
    from mesh.resources.loader import load_resources
    from mesh.resources.networking import WorkloadEntry
    from remora.policy_tools.state import registered
    from remora.resources.kinds import parse_kinds

    kinds = parse_kinds(kind)
    found: dict[tuple[str, str], Resource] = {}
    standing: list[Resource] = []
    for file, text in read_unchanging(_root(state_dir, resources)).items():
        loaded = load_resources(text, file=file)
        _complain(loaded.problems)
        standing += loaded.resources
    # What `get all` prints is to be applied again, elsewhere: no registration should become a file.
    passing = registered(state_dir) if kinds == (WorkloadEntry.__name__,) else ()
    for one in (*standing, *passing):
        wanted = type(one).__name__ in kinds and name in {None, one.metadata.name}
        if wanted and namespace in {None, one.metadata.namespace}:
            found.setdefault((type(one).__name__, one.key), one)
    if name is not None and not found:
        place = "any namespace" if namespace is None else f"namespace {namespace}"
        raise ResourceNotFound(f"there is no {kind} {name} in {place}")
    chosen = [found[ident] for ident in sorted(found)]
    if output is Output.TABLE:
        in_files = {one.key for one in standing if isinstance(one, WorkloadEntry)}
        _print_tables(chosen, in_files)
    else:
        _print(chosen, output, single=name is not None)


def delete(
    kind: Annotated[str | None, typer.Argument(metavar="KIND")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME")] = None,
    *,
    filename: FilesOption = None,
    namespace: Annotated[str, typer.Option("-n", "--namespace")] = "default",
    dry_run: DryRunOption = False,
    state_dir: StateDirOption = STATE_DIR,
    resources: ResourcesOption = None,
) -> None:
    """Remove resources, by kind and name or those that a file names: all of them, or none."""
    from ca.store.catalog import ident_of
    from ca.store.writer import delete as delete_all
    from mesh.errors import ConfigError
    from remora.resources.given import read_given
    from remora.resources.kinds import parse_kinds

    if filename and not kind:
        idents = [ident_of(one) for one in read_given(filename, namespace).resources]
    elif kind and name and not filename:
        first, *others = parse_kinds(kind)
        if others:
            raise ConfigError("name the kind of the resource to delete")
        idents = [(first, f"{namespace}/{name}")]
    else:
        raise ConfigError("say what to delete: KIND and NAME, or files with -f")
    plan = delete_all(_root(state_dir, resources), idents, dry_run=dry_run)
    _say(plan, dry_run=dry_run)


def _root(state_dir: Path, resources: Path | None) -> Path:
    from ca.config import RESOURCES_DIR

    return resources or state_dir / RESOURCES_DIR


def _say(plan: Plan, *, dry_run: bool) -> None:
    from remora.resources.kinds import full_name

    for outcome in plan.outcomes:
        kind, (_, _, name) = outcome.ident[0], outcome.ident[1].partition("/")
        suffix = " (dry run)" if dry_run else ""
        typer.echo(f"{full_name(kind, name)} {outcome.verb}{suffix}")


def _warn(problems: Sequence[Problem]) -> None:
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)  # noqa: T201


def _complain(problems: Sequence[Problem]) -> None:
    for problem in problems:
        print(f"cannot be read: {problem}", file=sys.stderr)  # noqa: T201


def _print(resources: Sequence[Resource], output: Output, *, single: bool) -> None:
    from ca.store.edit import as_object
    from remora.resources.kinds import full_name

    if output is Output.NAME:
        for one in resources:
            typer.echo(full_name(type(one).__name__, one.metadata.name))
        return
    objects = [as_object(one) for one in resources]
    whole: dict[str, Any] = {"apiVersion": "v1", "kind": "List", "items": objects}
    _print_data(objects[0] if single and len(objects) == 1 else whole, output)


def _print_data(data: dict[str, Any], output: Output) -> None:
    import yaml

    if output is Output.JSON:
        typer.echo(json.dumps(data, indent=2))
    else:
        typer.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


def _print_tables(resources: Sequence[Resource], in_files: Container[str]) -> None:
    from itertools import groupby

    from mesh.clock import system_now
    from remora.resources.columns import resource_table
    from remora.resources.kinds import plural

    if not resources:
        print("No resources found.", file=sys.stderr)  # noqa: T201
        return
    groups = [
        (kind, list(group)) for kind, group in groupby(resources, lambda one: type(one).__name__)
    ]
    for index, (kind, group) in enumerate(groups):
        if len(groups) > 1:
            typer.echo(f"{'' if index == 0 else chr(10)}{plural(kind)}")
        typer.echo(resource_table(group, system_now(), in_files))
