"""`remora demo`: the whole story on one machine."""

from __future__ import annotations

import enum
import functools
import sys
from typing import Annotated

import typer

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
"""The shell's code for a program that Ctrl-C ended."""


class Output(enum.StrEnum):
    """How the results are printed."""

    TABLE = "table"
    JSON = "json"


def demo(
    *,
    output: Annotated[Output, typer.Option("--output", "-o", help="How to print.")] = Output.TABLE,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the mesh up afterwards, and say what to try.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every log line, and all evidence.")
    ] = False,
) -> None:
    """Start a whole mesh on this machine, and see what it lets through and what it refuses.

    A CA, agents, sidecars and apps, as real processes on loopback; no root needed. Exits with 0
    only if everything came out as expected, and leaves no process and no file behind.
    """
    from remora.demo.run import Options, Verdict, run_demo
    from remora.program import run_program

    verdict = Verdict()
    options = Options(json=output is Output.JSON, keep=keep, verbose=verbose)
    run_program(functools.partial(run_demo, options, verdict))
    if verdict.holds is None:
        typer.echo("remora: interrupted; every process was ended and every file removed", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0 if verdict.holds else EXIT_FAILED)
