"""`remora describe`: everything that policy says about a workload."""

from __future__ import annotations

from typing import Annotated

import typer

from remora.policy_options import (
    FilesOption,
    JsonOption,
    MeshConfigOption,
    OutputFormat,
    SkipKindsOption,
    StateDirOption,
    given,
)


def describe(
    *,
    workload: Annotated[
        str, typer.Argument(metavar="NS/NAME", help="A WorkloadEntry.", show_default=False)
    ] = "",
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NS", help="Instead of a name.")
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="KEY=VALUE", help="With --namespace. Repeatable."),
    ] = None,
    files: FilesOption = None,
    state_dir: StateDirOption = None,
    mesh_config: MeshConfigOption = None,
    skip_unknown_kinds: SkipKindsOption = False,
    output: JsonOption = OutputFormat.TEXT,
) -> None:
    """Show a workload's mutual TLS mode port by port, its services, and who may call it.

    Each mode is shown with the resource that decided it.
    """
    from remora.policy_tools.ask import print_json, print_lines, read_world
    from remora.policy_tools.description import describe as describe_member
    from remora.policy_tools.description import find_members
    from remora.policy_tools.show_description import as_data, as_lines

    pairs = [one.partition("=") for one in label or ()]
    if any(not key or not equals for key, equals, _ in pairs):
        raise typer.BadParameter("--label must be KEY=VALUE")
    world = read_world(given(files, state_dir, mesh_config, skip_unknown_kinds))
    labels = {key: value for key, _, value in pairs}
    members = find_members(world, name=workload, namespace=namespace, labels=labels)
    found = [describe_member(member, world) for member in members]
    if output is OutputFormat.JSON:
        print_json([as_data(one) for one in found])
    else:
        for one in found:
            print_lines(list(as_lines(one)))
