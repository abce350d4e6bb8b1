"""The flags by which describe, check and analyze are told what to read."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from remora.policy_tools.sources import Given


class OutputFormat(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


FilesOption = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", metavar="PATH", help="A file or folder of resources. Repeatable."),
]
StateDirOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A control plane's state, instead of -f.")
]
MeshConfigOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Mesh settings, if not mesh.yaml in a folder.")
]
SkipKindsOption = Annotated[
    bool, typer.Option("--skip-unknown-kinds", help="Pass over kinds that are not read here.")
]
JsonOption = Annotated[OutputFormat, typer.Option("--output", "-o", help="text or json.")]


def given(
    files: Iterable[Path] | None,
    state_dir: Path | None,
    mesh_config: Path | None,
    skip_unknown_kinds: bool,  # noqa: FBT001 - as the flag gives it
    besides: Iterable[Path] = (),
) -> Given:
    """Put the flags together."""
    from remora.policy_tools.sources import Given

    return Given(
        paths=tuple(files or ()),
        state_dir=state_dir,
        mesh_config=mesh_config,
        skip_unknown_kinds=skip_unknown_kinds,
        besides=tuple(besides),
    )
