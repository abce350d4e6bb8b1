"""`remora analyze`: what is wrong, ineffective or surprising in a mesh's resources."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
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


class FailOn(StrEnum):
    """The least level that makes the command fail."""

    INFO = "Info"
    WARNING = "Warning"
    ERROR = "Error"


def analyze(
    *,
    proxy_log: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A proxy's JSON log: who speaks plaintext. Repeatable."),
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option(case_sensitive=False, help="Exit with 1 from this level on.")
    ] = FailOn.ERROR,
    files: FilesOption = None,
    state_dir: StateDirOption = None,
    mesh_config: MeshConfigOption = None,
    skip_unknown_kinds: SkipKindsOption = False,
    output: JsonOption = OutputFormat.TEXT,
) -> None:
    """Look for what is wrong, ineffective or surprising in resources, before they are applied.

    Codes IST... are Istio's own, REM... are ours: docs/analysis.md explains them all.
    """
    from remora.policy_tools.advice.message import Level
    from remora.policy_tools.analyze import run

    fine = run(
        given(files, state_dir, mesh_config, skip_unknown_kinds),
        tuple(proxy_log or ()),
        fail_on=Level(fail_on.value),
        as_json=output is OutputFormat.JSON,
    )
    raise typer.Exit(0 if fine else 1)
