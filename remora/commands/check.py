"""`remora check`: would it be let through, is it mutual TLS, and why."""

from __future__ import annotations

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


def check(  # noqa: PLR0913 - one parameter per flag
    *,
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="WHO",
            help="NS/NAME of a workload or service account, a SPIFFE ID, or plaintext.",
        ),
    ] = "",
    to: Annotated[
        str, typer.Option(metavar="WHOM", help="NS/NAME of a workload, or a service's host.")
    ] = "",
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=1, max=65535, help="The workload's, or the service's."),
    ] = None,
    method: Annotated[str, typer.Option(metavar="GET", help="Of an HTTP request.")] = "",
    path: Annotated[str, typer.Option(metavar="PATH", help="Of an HTTP request.")] = "",
    host: Annotated[str, typer.Option(metavar="HOST", help="Of an HTTP request.")] = "",
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="A header. Repeatable.")
    ] = None,
    cases: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Run a file of cases instead. Repeatable."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the cases' JUnit XML here.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Explain cases that pass, too.")
    ] = False,
    files: FilesOption = None,
    state_dir: StateDirOption = None,
    mesh_config: MeshConfigOption = None,
    skip_unknown_kinds: SkipKindsOption = False,
    output: JsonOption = OutputFormat.TEXT,
) -> None:
    """Say whether a connection or request would be allowed, and why; or run a file of cases.

    Exit codes: 0 allowed, or all cases passed; 1 not so; 2 the question or a file is no good.
    """
    from remora.policy_tools.ask import Question, ask, run_files

    chosen = given(files, state_dir, mesh_config, skip_unknown_kinds, besides=cases or ())
    if cases:
        if from_ or to or port is not None:
            raise typer.BadParameter("--cases asks for itself: leave out --from, --to and --port")
        passed = run_files(
            chosen, tuple(cases), as_json=output is OutputFormat.JSON, junit=junit, verbose=verbose
        )
    else:
        if not (from_ and to) or port is None:
            raise typer.BadParameter("give --from, --to and --port, or --cases")
        question = Question(
            caller=from_, called=to, port=port,
            method=method, path=path, host=host, headers=tuple(header or ()),
        )  # fmt: skip
        passed = ask(chosen, question, as_json=output is OutputFormat.JSON)
    raise typer.Exit(0 if passed else 1)
